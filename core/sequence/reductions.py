"""Sums over tokens, rows and groups, in single precision or better; no prompt costs a step of Python."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from core.errors import InputError

How = Literal["token", "sequence", "row_sum", "constant"]
"""How the terms of tokens become one number; see ``reduce``."""


def wide(x: Tensor) -> Tensor:
    """Numbers in single precision, those in double precision as they are."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def reduce(x: Tensor, mask: Tensor, how: How) -> Tensor:
    """One number from the terms of tokens.

    ``token`` is the mean over all valid tokens, ``sequence`` the mean over rows of a row's mean, ``row_sum`` the mean
    over rows of a row's sum, ``constant`` the sum over B T, which no sequence's length moves (Liu et al. 2025, Dr.GRPO,
    arXiv 2503.20783).

    Args:
        x: ``(B, T)``; what it holds where not ``mask`` is not read.
        mask: ``(B, T)`` bool.
        how: one of the four.

    Raises:
        InputError: ``how`` is none of them.
    """
    kept = torch.where(mask, wide(x), 0.0)
    if how == "token":
        total, own = kept.sum(), mask.sum()
    elif how == "sequence":
        total, own = (kept.sum(1) / mask.sum(1).clamp(min=1)).sum(), mask.new_tensor(len(mask), dtype=torch.int64)
    elif how == "row_sum":
        total, own = kept.sum(), mask.new_tensor(len(mask), dtype=torch.int64)
    elif how == "constant":
        total, own = kept.sum(), mask.new_tensor(mask.numel(), dtype=torch.int64)
    else:
        raise InputError(f"how: {how!r} is not one of {', '.join(get_args(How))}")
    # A batch in which nothing is valid gives 0, with a graph.
    return total / own.clamp(min=1)


def suffix_sum(x: Tensor, mask: Tensor, gamma: float = 1.0) -> Tensor:
    """``(B, T)`` sum over u >= t of gamma^(u - t) x_u over the valid tokens of a row."""
    kept = torch.where(mask, wide(x), 0.0)
    if gamma == 1:
        return kept.flip(1).cumsum(1).flip(1)
    t = torch.arange(x.shape[1], device=x.device)
    later = t.unsqueeze(1) - t
    weight = torch.where(later >= 0, torch.as_tensor(gamma, dtype=kept.dtype) ** later.clamp(min=0), 0.0)
    return kept @ weight


def per_row(x: Tensor, mask: Tensor) -> Tensor:
    """``(B,)`` sums of the valid tokens of ``(B, T)``; what is of rows already stays."""
    x = wide(x)
    # Single-precision numbers of like size add up exactly in double precision, so that dense rewards which only stand
    # in another order tie; a rounded sum would part them, and their group's deviation would blow that rounding up.
    return x if x.dim() == 1 else torch.where(mask, x, 0.0).sum(1, dtype=torch.float64).to(x.dtype)


def per_token(x: Tensor, mask: Tensor) -> Tensor:
    """``(B, T)``, 0 where not ``mask``; a number of a row ``(B,)`` comes to stand at its last valid token."""
    if x.dim() == 2:
        return torch.where(mask, wide(x), 0.0)
    last = mask & (mask.flip(1).cumsum(1).flip(1) == 1)
    return torch.where(last, wide(x).unsqueeze(1), 0.0)


def group_sum(x: Tensor, group: Tensor) -> Tensor:
    """``(B, ...)`` each row's sum over the rows of its group ``(B,)``, itself included."""
    total = x.new_zeros(int(group.max()) + 1 if len(group) else 0, *x.shape[1:])
    return total.index_add_(0, group, x)[group]


def group_size(group: Tensor) -> Tensor:
    """``(B,)`` int64 number of rows of each row's group."""
    return torch.bincount(group)[group]


def group_max(x: Tensor, group: Tensor) -> Tensor:
    """``(B,)`` each row's largest over the rows of its group."""
    top = x.new_empty(int(group.max()) + 1 if len(group) else 0)
    return top.scatter_reduce_(0, group, x, "amax", include_self=False)[group]


def standardised(x: Tensor, mask: Tensor, eps: float) -> Tensor:
    """``(B, T)`` less its row's mean, over its row's deviation (n - 1) plus ``eps``; 0 for a row of one token."""
    n = mask.sum(1, keepdim=True)
    centred = torch.where(mask, x - torch.where(mask, x, 0.0).sum(1, keepdim=True) / n.clamp(min=1), 0.0)
    return centred / ((centred.square().sum(1, keepdim=True) / (n - 1).clamp(min=1)).sqrt() + eps)


def check_groups(group: Tensor, who: str, *, every: bool = False) -> None:
    """Refuse sequences that have none to be compared with.

    Args:
        group: ``(B,)``.
        who: what compares, for the message.
        every: refuse one lonely sequence; without it only a batch of nothing else.

    Raises:
        InputError: naming the first such row.
    """
    alone = group_size(group) == 1
    if len(group) and bool(alone.any() if every else alone.all()):
        row = int(alone.int().argmax())
        raise InputError(f"group: row {row} is the only sequence of its prompt; {who} needs at least 2 a prompt")


def check(name: str, value: object, good: bool, allowed: str) -> None:
    """Refuse a hyper-parameter.

    Raises:
        InputError: it is not ``good``.
    """
    if not good:
        raise InputError(f"{name}: {value!r} is not {allowed}")

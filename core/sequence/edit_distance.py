"""Levenshtein distances of every prefix of many sequences at once, on their device."""

from __future__ import annotations

import torch
from torch import Tensor


def next_row(row: Tensor, token: Tensor, reference: Tensor) -> Tensor:
    """``(B, n + 1)`` the row of the dynamic programme after one more token; the first row is all 0.

    Entry j is the distance to the first j symbols of the reference, minus j. In these units an insertion costs nothing,
    so those that remain after a deletion or a substitution are a running minimum.

    Args:
        row: ``(B, n + 1)`` int32, the row before.
        token: ``(B,)`` int64.
        reference: ``(B, n)`` int64.
    """
    step = row + 1
    other = (reference != token.unsqueeze(1)).to(row.dtype)
    step[:, 1:] = torch.minimum(step[:, 1:], row[:, :-1] + other - 1)
    return step.cummin(1).values


@torch.no_grad()
def prefix_edit_distances(tokens: Tensor, keep: Tensor, reference: Tensor, length: Tensor) -> Tensor:
    """``(B, T)`` int64 distances D_t between the first t + 1 tokens of a sequence and the whole of its reference.

    A row of the dynamic programme a step, for all pairs at once: T steps, no transfer from a device to the host.

    Args:
        tokens: ``(B, T)`` int64.
        keep: ``(B, T)`` bool; where False (an end symbol, padding) the token is skipped and D_t = D_{t-1}.
        reference: ``(B, n)`` int64, padded on the right.
        length: ``(B,)`` int64, lengths of the references; D before the first token is ``length``.
    """
    rows, n = reference.shape
    row = torch.zeros(rows, n + 1, dtype=torch.int32, device=tokens.device)
    at = length.unsqueeze(1)
    found = []
    for t in range(tokens.shape[1]):
        row = torch.where(keep[:, t : t + 1], next_row(row, tokens[:, t], reference), row)
        found.append(row.gather(1, at))
    if not found:
        return tokens.new_zeros(rows, 0)
    return torch.cat(found, 1).long() + at


def edit_distances(tokens: Tensor, keep: Tensor, reference: Tensor, length: Tensor) -> Tensor:
    """``(B,)`` int64 distances between whole sequences; arguments as ``prefix_edit_distances``."""
    if tokens.shape[1] == 0:
        return length.clone()
    return prefix_edit_distances(tokens, keep, reference, length)[:, -1]

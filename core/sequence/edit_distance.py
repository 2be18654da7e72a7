"""Levenshtein distances of every prefix of many sequences at once, on their device."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def prefix_edit_distances(tokens: Tensor, keep: Tensor, reference: Tensor, length: Tensor) -> Tensor:
    """``(B, T)`` int64 distances D_t between the first t + 1 tokens of a sequence and the whole of its reference.

    A row of the dynamic programme a step, for all pairs at once: with tmp_j = min(row_j + 1, row_{j-1} + [a_t != b_j])
    the insertions that remain are a running minimum, new_j = min_{i <= j} (tmp_i - i) + j. T steps, no transfer from a
    device to the host.

    Args:
        tokens: ``(B, T)`` int64.
        keep: ``(B, T)`` bool; where False (an end symbol, padding) the token is skipped and D_t = D_{t-1}.
        reference: ``(B, n)`` int64, padded on the right.
        length: ``(B,)`` int64, lengths of the references; D before the first token is ``length``.
    """
    rows, n = reference.shape
    # Row j minus j: an insertion costs nothing in these units, so a running minimum takes all of them at once.
    row = torch.zeros(rows, n + 1, dtype=torch.int32, device=tokens.device)
    at = length.unsqueeze(1)
    found = []
    for t in range(tokens.shape[1]):
        other = (reference != tokens[:, t : t + 1]).to(torch.int32)
        step = row + 1
        step[:, 1:] = torch.minimum(step[:, 1:], row[:, :-1] + other - 1)
        row = torch.where(keep[:, t : t + 1], step.cummin(1).values, row)
        found.append(row.gather(1, at))
    if not found:
        return tokens.new_zeros(rows, 0)
    return torch.cat(found, 1).long() + at


def edit_distances(tokens: Tensor, keep: Tensor, reference: Tensor, length: Tensor) -> Tensor:
    """``(B,)`` int64 distances between whole sequences; arguments as ``prefix_edit_distances``."""
    if tokens.shape[1] == 0:
        return length.clone()
    return prefix_edit_distances(tokens, keep, reference, length)[:, -1]

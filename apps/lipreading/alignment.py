"""Which word or sound of a transcript stands for which of the reference: the path of the fewest edits."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from apps.lipreading.metrics import Transcripts, check_rows, numbered, texts
from core.errors import InputError
from core.sequence.edit_distance import next_row

_ROWS_AT_ONCE = 4096


class Alignment(NamedTuple):
    """One of the shortest edit paths from each hypothesis to its reference, substitutions taken first from the end.

    Attributes:
        partner: ``(N, n)`` int64, for each symbol of the reference the place in the hypothesis of the one that is
            equal or stands in its stead; -1 where it was left out, and after the end.
        right: ``(N, n)`` bool, whether the two are equal.
        inserted: ``(N, T)`` bool, which symbols of the hypothesis stand for none of the reference.
    """

    partner: Tensor
    right: Tensor
    inserted: Tensor


@torch.no_grad()
def align(tokens: Tensor, count: Tensor, reference: Tensor, length: Tensor) -> Alignment:
    """Align rows of numbers, on their device.

    Args:
        tokens: ``(N, T)`` int64, padded on the right.
        count: ``(N,)`` int64, lengths of the hypotheses.
        reference: ``(N, n)`` int64, padded on the right.
        length: ``(N,)`` int64, lengths of the references.
    """
    parts = [
        _align(*rows)
        for rows in zip(*(x.split(_ROWS_AT_ONCE) for x in (tokens, count, reference, length)), strict=True)
    ]
    return Alignment(*(torch.cat(found) for found in zip(*parts, strict=True)))


def aligned(hypotheses: Sequence[Sequence[Hashable]], references: Sequence[Sequence[Hashable]]) -> Alignment:
    """Align sequences of anything that can be compared.

    Raises:
        InputError: their numbers differ.
    """
    check_rows(len(hypotheses), len(references))
    numbers: dict[Hashable, int] = {}
    return align(*numbered(hypotheses, numbers), *numbered(references, numbers))


def slots_right(hypotheses: Transcripts, references: Transcripts) -> Tensor:
    """``(N, S)`` bool, which of the S words of each reference were read; its mean over rows is a slot's accuracy.

    A word that was left out or put in moves no other word out of its slot, since the words are aligned.

    Raises:
        InputError: references with other numbers of words than the first, or numbers of transcripts differ.
    """
    right = [text.split() for text in texts(references)]
    for row, found in enumerate(right):
        if len(found) != len(right[0]):
            raise InputError(f"references[{row}]: has {len(found)} words; must be {len(right[0])}, a word a slot")
    return aligned([text.split() for text in texts(hypotheses)], right).right


def _align(tokens: Tensor, count: Tensor, reference: Tensor, length: Tensor) -> Alignment:
    rows, steps, n = len(tokens), tokens.shape[1], reference.shape[1]
    other = tokens.unsqueeze(2) != reference.unsqueeze(1)
    table = _table(tokens, reference)
    partner = torch.full((rows, n), -1, device=tokens.device)
    right = torch.zeros(rows, n, dtype=torch.bool, device=tokens.device)
    inserted = torch.arange(steps, device=tokens.device) < count.unsqueeze(1)
    at, i, j = torch.arange(rows, device=tokens.device), count.clone(), length.clone()
    for _ in range(steps + n):
        before, left = (i - 1).clamp(min=0), (j - 1).clamp(min=0)
        differ = other[at, before, left] if steps and n else torch.ones_like(at, dtype=torch.bool)
        both = (i > 0) & (j > 0) & (table[at, i, j] == table[at, before, left] + differ)
        omitted = ~both & (j > 0) & (table[at, i, j] == table[at, i, left] + 1)
        if steps and n:
            partner[at, left] = torch.where(both, before, partner[at, left])
            right[at, left] |= both & ~differ
            inserted[at, before] &= ~both
        i = torch.where(omitted, i, before)
        j = torch.where(both | omitted, left, j)
    return Alignment(partner, right, inserted)


def _table(tokens: Tensor, reference: Tensor) -> Tensor:
    """``(N, T + 1, n + 1)`` int32 distances between all beginnings of tokens ``(N, T)`` and reference ``(N, n)``."""
    at = torch.arange(reference.shape[1] + 1, dtype=torch.int32, device=tokens.device)
    found = [torch.zeros_like(at).expand(len(tokens), -1)]
    for token in tokens.unbind(1):
        found.append(next_row(found[-1], token, reference))
    return torch.stack(found, 1) + at

"""Right answers and samples of the same prompts, cut together into the rows of one optimiser step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from core.sequence.batch import TokenBatch, TokenScores


@dataclass(frozen=True)
class Part:
    """Rows of an optimiser step, to be scored in one pass.

    Attributes:
        batch: the rows of ``reference``, then those of ``sampled``.
        sampled: rows for the policy loss.
        reference: rows for the supervised loss.
    """

    batch: TokenBatch
    sampled: TokenBatch | None
    reference: TokenBatch | None

    @classmethod
    def of(cls, sampled: TokenBatch | None, reference: TokenBatch | None) -> Part:
        """Of at least one of the two; prompts that they share as one ``context`` object are encoded once."""
        if sampled is None or reference is None:
            only = reference if sampled is None else sampled
            assert only is not None
            return cls(only, sampled, reference)
        batch = TokenBatch.joined((reference, sampled))
        n, length = len(reference), batch.tokens.shape[1]
        # In the joined batch's numbers of prompts and its padding, so that the scores can be cut in two.
        halves = (
            half.pad_to(length).with_(context=batch.context, group=group)
            for half, group in ((sampled, batch.group[n:]), (reference, batch.group[:n]))
        )
        return cls(batch, *halves)

    def __getitem__(self, rows: Tensor) -> Part:
        """The rows of a mask ``(B,)``."""
        batch, n = self.batch[rows], 0 if self.reference is None else len(self.reference)

        def cut(half: TokenBatch | None, mask: Tensor, group: Tensor) -> TokenBatch | None:
            if half is None:
                return None
            return half.with_(context=None)[mask].with_(context=batch.context, group=group)

        kept = int(rows[:n].sum())
        return Part(
            batch,
            cut(self.sampled, rows[n:], batch.group[kept:]),
            cut(self.reference, rows[:n], batch.group[:kept]),
        )

    def minibatches(self, n: int, generator: torch.Generator) -> Iterator[Part]:
        """The rows in n parts, or fewer; see ``TokenBatch.deal``."""
        if n == 1:
            yield self
            return
        for rows in self.batch.deal(n, generator):
            yield self[rows]

    def halves(self, scores: TokenScores) -> tuple[TokenScores | None, TokenScores | None]:
        """Scores of ``sampled`` and of ``reference`` out of those of ``batch``."""
        if self.sampled is None or self.reference is None:
            return (None, scores) if self.sampled is None else (scores, None)
        n = len(self.reference)
        return scores[n:], scores[:n]

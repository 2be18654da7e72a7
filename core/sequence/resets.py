"""Rollouts that start inside known good answers (dataset reset)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from core.errors import InputError
from core.sequence.batch import PAD, Loss, LossResult, TokenBatch, TokenScores
from core.sequence.reductions import check, reduce


@dataclass(frozen=True)
class DatasetReset:
    """Beginnings of the right answers, from which a policy goes on (DR-PO: Chang et al. 2024, arXiv 2404.08495).

    With probability ``prob`` a rollout starts from an answer cut at t ~ U{0, ..., length}, else from the prompt. The
    tokens before the cut are not in the mask, so that no loss counts them; a whole answer leaves a row without loss.

    Args:
        prob: of starting inside the answer.
        cut: anywhere, or only where a ``segment`` of the reference begins or ends.
        curriculum: updates over which the earliest cut moves from the answer's end to its beginning; 0: all at once.

    Raises:
        InputError: a value outside its range.
    """

    prob: float = 1.0
    cut: Literal["uniform", "segment"] = "uniform"
    curriculum: int = 0

    def __post_init__(self) -> None:
        check("DatasetReset.prob", self.prob, 0 <= self.prob <= 1, "in [0, 1]")
        check("DatasetReset.cut", self.cut, self.cut in ("uniform", "segment"), "uniform or segment")
        check("DatasetReset.curriculum", self.curriculum, self.curriculum >= 0, "at least 0")

    def __call__(self, reference: TokenBatch, n: int, step: int, generator: torch.Generator) -> TokenBatch:
        """The ``prefix`` of n rollouts a prompt, ``(P * n, T)``; row ``p * n + i`` is the i-th of prompt p.

        Args:
            reference: one answer for each of P prompts.
            n: rollouts a prompt.
            step: number of the update, for the curriculum.
            generator: of the cuts.

        Raises:
            InputError: prompts with no or several answers.
        """
        order = reference.group.argsort(stable=True)
        device = order.device
        if not torch.equal(reference.group[order], torch.arange(len(order), device=device)):
            raise InputError(f"reference: has {len(order)} rows; must have one for each prompt, numbered from 0")
        rows = order.repeat_interleave(n)
        before = torch.zeros_like(rows)
        if self.prob:
            reset, place = torch.rand(2, len(rows), generator=generator, device=generator.device).to(device)
            before = torch.where(reset < self.prob, self._cuts(reference, step, rows, place), 0)
        tokens = reference.tokens[rows]
        forced = torch.arange(tokens.shape[1], device=device) < before.unsqueeze(1)
        return TokenBatch(
            torch.where(forced, tokens, PAD),
            torch.zeros_like(forced),
            reference.group[rows],
            reference.context,
            present=forced,
        )

    def _cuts(self, reference: TokenBatch, step: int, rows: Tensor, place: Tensor) -> Tensor:
        """Numbers of tokens that are forced, for places in [0, 1) among the cuts that are allowed."""
        cuts = torch.arange(reference.tokens.shape[1] + 1, device=rows.device)
        length = reference.length.unsqueeze(1)
        allowed = cuts <= length
        if self.cut == "segment":
            segment = reference.need("segment")
            edge = torch.ones_like(allowed)
            edge[:, 1:-1] = segment[:, 1:] != segment[:, :-1]
            allowed &= edge | (cuts == length)
        if step < self.curriculum:
            # At least the last two cuts, one of which leaves something to be done.
            left = allowed.flip(1).cumsum(1).flip(1)
            share = torch.tensor(step / self.curriculum, device=rows.device)
            most = (share * (allowed.sum(1, keepdim=True) - 1)).ceil().clamp(min=1) + 1
            allowed &= left <= most
        allowed = allowed[rows]
        chosen = (place * allowed.sum(1)).long().unsqueeze(1)
        return (allowed & (allowed.cumsum(1) - 1 == chosen)).long().argmax(1)


@dataclass(frozen=True)
class RollInCloning:
    """A loss plus the cross-entropy of the tokens that rollouts were started with.

    Args:
        inner: the loss of the tokens that were sampled.
        weight: of the token mean of -log pi over the forced ones.

    Raises:
        InputError: a weight below 0.
    """

    inner: Loss
    weight: float = 0.1

    def __post_init__(self) -> None:
        check("RollInCloning.weight", self.weight, 0 <= self.weight < math.inf, "at least 0 and finite")

    @property
    def need(self) -> frozenset[str]:
        """What the inner loss reads."""
        found: frozenset[str] = getattr(self.inner, "need", frozenset())
        return found

    def __call__(self, scores: TokenScores, batch: TokenBatch) -> LossResult:
        """The sum; the inner loss alone where nothing was forced."""
        inner = self.inner(scores, batch)
        cloning = reduce(-scores.log_prob, batch.valid & ~batch.mask, "token")
        return LossResult(inner.value + self.weight * cloning, {**inner.metrics, "roll_in": cloning.detach()})

"""Debaters that need no training: they know the judge and search, or follow a given order, or draw at random.

The learned debaters of the paper answer to these: a confuser that looks one item ahead in the judge is a stronger
attacker than one that was trained for a short while.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from apps.sepsis.debate import Position, Scorer, check_items
from core.errors import InputError


def candidate_gains(judge: Scorer, position: Position) -> Tensor:
    """``(N, F)``: own score minus the rival's with one more item revealed; -inf where it is revealed already."""
    own = judge.candidate_scores(position.state, position.revealed, position.own)
    rival = judge.candidate_scores(position.state, position.revealed, position.rival)
    return (own - rival).masked_fill(position.revealed, -torch.inf)


def first_order_effects(judge: Scorer, state: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """``(N, F)``: what each item alone adds to the difference of the judge's scores of two actions.

    d_i = [J(a1, {i}) - J(a2, {i})] - [J(a1, {}) - J(a2, {})], 45 evaluations of each action.

    Args:
        judge: scores both actions.
        state: ``(N, F)`` normalised.
        first: ``(N,)`` action a1.
        second: ``(N,)`` action a2.
    """
    empty = torch.zeros(state.shape, dtype=torch.bool, device=state.device)
    none = judge.score(state, empty, first) - judge.score(state, empty, second)
    return candidate_gains(judge, Position(state, empty, first, second, 1)) - none[:, None]


def first_order_evidence(judge: Scorer, state: Tensor, first: Tensor, second: Tensor, items: int = 6) -> Tensor:
    """The cheapest debate: each side reveals the L/2 items that, alone, speak most for its action.

    Two batched calls of the judge for each action instead of a search in turns. Which side takes its items first
    makes no difference.

    Args:
        judge: scores both actions.
        state: ``(N, F)`` normalised.
        first: ``(N,)`` action of player 1.
        second: ``(N,)`` action of player 2.
        items: L, even.

    Returns:
        ``(N, F)`` bool with L items in each row.

    Raises:
        InputError: ``items`` is odd or out of range.
    """
    check_items(items, state.shape[-1], players=2)
    order = first_order_effects(judge, state, first, second).argsort(dim=1, descending=True)
    half = items // 2
    chosen = torch.cat([order[:, :half], order[:, order.shape[1] - half :]], 1)
    return torch.zeros(state.shape, dtype=torch.bool, device=state.device).scatter(1, chosen, True)


@dataclass(frozen=True)
class RandomDebater:
    """Reveals any item, all with equal probability."""

    generator: torch.Generator

    def choose(self, position: Position) -> Tensor:
        """``(N,)`` item."""
        revealed = position.revealed
        priority = torch.rand(revealed.shape, generator=self.generator, device=self.generator.device)
        return priority.to(revealed.device).masked_fill(revealed, -1.0).argmax(1)


@dataclass(frozen=True)
class FirstOrderDebater:
    """Reveals the item that alone, without those on the table, speaks most for its action."""

    judge: Scorer

    def choose(self, position: Position) -> Tensor:
        """``(N,)`` item."""
        effects = first_order_effects(self.judge, position.state, position.own, position.rival)
        return effects.masked_fill(position.revealed, -torch.inf).argmax(1)


@dataclass(frozen=True)
class LookaheadDebater:
    """Reveals the item after which the judge's scores differ most in its favour, given those on the table."""

    judge: Scorer

    def choose(self, position: Position) -> Tensor:
        """``(N,)`` item."""
        return candidate_gains(self.judge, position).argmax(1)


@dataclass(frozen=True)
class FixedEvidence:
    """Reveals a given list, whatever the other side says: attributions such as SHAP's, in order of importance.

    Attributes:
        order: ``(M, K)`` int64, for each debate of the batch the items from the most important on.
    """

    order: Tensor

    def choose(self, position: Position) -> Tensor:
        """``(N,)``, the first item of each list that is not on the table.

        Raises:
            InputError: there are other lists than debates, or a list has come to its end.
        """
        if position.row is None and len(self.order) != len(position.state):
            raise InputError(f"order: {len(self.order)} lists for {len(position.state)} debates; must be one a debate")
        order = self.order if position.row is None else self.order[position.row]
        free = ~position.revealed.gather(1, order)
        if not bool(free.any(1).all()):
            raise InputError(f"order: all {order.shape[1]} items of a list are revealed; must be longer")
        return order.gather(1, free.long().argmax(1, keepdim=True))[:, 0]

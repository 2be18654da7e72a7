"""Which features of a patient are laid before the judge on two treatments, by the debaters of a study."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from apps.sepsis.debate import Debater, draw_starter, hold_debate
from apps.sepsis.debaters import LookaheadDebater, first_order_evidence
from apps.sepsis.judge import Judge, random_evidence

DebaterKind = Literal["first_order", "lookahead", "random", "isolated", "precommit", "self_play", "maxmin"]
"""Who debates: the cheap or the searching debater, random features, or one kind of trained debaters."""

LEARNED = ("isolated", "precommit", "self_play", "maxmin")
"""Those that are trained."""


class Arguments:
    """The debaters of a study before their judge.

    Args:
        judge: scores; first-order and lookahead debaters also choose by its scores.
        kind: who debates; ``state`` shows the judge everything.
        trained: who argues for the first action and who for the second, where the kind is a trained one.
    """

    def __init__(
        self, judge: Judge, kind: DebaterKind | Literal["state"], trained: tuple[Debater, Debater] | None = None
    ) -> None:
        self.judge, self.kind, self.trained = judge, kind, trained

    def evidence(self, state: Tensor, first: Tensor, second: Tensor, seed: int) -> Tensor:
        """What the judge gets to see of states ``(N, 44)`` with two actions ``(N,)``; ``(N, 44)`` bool.

        Where both actions are the same there is no debate, hence no evidence.
        """
        shown = torch.zeros(state.shape, dtype=torch.bool, device=state.device)
        rows = (first != second).nonzero()[:, 0]
        if len(rows):
            shown[rows] = self._evidence(state[rows], first[rows], second[rows], seed)
        return shown

    def _evidence(self, state: Tensor, first: Tensor, second: Tensor, seed: int) -> Tensor:
        generator = torch.Generator(state.device).manual_seed(seed)
        items = self.judge.items
        if self.kind == "state":
            return torch.ones_like(state, dtype=torch.bool)
        if self.kind == "random":
            return random_evidence(len(state), items, generator, state.device)
        if self.kind == "first_order":
            return first_order_evidence(self.judge, state, first, second, items)
        one, two = self.trained or (LookaheadDebater(self.judge), LookaheadDebater(self.judge))
        starter = draw_starter(len(state), generator, state.device)
        return hold_debate(state, first, second, one, two, items, starter=starter).evidence

"""Which features of a patient are laid before the judge on two treatments, by the debaters of a study."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from apps.sepsis.debate import Debate, Debater, Order, draw_starter, hold_debate
from apps.sepsis.debaters import FirstOrderDebater, LookaheadDebater, RandomDebater, first_order_evidence
from apps.sepsis.exact import ExactDebater
from apps.sepsis.judge import Judge, JudgeEnsemble, random_evidence
from apps.sepsis.learned_debaters import LearnedDebater
from core import files
from core.errors import InputError
from simulators.sepsis.features import STATE

DebaterKind = Literal["first_order", "lookahead", "exact", "random", "isolated", "precommit", "self_play", "maxmin"]
"""Who debates: the cheap, the searching or the exact debater, random features, or one kind of trained debaters."""

UNTRAINED = ("first_order", "lookahead", "exact", "random")
"""Those that need no training."""
LEARNED = ("isolated", "precommit", "self_play", "maxmin")
"""Those that are trained."""
SIDES = ("for", "against")
"""Folders of trained debaters, by whether they argue for an action or against it."""
RECORD, CONFUSER = "debaters.json", "confuser"


def save_debaters(
    folder: Path, kind: str, debaters: tuple[LearnedDebater, LearnedDebater], confuser: LearnedDebater | None = None
) -> None:
    """Write trained debaters, and the confuser that was trained against them, into a folder."""
    for name, debater in zip(SIDES, debaters, strict=True):
        debater.save(folder / name)
    if confuser is not None:
        confuser.save(folder / CONFUSER)
    files.write_json(folder / RECORD, {"kind": kind, "items": debaters[0].items})


def load_debaters(
    folder: Path, items: int, device: str | torch.device = "cpu"
) -> tuple[DebaterKind, tuple[LearnedDebater, LearnedDebater]]:
    """Read what ``save_debaters`` wrote: how they were trained, and who argues for an action and who against it.

    Raises:
        InputError: missing or damaged files, or debaters for another number of items.
    """
    kind = files.read_json(folder / RECORD, ("kind",))["kind"]
    if kind not in LEARNED:
        raise InputError(f"{folder / RECORD}: kind is {kind!r}; allowed: {', '.join(LEARNED)}")
    one, two = (LearnedDebater.load(folder / name, items).to(device) for name in SIDES)
    return kind, (one, two)


def arguments_by(judge: Judge | JudgeEnsemble, debaters: str, device: str | torch.device = "cpu") -> Arguments:
    """The arguments of debaters that are named, or that lie in a folder.

    Args:
        judge: before whom; on ``device``.
        debaters: one of ``UNTRAINED``, or a folder that ``save_debaters`` has written.
        device: where they play.

    Raises:
        InputError: neither, or as ``load_debaters``.
    """
    if debaters in UNTRAINED:
        return Arguments(judge, debaters)  # type: ignore[arg-type]
    if not Path(debaters).is_dir():
        raise InputError(f"debaters: {debaters}; must be {', '.join(UNTRAINED)}, or a folder of trained ones")
    return Arguments(judge, *load_debaters(Path(debaters), judge.items, device))


class Arguments:
    """The debaters of a study before their judge; one who sees the whole state needs nobody.

    Args:
        judge: scores; searching debaters also choose by its scores.
        kind: who debates.
        trained: who argues for an action and who against it, where the kind is a trained one. When two policies are
            compared the former argues on both sides: a rival that was trained longer would make the comparison unfair.
    """

    def __init__(
        self, judge: Judge | JudgeEnsemble, kind: DebaterKind, trained: tuple[Debater, Debater] | None = None
    ) -> None:
        self.judge, self.kind, self.trained = judge, kind, trained

    def scores(self, state: Tensor, action: Tensor, rival: Tensor, seed: int) -> dict[str, Tensor]:
        """What the judge thinks of two actions ``(N,)`` in states ``(N, 44)`` after their debates.

        Returns:
            ``score`` and ``rival`` ``(N,)``, of each action given the same evidence, and ``differs`` ``(N,)`` bool.
        """
        evidence = self.evidence(state, action, rival, seed)
        return {
            "score": self.judge.score(state, evidence, action),
            "rival": self.judge.score(state, evidence, rival),
            "differs": action != rival,
        }

    def debate(self, state: Tensor, first: Tensor, second: Tensor, seed: int) -> Debate:
        """Debates move by move; the evidence is that of ``evidence`` except where random features are drawn or tie.

        Raises:
            InputError: the judge sees the whole state, or an odd number of features.
        """
        generator = torch.Generator(state.device).manual_seed(seed)
        starter = draw_starter(len(state), generator, state.device)
        one, two = self.players(generator)
        order: Order = "upfront" if self.kind == "precommit" else "alternating"
        return hold_debate(state, first, second, one, two, self.judge.items, order=order, starter=starter)

    def players(self, generator: torch.Generator) -> tuple[Debater, Debater]:
        """Who argues for the first action, and who for the second; only random debaters draw from ``generator``."""
        if self.kind == "random":
            return RandomDebater(generator), RandomDebater(generator)
        if self.kind == "first_order":
            return FirstOrderDebater(self.judge), FirstOrderDebater(self.judge)
        if self.kind == "exact":
            return ExactDebater(self.judge), ExactDebater(self.judge)
        if self.trained is not None:
            return self.trained[0], self.trained[0]
        return LookaheadDebater(self.judge), LookaheadDebater(self.judge)

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
        items = self.judge.items
        if items == len(STATE):
            return torch.ones_like(state, dtype=torch.bool)
        if self.kind == "random":
            generator = torch.Generator(state.device).manual_seed(seed)
            return random_evidence(len(state), items, generator, state.device)
        if self.kind == "first_order":
            return first_order_evidence(self.judge, state, first, second, items)
        return self.debate(state, first, second, seed).evidence

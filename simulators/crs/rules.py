"""The rules of a dialogue: what may be asked, how turns are counted, what is paid, and how the user errs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from core.errors import InputError

Question = Literal["binary", "enumerated", "multi_choice"]
TurnMode = Literal["paper", "official"]
Rejection = Literal["sigmoid", "dot"]
OnEmpty = Literal["quit", "relax"]


@dataclass(frozen=True)
class Rewards:
    """What a turn pays (Deng et al. 2021, section 3; Lei et al. 2020).

    Attributes:
        ask_success: the item has what was asked about; in multi-choice, of each attribute that was named.
        ask_failure: it has not; likewise.
        recommend_success: an item is accepted.
        recommend_failure: no item is.
        quit: the user leaves; in place of what the turn would pay.
        empty: no candidate is left; likewise.
    """

    ask_success: float = 0.01
    ask_failure: float = -0.1
    recommend_success: float = 1.0
    recommend_failure: float = -0.1
    quit: float = -0.3
    empty: float = -0.1

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not math.isfinite(value):
                raise InputError(f"rewards.{name} = {value}: must be finite")


@dataclass(frozen=True)
class Rules:
    """The rules of a dialogue.

    Attributes:
        question: ``binary`` asks for one attribute; ``enumerated`` for a type, and the user names all the attributes of
            it; ``multi_choice`` for up to ``choices`` attributes of one type, and items with any of the accepted ones
            stay candidates (Zhang et al. 2022, MCMIPL).
        turns: ``paper`` gives the system T actions; ``official`` T - 1, and the T-th is void: the published code counts
            the opening as a turn and the last step only emits the quit.
        max_turns: T.
        list_length: K, the most items of a recommendation.
        choices: most attributes in a multi-choice question.
        rejection: what a rejected attribute takes from the score of an item that has it, sigmoid(e_p.e_v) as in the
            published code or e_p.e_v as in the paper (equation 1).
        answer_noise: probability that an answer about an attribute is turned round; the opening is exact.
        unknown_rate: probability that the user does not care: no update, no reward.
        quit_hazard: probability that the user leaves after each turn that failed.
        targets: number m of items that are acceptable, the target and those m - 1 that have most in common with it.
        on_empty: when contradictory answers leave no candidate, the dialogue ends (``quit``), or the last answer does
            not narrow the candidates (``relax``).
        rewards: of a turn.
    """

    question: Question = "binary"
    turns: TurnMode = "paper"
    max_turns: int = 15
    list_length: int = 10
    choices: int = 4
    rejection: Rejection = "sigmoid"
    answer_noise: float = 0.0
    unknown_rate: float = 0.0
    quit_hazard: float = 0.0
    targets: int = 1
    on_empty: OnEmpty = "quit"
    rewards: Rewards = Rewards()

    def __post_init__(self) -> None:
        kinds = {"question": Question, "turns": TurnMode, "rejection": Rejection, "on_empty": OnEmpty}
        for name, kind in kinds.items():
            if getattr(self, name) not in get_args(kind):
                raise InputError(f"rules.{name} = {getattr(self, name)!r}: must be one of {', '.join(get_args(kind))}")
        for name in ("max_turns", "list_length", "choices", "targets"):
            if getattr(self, name) < 1:
                raise InputError(f"rules.{name} = {getattr(self, name)}: must be at least 1")
        if self.turns == "official" and self.max_turns < 2:
            raise InputError(f"rules.max_turns = {self.max_turns}: must be at least 2 with official turns")
        for name, high in (("answer_noise", 0.5), ("unknown_rate", 1.0), ("quit_hazard", 1.0)):
            if not 0 <= getattr(self, name) < high:
                raise InputError(f"rules.{name} = {getattr(self, name)}: must be at least 0 and below {high:g}")

    @property
    def actions(self) -> int:
        """System actions that count."""
        return self.max_turns - (self.turns == "official")

    def may_ask(self, turn: Tensor) -> Tensor:
        """Bool of the shape of ``turn``, the actions so far: with ``paper`` turns the last one has to recommend."""
        return turn + 1 < self.max_turns if self.turns == "paper" else torch.ones_like(turn, dtype=torch.bool)

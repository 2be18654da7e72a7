"""The debate game as a world: one player learns, the other is part of the world.

Sukovic & Radanovic, Reward Design for Justifiable Sequential Decision-Making, ICLR 2024 (arXiv 2402.15826), section 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor
from torch.nn import functional

from apps.sepsis.debate import Debater, Order, Position, Scorer, Utility, check_items, compare
from apps.sepsis.preferences import Preferences
from core.errors import InputError
from core.simulation import GymEnv, Step, Variable
from simulators.sepsis.features import ACTIONS, STATE

Role = Literal["preferred", "rejected", "both"]
"""Which action of a pair the learner argues for; ``both`` draws it anew for each debate."""
Starter = Literal["drawn", "learner", "rival"]
"""Who reveals the first item."""

FEATURES = len(STATE)
BOUND = 20.0
"""Features, which are in standard deviations, are shown to players clipped to this size."""
FORFEIT = -1.0
"""Reward of a player who reveals an item for the second time, which ends the debate."""


def view(state: Tensor, revealed: Tensor, own: Tensor) -> Tensor:
    """What a learned player sees, ``(N, 113)``: the whole state, what is on the table, its own action (one-hot).

    Args:
        state: ``(N, 44)`` normalised.
        revealed: ``(N, 44)`` bool.
        own: ``(N,)`` int64.
    """
    action = functional.one_hot(own, ACTIONS).to(state.dtype)
    return torch.cat((state.clamp(-BOUND, BOUND), revealed.to(state.dtype), action), 1)


@runtime_checkable
class SamplingDebater(Protocol):
    """A debater that can also be sampled from."""

    def logits(self, position: Position) -> Tensor:
        """``(N, 44)``, unnormalised log-probabilities of the items; -inf for those on the table."""
        ...


@dataclass(frozen=True)
class DebateState:
    """B debates in progress.

    Attributes:
        row: ``(B,)`` int64, row of the preferences.
        patient: ``(B, 44)`` normalised state.
        own: ``(B,)`` int64, the learner's action.
        other: ``(B,)`` int64, the rival's action.
        revealed: ``(B, 44)`` bool, the items on the table.
        turn: ``(B,)`` int64, how many have been revealed, by both.
        starts: ``(B,)`` bool, the learner revealed, or will reveal, the first.
    """

    row: Tensor
    patient: Tensor
    own: Tensor
    other: Tensor
    revealed: Tensor
    turn: Tensor
    starts: Tensor


@dataclass(frozen=True)
class DebateNoise:
    """``uniform`` ``(B, moves, 44)`` in [0, 1) for what a sampled rival says in answer; ``(B, 0, 44)`` without one."""

    uniform: Tensor


@dataclass(frozen=True, eq=False)
class DebateGame:
    """Debates about drawn pairs of actions, as a world of which one player is the agent.

    A step is one item of the learner and all that the rival says before it is the learner's turn again. After L items
    the judge pays the learner; before, nothing is paid. Every debate takes ``moves`` steps.

    Args:
        judge: pays at the end.
        preferences: the pairs that debates are drawn from, each as likely.
        items: L, of both players together.
        rival: the other player, whose choices follow from the position alone; None: the learner reveals all items.
        order: in turns, or first all items of one and then all of the other.
        starter: who reveals the first item.
        role: which action the learner argues for.
        utility: what the judge pays.
        sampled: the rival's items are drawn from its probabilities (Gumbel-max) instead of being the likeliest.

    Raises:
        InputError: a number of items that cannot be shared, no preferences, a value that is none of the allowed, or
            ``sampled`` with a rival without probabilities.
    """

    judge: Scorer
    preferences: Preferences
    items: int = 6
    rival: Debater | None = None
    order: Order = "alternating"
    starter: Starter = "drawn"
    role: Role = "both"
    utility: Utility = "sign"
    sampled: bool = False
    agents: int = 1

    def __post_init__(self) -> None:
        check_items(self.items, FEATURES, players=1 if self.rival is None else 2)
        if not len(self.preferences):
            raise InputError("preferences: none; must be at least one pair")
        allowed = {
            "order": ("alternating", "upfront"),
            "starter": ("drawn", "learner", "rival"),
            "role": ("preferred", "rejected", "both"),
            "utility": ("sign", "difference", "wins"),
        }
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise InputError(f"{name}: {getattr(self, name)!r}; allowed: {', '.join(values)}")
        if self.sampled and not isinstance(self.rival, SamplingDebater):
            raise InputError(f"sampled: {type(self.rival).__name__} has no probabilities; must be a learned debater")

    @property
    def moves(self) -> int:
        """Items that the learner reveals."""
        return self.items if self.rival is None else self.items // 2

    @property
    def observation_space(self) -> spaces.Box:
        """See ``view``."""
        high = np.concatenate([np.full(FEATURES, BOUND), np.ones(FEATURES + ACTIONS)]).astype(np.float32)
        low = np.concatenate([np.full(FEATURES, -BOUND), np.zeros(FEATURES + ACTIONS)]).astype(np.float32)
        return spaces.Box(low, high, dtype=np.float32)

    @property
    def action_space(self) -> spaces.Discrete:
        """The item to reveal."""
        return spaces.Discrete(FEATURES)

    @property
    def variables(self) -> Mapping[str, Variable]:
        """What a roll-out records."""
        return {
            "action": Variable((), "1", "feature that the learner reveals"),
            "reward": Variable((), "1", "utility that the judge pays"),
            "own": Variable((), "1", "treatment that the learner argues for"),
            "other": Variable((), "1", "treatment that the rival argues for"),
            "revealed": Variable(("feature",), "1", "whether the feature is on the table", {"feature": STATE}),
        }

    def reset(self, batch: int, generator: torch.Generator) -> DebateState:
        """Draw pairs, roles and starters; where the rival starts, it has spoken."""
        device = generator.device
        rows = torch.randint(len(self.preferences), (batch,), generator=generator, device=device)
        coin = torch.randint(2, (2, batch), generator=generator, device=device).bool()
        return self.reset_to(rows, holds_preferred=coin[0], starts=coin[1], noise=self.noise(batch, generator))

    def reset_to(
        self,
        rows: Tensor,
        *,
        holds_preferred: Tensor | None = None,
        starts: Tensor | None = None,
        noise: DebateNoise | None = None,
    ) -> DebateState:
        """Debates about given pairs.

        Args:
            rows: ``(B,)`` int64 of the preferences.
            holds_preferred: ``(B,)`` bool, for ``role="both"``: the learner argues for the preferred action; None: yes.
            starts: ``(B,)`` bool, for ``starter="drawn"``: the learner reveals the first item; None: yes.
            noise: of the first items of a sampled rival.

        Raises:
            InputError: a rival to be sampled, and no noise.
        """
        patient, preferred, rejected = (
            x[rows] for x in (self.preferences.state, self.preferences.preferred, self.preferences.rejected)
        )
        yes = torch.ones_like(rows, dtype=torch.bool)
        given = {"preferred": yes, "rejected": ~yes, "both": yes if holds_preferred is None else holds_preferred}
        first = {"learner": yes, "rival": ~yes, "drawn": yes if starts is None else starts}
        for_it = given[self.role]
        state = DebateState(
            row=rows,
            patient=patient,
            own=torch.where(for_it, preferred, rejected),
            other=torch.where(for_it, rejected, preferred),
            revealed=torch.zeros_like(patient, dtype=torch.bool),
            turn=torch.zeros_like(rows),
            starts=first[self.starter],
        )
        if self.sampled and noise is None:
            raise InputError("noise: None; a sampled rival needs it")
        return self._answered(state, noise)

    def noise(self, batch: int, generator: torch.Generator) -> DebateNoise:
        """Uniform numbers of the rival's Gumbel-max, if it is sampled."""
        shape = (batch, self._answers if self.sampled else 0, FEATURES)
        return DebateNoise(torch.rand(shape, generator=generator, device=generator.device))

    def step(self, state: DebateState, action: Tensor, noise: DebateNoise) -> Step:
        """Reveal ``action`` ``(B,)``, hear the rival, and be paid if that was the last item."""
        item = action.unsqueeze(1)
        again = state.revealed.gather(1, item).squeeze(1)
        revealed = state.revealed.scatter(1, item, True)
        state = self._answered(replace(state, revealed=revealed, turn=state.turn + 1), noise)
        over = state.turn >= self.items
        reward = torch.zeros_like(state.patient[:, 0])
        if bool(over.any()):
            paid = compare(self.judge, state.patient, state.revealed, state.own, state.other, self.utility)
            reward = torch.where(over, paid, reward)
        reward = torch.where(again, FORFEIT, reward)
        return Step(state, reward, over | again, {"is_success": reward > 0})

    def observe(self, state: DebateState, noise: DebateNoise | None = None) -> Tensor:
        """``(B, 113)``, see ``view``."""
        return view(state.patient, state.revealed, state.own)

    def action_mask(self, state: DebateState) -> Tensor:
        """``(B, 44)`` bool: the items that are not on the table."""
        return ~state.revealed

    def position(self, state: DebateState) -> Position:
        """What the learner, as a debater, sees of debates that are equally far."""
        remaining = self.items - int(state.turn[0])
        return Position(state.patient, state.revealed, state.own, state.other, remaining, state.row)

    @property
    def _answers(self) -> int:
        """The most items that the rival reveals between two of the learner's."""
        if self.rival is None:
            return 0
        return 1 if self.order == "alternating" else self.items // 2

    def _answered(self, state: DebateState, noise: DebateNoise | None) -> DebateState:
        """The debates when it is the learner's turn again, or they are over."""
        for k in range(self._answers):
            early = state.turn % 2 == 0 if self.order == "alternating" else state.turn < self.items // 2
            rows = ((early != state.starts) & (state.turn < self.items)).nonzero()[:, 0]
            if not len(rows):
                break
            uniform = noise.uniform[:, k] if self.sampled and noise is not None else None
            item = self._items(state, rows, uniform)
            revealed = state.revealed.clone()
            revealed[rows, item] = True
            state = replace(state, revealed=revealed, turn=state.turn.index_add(0, rows, torch.ones_like(rows)))
        return state

    def _items(self, state: DebateState, rows: Tensor, uniform: Tensor | None) -> Tensor:
        """What the rival reveals in the debates ``rows``, ``(K,)``; ``uniform`` ``(B, 44)`` if it is sampled."""
        turns, item = state.turn[rows], torch.empty_like(rows)
        for turn in turns.unique().tolist():
            at = (turns == turn).nonzero()[:, 0]
            k = rows[at]
            position = Position(
                state.patient[k], state.revealed[k], state.other[k], state.own[k], self.items - turn, state.row[k]
            )
            item[at] = self._choice(position, None if uniform is None else uniform[k])
        return item

    def _choice(self, position: Position, uniform: Tensor | None) -> Tensor:
        assert self.rival is not None
        if uniform is None:
            return self.rival.choose(position)
        assert isinstance(self.rival, SamplingDebater)
        gumbel = -torch.log(-torch.log(uniform.clamp(min=1e-20)))
        return (self.rival.logits(position) + gumbel).argmax(1)


class DebateEnv(GymEnv):
    """One debate as a gymnasium environment, for learners of other libraries.

    The observation is that of ``view``; ``action_masks()``, which sb3-contrib's ``MaskablePPO`` asks for, and
    ``info["action_mask"]`` say which items are left. An item that is revealed again loses the debate.

    Args:
        game: the world.
        **options: ``device`` of ``GymEnv``.
    """

    def __init__(self, game: DebateGame, **options: Any) -> None:
        super().__init__(game, scaled=False, **options)

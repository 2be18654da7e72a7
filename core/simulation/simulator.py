"""The one definition of a world from which every view, roll-out and planner is derived."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import gymnasium
import torch
from torch import Tensor

Observation = Tensor | dict[str, Tensor]


@dataclass(frozen=True)
class Variable:
    """What a roll-out writes about one recorded quantity.

    Attributes:
        dims: names of the dimensions after the batch, e.g. ``("species",)``.
        units: unit as printed on an axis; ``"1"`` for a pure number.
        long_name: the quantity in words.
        coords: labels of the dimensions, keyed by the dimension's name.
    """

    dims: tuple[str, ...] = ()
    units: str = "1"
    long_name: str = ""
    coords: Mapping[str, Sequence[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """The outcome of one step of a batch of B copies.

    Attributes:
        state: next state, a frozen dataclass of tensors, batch first.
        reward: ``(B,)``; in a multi-agent world ``(B,)`` (shared) or ``(B, A)``.
        terminated: ``(B,)`` bool; the world itself ended (a time limit is the view's, not the world's).
        info: further tensors, batch first.
    """

    state: Any
    reward: Tensor
    terminated: Tensor
    info: dict[str, Tensor] = field(default_factory=dict)


class Simulator(Protocol):
    """A pure, batched state machine: deterministic given its noise.

    ``State`` and ``Noise`` are frozen dataclasses of tensors with the batch first, on the device of the generator
    that drew them. ``noise_t`` serves ``observe(state_t, noise_t)`` and then ``step(state_t, action_t, noise_t)``.
    Spaces describe one copy (one agent's in a multi-agent world), are finite, and are in the domain's units.
    """

    @property
    def observation_space(self) -> gymnasium.spaces.Space[Any]:
        """What ``observe`` returns."""
        ...

    @property
    def action_space(self) -> gymnasium.spaces.Space[Any]:
        """What ``step`` takes."""
        ...

    @property
    def agents(self) -> int:
        """Number of agents A; with A > 1 observations and actions are ``(B, A, ...)``."""
        ...

    @property
    def variables(self) -> Mapping[str, Variable]:
        """What a roll-out records: names found in the step's info or the state, or ``action``."""
        ...

    def reset(self, batch: int, generator: torch.Generator) -> Any:
        """Draw ``batch`` initial states."""
        ...

    def noise(self, batch: int, generator: torch.Generator) -> Any:
        """Draw all that is random in one step of ``batch`` copies."""
        ...

    def step(self, state: Any, action: Tensor, noise: Any) -> Step:
        """Advance every copy by one step."""
        ...

    def observe(self, state: Any, noise: Any | None) -> Observation:
        """What the agent sees of ``state``; ``(B, ...)``, or ``(B, A, ...)`` with A > 1 agents."""
        ...

    def action_mask(self, state: Any) -> Tensor | None:
        """Bool mask of the actions allowed in ``state`` (``(B, n)``), or None where all are."""
        ...


class Policy(Protocol):
    """Any callable from an observation to an action, both in the domain's units and batch first.

    A policy with memory also has ``reset(batch: int) -> None``, called at the start of a roll-out.
    """

    def __call__(self, observation: Any, state: Any = None) -> Tensor:
        """Actions of the whole batch; ``state`` is the world's state, for privileged or time-aware rules."""
        ...

"""A flow: an ordinary or delay differential equation as a batched function on tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

Rhs = Callable[[Tensor, Tensor], Tensor]
"""``rhs(t (B,), y (B, D)) -> (B, D)``."""


@dataclass(frozen=True)
class Flow:
    """dy/dt = f(t, y; parameters), many states at once.

    Attributes:
        name: of the system.
        dimension: D, of the state.
        right_hand_side: f; row i of the result depends on row i of its arguments alone.
        initial: ``(D,)`` float64, a state on or near the attractor.
        period: dominant period in time units.
        parameters: by name.
        channels: names of the coordinates.
        coordinates: maps states ``(..., D)`` to what is observed, where angles or phases grow without bound; None where
            states are observed as they are.
        autonomous: whether f does not depend on t.
        stored_lyapunov: largest Lyapunov exponent that the catalogue states, 1 / time units; None for a user's flow.
    """

    name: str
    dimension: int
    right_hand_side: Rhs
    initial: Tensor
    period: float
    parameters: Mapping[str, float | Tensor] = field(default_factory=dict)
    channels: tuple[str, ...] = ()
    coordinates: Callable[[Tensor], Tensor] | None = None
    autonomous: bool = True
    stored_lyapunov: float | None = None

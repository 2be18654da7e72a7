"""A flow: an ordinary or delay differential equation as a batched function on tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

Rhs = Callable[[Tensor, Tensor], Tensor]
"""``rhs(t (B,), y (B, D)) -> (B, D)``."""
DelayedRhs = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``rhs(t (B,), x (B,), x(t - delay) (B,)) -> (B,)``."""
SerialRhs = Callable[[np.ndarray, float], object]
"""``rhs(y (D,), t)``, as ``scipy.integrate.odeint`` calls it."""


@dataclass(frozen=True)
class Flow:
    """dy/dt = f(t, y; parameters), many states at once.

    A flow of one's own needs ``name``, ``dimension``, ``right_hand_side``, ``initial`` and ``period``.

    Attributes:
        name: of the system.
        dimension: D, of the state.
        right_hand_side: f; row i of the result depends on row i of its arguments alone.
        initial: ``(D,)`` float64, a state on or near the attractor.
        period: dominant period in time units.
        parameters: by name; ``(B,)`` tensors where they differ from row to row.
        channels: names of the coordinates.
        coordinates: maps states ``(..., D)`` to what is observed, where angles or phases grow without bound; None where
            states are observed as they are.
        autonomous: whether f does not depend on t.
        stored_lyapunov: largest Lyapunov exponent that the catalogue states, 1 / time units; None for a user's flow.
        scale: typical size of a state; a state that is 1e6 times as large has escaped. None stands for that of
            ``initial``, at least 1.
        serial: f of row i for one state at a time, by numpy; None leaves it to ``right_hand_side``.
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
    scale: float | None = None
    serial: Callable[[int], SerialRhs] | None = None

    @property
    def rows(self) -> int | None:
        """B of an ensemble of parameters; None where every row has the same."""
        return ensemble_rows(self.parameters)


@dataclass(frozen=True)
class DelayFlow:
    """dx/dt = f(t, x(t), x(t - delay); parameters) for a scalar x, many histories at once.

    What is observed are x(t - k delay / (D - 1)) for k = 0 ... D - 1, as dysts embeds its delay systems.

    Attributes:
        name: of the system.
        dimension: D, of the embedding.
        right_hand_side: f; row i of the result depends on row i of its arguments alone.
        initial: ``(1,)`` float64, the constant history before time 0.
        delay: in time units, ``(B,)`` where it differs from row to row.
        period: dominant period in time units.
        parameters: by name; ``(B,)`` tensors where they differ from row to row.
        channels: names of the observed channels.
        stored_lyapunov: largest Lyapunov exponent that the catalogue states, 1 / time units.
        scale: typical size of x.
    """

    name: str
    dimension: int
    right_hand_side: DelayedRhs
    initial: Tensor
    delay: float | Tensor
    period: float
    parameters: Mapping[str, float | Tensor] = field(default_factory=dict)
    channels: tuple[str, ...] = ()
    stored_lyapunov: float | None = None
    scale: float | None = None

    @property
    def rows(self) -> int | None:
        """B of an ensemble of parameters; None where every row has the same."""
        return ensemble_rows(self.parameters)


def ensemble_rows(parameters: Mapping[str, object]) -> int | None:
    """Length of the tensors among parameters."""
    return next((value.shape[0] for value in parameters.values() if isinstance(value, Tensor)), None)


def escape_radius(flow: Flow | DelayFlow) -> float:
    """Largest absolute value of a state that has not escaped."""
    return 1e6 * (flow.scale if flow.scale is not None else max(1.0, float(flow.initial.abs().max())))


def jacobian(flow: Flow, t: Tensor, y: Tensor) -> Tensor:
    """df/dy, exact, by forward differentiation along every coordinate at once.

    Args:
        flow: with B rows of parameters, if they differ.
        t: ``(B,)``.
        y: ``(B, D)``.

    Returns:
        ``(B, D, D)``; entry i, j is the derivative of component i by coordinate j.
    """
    # Row i of f depends on row i of y alone, so one direction serves all rows.
    directions = torch.eye(flow.dimension, dtype=y.dtype, device=y.device)

    def along(direction: Tensor) -> Tensor:
        pair = torch.func.jvp(lambda at: flow.right_hand_side(t, at), (y,), (direction.expand_as(y),))
        return pair[1]

    return torch.func.vmap(along)(directions).movedim(0, -1)

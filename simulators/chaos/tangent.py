"""The tangent flow: states and tangent vectors in one complex array, advanced together by the stages of one stepper.

A row ``y + i s v`` carries a state y and a tangent vector v. For an analytic right-hand side f(y + i s v) is
f(y) + i s J(y) v to the last bit once s^2 underflows (complex-step derivative; Squire and Trapp 1998, SIAM Review 40,
110-112), at the price of one call of f. Where f is not analytic (absolute values, signs, maxima), forward-mode
differentiation gives the same rows more slowly.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from simulators.chaos.flow import Rhs
from simulators.chaos.steppers import tableau

SCALE = 2.0**-332
"""s: a power of two, so that scaling is exact; its square is below the smallest double."""
AGREEMENT = 1e-9
"""Largest relative deviation of the complex step from forward-mode differentiation."""
Field = Callable[[Tensor, Tensor], Tensor]
"""``field(t (R,), rows (R, D) complex) -> (R, D) complex``."""


def packed(states: Tensor, tangents: Tensor) -> Tensor:
    """Rows ``(B * C, D)`` complex128 of states ``(B, D)`` and their tangent vectors ``(B, C, D)``."""
    copies = states.double()[:, None].expand_as(tangents)
    return torch.complex(copies, SCALE * tangents.double()).flatten(0, 1)


def unpacked(rows: Tensor, tangents: int) -> tuple[Tensor, Tensor]:
    """States ``(B, D)`` and their C tangent vectors ``(B, C, D)``."""
    split = rows.unflatten(0, (-1, tangents))
    return split.real[:, 0], split.imag / SCALE


def tangent_field(right_hand_side: Rhs, t: Tensor, states: Tensor) -> Field:
    """The right-hand side of the tangent flow: the complex step where it is right at all ``states`` (B, D), else jvp.

    Args:
        right_hand_side: of the flow.
        t: ``(B,)``.
        states: typical ones, and enough of them.
    """
    dimension = states.shape[1]
    basis = torch.eye(dimension, dtype=torch.float64, device=states.device).expand(len(states), -1, -1)
    rows, times = packed(states, basis), t.double().repeat_interleave(dimension)
    forward_mode = _forward_mode(right_hand_side)
    truth = forward_mode(times, rows)
    try:
        found = right_hand_side(times, rows)
    except (RuntimeError, TypeError, ValueError, NotImplementedError):
        return forward_mode
    if found.dtype != rows.dtype or found.shape != rows.shape:
        return forward_mode
    for ours, exact in ((found.real, truth.real), (found.imag / SCALE, truth.imag / SCALE)):
        error = (ours - exact).abs()
        if not bool((error <= AGREEMENT * (exact.abs() + exact.abs().mean() + 1e-12)).all()):
            return forward_mode
    return right_hand_side


def _forward_mode(right_hand_side: Rhs) -> Field:
    def field(t: Tensor, rows: Tensor) -> Tensor:
        value, derivative, *_ = torch.func.jvp(
            lambda states: right_hand_side(t, states), (rows.real.contiguous(),), (rows.imag / SCALE,)
        )
        return torch.complex(value, SCALE * derivative)

    return field


def orthonormalised(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Gram-Schmidt, twice per vector: orthonormal ``(B, C, D)``, and log |R_ii| ``(B, C)`` of the QR factorisation."""
    basis = torch.empty_like(vectors)
    logarithms = torch.empty(vectors.shape[:2], dtype=vectors.dtype, device=vectors.device)
    for i in range(vectors.shape[1]):
        vector = vectors[:, i, :, None]
        # Once is not enough where a step has stretched the vectors into nearly the same direction.
        for _ in range(2 if i else 0):
            vector = vector - basis[:, :i].mT @ (basis[:, :i] @ vector)
        length = vector.norm(dim=1, keepdim=True)
        basis[:, i] = (vector / length)[..., 0]
        logarithms[:, i] = length[:, 0, 0].log()
    return basis, logarithms


class TangentStepper:
    """Takes complex rows to their values an interval later, by equal steps of dop853.

    Args:
        field: of the rows.
        autonomous: whether it does not depend on time.
        rows: ``(R, D)`` of the shape and device that will be stepped.
        interval: in time units.
        steps: of an interval.
    """

    def __init__(self, field: Field, autonomous: bool, rows: Tensor, interval: float, steps: int) -> None:
        coefficients = tableau("dop853")
        self._field, self._autonomous, self._steps, self._h = field, autonomous, steps, interval / steps
        self._stages = len(coefficients.weights)
        self._nodes = coefficients.nodes
        like = torch.view_as_real(rows)
        inner = [coefficients.stages[i, :i] for i in range(self._stages)]
        self._weights = [torch.as_tensor(self._h * row).to(like) for row in [*inner, coefficients.weights]]
        self._slopes = like.new_empty(self._stages, 2 * rows.numel())
        self._rows = torch.view_as_complex(self._slopes.view(self._stages, *rows.shape, 2))
        self._times = like.new_zeros(len(rows))

    def slope(self, rows: Tensor, t: float) -> Tensor:
        """The field at a time."""
        return self._field(self._times if self._autonomous else self._times + t, rows)

    def __call__(self, rows: Tensor, t: float) -> Tensor:
        """Rows at the end of the interval that begins at ``t``."""
        y = torch.view_as_real(rows).flatten()
        for step in range(self._steps):
            begin = t + step * self._h
            for i in range(self._stages):
                inner = self._combined(y, i) if i else y
                at = torch.view_as_complex(inner.view(*rows.shape, 2))
                self._rows[i] = self.slope(at, begin + self._nodes[i] * self._h)
            y = self._combined(y, self._stages)
        return torch.view_as_complex(y.view(*rows.shape, 2))

    def _combined(self, y: Tensor, stages: int) -> Tensor:
        return torch.addmv(y, self._slopes[:stages].mT, self._weights[stages])

"""Delay differential equations by the method of steps: RK4 on a grid that divides the delay.

Delayed values are those of the grid and, half-way between its points, of the cubic through both ends and their slopes
(Bellen and Zennaro, Numerical Methods for Delay Differential Equations, 2003, chapter 6). Kinks, which travel in steps
of the delay, stay on the grid, so that order 4 holds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from core.errors import InputError
from simulators.chaos.flow import DelayFlow, escape_radius

FEWEST_STEPS = 90
"""Of RK4 in a delay."""


@dataclass(frozen=True)
class DelaySolution:
    """Solutions on a grid from one delay before time 0 on.

    Attributes:
        values: ``(N, B)`` float64; entry M is time 0. NaN from a failure on.
        slopes: ``(N, B)``, derivatives to the right.
        slope_before: ``(B,)``, derivative to the left of time 0.
        step: ``(B,)``, of the grid.
        steps: M, of the grid in a delay.
        failed: ``(B,)``.
    """

    values: Tensor
    slopes: Tensor
    slope_before: Tensor
    step: Tensor
    steps: int
    failed: Tensor

    def at(self, times: Tensor) -> Tensor:
        """Values at times ``(T,)`` or ``(B, T)``, from -delay on: ``(B, T)``, by the cubics of the grid."""
        place = times / self.step[:, None] + self.steps
        left = place.floor().long().clamp(0, len(self.values) - 2)
        x, step = place - left, self.step[:, None]
        values, slopes = self.values.T, self.slopes.T
        v0, v1 = values.gather(1, left), values.gather(1, left + 1)
        s0, s1 = step * slopes.gather(1, left), step * slopes.gather(1, left + 1)
        s1 = torch.where(left == self.steps - 1, step * self.slope_before[:, None], s1)
        rise = v1 - v0
        cubic = v0 + x * (s0 + x * (3 * rise - 2 * s0 - s1 + x * (s0 + s1 - 2 * rise)))
        # On the grid itself a failed neighbour does not count.
        return torch.where(x == 0, v0, cubic)

    def embedded(self, times: Tensor, dimension: int) -> Tensor:
        """x(t - k delay / (dimension - 1)) for every k: ``(B, T, dimension)``."""
        delay = self.step[:, None] * self.steps
        return torch.stack([self.at(times - k / max(1, dimension - 1) * delay) for k in range(dimension)], -1)

    def history(self, place: Tensor) -> History:
        """The delay before grid points ``place (B,)``; a solution of one row serves them all."""
        window = place[:, None] + torch.arange(-self.steps, 1, device=place.device)
        if len(self.step) == 1:
            return History(self.values[window, 0], self.slopes[window, 0])
        return History(self.values.T.gather(1, window), self.slopes.T.gather(1, window))


@dataclass(frozen=True)
class History:
    """x and dx/dt on the grid over one delay, ``(B, M + 1)`` each; the last entries are time 0."""

    values: Tensor
    slopes: Tensor


def delay_steps(flow: DelayFlow) -> int:
    """Steps in a delay: a multiple of the lags of the embedding, and no fewer than 90 and 100 in a period."""
    longest = float(torch.as_tensor(flow.delay).max())
    wanted = max(FEWEST_STEPS, math.ceil(100 * longest / flow.period))
    lags = max(1, flow.dimension - 1)
    return lags * math.ceil(wanted / lags)


def integrate_delay(
    flow: DelayFlow, history: Tensor | History, duration: float, *, steps: int | None = None
) -> DelaySolution:
    """Integrate every row by itself from time 0 to ``duration``.

    Args:
        flow: with B rows of parameters, if they differ.
        history: ``(B,)`` constants, or what a solution with the same ``steps`` gives.
        duration: in time units.
        steps: of RK4 in a delay; ``delay_steps(flow)`` by default.

    Raises:
        InputError: shapes that do not fit, or a duration that is not positive.
    """
    steps = delay_steps(flow) if steps is None else steps
    if not (math.isfinite(duration) and duration > 0):
        raise InputError(f"duration = {duration}; it must be > 0")
    if steps < 1:
        raise InputError(f"steps = {steps}; allowed are whole numbers >= 1")
    past, past_slopes = _on_grid(flow, history, steps)
    rows = past.shape[1]
    step = torch.as_tensor(flow.delay).to(past).expand(rows) / steps
    count = math.ceil(duration / float(step.min()) * (1 - 1e-12))
    values, slopes = past.new_empty((2, steps + count + 1, rows)).unbind(0)
    values[: steps + 1], slopes[: steps + 1] = past, past_slopes
    f, half = flow.right_hand_side, step / 2
    for n in range(count):
        x, t = values[n + steps], n * step
        slopes[n + steps] = k1 = f(t, x, values[n])
        if n % steps == 0:
            # The delay behind is known, so that its middles are found at once.
            ends = slopes[n + 1 : n + steps + 1]
            if n == 0:
                ends = torch.cat([ends[:-1], past_slopes[-1:]])
            middles = (values[n : n + steps] + values[n + 1 : n + steps + 1]) / 2
            middles += step / 8 * (slopes[n : n + steps] - ends)
        middle, after = middles[n % steps], values[n + 1]
        k2 = f(t + half, torch.addcmul(x, half, k1), middle)
        k3 = f(t + half, torch.addcmul(x, half, k2), middle)
        k4 = f(t + step, torch.addcmul(x, step, k3), after)
        values[n + steps + 1] = torch.addcmul(x, step, (k1 + k4 + 2 * (k2 + k3)) / 6)
    slopes[-1] = f(count * step, values[-1], values[count])
    lost = ~(values.abs() <= escape_radius(flow)).cummin(0).values
    values.masked_fill_(lost, torch.nan)
    return DelaySolution(values, slopes, past_slopes[-1].clone(), step, steps, lost[-1])


def _on_grid(flow: DelayFlow, history: Tensor | History, steps: int) -> tuple[Tensor, Tensor]:
    """Values and slopes ``(M + 1, B)``."""
    if isinstance(history, History):
        values, slopes = history.values.double().T, history.slopes.double().T
        if values.shape != slopes.shape or len(values) != steps + 1:
            raise InputError(f"history has shape {tuple(history.values.shape)}; allowed is (B, {steps + 1})")
    else:
        if history.ndim != 1 or not len(history):
            raise InputError(f"history has shape {tuple(history.shape)}; allowed is (B,), or a History")
        values = history.double().expand(steps + 1, -1)
        slopes = torch.zeros_like(values)
    if flow.rows not in (None, values.shape[1]):
        raise InputError(f"{flow.name} has parameters of {flow.rows} rows; the history has {values.shape[1]}")
    return values, slopes

"""Explicit Runge-Kutta steps of a batch: one step for all rows, or every row with a step of its own.

States are kept as ``(D, B)`` and stages as ``(S, D, B)``, so that a combination of stages is one matrix-vector product
and a coordinate is contiguous.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from simulators.chaos.flow import Flow, escape_radius
from simulators.chaos.steppers import Tableau

SMALLEST_STEP = 1e-9
"""Of a period; a row that needs smaller ones is stiff."""
BLOWN_UP = 1e-4
"""Of the radius of escape: a row beyond that needs smaller ones blows up in finite time, and has escaped."""
FEWEST_ATTEMPTS, ATTEMPTS_PER_SAMPLE = 10_000, 50
"""A row that needs more attempts than the first and the second for every output time is stiff."""
JUDGED_AFTER = 1000
"""Attempts after which more rejections than accepted steps, or a pace that needs too many attempts, mean stiffness."""


@dataclass
class Integrated:
    """What a batch came to.

    Attributes:
        states: ``(T, D, B)``; NaN from a failure on.
        failed: ``(B,)``, rows that escaped or were not finite.
        stiff: ``(B,)``, rows that were given up.
        evaluations: of the right-hand side, of the whole batch.
        rejected: steps, ``(B,)``.
    """

    states: Tensor
    failed: Tensor
    stiff: Tensor
    evaluations: int
    rejected: Tensor


class _Stages:
    """The stages of a step, ``k``."""

    def __init__(self, flow: Flow, tableau: Tableau, y: Tensor) -> None:
        self._flow, self._nodes = flow, tableau.nodes
        self.k = y.new_zeros((len(tableau.nodes), *y.shape))
        self._flat = self.k.flatten(1)
        rows = torch.as_tensor(tableau.stages).to(y)
        self._rows = [rows[i, :i].contiguous() for i in range(len(rows))]
        self._shape = y.shape
        self.evaluations = 0

    def combined(self, weights: Tensor) -> Tensor:
        """Weights ``(s,)`` or ``(n, s)`` times the first s stages: ``(D, B)`` or ``(n, D, B)``."""
        return (weights @ self._flat[: weights.shape[-1]]).unflatten(-1, self._shape)

    def point(self, stage: int, y: Tensor, h: Tensor | float) -> Tensor:
        """Where stage ``stage`` is evaluated."""
        slope = self.combined(self._rows[stage])
        return torch.add(y, slope, alpha=h) if isinstance(h, float) else torch.addcmul(y, slope, h)

    def evaluate(self, stage: int, t: Tensor, point: Tensor, h: Tensor | float) -> None:
        """Stage ``stage`` at its point."""
        if not self._flow.autonomous:
            t = t + float(self._nodes[stage]) * h
        self.k[stage] = self._flow.right_hand_side(t, point.mT).mT
        self.evaluations += 1

    def fill(self, first: int, last: int, t: Tensor, y: Tensor, h: Tensor | float) -> Tensor:
        """Stages ``first`` to ``last`` and the point of the last."""
        for stage in range(first, last + 1):
            point = self.point(stage, y, h)
            self.evaluate(stage, t, point, h)
        return point


def fixed(flow: Flow, tableau: Tableau, y: Tensor, times: Tensor, steps: int) -> Integrated:
    """``steps`` equal steps between two output times, the same for all rows.

    Args:
        flow: whose right-hand side is called.
        tableau: of the method.
        y: initial states, ``(D, B)``.
        times: ``(T,)`` float64 on the CPU, the first being that of ``y``.
        steps: between two output times.
    """
    stages, last = _Stages(flow, tableau, y), len(tableau.weights) - 1
    weights = torch.as_tensor(tableau.weights).to(y)
    states = y.new_empty((len(times), *y.shape))
    states[0] = y
    t = y.new_empty(y.shape[1])
    for sample, (start, end) in enumerate(pairwise(times.tolist()), start=1):
        h = (end - start) / steps
        for step in range(steps):
            t.fill_(start + step * h)
            stages.evaluate(0, t, y, h)
            stages.fill(1, last, t, y, h)
            y = torch.add(y, stages.combined(weights), alpha=h)
        states[sample] = y
    # A comparison with NaN is false, so that this covers what is not finite.
    lost = ~(states.abs().amax(1) <= escape_radius(flow)).cummin(0).values
    states.masked_fill_(lost[:, None], torch.nan)
    none = torch.zeros_like(lost[0])
    return Integrated(states, lost[-1], none, stages.evaluations, none.long())


def adaptive(flow: Flow, tableau: Tableau, y: Tensor, times: Tensor, rtol: float, atol: float) -> Integrated:
    """Steps of every row's own size, chosen by its own error; output by the method's interpolant.

    The error of a step is measured against ``atol + rtol max(|y|, |y_new|)`` (root mean square over coordinates); the
    next step is the last one times 0.9 error^(-1 / exponent), between 0.2 and 10, and no longer after a rejection.

    Args:
        flow: whose right-hand side is called.
        tableau: of a method with an error estimate.
        y: initial states, ``(D, B)``.
        times: ``(T,)`` float64 on the CPU, the first being that of ``y``.
        rtol: relative tolerance.
        atol: absolute tolerance.
    """
    (dimension, rows), samples, start, end = y.shape, len(times), float(times[0]), float(times[-1])
    stages, last = _Stages(flow, tableau, y), len(tableau.weights)
    assert tableau.errors is not None
    errors, dense = (torch.as_tensor(a).to(y) for a in (tableau.errors, tableau.dense.T.copy()))
    times = times.to(y)
    # Row T takes what is not due.
    states = y.new_full((samples + 1, dimension, rows), torch.nan)
    t = times[0].repeat(rows)
    due_next = torch.ones(rows, dtype=torch.int64, device=y.device)
    rejected = torch.zeros_like(due_next)
    limit, smallest = escape_radius(flow), SMALLEST_STEP * flow.period
    failed = ~(y.abs().amax(0) <= limit)
    stiff = torch.zeros_like(failed)
    y = torch.where(failed, 0.0, y)
    states[0] = torch.where(failed, torch.nan, y)
    stages.evaluate(0, t, y, 0.0)
    h = _first_step(stages, t, y, tableau.order, rtol, atol)
    accepted_before = torch.ones_like(failed)
    t.masked_fill_(failed, end)
    most_attempts = FEWEST_ATTEMPTS + ATTEMPTS_PER_SAMPLE * samples
    for attempt in range(1, most_attempts + 1):
        left = end - t
        final = h >= left
        h = torch.where(final, left, h)
        y_new = stages.fill(1, last, t, y, h)
        scale = torch.maximum(y.abs(), y_new.abs()).mul_(rtol).add_(atol)
        error = _norm(stages.combined(errors), scale, h)
        accepted = (error <= 1) & (t < end)
        escaped = accepted & ~(y_new.abs().amax(0) <= limit)
        accepted &= ~escaped
        t_new = torch.where(final, end, t + h)
        upto = torch.searchsorted(times, t_new, right=True)
        due = torch.where(accepted, upto - due_next, 0)
        if most := int(due.max()):
            if last + 1 < len(tableau.nodes):
                stages.fill(last + 1, len(tableau.nodes) - 1, t, y, h)
            _write(states, stages.combined(dense), times, t, y, h, due_next, due, most)
            due_next = due_next + due
        y = torch.where(accepted, y_new, y)
        t = torch.where(accepted, t_new, t)
        stages.k[0] = torch.where(accepted, stages.k[last], stages.k[0])
        factor = (0.9 * error.pow(-1 / tableau.exponent)).nan_to_num(0.2).clamp(0.2, 10.0)
        h = h * torch.where(accepted & accepted_before, factor, factor.clamp(max=1.0))
        accepted_before = accepted
        running = t < end
        rejected += running & ~accepted
        shrunk = running & (h < smallest)
        escaped |= shrunk & (y.abs().amax(0) > BLOWN_UP * limit)
        failed |= escaped
        stiff |= shrunk & ~escaped
        if attempt >= JUDGED_AFTER:
            slow = attempt * (end - start) > most_attempts * (t - start)
            stiff |= running & ~escaped & ((2 * rejected > attempt) | slow)
        t.masked_fill_(failed | stiff, end)
        if not bool((t < end).any()):
            break
    else:
        stiff |= t < end
    return Integrated(states[:samples], failed, stiff, stages.evaluations, rejected)


def _norm(errors: Tensor, scale: Tensor, h: Tensor) -> Tensor:
    """Root mean square of the error of a step in units of its tolerance; two estimates combine as in dop853.f."""
    squares = (errors / scale).square_().mean(1)
    if len(squares) == 1:
        return h * squares[0].sqrt()
    fifth, third = squares
    return h * torch.where(fifth == 0, 0.0, fifth / (fifth + 0.01 * third).sqrt())


def _write(
    states: Tensor,
    powers: Tensor,
    times: Tensor,
    t: Tensor,
    y: Tensor,
    h: Tensor,
    due_next: Tensor,
    due: Tensor,
    most: int,
) -> None:
    """States at the output times that lie in the steps, of which row i has ``due[i]``; by Horner's rule."""
    ahead = torch.arange(most, device=y.device)[:, None]
    samples = (due_next + ahead).clamp_(max=len(times) - 1)
    share = ((times[samples] - t) / h)[:, None]
    value = powers[-1] * share
    for power in reversed(powers[:-1].unbind(0)):
        value = value.add_(power).mul_(share)
    value = torch.addcmul(y, value, h)
    target = torch.where(ahead < due, samples, len(times))
    states.scatter_(0, target[:, None].expand(value.shape), value)


def _first_step(stages: _Stages, t: Tensor, y: Tensor, order: int, rtol: float, atol: float) -> Tensor:
    """Hairer, Norsett and Wanner, section II.4: a step from the size of the first two derivatives."""
    scale = y.abs() * rtol + atol
    slope = stages.k[0].clone()
    size, speed = ((v / scale).square().mean(0).sqrt() for v in (y, slope))
    first = torch.where((size < 1e-5) | (speed < 1e-5), 1e-6, 0.01 * size / speed)
    stages.evaluate(1, t, torch.addcmul(y, slope, first), first)
    bend = ((stages.k[1] - slope) / scale).square().mean(0).sqrt() / first
    largest = torch.maximum(speed, bend)
    second = torch.where(largest <= 1e-15, (first * 1e-3).clamp(min=1e-6), (0.01 / largest).pow(1 / order))
    return torch.minimum(100 * first, second).nan_to_num(1e-6)

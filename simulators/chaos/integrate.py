"""Trajectories of a flow from many initial states at once."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from core.errors import InputError
from simulators.chaos import serial
from simulators.chaos.explicit import adaptive, fixed
from simulators.chaos.flow import DelayFlow, Flow
from simulators.chaos.steppers import Method, tableau

Engine = Literal["auto", "torch", "odeint"]

SMALL_BATCH, SMALL_BATCH_OF_TENSORS = 64, 4
"""Below so many rows scipy is faster, on a right-hand side in numpy and on one in torch."""
ROWS_AT_ONCE = {"cpu": 4096, "cuda": 65_536}
"""Rows whose stages fit the cache, and the memory of a GPU."""


@dataclass(frozen=True)
class Solution:
    """States at the output times.

    Attributes:
        states: ``(B, T, D)`` float64, NaN from a failure on.
        failed: ``(B,)``, trajectories that escaped (1e6 times the size of the attractor, or 100 times where they blow
            up in finite time) or were not finite.
        engine: what integrated them, with the rows that fell back.
        evaluations: of the right-hand side: of a batch as a whole, or of single states by odeint.
        rejected: steps, ``(B,)``; zeros from odeint and fixed steps.
    """

    states: Tensor
    failed: Tensor
    engine: str
    evaluations: int
    rejected: Tensor


def integrate(
    flow: Flow,
    initial: Tensor,
    times: Tensor,
    *,
    method: Method = "dop853",
    rtol: float = 1e-10,
    atol: float = 1e-10,
    steps: int | None = None,
    engine: Engine = "auto",
) -> Solution:
    """Integrate every row by itself: none sees what becomes of another.

    The batch takes explicit Runge-Kutta steps of every row's own size. Fewer than 64 rows on a CPU go through LSODA
    (``scipy.integrate.odeint``) one by one, which is faster there. Rows that prove stiff (a step below 1e-9 of a
    period, more than half of 1000 or more steps rejected, or a pace that needs too many) are integrated again by
    LSODA, and by Radau where that gives up, with a warning.

    Args:
        flow: with B rows of parameters, if they differ.
        initial: ``(B, D)`` states at ``times[0]``; a row that is not finite fails.
        times: ``(T,)``, increasing.
        method: ``dop853``, ``dopri5``, ``tsit5``; ``rk4`` with ``steps`` only. odeint ignores it.
        rtol: relative tolerance.
        atol: absolute tolerance.
        steps: so many equal steps between two output times, without error control.
        engine: ``torch`` or ``odeint`` whatever the batch; ``auto`` chooses.

    Raises:
        InputError: shapes that do not fit, times that do not increase, a tolerance that is not positive, or an unknown
            method or engine.
    """
    initial, times = _checked(flow, initial, times, rtol, atol, steps, engine, method)
    rows = len(initial)
    if engine == "auto":
        small = SMALL_BATCH if flow.serial is not None else SMALL_BATCH_OF_TENSORS
        alone = rows < small and initial.device.type == "cpu" and steps is None
        engine = "odeint" if alone else "torch"
    if engine == "odeint":
        states, failed, evaluations = serial.trajectories(flow, initial, times, range(rows), rtol, atol)
        none = torch.zeros(rows, dtype=torch.int64, device=initial.device)
        return Solution(states.to(initial.device), failed.to(initial.device), "odeint", evaluations, none)
    # The parameters of an ensemble belong to its rows, so that it stays whole.
    at_once = rows if flow.rows else ROWS_AT_ONCE.get(initial.device.type, rows)
    parts = [
        fixed(flow, tableau(method), y.mT.contiguous(), times, steps)
        if steps
        else adaptive(flow, tableau(method), y.mT.contiguous(), times, rtol, atol)
        for y in initial.split(at_once)
    ]
    states = torch.cat([part.states.permute(2, 0, 1) for part in parts])
    failed, stiff, rejected = (
        torch.cat([getattr(part, name) for part in parts]) for name in ("failed", "stiff", "rejected")
    )
    evaluations, used = sum(part.evaluations for part in parts), f"torch {method}"
    if given_up := stiff.nonzero().flatten().tolist():
        warnings.warn(
            f"{flow.name}: {len(given_up)} of {rows} trajectories are stiff; LSODA integrates them", stacklevel=2
        )
        again, lost, more = serial.trajectories(flow, initial, times, given_up, rtol, atol)
        states[given_up], failed[given_up] = again.to(states), lost.to(failed)
        evaluations, used = evaluations + more, f"{used}, odeint for {len(given_up)} stiff rows"
    return Solution(states, failed, used, evaluations, rejected)


def _checked(
    flow: Flow,
    initial: Tensor,
    times: Tensor,
    rtol: float,
    atol: float,
    steps: int | None,
    engine: Engine,
    method: Method,
) -> tuple[Tensor, Tensor]:
    """Initial states and times in float64, or a refusal."""
    if isinstance(flow, DelayFlow):
        raise InputError(f"{flow.name} is a delay system; integrate_delay takes its history")
    if initial.ndim != 2 or initial.shape[1] != flow.dimension or not len(initial):
        raise InputError(f"initial has shape {tuple(initial.shape)}; allowed is (B, {flow.dimension}) with B >= 1")
    if flow.rows not in (None, len(initial)):
        raise InputError(f"{flow.name} has parameters of {flow.rows} rows; initial has {len(initial)}")
    times = times.detach().double().cpu()
    if times.ndim != 1 or len(times) < 2 or not bool((times.diff() > 0).all()) or not math.isfinite(float(times.sum())):
        raise InputError(f"times of shape {tuple(times.shape)}; allowed are at least 2 finite ones that increase")
    if not (rtol > 0 and atol > 0):
        raise InputError(f"rtol = {rtol} and atol = {atol}; both must be > 0")
    if steps is not None and steps < 1:
        raise InputError(f"steps = {steps}; allowed are whole numbers >= 1")
    if engine not in ("auto", "torch", "odeint"):
        raise InputError(f"engine = {engine!r}; allowed are auto, torch and odeint")
    if engine == "odeint" and steps is not None:
        raise InputError(f"steps = {steps} with engine = 'odeint', which chooses its own; use engine = 'torch'")
    if tableau(method).errors is None and steps is None:
        raise InputError(f"method = {method!r} has no error estimate; give steps, or another method")
    return initial.detach().double(), times

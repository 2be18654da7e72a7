"""Trajectories one by one by scipy: of small batches, where calls cost more than arithmetic, and of stiff rows."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from scipy.integrate import ODEintWarning, odeint, solve_ivp
from torch import Tensor

from simulators.chaos.flow import Flow, SerialRhs, escape_radius

MOST_STEPS = 100_000
"""Of LSODA between two output times."""
MOST_CALLS, CALLS_PER_SAMPLE = 200_000, 2000
"""A trajectory that Radau does not finish within the first and the second for every output time is given up."""


class _Left(Exception):
    """A state beyond the radius of escape.

    Args:
        time: at which it was met.
    """

    def __init__(self, time: float) -> None:
        super().__init__()
        self.time = time


class _Watched:
    """A right-hand side that counts its calls and ends an integration where a state has escaped.

    LSODA and Radau would follow a solution that blows up in finite time to the last bit of the time.
    """

    def __init__(self, right_hand_side: SerialRhs, radius: float) -> None:
        self._right_hand_side, self._square = right_hand_side, radius * radius
        self.calls = 0

    def __call__(self, y: np.ndarray, t: float) -> object:
        if y.dot(y) > self._square:
            raise _Left(t)
        self.calls += 1
        return self._right_hand_side(y, t)


def one_state(flow: Flow, row: int, device: torch.device | str = "cpu") -> SerialRhs:
    """The function f of one state in numpy, with the parameters of a row; without ``flow.serial`` on a device."""
    if flow.serial is not None:
        return flow.serial(row)
    rows = flow.rows or 1
    own = row if flow.rows else 0

    def of_one(y: np.ndarray, t: float) -> np.ndarray:
        states = torch.as_tensor(y, dtype=torch.float64, device=device).expand(rows, -1)
        times = torch.full((rows,), float(t), dtype=torch.float64, device=device)
        return flow.right_hand_side(times, states)[own].detach().cpu().numpy()

    return of_one


def trajectories(
    flow: Flow, initial: Tensor, times: Tensor, rows: Sequence[int], rtol: float, atol: float
) -> tuple[Tensor, Tensor, int]:
    """The trajectories of some rows by LSODA (``scipy.integrate.odeint``), which changes to a stiff method by itself.

    What LSODA gives up at goes once more through Radau, unless it has escaped.

    Args:
        flow: whose right-hand side is called for one state at a time.
        initial: ``(B, D)``; on its device f is called, unless the flow has one in numpy.
        times: ``(T,)`` on the CPU.
        rows: those that are integrated.
        rtol: relative tolerance.
        atol: absolute tolerance.

    Returns:
        States ``(rows, T, D)`` on the CPU, NaN from a failure on, which of them failed, and evaluations.
    """
    found = np.empty((len(rows), len(times), flow.dimension))
    grid, evaluations, radius = times.numpy(), 0, escape_radius(flow)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", ODEintWarning)
        for i, row in enumerate(rows):
            start = initial[row].cpu().numpy()
            # Trial states may lie a little beyond the radius.
            right_hand_side = _Watched(one_state(flow, row, initial.device), 10 * radius)
            found[i], complete = _lsoda(right_hand_side, start, grid, rtol, atol)
            if not complete:
                found[i] = _radau(right_hand_side, start, grid, rtol, atol, radius)
            evaluations += right_hand_side.calls
    states = torch.from_numpy(found)
    lost = ~(states.abs().amax(2) <= radius).cummin(1).values
    states.masked_fill_(lost[..., None], torch.nan)
    return states, lost[:, -1], evaluations


def _lsoda(
    right_hand_side: _Watched, start: np.ndarray, times: np.ndarray, rtol: float, atol: float
) -> tuple[np.ndarray, bool]:
    """States, NaN from an escape on, and whether LSODA came to an end."""
    found, samples = np.full((len(times), len(start)), np.nan), len(times)
    if not np.isfinite(start).all():
        return found, True
    found[0] = start
    while samples > 1:
        try:
            states, info = odeint(
                right_hand_side,
                start,
                times[:samples],
                rtol=rtol,
                atol=atol,
                mxstep=MOST_STEPS,
                full_output=True,
                printmessg=False,
            )
        except _Left as escaped:
            # Again, up to the last output time before; a step may have passed several.
            samples = min(samples - 1, int(np.searchsorted(times, escaped.time)))
            continue
        found[:samples] = states
        return found, info["message"] == "Integration successful."
    return found, True


def _radau(
    right_hand_side: _Watched, start: np.ndarray, times: np.ndarray, rtol: float, atol: float, limit: float
) -> np.ndarray:
    def escaped(_: float, y: np.ndarray) -> float:
        return limit - np.abs(y).max()

    escaped.terminal = True  # type: ignore[attr-defined]
    states = np.full((len(times), len(start)), np.nan)
    states[0] = start
    most = right_hand_side.calls + MOST_CALLS + CALLS_PER_SAMPLE * len(times)
    # Its interpolant is of low order, so that it ends at every output time.
    for sample, (begin, end) in enumerate(pairwise(times), start=1):
        try:
            solution = solve_ivp(
                lambda t, y: right_hand_side(y, t),
                (begin, end),
                states[sample - 1],
                method="Radau",
                rtol=rtol,
                atol=atol,
                events=escaped,
            )
        except (ValueError, _Left):  # Radau refuses what is not finite.
            break
        if solution.status != 0 or right_hand_side.calls > most:
            break
        states[sample] = solution.y[:, -1]
    return states

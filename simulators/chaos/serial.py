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


def one_state(flow: Flow, row: int) -> SerialRhs:
    """The function f of one state in numpy, with the parameters of a row."""
    if flow.serial is not None:
        return flow.serial(row)
    rows = flow.rows or 1
    own = row if flow.rows else 0

    def of_one(y: np.ndarray, t: float) -> np.ndarray:
        states = torch.as_tensor(y, dtype=torch.float64).expand(rows, -1)
        return flow.right_hand_side(torch.full((rows,), float(t), dtype=torch.float64), states)[own].numpy()

    return of_one


def trajectories(
    flow: Flow, initial: Tensor, times: Tensor, rows: Sequence[int], rtol: float, atol: float
) -> tuple[Tensor, Tensor, int]:
    """The trajectories of some rows by LSODA (``scipy.integrate.odeint``), which changes to a stiff method by itself.

    What LSODA gives up at goes once more through Radau.

    Args:
        flow: whose right-hand side is called for one state at a time.
        initial: ``(B, D)``.
        times: ``(T,)``.
        rows: those that are integrated.
        rtol: relative tolerance.
        atol: absolute tolerance.

    Returns:
        States ``(rows, T, D)``, which are NaN from a failure on, which of them failed, and evaluations.
    """
    found = np.empty((len(rows), len(times), flow.dimension))
    grid, evaluations = times.numpy(), 0
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", ODEintWarning)
        for i, row in enumerate(rows):
            right_hand_side, start = one_state(flow, row), initial[row].numpy()
            found[i], used, complete = _lsoda(right_hand_side, start, grid, rtol, atol)
            evaluations += used
            if not complete and bool(np.isfinite(start).all()):
                found[i], used = _radau(right_hand_side, start, grid, rtol, atol, escape_radius(flow))
                evaluations += used
    states = torch.from_numpy(found)
    lost = ~(states.abs().amax(2) <= escape_radius(flow)).cummin(1).values
    states.masked_fill_(lost[..., None], torch.nan)
    return states, lost[:, -1], evaluations


def _lsoda(
    right_hand_side: SerialRhs, start: np.ndarray, times: np.ndarray, rtol: float, atol: float
) -> tuple[np.ndarray, int, bool]:
    if not np.isfinite(start).all():
        return np.full((len(times), len(start)), np.nan), 0, False
    states, info = odeint(
        right_hand_side, start, times, rtol=rtol, atol=atol, mxstep=MOST_STEPS, full_output=True, printmessg=False
    )
    return states, int(info["nfe"].max(initial=0)), info["message"] == "Integration successful."


def _radau(
    right_hand_side: SerialRhs, start: np.ndarray, times: np.ndarray, rtol: float, atol: float, limit: float
) -> tuple[np.ndarray, int]:
    def escaped(_: float, y: np.ndarray) -> float:
        return limit - np.abs(y).max()

    escaped.terminal = True  # type: ignore[attr-defined]
    states, evaluations = np.full((len(times), len(start)), np.nan), 0
    states[0] = start
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
        except ValueError:  # Radau refuses what is not finite.
            break
        evaluations += solution.nfev
        if solution.status != 0:
            break
        states[sample] = solution.y[:, -1]
    return states, evaluations

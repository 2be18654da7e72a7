"""Chaos: batches of Lorenz trajectories against scipy's DOP853 and odeint on dysts' right-hand side, one thread.

333 samples, 100 in a period (4.5 Lyapunov times). CPU time a trajectory, in turns, so that another process slows all of
it alike; on a GPU wall time. Errors are against DOP853 at 1e-13, relative to the spread of the coordinate: the median
over trajectories of the largest of a trajectory. Every row of ours is compared with odeint at the tightest tolerance
that is not more accurate. The right-hand side is dysts' function in numpy, not compiled.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from scipy.integrate import odeint, solve_ivp
from torch import Tensor

from benchmarks.clock import Clock, spread
from core.errors import MissingExtra
from simulators.chaos.catalogue import load
from simulators.chaos.flow import Flow
from simulators.chaos.integrate import integrate

SAMPLES, ROWS, GPU_ROWS = 333, 4096, 65_536
ROUNDS, REFERENCES = 5, 16
"""Turns that count, and trajectories of scipy in a turn, on which errors are measured."""
OURS = {
    "adaptive dop853, 1e-10": {"rtol": 1e-10, "atol": 1e-10},
    "adaptive dop853, 1e-12": {"rtol": 1e-12, "atol": 1e-12},
    "fixed dop853, 1 step a sample": {"steps": 1},
    "fixed dop853, 2 steps a sample": {"steps": 2},
}
TARGETS = {"DOP853, 1e-12": 100, "odeint at equal error": 2}


def by_dop853(flow: Flow, start: np.ndarray, times: np.ndarray, tolerance: float) -> np.ndarray:
    rhs = flow.serial(0)
    found = solve_ivp(lambda t, y: rhs(y, t), (0, times[-1]), start, "DOP853", times, rtol=tolerance, atol=tolerance)
    return found.y.T


def by_odeint(flow: Flow, start: np.ndarray, times: np.ndarray, tolerance: float) -> np.ndarray:
    return odeint(flow.serial(0), start, times, rtol=tolerance, atol=tolerance)


THEIRS = {
    "DOP853, 1e-12": partial(by_dop853, tolerance=1e-12),
    "odeint, 1e-10": partial(by_odeint, tolerance=1e-10),
    "odeint, 1e-11": partial(by_odeint, tolerance=1e-11),
    "odeint, 1e-12": partial(by_odeint, tolerance=1e-12),
    "odeint, 1e-13": partial(by_odeint, tolerance=1e-13),
}


def starts(flow: Flow, rows: int) -> Tensor:
    """States on the attractor."""
    few = integrate(flow, flow.initial[None], 0.15 * torch.arange(200.0, dtype=torch.float64), engine="odeint").states[
        0
    ]
    noise = torch.randn(rows, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    near = few[torch.arange(rows) % 150 + 50] + 0.1 * noise
    return integrate(flow, near, torch.tensor([0.0, 3.0]), engine="torch").states[:, -1]


def errors(found: Tensor, reference: Tensor) -> float:
    """Median over trajectories of the largest error, in standard deviations of the coordinate."""
    return float(((found.cpu() - reference).abs() / reference.flatten(0, 1).std(0)).amax((1, 2)).median())


def main() -> None:
    """Print milliseconds and errors of every method and the ratios."""
    torch.set_num_threads(1)
    try:
        flow = load("Lorenz")
    except MissingExtra as error:
        print(f"  skipped: {error}")
        return
    times = flow.period / 100 * torch.arange(SAMPLES, dtype=torch.float64)
    start = starts(flow, ROWS)
    few = start[:REFERENCES].numpy()
    reference = torch.from_numpy(np.stack([by_dop853(flow, y, times.numpy(), 1e-13) for y in few]))
    cost: dict[str, list[float]] = {name: [] for name in (*OURS, *THEIRS)}
    error: dict[str, float] = {}
    for turn in range(ROUNDS + 1):
        for name, options in OURS.items():
            clock = Clock()
            found = integrate(flow, start, times, engine="torch", **options).states
            if turn:
                cost[name].append(1000 * clock.seconds / ROWS)
            error[name] = errors(found[:REFERENCES], reference)
        for name, method in THEIRS.items():
            clock = Clock()
            states = np.stack([method(flow, y, times.numpy()) for y in few])
            if turn:
                cost[name].append(1000 * clock.seconds / REFERENCES)
            error[name] = errors(torch.from_numpy(states), reference)
    print(f"  CPU ms a trajectory of {SAMPLES} samples, {ROWS} at once, and error in standard deviations")
    for name in (*OURS, *THEIRS):
        print(f"  {name:<32} {spread(cost[name]):<30} {error[name]:.1e}")
    for name in OURS:
        equal = [other for other in THEIRS if "odeint" in other and error[other] >= error[name]][-1]
        for other, target in zip(("DOP853, 1e-12", equal), TARGETS.values(), strict=True):
            ratios = [theirs / ours for ours, theirs in zip(cost[name], cost[other], strict=True)]
            print(f"  {name:<32} {spread(ratios):>24} times as fast as {other} (target {target})")
    if torch.cuda.is_available():
        on_gpu(flow, times, cost["DOP853, 1e-12"], cost["odeint, 1e-12"], reference, start)


def on_gpu(
    flow: Flow, times: Tensor, dop853: list[float], odeint_ms: list[float], reference: Tensor, start: Tensor
) -> None:
    """The same on a GPU; the first ``ROWS`` states repeat."""
    many = start.repeat(GPU_ROWS // ROWS, 1).cuda()
    for name, options in OURS.items():
        taken = []
        for turn in range(4):
            began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            began.record()
            found = integrate(flow, many, times, **options).states
            ended.record()
            torch.cuda.synchronize()
            if turn:
                taken.append(began.elapsed_time(ended) / GPU_ROWS)
        print(f"  GPU, {GPU_ROWS} at once, {name}: {spread(taken)} ms, {errors(found[:REFERENCES], reference):.1e}")
        for other, theirs, target in (("DOP853, 1e-12", dop853, 5000), ("odeint, 1e-12", odeint_ms, None)):
            aim = f" (target {target})" if target else ""
            print(f"    {spread([np.median(theirs) / ours for ours in taken])} times as fast as {other}{aim}")


if __name__ == "__main__":
    main()

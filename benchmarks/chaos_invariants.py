"""Invariants of chaotic flows: a Lyapunov spectrum of many trajectories at once, against one trajectory at a time.

One thread, CPU time, in turns. The rivals, on the same equations: numpy and scipy's DOP853 on state and tangents of one
trajectory with a QR factorisation every tenth of a period, with the Jacobian written by hand; and dysts'
``find_lyapunov_exponents``, which takes one backward Euler step a sample along one trajectory.
"""

from __future__ import annotations

import math
import statistics
import time
import warnings
from functools import partial

import numpy as np
import torch
from scipy.integrate import solve_ivp

from benchmarks.clock import Clock, spread
from benchmarks.turns import milliseconds
from core.errors import MissingExtra
from simulators.chaos.catalogue import load, names
from simulators.chaos.dimension import correlation_dimension
from simulators.chaos.flow import Flow
from simulators.chaos.invariants import invariant_differences
from simulators.chaos.lyapunov import LyapunovSpectrum, lyapunov_spectrum, near_the_attractor
from simulators.chaos.neighbours import largest_exponent_of_series
from simulators.chaos.trajectories import Sampling, sample

TRAJECTORIES, PERIODS, TRANSIENT = 400, 30, 15
SYSTEMS = ("Lorenz", "Rossler", "Thomas", "Aizawa", "Chen")
ROUNDS = 3


def spectrum(flow: Flow, seed: int = 0) -> LyapunovSpectrum:
    generator = torch.Generator().manual_seed(seed)
    return lyapunov_spectrum(flow, trajectories=TRAJECTORIES, periods=PERIODS, transient=TRANSIENT, generator=generator)


def systems() -> None:
    """Seconds of one spectrum with its intervals."""
    print(
        f"  spectra of {TRAJECTORIES} trajectories x {PERIODS} periods (target 3 s each), exponents with 95 % intervals"
    )
    for name in SYSTEMS:
        flow = load(name)
        clock = Clock()
        found = spectrum(flow)
        took = clock.seconds
        exponents = ", ".join(
            f"{x.mean:.4f} ({x.low:.4f} to {x.high:.4f})" for x in map(found.interval, range(flow.dimension))
        )
        dimension = found.kaplan_yorke()
        print(
            f"    {name:<8} {took:4.1f} s, {found.steps_per_period} steps a period: {exponents};"
            f" Kaplan-Yorke {dimension.mean:.4f} ({dimension.low:.4f} to {dimension.high:.4f});"
            f" dysts stores {flow.stored_lyapunov:.4f}",
            flush=True,
        )


def one_at_a_time(start: np.ndarray, period: float, periods: int) -> np.ndarray:
    """Exponents of the Lorenz system along one trajectory, after as long a transient in proportion."""
    sigma, rho, beta = 10.0, 28.0, 2.667

    def field(_: float, packed: np.ndarray) -> np.ndarray:
        x, y, z = packed[:3]
        jacobian = np.array([[-sigma, sigma, 0.0], [rho - z, -1.0, -x], [y, x, -beta]])
        slope = (sigma * (y - x), x * (rho - z) - y, x * y - beta * z)
        return np.concatenate([slope, (jacobian @ packed[3:].reshape(3, 3)).ravel()])

    packed, growth, interval = np.concatenate([start, np.eye(3).ravel()]), np.zeros(3), period / 10
    transient = periods * TRANSIENT // PERIODS
    for i in range(10 * (transient + periods)):
        packed = solve_ivp(field, (0, interval), packed, method="DOP853", rtol=1e-6, atol=1e-6).y[:, -1]
        basis, triangle = np.linalg.qr(packed[3:].reshape(3, 3))
        packed[3:] = basis.ravel()
        if i >= 10 * transient:
            growth += np.log(np.abs(triangle.diagonal()))
    return growth / (periods * period)


def rivals() -> None:
    """Trajectory-periods a second of ours, of scipy and of dysts."""
    import dysts.flows
    from dysts.analysis import find_lyapunov_exponents

    flow = load("Lorenz")
    start = near_the_attractor(flow, TRAJECTORIES, torch.Generator().manual_seed(0))
    system = dysts.flows.Lorenz()
    ours = partial(lyapunov_spectrum, flow, initial=start, periods=PERIODS, transient=TRANSIENT, steps_per_period=20)
    theirs = partial(find_lyapunov_exponents, system, 500, pts_per_period=100, method="RK45")
    works = {"ours": ours, "scipy": partial(one_at_a_time, start[0].numpy(), flow.period, 4), "dysts": theirs}
    periods = {"ours": TRAJECTORIES * PERIODS, "scipy": 4, "dysts": 5}
    took = milliseconds(works, ROUNDS)
    each = {name: [ms / periods[name] for ms in times] for name, times in took.items()}
    print("  ms of one trajectory and counted period, Lorenz: ours, scipy one at a time, dysts; times faster")
    print(f"    {', '.join(spread(ms) for ms in each.values())};", end=" ")
    for name in ("scipy", "dysts"):
        print(spread([a / b for a, b in zip(each[name], each["ours"], strict=True)]), end=" ")
    print()


def series() -> None:
    """Seconds of what is asked of series."""
    flow = load("Lorenz")
    states = sample(flow, 21, torch.Generator().manual_seed(0), Sampling(samples=5000, points=50)).states
    dt = flow.period / 50
    print("  seconds on series of 1,500 and 5,000 samples: correlation dimension, Rosenstein, both with intervals;")
    print("  differences of the invariants of one forecast from the truth's, 20 forecasts at once")
    for length in (1500, 5000):
        cut = states[:, :length]
        works = {
            "dimension": partial(correlation_dimension, cut[0], theiler=50),
            "exponent": partial(largest_exponent_of_series, cut[0], dt, theiler=50),
            "differences": partial(invariant_differences, cut[0], cut[1:], dt),
        }
        took = {name: statistics.median(ms) / 1000 for name, ms in milliseconds(works, ROUNDS).items()}
        print(
            f"    {length}: {took['dimension']:.2f}, {took['exponent']:.2f}; {took['differences'] / 20:.3f}", flush=True
        )


def gpu() -> None:
    """Spectra on the device, and all systems if they take less than a minute."""
    print(f"  {torch.cuda.get_device_name()}: seconds of {TRAJECTORIES} trajectories x {PERIODS} periods")
    total = 0.0
    for name in names("ode"):
        flow = load(name)
        start = near_the_attractor(flow, TRAJECTORIES, torch.Generator().manual_seed(0)).cuda()
        began = time.perf_counter()
        try:
            lyapunov_spectrum(flow, initial=start, periods=PERIODS, transient=TRANSIENT)
        except ValueError as refused:
            print(f"    {refused}")
        torch.cuda.synchronize()
        total += time.perf_counter() - began
        if total > 60:
            print(f"    {names('ode').index(name) + 1} of {len(names('ode'))} in {total:.0f} s (target: all in 60)")
            return
    print(f"    all systems in {total:.0f} s (target 60)")


def main() -> None:
    """Print the figures beside their targets."""
    warnings.simplefilter("ignore")
    began = time.perf_counter()
    try:
        systems()
        rivals()
        series()
        if torch.cuda.is_available():
            gpu()
    except MissingExtra as missing:
        print(missing)
    print(f"  {math.ceil(time.perf_counter() - began)} s")


if __name__ == "__main__":
    main()

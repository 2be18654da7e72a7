"""Trajectories on an attractor, sampled evenly: what forecasters are given."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

import torch
import xarray as xr
from torch import Tensor

from core.errors import InputError
from simulators.chaos.delay import DelaySolution, History, integrate_delay
from simulators.chaos.flow import DelayFlow, Flow
from simulators.chaos.integrate import Engine, integrate
from simulators.chaos.steppers import Method

ORBIT, ORBIT_POINTS_PER_PERIOD = 1000, 10
"""Points of the orbit from which initial states are taken."""
LONGEST_ORBIT = 100_000
"""Points up to which it is made longer, so that trajectories do not overlap: it is one row, and takes its time."""
ORBIT_POINTS_PER_DELAY, SETTLING_DELAYS = 4, 20
"""Of a delay system: its points are the closer ones, and its orbit first forgets the constant history."""
REST = 2e-3
"""A trajectory that moves by less, of its size, comes to rest: a few systems are chaotic for a while only. The least
that an orbit of the catalogue moves in a period is 5e-3 of its size (ExcitableCell)."""


@dataclass(frozen=True)
class Sampling:
    """How trajectories are sampled.

    Attributes:
        samples: n, kept of every trajectory.
        points: samples in a unit of time.
        timescale: that unit: the dominant ``period``, or the ``lyapunov`` time.
        burn_in: samples that are dropped before.
        rtol: relative tolerance.
        atol: absolute tolerance.
        method: of the batch.
        engine: see ``integrate``.
    """

    samples: int = 1200
    points: float = 100
    timescale: Literal["period", "lyapunov"] = "period"
    burn_in: int = 300
    rtol: float = 1e-10
    atol: float = 1e-10
    method: Method = "dop853"
    engine: Engine = "auto"

    def __post_init__(self) -> None:
        if self.samples < 1 or self.burn_in < 0 or self.samples + self.burn_in < 2:
            raise InputError(
                f"samples = {self.samples} and burn_in = {self.burn_in}; allowed are samples >= 1, burn_in >= 0 and "
                "at least 2 together"
            )
        if not (math.isfinite(self.points) and self.points > 0):
            raise InputError(f"points = {self.points}; samples in a unit of time must be > 0")
        if self.timescale not in ("period", "lyapunov"):
            raise InputError(f"timescale = {self.timescale!r}; allowed are period and lyapunov")

    def spacing(self, flow: Flow | DelayFlow) -> float:
        """Time units between two samples, exactly the unit over ``points``.

        Raises:
            InputError: in Lyapunov units for a flow without a positive exponent.
        """
        if self.timescale == "period":
            return flow.period / self.points
        exponent = flow.stored_lyapunov
        if exponent is None or not exponent > 0:
            raise InputError(f"{flow.name} has the Lyapunov exponent {exponent}; Lyapunov units need one > 0")
        return 1 / (exponent * self.points)


@dataclass(frozen=True)
class Trajectories:
    """Sampled trajectories of one system.

    Attributes:
        system: its name.
        channels: names of what is observed.
        states: ``(B, T, D)`` float64 in the system's units, NaN from a failure on.
        dt: spacing in time units.
        failed: ``(B,)``.
        engine: what integrated them.
        rtol: relative tolerance.
        atol: absolute tolerance.
    """

    system: str
    channels: tuple[str, ...]
    states: Tensor
    dt: float
    failed: Tensor
    engine: str
    rtol: float
    atol: float

    def dataset(self) -> xr.Dataset:
        """States as a variable of (trajectory, time, channel), with how they were made."""
        states = self.states.cpu().numpy()
        return xr.Dataset(
            {
                "states": (("trajectory", "time", "channel"), states, {"units": "the system's own"}),
                "failed": ("trajectory", self.failed.cpu().numpy()),
            },
            coords={
                "time": ("time", self.dt * torch.arange(states.shape[1]).double().numpy(), {"units": "time units"}),
                "channel": list(self.channels),
            },
            attrs={
                "system": self.system,
                "dt": self.dt,
                "integrator": self.engine,
                "rtol": self.rtol,
                "atol": self.atol,
                "versions": ", ".join(_versions()),
            },
        )


def _versions() -> list[str]:
    found = []
    for package in ("szilard", "torch", "scipy", "dysts"):
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return found


def sample(
    flow: Flow | DelayFlow,
    batch: int,
    generator: torch.Generator,
    sampling: Sampling | None = None,
    *,
    device: torch.device | str = "cpu",
) -> Trajectories:
    """Trajectories from initial states on the attractor.

    The initial states are points of one orbit that starts at ``flow.initial``: 1000 of them, 10 in a period, or as many
    more as keep the trajectories from overlapping (up to 100,000, or ``batch``), of which ``batch`` are taken at equal
    distances from a random one on and in random order. Draw those that must not overlap together.
    An ensemble of parameters has an orbit for every row. A delay system takes the delay before the point along; its
    points come 4 in a delay where that is closer, after 20 delays.

    Args:
        flow: with ``batch`` rows of parameters, if they differ.
        batch: B, trajectories.
        generator: on the CPU; the same one gives the same trajectories.
        sampling: how many samples and how far apart.
        device: where the batch is integrated and stays.

    Raises:
        InputError: no trajectory is asked for, the rows of parameters do not fit, Lyapunov units for a flow without a
            positive exponent, or an orbit that escapes.
    """
    sampling = Sampling() if sampling is None else sampling
    if batch < 1:
        raise InputError(f"batch = {batch}; allowed are whole numbers >= 1")
    if flow.rows not in (None, batch):
        raise InputError(f"{flow.name} has parameters of {flow.rows} rows; batch = {batch}")
    dt = sampling.spacing(flow)
    times = dt * torch.arange(sampling.burn_in + sampling.samples, dtype=torch.float64)
    kept, apart = slice(sampling.burn_in, None), _apart(flow)
    count = max(ORBIT, batch, min(LONGEST_ORBIT, math.ceil(batch * (float(times[-1]) / apart + 1))))
    points = _points(batch, count, generator)
    if isinstance(flow, DelayFlow):
        solution = _delayed(flow, points, count, times, device)
        states = solution.embedded(times[kept].to(device), flow.dimension)
        failed, engine = solution.failed, f"rk4, {solution.steps} steps in a delay"
    else:
        start = _on_orbit(flow, points, sampling).to(device)
        found = integrate(
            flow,
            start,
            times,
            method=sampling.method,
            rtol=sampling.rtol,
            atol=sampling.atol,
            engine=sampling.engine,
        )
        states, failed, engine = found.states[:, kept], found.failed, found.engine
        states = states.contiguous() if flow.coordinates is None else flow.coordinates(states)
    if resting := int(_rest(states, dt, flow.period).sum()):
        warnings.warn(f"{flow.name}: {resting} of {batch} trajectories come to rest; not chaotic", stacklevel=2)
    channels = flow.channels or tuple(f"x{k}" for k in range(states.shape[-1]))
    return Trajectories(flow.name, channels, states, dt, failed, engine, sampling.rtol, sampling.atol)


def _rest(states: Tensor, dt: float, period: float) -> Tensor:
    """Which trajectories ``(B,)`` of a period or more move by less than 2e-3 of their size in the last period."""
    last = math.ceil(period / dt)
    if last >= states.shape[1]:
        return torch.zeros(len(states), dtype=torch.bool, device=states.device)
    end = states[:, -last:]
    # Of the whole trajectory's size, because what comes to rest at the origin has none in the end.
    return (end.amax(1) - end.amin(1)).amax(1) < REST * states.abs().amax((1, 2))


def _apart(flow: Flow | DelayFlow) -> float:
    """Time between two points of the orbit."""
    apart = flow.period / ORBIT_POINTS_PER_PERIOD
    if isinstance(flow, DelayFlow):
        apart = min(apart, float(torch.as_tensor(flow.delay).max()) / ORBIT_POINTS_PER_DELAY)
    return apart


def _points(batch: int, count: int, generator: torch.Generator) -> Tensor:
    """Numbers of ``batch`` of the ``count`` points of an orbit: equally far apart, in random order."""
    apart = count / batch
    first = apart * torch.rand((), generator=generator, dtype=torch.float64)
    order = torch.randperm(batch, generator=generator)
    return (first + apart * order).long().clamp(max=count - 1)


def _on_orbit(flow: Flow, points: Tensor, sampling: Sampling) -> Tensor:
    """States ``(B, D)`` at these points of the orbit."""
    rows = flow.rows or 1
    times = _apart(flow) * torch.arange(max(2, int(points.max()) + 1), dtype=torch.float64)
    orbit = integrate(
        flow,
        flow.initial.repeat(rows, 1),
        times,
        method=sampling.method,
        rtol=sampling.rtol,
        atol=sampling.atol,
    )
    if rows == 1 and bool(orbit.failed):
        raise InputError(f"{flow.name}: the orbit from its initial state escapes; give another initial state")
    return orbit.states[0, points] if flow.rows is None else orbit.states[torch.arange(rows), points]


def _delayed(flow: DelayFlow, points: Tensor, count: int, times: Tensor, device: torch.device | str) -> DelaySolution:
    """Solutions at ``times`` that start on an orbit."""
    apart, transient = _apart(flow), SETTLING_DELAYS * float(torch.as_tensor(flow.delay).max())
    orbit = integrate_delay(flow, flow.initial.repeat(flow.rows or 1), transient + apart * count)
    if flow.rows is None and bool(orbit.failed):
        raise InputError(f"{flow.name}: the orbit from its initial state escapes; give another initial state")
    history = orbit.history(orbit.steps + ((transient + apart * points) / orbit.step).long())
    return integrate_delay(flow, History(history.values.to(device), history.slopes.to(device)), float(times[-1]))


def with_noise(states: Tensor, level: float, generator: torch.Generator) -> Tensor:
    """States plus independent Gaussian noise of ``level`` times each channel's standard deviation over time.

    Args:
        states: ``(..., T, D)``.
        level: 0.1 stands for 10 %.
        generator: on the device of the states.

    Raises:
        InputError: a negative level, or one that is not finite.
    """
    if not (math.isfinite(level) and level >= 0):
        raise InputError(f"level = {level}; the noise must be >= 0")
    noise = torch.randn(states.shape, generator=generator, dtype=states.dtype, device=states.device)
    return states + level * states.std(-2, keepdim=True) * noise

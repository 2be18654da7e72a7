"""A batch of large-eddy simulations and the statistics that are kept of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from core.checkpoint import Checkpoint
from core.errors import InputError
from simulators.turbulence.closures import Closure, NoClosure, largest_step, subgrid_term
from simulators.turbulence.diagnostics import VorticityHistogram, energy_spectrum, enstrophy_spectrum
from simulators.turbulence.diagnostics.transfers import (
    backscatter_fraction,
    enstrophy_transfer,
    least_stress,
    transfer_spectra,
)
from simulators.turbulence.flow import Flow, stress_curl
from simulators.turbulence.grid import Grid, resample
from simulators.turbulence.solver import FlowState, Solver

Advance = Callable[[FlowState, int], FlowState]
Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class Sampling:
    """When statistics are taken, in time units.

    Attributes:
        duration: length of the simulations.
        discard: what is left out at their beginning.
        until: end of the window of the distribution and the transfers; the whole by default.
        every: time between two samples.
    """

    duration: float
    discard: float
    every: float = 0.25
    until: float = math.inf

    def __post_init__(self) -> None:
        if not 0 <= self.discard < min(self.duration, self.until) or self.every <= 0:
            raise InputError(
                f"duration = {self.duration:g}, discard = {self.discard:g}, until = {self.until:g}, every = "
                f"{self.every:g}: discard must be below duration and until, every above 0"
            )


class _Statistics:
    """What has been seen of B copies: series of all samples, and sums over the window."""

    SERIES = ("energy", "enstrophy", "largest")

    def __init__(self, grid: Grid, copies: int, samples: int, sigma: float, *, zonal: bool) -> None:
        half = grid.n // 2

        def filled(value: float, *shape: int) -> Tensor:
            return torch.full((copies, *shape), value, device=grid.device)

        self.series: dict[str, Tensor] = {name: filled(math.nan, samples) for name in self.SERIES}
        for name in ("Z", "E"):
            self.series[name] = filled(math.nan, samples, 2, half)
        if zonal:
            self.series["zonal"] = filled(math.nan, samples, grid.n)
        self.sums = {name: filled(0.0, half) for name in ("energy_transfer", "enstrophy_transfer")}
        self.sums |= {name: filled(0.0) for name in ("backscatter", "dissipation")}
        self.histogram = VorticityHistogram.empty(copies, sigma, device=grid.device)
        self.counted = 0

    def tensors(self) -> dict[str, Tensor]:
        histogram = {f.name: getattr(self.histogram, f.name) for f in fields(self.histogram)}
        kept = {f"histogram.{name}": x for name, x in histogram.items() if isinstance(x, Tensor)}
        return {**self.series, **self.sums, **kept, "counted": torch.tensor(self.counted)}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        for part in (self.series, self.sums):
            for name, like in part.items():
                part[name] = tensors[name].to(like)
        kept = {n.removeprefix("histogram."): x for n, x in tensors.items() if n.startswith("histogram.")}
        plain = {f.name: getattr(self.histogram, f.name) for f in fields(self.histogram)}
        device = self.histogram.counts.device
        self.histogram = VorticityHistogram(**{**plain, **{name: x.to(device) for name, x in kept.items()}})
        self.counted = int(tensors["counted"])

    def add(self, i: int, flow: Flow, closure: Closure, inside: bool) -> None:
        self.series["energy"][:, i], self.series["enstrophy"][:, i] = flow.energy, flow.enstrophy
        self.series["largest"][:, i] = flow.vorticity.abs().amax((-2, -1))
        self.series["Z"][:, i] = enstrophy_spectrum(flow.vorticity_hat, axis="stacked")
        self.series["E"][:, i] = energy_spectrum(flow.vorticity_hat, axis="stacked")
        if "zonal" in self.series:
            self.series["zonal"][:, i] = flow.velocity[0].mean(-2)
        if not inside:
            return
        self.histogram = self.histogram.add(flow.vorticity)
        if hasattr(closure, "stress"):
            stress = closure.stress(flow)
            pi_hat = stress_curl(flow.grid, *stress)
        else:
            pi_hat = subgrid_term(flow, closure(flow))
            stress = least_stress(flow.grid, pi_hat)
        energy, enstrophy = transfer_spectra(flow, pi_hat)
        self.sums["energy_transfer"] += energy
        self.sums["enstrophy_transfer"] += enstrophy
        self.sums["backscatter"] += backscatter_fraction(enstrophy_transfer(flow, stress))
        self.sums["dissipation"] += (flow.vorticity * flow.grid.to_physical(pi_hat)).mean((-2, -1))
        self.counted += 1


@torch.no_grad()
def simulate(
    solver: Solver,
    starts: Tensor,
    sampling: Sampling,
    sigma: float,
    *,
    closure: Closure | None = None,
    advance: Advance | None = None,
    seen_on: int | None = None,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Simulate a batch and keep its statistics.

    A copy that blows up leaves NaN behind; the others go on.

    Args:
        solver: of all copies, with its closure.
        starts: ``(B, N, N)`` vorticities.
        sampling: when statistics are taken.
        sigma: standard deviation of the reference's vorticity, the unit of the distribution.
        closure: what the transfers are of; the solver's by default.
        advance: how the copies are stepped; the solver's way by default.
        seen_on: points of a coarser grid, to which the flow is truncated before it is measured.
        checkpoint: file from which an interrupted simulation goes on, bit for bit.
        progress: told the share done and a message.

    Returns:
        Dims ``copy``, ``time``, ``axis``, ``k``, ``omega`` (bin, in sigma), ``q``, ``x``, ``y``: series of all samples
        (``Z``, ``E``, ``energy``, ``enstrophy``, ``largest`` |omega|, ``zonal`` velocity with beta), and over the
        window ``counts``, ``exceeded``, ``points``, ``kurtosis``, ``std``, transfers and the ``final`` vorticity.

    Raises:
        InputError: an impossible sampling, or a time step too large for the start or for an explicit eddy viscosity.
    """
    closure = solver.closure if closure is None else closure
    advance = solver.advance if advance is None else advance
    stride = max(1, round(sampling.every / solver.dt))
    samples = int(sampling.duration / (stride * solver.dt) + 1e-9)
    if samples < 1:
        raise InputError(f"duration = {sampling.duration:g}: holds no sample of every = {sampling.every:g}")
    times = (np.arange(samples) + 1) * stride * solver.dt
    within = (times > sampling.discard + 1e-9) & (times <= sampling.until + 1e-9)
    if not within.any():
        raise InputError(
            f"discard = {sampling.discard:g}: leaves no sample of every = {stride * solver.dt:g} up to "
            f"{min(sampling.duration, sampling.until):g}"
        )
    starts = starts.to(solver.grid.device)
    state = solver.start(starts)
    # What a closure takes also damps what the scheme amplifies.
    cfl = solver.check_cfl(state, warn=isinstance(closure, NoClosure))
    _check_explicit(solver, state, closure)
    grid = solver.grid if seen_on is None else Grid(seen_on, solver.grid.dtype, solver.grid.device)

    def seen(state: FlowState) -> Flow:
        return solver.flow(state) if grid is solver.grid else Flow(grid, resample(state.vorticity_hat, grid.n))

    statistics = _Statistics(grid, len(starts), samples, sigma, zonal=solver.case.beta != 0)
    file = Checkpoint(checkpoint)
    first = 0
    if (held := file.load()) is not None:
        state = FlowState(
            held.pop("vorticity_hat").to(solver.grid.device), held.pop("advection").to(solver.grid.device)
        )
        first = int(held.pop("sample"))
        statistics.restore(held)
    for i in range(first, samples):
        state = advance(state, stride)
        statistics.add(i, seen(state), closure, bool(within[i]))
        if progress is not None:
            progress((i + 1) / samples, f"t = {times[i]:.1f}")
        if file.due:
            file.save(_record(state, i + 1, statistics))
    return _dataset(solver.dt, statistics, seen(state), times, sampling).assign_attrs(cfl=cfl)


def _check_explicit(solver: Solver, state: FlowState, closure: Closure) -> None:
    """Refuse a sub-grid term that the explicit step cannot stand; of several constants, if it can stand none."""
    flow = solver.flow(state)
    if hasattr(closure, "largest_step"):
        allowed = float(closure.largest_step(flow).max())
    elif hasattr(closure, "viscosity") and closure(flow).pi_hat is not None:
        allowed = float(largest_step(solver.grid, closure.viscosity(flow)).max())
    else:
        return
    if solver.dt >= allowed:
        raise InputError(f"dt = {solver.dt:g}: the explicit closure is stable below {allowed:.2g}")


def _record(state: FlowState, sample: int, statistics: _Statistics) -> dict[str, Tensor]:
    flow = {"vorticity_hat": state.vorticity_hat, "advection": state.advection}
    return {**flow, "sample": torch.tensor(sample), **statistics.tensors()}


NAMES: dict[str, tuple[tuple[str, ...], str]] = {
    "Z": (("time", "axis", "k"), "enstrophy spectrum along one axis"),
    "E": (("time", "axis", "k"), "energy spectrum along one axis"),
    "energy": (("time",), "energy"),
    "enstrophy": (("time",), "enstrophy"),
    "largest": (("time",), "largest |omega|"),
    "zonal": (("time", "y"), "zonal-mean velocity u"),
    "energy_transfer": (("shell",), "energy that the closure takes, by angle-averaged wavenumber"),
    "enstrophy_transfer": (("shell",), "enstrophy that the closure takes, by angle-averaged wavenumber"),
    "backscatter": ((), "share of points where the closure gives enstrophy"),
    "dissipation": ((), "enstrophy that the closure takes"),
    "counts": (("omega",), "values of the vorticity in the bin"),
    "exceeded": (("q",), "values beyond q sigma"),
    "points": ((), "values counted"),
    "kurtosis": ((), "kurtosis of the vorticity"),
    "std": ((), "standard deviation of the vorticity"),
    "final": (("x", "y"), "vorticity at the end"),
}
"""Dims after ``copy``, and what it is; everything is non-dimensional."""


def _dataset(dt: float, statistics: _Statistics, last: Flow, times: np.ndarray, sampling: Sampling) -> xr.Dataset:
    h = statistics.histogram
    values: dict[str, Tensor] = dict(statistics.series)
    values |= {name: x / max(statistics.counted, 1) for name, x in statistics.sums.items()}
    values |= {"counts": h.counts, "exceeded": h.exceeded, "points": h.points}
    values |= {"kurtosis": h.kurtosis, "std": h.standard_deviation, "final": last.vorticity}
    data: dict[str, Any] = {}
    for name, value in values.items():
        dims, long_name = NAMES[name]
        data[name] = (("copy", *dims), value.cpu().numpy(), {"units": "1", "long_name": long_name})
    half, x = last.grid.n // 2, last.grid.x.cpu().numpy()
    coords = {
        "time": ("time", times, {"units": "1", "long_name": "time"}),
        "axis": ["x", "y"],
        "k": ("k", np.arange(half), {"units": "1", "long_name": "wavenumber"}),
        "shell": ("shell", np.arange(half), {"units": "1", "long_name": "wavenumber"}),
        "omega": ("omega", h.centres.cpu().numpy(), {"units": "sigma", "long_name": "vorticity"}),
        "q": [2, 3, 4],
        "x": x,
        "y": x,
    }
    attrs = {
        "n": last.grid.n,
        "dt": dt,
        "sigma": h.sigma,
        "delta": last.grid.spacing,
        "delta_convention": "2 pi / N",
        "discard": sampling.discard,
        "until": min(sampling.until, float(times[-1])),
    }
    return xr.Dataset(data, coords, attrs)

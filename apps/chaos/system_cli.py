"""The verbs of ``szilard chaos`` for a system of the catalogue: simulate, systems, invariants (also of a series)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer
from pydantic import Field
from rich.console import Console

from apps.chaos.series_options import (
    ChannelOption,
    DropGapsOption,
    DtOption,
    ResampleOption,
    SelectOption,
    TimeOption,
    read_given,
    warn,
)
from apps.chaos.series_writing import check_writable, write_series
from core.errors import InputError
from core.study import Config
from core.study.commands import Device, DeviceOption, SeedOption, Set
from core.study.loading import from_options
from core.study.runner import resolve_device


class Simulation(Config):
    """What ``simulate`` makes."""

    parameters: dict[str, float] = Field(default_factory=dict)
    """Of the system, other than the catalogue's."""
    trajectories: int = Field(default=1, ge=1, le=1_000_000)
    """From different initial states on the attractor."""
    samples: int = Field(default=1200, ge=1)
    """Of each trajectory."""
    points: float = Field(default=100, gt=0)
    """Samples in a unit of the time scale."""
    timescale: Literal["period", "lyapunov"] = "period"
    """That unit: the dominant period, or the inverse of the largest exponent."""
    burn_in: int = Field(default=300, ge=0)
    """Samples that are left out before."""
    noise: float = Field(default=0, ge=0, le=100)
    """Gaussian noise on the samples, in standard deviations of each channel."""
    tolerance: float = Field(default=1e-10, gt=0, le=1e-3)
    """Relative and absolute, of the integration."""
    engine: str = "auto"
    """Of the integration: auto, torch or odeint."""


def simulate(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A system of the catalogue (szilard chaos systems).")],
    out: Annotated[Path, typer.Option(help="File to write: .csv, .nc, .zarr or .parquet.")],
    samples: Annotated[int, typer.Option(help="Samples of each trajectory.", min=1)] = 1200,
    points: Annotated[float, typer.Option(help="Samples in a dominant period.")] = 100,
    trajectories: Annotated[int, typer.Option(help="From different initial states.", min=1)] = 1,
    noise: Annotated[float, typer.Option(help="Noise, in standard deviations of each channel.", min=0)] = 0.0,
    channel: Annotated[
        list[str] | None, typer.Option("--channel", help="Channel to keep; may be repeated.  \\[default: all]")
    ] = None,
    seed: SeedOption = 0,
    overrides: Set = None,
    device: DeviceOption = Device.cpu,
) -> None:
    """Sample trajectories on the attractor of a system of the catalogue.

    --set changes parameters of the system (--set parameters.rho=30) or the sampling (--set timescale=lyapunov, burn_in,
    tolerance, engine).

    Example: szilard chaos simulate Lorenz --samples 1200 --points 100 --trajectories 5 --out lorenz.nc
    """
    import torch

    from core.seeds import stream
    from simulators.chaos import DelayFlow, Sampling, load, sample, with_noise

    values = {"samples": samples, "points": points, "trajectories": trajectories, "noise": noise}
    chosen = from_options(Simulation, values, "simulate", overrides or ())
    check_writable(out)
    flow = load(name, chosen.parameters)
    wanted = _channels(name, flow.channels, channel)
    if chosen.engine not in ("auto", "torch", "odeint"):
        raise InputError(f"engine = {chosen.engine}: must be auto, torch or odeint")
    sampling = Sampling(
        samples=chosen.samples,
        points=chosen.points,
        timescale=chosen.timescale,
        burn_in=chosen.burn_in,
        rtol=chosen.tolerance,
        atol=chosen.tolerance,
        engine=chosen.engine,  # type: ignore[arg-type]
    )
    console = Console(stderr=True)
    with console.status(f"integrating {name}"):
        generator = torch.Generator().manual_seed(stream(seed, "initial states"))
        target = resolve_device(device, torch.cuda.is_available())
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always", UserWarning)
            found = sample(flow, chosen.trajectories, generator, sampling, device=target)
    if chosen.noise:
        generator = torch.Generator().manual_seed(stream(seed, "noise"))
        found = replace(found, states=with_noise(found.states.cpu(), chosen.noise, generator))
    data = found.dataset().sel(channel=wanted)
    data.attrs |= {"period": flow.period, "noise": chosen.noise, "seed": seed, "settings": chosen.model_dump_json()}
    if data.sizes["trajectory"] == 1:
        data = data.isel(trajectory=0, drop=True)
    write_series(out, data)
    failed = int(found.failed.sum())
    shape = f"{chosen.trajectories} x {chosen.samples} samples of {', '.join(wanted)}"
    print(f"{name}: {shape}; dt {found.dt:.6g}, period {flow.period:.6g} time units")
    accuracy = "" if isinstance(flow, DelayFlow) else f" with relative and absolute tolerance {chosen.tolerance:g}"
    print(f"integrated by {found.engine}{accuracy}")
    warn([str(w.message) for w in told if issubclass(w.category, UserWarning)])
    if failed:
        print(f"{failed} of {chosen.trajectories} trajectories left the attractor or failed: NaN from there on")
    print(out)


def systems(
    search: Annotated[str | None, typer.Option(help="Only names that contain this, whatever the case.")] = None,
) -> None:
    """List the systems of the catalogue, with their largest Lyapunov exponents: as estimated here and as stored.

    Example: szilard chaos systems --search lorenz
    """
    from apps.chaos.series_print import print_systems

    print_systems(search)


def invariants(
    what: Annotated[str, typer.Argument(metavar="NAME|FILE", help="A system of the catalogue, or a series.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the picture and the numbers, for a file.")] = None,
    trajectories: Annotated[int, typer.Option(help="That a spectrum is averaged over.", min=2)] = 64,
    periods: Annotated[float, typer.Option(help="That each is followed.", min=1)] = 30,
    channel: ChannelOption = None,
    time: TimeOption = None,
    select: SelectOption = None,
    dt: DtOption = None,
    resample: ResampleOption = None,
    drop_gaps: DropGapsOption = False,
    seed: SeedOption = 0,
    overrides: Set = None,
) -> None:
    """Measure Lyapunov exponents and dimensions: of a system from its equations, of a series from the data.

    --set changes parameters of a system: --set parameters.rho=30.

    Example: szilard chaos invariants Lorenz
    """
    from apps.chaos.series_print import print_series_invariants, print_system_invariants

    path = Path(what)
    if not path.suffix and not path.exists():
        chosen = from_options(Simulation, {}, "invariants", overrides or ())
        print_system_invariants(what, chosen.parameters, trajectories, periods, seed)
        return
    series = read_given(path, channel, time, select, dt, resample, drop_gaps)
    print_series_invariants(series, out)


def _channels(name: str, known: Sequence[str], asked: list[str] | None) -> list[str]:
    for channel in asked or ():
        if channel not in known:
            raise InputError(f"--channel {channel}: {name} has {', '.join(known)}")
    return list(asked or known)

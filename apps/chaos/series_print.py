"""What the verbs ``systems`` and ``invariants`` print."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from apps.chaos.series import Series
from apps.chaos.series_options import describe, warn
from core import files
from core.errors import InputError
from core.seeds import stream
from core.stats import Interval
from core.study.numbers import decimals, estimate, interval, number

NORMAL = 1.96
"""Standard errors to each side of a 95 % interval."""


def print_systems(search: str | None) -> None:
    """The catalogue, or the systems whose name contains a text.

    Raises:
        InputError: there is none.
        MissingExtra: the catalogue's package is not installed.
    """
    from simulators.chaos.catalogue import names, stored
    from simulators.chaos.exponents import table as shipped

    found = [name for name in names("all") if search is None or search.lower() in name.lower()]
    if not found:
        raise InputError(f"--search {search}: no such system among the {len(names('all'))}")
    table = _table("system", "D", "period", "exponent", "95 % interval", "stored", "per period", "kind")
    for name in found:
        about, ours = stored(name), shipped().get(name)
        known = ours is not None and bool(ours.values)
        value, error = (ours.values[0], ours.standard_errors[0]) if ours and known else (math.nan, math.nan)
        kinds = {
            "delay": about.delay,
            "stiff": ours is not None and "stiff" in ours.reason,
            "driven": about.nonautonomous,
            "angles": about.postprocessed,
            "Hamiltonian": about.hamiltonian,
        }
        low, high = value - NORMAL * error, value + NORMAL * error
        table.add_row(
            escape(name),
            str(about.dimension),
            number(about.period),
            number(value, decimals(low, high)),
            escape(interval(low, high)) if known else "",
            number(about.maximum_lyapunov),
            number((value if known else about.maximum_lyapunov) * about.period),
            ", ".join(kind for kind, holds in kinds.items() if holds),
        )
    console = _console()
    console.print(table)
    said = "exponents: largest, 1 / time unit, as estimated here and as dysts stores them; per period: times the period"
    console.print(said, style="dim")


def print_system_invariants(
    name: str, parameters: Mapping[str, float], trajectories: int, periods: float, seed: int
) -> None:
    """The Lyapunov spectrum of a system with intervals, beside what is shipped and stored.

    Raises:
        InputError: an unknown system or parameter, or one without a spectrum.
        MissingExtra: the catalogue's package is not installed.
    """
    from simulators.chaos.catalogue import load, stored
    from simulators.chaos.exponents import estimated
    from simulators.chaos.flow import DelayFlow
    from simulators.chaos.lyapunov import lyapunov_spectrum

    flow, about, ours = load(name, parameters), stored(name), estimated(name)
    if isinstance(flow, DelayFlow):
        raise InputError(f"{name}: is a delay system, whose spectrum is infinite; simulate a series and measure that")
    console = Console(stderr=True)
    with console.status(f"following {trajectories} trajectories of {name}"):
        generator = torch.Generator().manual_seed(stream(seed, "initial states"))
        found = lyapunov_spectrum(flow, trajectories=trajectories, periods=periods, generator=generator)
    plain = not parameters
    table = _table(name if plain else f"{name}, changed", "estimate [95 % interval]", "shipped", "stored by dysts")
    kept = about.lyapunov_spectrum or ()
    shipped, errors = (ours.values, ours.standard_errors) if plain and ours is not None else ((), ())
    for i in range(flow.dimension):
        value = found.interval(i)
        table.add_row(
            f"exponent {i + 1}",
            escape(estimate(value.mean, value.low, value.high)),
            escape(_with_error(shipped[i], errors[i])) if i < len(shipped) else "–",
            number(kept[i]) if plain and i < len(kept) else "–",
        )
    dimension, known = found.kaplan_yorke(), None if ours is None or not plain else ours.kaplan_yorke
    table.add_row(
        "Kaplan-Yorke dimension",
        escape(estimate(dimension.mean, dimension.low, dimension.high)),
        "–" if ours is None or known is None else escape(_with_error(known, ours.kaplan_yorke_standard_error)),
        number(about.kaplan_yorke) if plain else "–",
    )
    table.add_row("largest exponent by itself", "", "", number(about.maximum_lyapunov) if plain else "–")
    out = _console()
    out.print(table)
    failed = f", {found.failed} failed" if found.failed else ""
    said = f"{found.trajectories} trajectories{failed}, each over {found.periods:g} periods of {flow.period:.4g}"
    out.print(f"1 / time unit; {said} time units", style="dim")


def print_series_invariants(series: Series, out: Path | None) -> None:
    """The invariants of a series; with a folder, also the picture and the curves in it."""
    from apps.chaos.forecast_files import draw
    from apps.chaos.invariants_figure import invariants_figure
    from apps.chaos.series_measures import measures

    if out is not None and out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: is a file, not a folder")
    found = measures(series)
    describe(series)
    table = _table("quantity", "value [95 % interval]", "unit")
    for quantity, measured, value in found.table():
        shown = estimate(value.mean, value.low, value.high) if isinstance(value, Interval) else number(value)
        table.add_row(quantity, escape(shown), measured)
    _console().print(table)
    warn(found.notes)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        files.write(out / "invariants.nc", lambda path: found.dataset().to_netcdf(path, engine="h5netcdf"))
        for path in (*draw(invariants_figure(found), out / "invariants"), out / "invariants.nc"):
            print(path)


def _with_error(value: float, error: float | None) -> str:
    """An estimate with the 95 % interval of its standard error."""
    return number(value) if error is None else estimate(value, value - NORMAL * error, value + NORMAL * error)


def _table(*columns: str) -> Table:
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for i, column in enumerate(columns):
        table.add_column(
            escape(column), justify="left" if i == 0 or column in ("kind", "unit") else "right", no_wrap=True
        )
    return table


def _console() -> Console:
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, 120)
    return console

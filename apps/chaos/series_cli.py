"""The verbs of ``szilard chaos`` for one system or one series: simulate, systems, invariants, forecast, recommend."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from apps.chaos.series import Series
from apps.chaos.series_options import (
    ChannelOption,
    DropGapsOption,
    DtOption,
    FileArgument,
    FreshOption,
    HorizonOption,
    Normalize,
    NormalizeOption,
    ResampleOption,
    SelectOption,
    TimeOption,
    describe,
    progress_bar,
    read_given,
    warn,
)
from apps.chaos.system_cli import invariants, simulate, systems
from core.errors import InputError
from core.study.commands import Device, DeviceOption, SeedOption, Set
from core.study.loading import from_options
from core.study.runner import resolve_device
from core.study.terminal import print_rows

if TYPE_CHECKING:
    from apps.chaos.forecasters import Forecaster
    from apps.chaos.recommendation import Recommendation


def add_series_commands(app: typer.Typer) -> None:
    """Give ``app`` the verbs for one system or one series."""
    for verb in (simulate, systems, invariants, forecast, recommend):
        app.command()(verb)


def forecast(
    file: FileArgument,
    horizon: HorizonOption = 200,
    method: Annotated[str, typer.Option(help="auto, or a kind of forecaster: linear, ngrc, esn, nbeats, ...")] = "auto",
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("runs/forecast"),
    channel: ChannelOption = None,
    time: TimeOption = None,
    select: SelectOption = None,
    dt: DtOption = None,
    resample: ResampleOption = None,
    drop_gaps: DropGapsOption = False,
    holdout: Annotated[int, typer.Option(help="Last samples to leave out and to show as the truth.", min=0)] = 0,
    lyapunov: Annotated[float | None, typer.Option(help="Largest exponent.  \\[default: estimated]")] = None,
    level: Annotated[float, typer.Option(help="Nominal coverage of the intervals.")] = 0.9,
    origins: Annotated[int, typer.Option(help="Past forecasts that the intervals rest on, at most.", min=2)] = 40,
    normalize: NormalizeOption = Normalize.train_zscore,
    seed: SeedOption = 0,
    overrides: Set = None,
    device: DeviceOption = Device.cpu,
    resume: FreshOption = True,
) -> None:
    """Forecast a series with intervals; the same command goes on with a forecast that was stopped.

    auto ranks the methods first, as recommend does, and takes the best. --set changes the forecaster: --set lags=10.

    Example: szilard chaos forecast lorenz.csv --horizon 200 --method linear --set lags=10 --out runs/forecast
    """
    import torch

    from apps.chaos.forecast import check_forecast, forecast_series
    from apps.chaos.forecast_files import ForecastFolder, fingerprint
    from apps.chaos.forecast_table import summary_rows
    from apps.chaos.recommendation import recommend as rank
    from apps.chaos.series_figures import forecast_figure
    from apps.chaos.series_scales import scales_sentence

    target = resolve_device(device, torch.cuda.is_available())
    forecaster = None if method == "auto" else forecaster_of(method, overrides or ())
    if forecaster is None and overrides:
        raise InputError(f"--set {overrides[0]}: --method auto chooses the settings itself: name a method")
    whole = read_given(file, channel, time, select, dt, resample, drop_gaps)
    series, truth = _split(whole, holdout)
    check_forecast(series, forecaster, horizon, origins, level, lyapunov)
    asked = {
        "series": fingerprint(series),
        "method": method if forecaster is None else json.loads(forecaster.model_dump_json()),
        "horizon": horizon,
        "lyapunov": lyapunov,
        "level": level,
        "origins": origins,
        "normalize": str(normalize),
        "seed": seed,
        "device": target,
    }
    folder = ForecastFolder(out, asked, fresh=not resume)
    found = folder.stored()
    options: dict[str, Any] = {"seed": seed, "normalize": str(normalize), "device": target}
    if found is None:
        with folder.kept_unless_refused(), progress_bar("forecasting") as told:
            share = 0.0
            if forecaster is None:
                share = 0.8
                checkpoint = folder.checkpoint / "recommend"
                ranking = rank(series, horizon, checkpoint=checkpoint, progress=_share(told, 0, share), **options)
                forecaster = ranking.best
            found = forecast_series(
                series,
                forecaster,
                horizon,
                lyapunov=lyapunov,
                level=level,
                origins=origins,
                checkpoint=folder.checkpoint / "forecast",
                progress=_share(told, share, 1),
                **options,
            )
        if method == "auto":
            _print_ranking(ranking)
        folder.write(found)
    pictures = folder.draw(forecast_figure(series, found, truth), "forecast")
    describe(series)
    print(scales_sentence(found.attrs))
    print_rows(summary_rows(found))
    warn(str(found.attrs["warnings"]).splitlines())
    for path in (out / "forecast.csv", *pictures, out / "forecast.nc"):
        print(path)


def recommend(
    file: FileArgument,
    horizon: HorizonOption = 200,
    method: Annotated[
        list[str] | None, typer.Option("--method", help="To try; may be repeated.  \\[default: all that fit]")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="NetCDF file of the scores from every origin.")] = None,
    channel: ChannelOption = None,
    time: TimeOption = None,
    select: SelectOption = None,
    dt: DtOption = None,
    resample: ResampleOption = None,
    drop_gaps: DropGapsOption = False,
    origins: Annotated[int, typer.Option(help="Past forecasts that rank, at most.", min=2)] = 20,
    normalize: NormalizeOption = Normalize.train_zscore,
    seed: SeedOption = 0,
    device: DeviceOption = Device.cpu,
) -> None:
    """Rank forecasters on a series by what they would have forecast in its last third.

    Example: szilard chaos recommend sunspots.csv --horizon 30
    """
    import torch

    from apps.chaos.recommendation import chosen_candidates
    from apps.chaos.recommendation import recommend as rank
    from core import files

    if out is not None and (out.suffix != ".nc" or out.is_dir()):
        raise InputError(f"--out {out}: must be a file that ends in .nc")
    target = resolve_device(device, torch.cuda.is_available())
    series = read_given(file, channel, time, select, dt, resample, drop_gaps)
    chosen_candidates(series, horizon, method or (), origins)
    with progress_bar("ranking") as told:
        ranking = rank(
            series,
            horizon,
            methods=method or (),
            origins=origins,
            seed=seed,
            normalize=normalize.value,
            device=target,
            progress=told,
        )
    describe(series)
    _print_ranking(ranking)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        files.write(out, lambda path: ranking.table.to_netcdf(path, engine="h5netcdf"))
        print(out)


def forecaster_of(kind: str, overrides: Sequence[str]) -> Forecaster:
    """The forecaster of a kind, with fields changed by ``key=value``.

    Raises:
        InputError: an unknown kind or field, or a kind that needs equations.
    """
    from apps.chaos.forecasters import FORECASTERS

    known = {str(f.model_fields["kind"].default): f for f in FORECASTERS}
    usable = ", ".join(["auto", *(name for name, f in known.items() if not f.physical)])
    if kind not in known:
        raise InputError(f"--method {kind}: must be among {usable}")
    if known[kind].physical:
        raise InputError(
            f"--method {kind}: needs the equations of the system, a series has none; choose among {usable}"
        )
    return from_options(known[kind], {"kind": kind}, f"--method {kind}", overrides)


def _split(series: Series, holdout: int) -> tuple[Series, Any]:
    """The series without its last samples, and these."""
    if not holdout:
        return series, None
    if holdout > len(series) - 12:
        raise InputError(f"--holdout {holdout}: of {len(series)} samples at most {len(series) - 12} can be left out")
    kept = len(series) - holdout
    return replace(series, values=series.values[:kept], time=series.time[:kept]), series.values[kept:]


def _print_ranking(ranking: Recommendation) -> None:
    print_rows(ranking.rows(), ("valid time", "nrmse", "sMAPE", "fit"))
    console = Console(highlight=False)
    console.print(
        "first those not shown to be valid for less time than the longest, by nrmse; then by valid time", style="dim"
    )
    for name, reason in ranking.skipped.items():
        console.print(f"skipped {escape(name)}: {escape(reason)}", style="dim")


def _share(told: Callable[[float, str], None], begin: float, end: float) -> Callable[[float, str], None]:
    return lambda share, text: told(begin + share * (end - begin), text)

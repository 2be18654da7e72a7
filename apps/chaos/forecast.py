"""Forecasts of a user's series with intervals that its own past has earned."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from apps.chaos import metrics
from apps.chaos.conformal import conformal_half_width, coverage, fewest_errors
from apps.chaos.fitting import Normalisation, ScaledFitted, fit_scaled
from apps.chaos.forecasters.forecaster import Forecaster
from apps.chaos.rolling import MEMBERS, Rolled, origins_of, rolled
from apps.chaos.series import Series
from apps.chaos.series_scales import Scales, scales_of
from core.checkpoint import Checkpoint
from core.errors import InputError
from core.seeds import stream

Progress: TypeAlias = Callable[[float, str], None]
ORIGINS = 40
"""Of rolling forecasts, by default."""
ROLLING = 0.8
"""Share of the work that rolling forecasts are taken for in the progress."""
RANKABLE = 36
"""Samples of a series on which methods are tuned and ranked."""
NOMINAL = "quantile of past errors at this lead time"


def forecast_series(
    series: Series,
    forecaster: Forecaster,
    horizon: int,
    *,
    lyapunov: float | None = None,
    origins: int = ORIGINS,
    level: float = 0.9,
    seed: int = 0,
    normalize: Normalisation = "train_zscore",
    device: torch.device | str = "cpu",
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Fit the whole series and forecast what follows, with prediction intervals.

    The intervals are ``forecast ± quantile`` of the absolute errors that the forecaster made at the same lead time
    from origins in the last third of the series, each time fitted to as many samples before it (split conformal
    prediction). Errors of neighbouring origins are alike, and the series may change: hence ``coverage``, the share of
    the later origins' truth that intervals of the earlier origins hold. Lead times that too few origins have seen have
    no interval (NaN). Where the forecaster makes ensembles, their quantiles stand beside.

    Args:
        series: to forecast.
        forecaster: settings.
        horizon: samples to forecast.
        lyapunov: largest exponent, 1 / time unit of the series; None estimates it.
        origins: of rolling forecasts, at most.
        level: nominal coverage of the intervals.
        seed: of initial weights and ensembles.
        normalize: how what is fitted is scaled.
        device: where to compute.
        checkpoint: folder from which an interrupted forecast goes on.
        progress: told the share done and a message.

    Returns:
        ``forecast``, ``low`` and ``high`` (lead, channel) in the units of the series, ``ensemble_*`` where there is
        one; ``rolling_forecast`` and ``rolling_truth`` (origin, rolling_lead, channel); of each origin
        ``valid_samples`` (V1), ``valid_censored``, ``nrmse`` and ``smape``; ``coverage`` (later_origin). Attributes
        hold the scales of time and ``warnings``, one a line.

    Raises:
        InputError: a series that is too short, or an option out of range.
        MissingExtra: a package of the forecaster is not installed.
    """
    check_forecast(series, forecaster, horizon, origins, level, lyapunov)
    started = time.perf_counter()
    scales = scales_of(series, lyapunov)
    values = torch.from_numpy(series.values)
    places = origins_of(len(series), horizon, origins, forecaster.shortest)
    past = rolled(
        forecaster,
        values,
        places,
        dt=series.dt,
        seed=seed,
        normalize=normalize,
        members=MEMBERS,
        device=device,
        checkpoint=None if checkpoint is None else checkpoint / "rolling",
        progress=_part(progress, 0, ROLLING, f"forecasts from {len(places.at)} origins"),
    )
    last = _last(forecaster, series, horizon, seed, normalize, device, checkpoint, progress)
    found = _dataset(series, last["forecast"], last.get("members"), past, places.scored, level)
    found = found.assign_coords(_axes(series, horizon, scales, places.at))
    said = [*scales.warnings, *_warnings(found, level, len(places.at))]
    if bool(last["diverged"].any()):
        said.append("the forecast diverged: beyond 1e6 standard deviations it is held, or is missing")
    found.attrs |= {
        "source": series.source,
        "method": forecaster.kind,
        "settings": forecaster.model_dump_json(),
        "dt": series.dt,
        "time_unit": series.time_unit,
        "start": series.start,
        "level": level,
        "interval": f"forecast ± {NOMINAL}, from {len(places.at)} origins, each fitted to {places.length} samples",
        "fitted_samples": len(series),
        "scored_leads": places.scored,
        "seed": seed,
        "normalize": normalize,
        "seconds": time.perf_counter() - started,
        "warnings": "\n".join(said),
        **scales.attributes(),
    }
    return found


def check_forecast(
    series: Series, forecaster: Forecaster | None, horizon: int, origins: int, level: float, lyapunov: float | None
) -> None:
    """Refuse what ``forecast_series`` cannot do.

    Args:
        series: to forecast.
        forecaster: settings; None if they are to be chosen.
        horizon: samples to forecast.
        origins: of rolling forecasts.
        level: nominal coverage of the intervals.
        lyapunov: largest exponent, 1 / time; None if it is to be estimated.

    Raises:
        InputError: an option out of range, or a series that is too short.
        MissingExtra: a package of the forecaster is not installed.
    """
    if horizon < 1:
        raise InputError(f"horizon = {horizon}: must be at least 1 sample")
    if origins < 2:
        raise InputError(f"origins = {origins}: must be at least 2")
    if not 0 < level < 1:
        raise InputError(f"level = {level:g}: must be above 0 and below 1")
    if lyapunov is not None and not 0 < lyapunov < float("inf"):
        raise InputError(f"lyapunov = {lyapunov:g}: must be a positive number, 1 / {series.time_unit or 'time'}")
    if forecaster is None:
        check_length(series)
    else:
        forecaster.check(len(series))
        origins_of(len(series), horizon, origins, forecaster.shortest)


def check_length(series: Series) -> None:
    """Refuse a series on which methods cannot be tuned and ranked.

    Raises:
        InputError: it is too short.
    """
    if len(series) < RANKABLE:
        raise InputError(f"{series.source}: {len(series)} samples: ranking forecasters needs at least {RANKABLE}")


def _part(progress: Progress | None, begin: float, end: float, text: str) -> Progress | None:
    if progress is None:
        return None
    progress(begin, text)
    return lambda share, said: progress(begin + share * (end - begin), f"{text} {said}".strip())


def _last(
    forecaster: Forecaster,
    series: Series,
    horizon: int,
    seed: int,
    normalize: Normalisation,
    device: torch.device | str,
    checkpoint: Path | None,
    progress: Progress | None,
) -> dict[str, Tensor]:
    """The forecast of the whole series: ``forecast (H, D)``, ``diverged``, and ``members (M, H, D)`` if there are."""
    folder = None if checkpoint is None else checkpoint / "whole"
    kept = Checkpoint(None if folder is None else folder / "forecast.safetensors")
    found = kept.load()
    if found is None:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        fitted = fit_scaled(
            forecaster,
            torch.from_numpy(series.values)[None],
            seeds=[stream(seed, "weights")],
            seed=stream(seed, "forecast"),
            dt=(series.dt,),
            normalize=normalize,
            device=device,
            checkpoint=folder,
            progress=_part(progress, ROLLING, 1, "forecast"),
        )
        found = _made(fitted, horizon, seed)
        kept.save(found)
    return found


def _made(fitted: ScaledFitted, horizon: int, seed: int) -> dict[str, Tensor]:
    found = {}
    if fitted.probabilistic:
        generator = torch.Generator().manual_seed(stream(seed, "ensemble"))
        found["members"] = fitted.sample(horizon, MEMBERS, generator)[0].cpu()
    forecast, diverged = fitted.forecast(horizon)
    return found | {"forecast": forecast[0].cpu(), "diverged": diverged[:1].cpu()}


def _dataset(
    series: Series, forecast: Tensor, members: Tensor | None, past: Rolled, scored: int, level: float
) -> xr.Dataset:
    horizon, channels = forecast.shape
    width = torch.full((horizon, channels), torch.inf, dtype=forecast.dtype)
    width[: past.forecast.shape[1]] = conformal_half_width(past.errors, level)
    width = torch.where(width.isfinite(), width, torch.nan)
    ahead, back = ("lead", "channel"), ("origin", "rolling_lead", "channel")
    valid = past.valid_time()
    truth, made = past.truth[:, :scored], past.forecast[:, :scored]
    variables: dict[str, Any] = {
        "forecast": (ahead, forecast.numpy(), {"long_name": "forecast"}),
        "low": (ahead, (forecast - width).numpy(), {"long_name": f"lower end of the {100 * level:g} % interval"}),
        "high": (ahead, (forecast + width).numpy(), {"long_name": f"upper end of the {100 * level:g} % interval"}),
        "rolling_forecast": (back, past.forecast.numpy()),
        "rolling_truth": (back, past.truth.numpy()),
        "spread": (("origin", "channel"), past.spread.numpy(), {"long_name": "standard deviation of what was fitted"}),
        "valid_samples": ("origin", valid.samples, {"long_name": "valid samples (V1)"}),
        "valid_censored": ("origin", valid.censored, {"long_name": "valid to the end of the truth or the horizon"}),
        "nrmse": ("origin", np.asarray(metrics.nrmse(truth, made, std=past.spread))),
        "smape": ("origin", np.asarray(metrics.smape(truth, made)), {"units": "%"}),
        "coverage": ("later_origin", coverage(past.errors, level).numpy()),
    }
    if members is not None:
        for name, share in (("low", (1 - level) / 2), ("median", 0.5), ("high", (1 + level) / 2)):
            variables[f"ensemble_{name}"] = (ahead, members.nanquantile(share, 0).numpy())
    if past.members is not None:
        low, high = (past.members.nanquantile(q, 1) for q in ((1 - level) / 2, (1 + level) / 2))
        known = ~past.truth.isnan()
        held = (low <= past.truth) & (past.truth <= high)
        each = (held & known).flatten(1).sum(1) / known.flatten(1).sum(1)
        variables["ensemble_coverage"] = ("origin", each.numpy())
    coordinates = {"channel": list(series.channels), "unit": ("channel", list(series.units))}
    return xr.Dataset(variables, coordinates)


def _axes(series: Series, horizon: int, scales: Scales, at: tuple[int, ...]) -> dict[str, Any]:
    lead = np.arange(1, horizon + 1)
    axes: dict[str, Any] = {
        "lead": ("lead", lead, {"long_name": "lead time", "units": "samples"}),
        "time": ("lead", series.time[-1] + series.dt * lead, {"units": series.time_unit}),
        "origin": ("origin", series.time[list(at)], {"long_name": "time of the first forecast sample"}),
    }
    if np.isfinite(scales.period):
        axes["periods"] = ("lead", lead * series.dt / scales.period, {"long_name": "lead time in periods"})
    if scales.chaotic:
        axes["lyapunov_times"] = ("lead", lead * series.dt * scales.lyapunov, {"long_name": "lead in Lyapunov times"})
    return axes


def _warnings(found: xr.Dataset, level: float, origins: int) -> list[str]:
    said = []
    known = np.isfinite(found["low"].values).all(1)
    if not known.all():
        count, needed = int(known.argmin()), fewest_errors(level)
        why = f"an interval of {100 * level:g} % needs the errors of {needed} origins"
        said.append(f"intervals end at lead time {count} of {len(known)} samples: {why} at each lead time")
    if not np.isfinite(found["coverage"].values).any():
        said.append(
            f"the coverage of the intervals is not known: {origins} origins are too few to hold half of them out"
        )
    return said

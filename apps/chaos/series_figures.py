"""Pictures of a user's series: its forecast, and what it is like."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter
from numpy.typing import NDArray

from apps.chaos.series import Series
from apps.chaos.valid_time import THRESHOLDS

OBSERVED = "black"
FORECAST = "#0072b2"
ENSEMBLE = "#e69f00"
MARK = "#d55e00"
"""Told apart with any colour vision (Okabe and Ito 2008)."""
CHANNELS = 6
"""That have a panel; others are in the files."""
FURTHEST = 1e6
"""Standard deviations that stand for an error that is not finite."""
HISTORY = 400
"""Samples before the forecast that are drawn at most."""


def forecast_figure(series: Series, found: xr.Dataset, truth: NDArray[np.float64] | None = None) -> Drawing:
    """The end of the series, its forecast with intervals, and how errors grew from past origins.

    Args:
        series: that was forecast.
        found: by ``forecast_series``.
        truth: ``(H', D)``, what came, as far as it is known.
    """
    shown = series.channels[:CHANNELS]
    drawing = Drawing(figsize=(10, 1.9 * len(shown) + 3.1), layout="constrained")
    panels = drawing.subplots(len(shown) + 1, 1, height_ratios=[*(1.0 for _ in shown), 1.25])
    for i, axes in enumerate(panels[:-1]):
        axes.sharex(panels[0])
        _channel(axes, series, found, i, truth)
    for axes in panels[:-2]:
        axes.tick_params(labelbottom=False)
    panels[-2].set_xlabel(label("time", series.time_unit) + (f" since {series.start}" if series.start else ""))
    _lead_axis(panels[0], found, float(series.time[-1]), 1 / series.dt)
    _error_growth(panels[-1], found)
    handles, labels = panels[0].get_legend_handles_labels()
    drawing.legend(handles, labels, loc="outside upper center", ncols=5, frameon=False, fontsize=9)
    return drawing


def label(name: str, unit: str) -> str:
    """A quantity with its unit, for an axis."""
    return f"{name} ({unit})" if unit not in ("", "time units") else name


def _channel(axes: Axes, series: Series, found: xr.Dataset, i: int, truth: NDArray[np.float64] | None) -> None:
    horizon = found.sizes["lead"]
    tail = min(len(series), max(2 * horizon, 60), HISTORY + horizon)
    past, time = series.values[-tail:, i], found["time"].values
    one = found.isel(channel=i)
    # Lines go on from the last sample.
    joined = np.concatenate([series.time[-1:], time])
    axes.plot(series.time[-tail:], past, color=OBSERVED, lw=1.2, label="series")
    if truth is not None:
        known = truth[:horizon, i]
        axes.plot(
            joined[: len(known) + 1],
            np.concatenate([past[-1:], known]),
            color=OBSERVED,
            lw=1.2,
            ls="--",
            zorder=3,
            label="truth",
        )
    level = 100 * found.attrs["level"]
    axes.fill_between(time, one["low"], one["high"], color=FORECAST, alpha=0.2, lw=0, label=f"{level:g} % interval")
    if "ensemble_low" in found:
        for end in ("ensemble_low", "ensemble_high"):
            name = f"{level:g} % of the ensemble" if end == "ensemble_low" else None
            axes.plot(time, one[end], color=ENSEMBLE, lw=1, ls="-.", label=name)
    axes.plot(joined, np.concatenate([past[-1:], one["forecast"]]), color=FORECAST, lw=1.6, label="forecast")
    axes.axvline(series.time[-1], color="0.5", lw=0.8, ls=":")
    # A forecast or interval far off must not press the series into a line.
    low, high = float(series.values[:, i].min()), float(series.values[:, i].max())
    room = 0.6 * (high - low)
    seen = [values[np.isfinite(values)] for values in (one["low"].values, one["high"].values, one["forecast"].values)]
    ends = np.concatenate([[low, high], *seen])
    margin = 0.05 * (high - low)
    axes.set_ylim(max(ends.min(), low - room) - margin, min(ends.max(), high + room) + margin)
    axes.set_xlim(series.time[-tail], time[-1])
    axes.set_ylabel(label(series.channels[i], series.units[i]))
    axes.grid(alpha=0.3)


def _lead_unit(found: xr.Dataset) -> tuple[str, float]:
    """The natural unit of lead times, and samples in it."""
    if np.isfinite(found.attrs["samples_per_lyapunov_time"]):
        return "Lyapunov times", float(found.attrs["samples_per_lyapunov_time"])
    if np.isfinite(found.attrs["samples_per_period"]):
        return "periods", float(found.attrs["samples_per_period"])
    return "samples", 1.0


def _lead_axis(axes: Axes, found: xr.Dataset, origin: float, rate: float) -> None:
    """An axis above of lead times in their natural unit, for x with ``rate`` samples a unit from ``origin`` on."""
    unit, samples = _lead_unit(found)
    there: Any = lambda x: (x - origin) * rate / samples  # noqa: E731
    back: Any = lambda x: x * samples / rate + origin  # noqa: E731
    axes.secondary_xaxis("top", functions=(there, back)).set_xlabel(f"lead time ({unit})")


def _error_growth(axes: Axes, found: xr.Dataset) -> None:
    """Error against lead time of the rolling forecasts: median, the level's quantile, and the valid time."""
    truth = found["rolling_truth"].values
    error = (found["rolling_forecast"].values - truth) / found["spread"].values[:, None]
    size = np.sqrt(np.mean(error**2, axis=-1))
    size = np.where(np.isnan(truth).any(-1), np.nan, np.where(np.isfinite(size), size, FURTHEST))
    lead = np.arange(1, size.shape[1] + 1)
    level = found.attrs["level"]
    middle, upper = np.nanquantile(size, [0.5, level], axis=0)
    floor = 1e-6
    axes.plot(lead, np.maximum(middle, floor), color=FORECAST, lw=1.6, label="median of past origins")
    axes.fill_between(
        lead,
        np.maximum(middle, floor),
        np.maximum(upper, floor),
        color=FORECAST,
        alpha=0.2,
        lw=0,
        label=f"up to the {100 * level:g} % quantile",
    )
    axes.axhline(THRESHOLDS["V1"], color=MARK, lw=1, ls="--", label=f"valid up to {THRESHOLDS['V1']:g}")
    valid = found["valid_samples"].values
    at_least = "at least " if found["valid_censored"].values.any() else ""
    axes.axvline(
        float(valid.mean()), color=MARK, lw=1.2, ls=":", label=f"mean valid time: {at_least}{valid.mean():.1f} samples"
    )
    top = float(np.clip(2 * np.nanmax(upper), 2, 100))
    axes.set(
        yscale="log", ylim=(max(floor, 0.5 * float(np.nanmin(np.maximum(middle, floor)))), top), xlim=(0, lead[-1])
    )
    axes.set(xlabel="lead time (samples)", ylabel="error (standard deviations)")
    low, high = axes.get_ylim()
    if high < 100 * low:
        # Less than two decades: powers of ten alone would be too few.
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    _lead_axis(axes, found, 0.0, 1.0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, frameon=False, loc="lower right", ncols=2)

"""The picture of a series: spectrum, delay portrait, divergence of neighbours, and the plateau of the dimension."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing

from apps.chaos.series_figures import FORECAST, MARK, OBSERVED, label
from apps.chaos.series_measures import Measures

COLOURS = (OBSERVED, FORECAST, "#009e73", "#cc79a7")
STYLES = ("-", "--", "-.", ":")
POINTS = 3000
"""Of the delay portrait."""


def invariants_figure(found: Measures) -> Drawing:
    """Four panels; one whose estimate is missing says so."""
    drawing = Drawing(figsize=(10, 7.4), layout="constrained")
    (spectrum, portrait), (divergence, dimension) = drawing.subplots(2, 2)
    _spectrum(spectrum, found)
    _portrait(portrait, found)
    _divergence(divergence, found)
    _dimension(dimension, found)
    for axes in (spectrum, portrait, divergence, dimension):
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8, frameon=False)
    return drawing


def _time(found: Measures) -> str:
    return found.series.time_unit or "time units"


def _spectrum(axes: Axes, found: Measures) -> None:
    axes.set(xlabel=f"frequency (1 / {_time(found)})", ylabel="power (standardised channels)")
    if not len(found.power):
        return _missing(axes)
    for i, name in enumerate(found.series.channels[: len(COLOURS)]):
        axes.loglog(found.frequency[1:], found.power[1:, i], color=COLOURS[i], ls=STYLES[i], lw=1.2, label=name)
    if np.isfinite(found.scales.period):
        period = f"period {found.scales.period:.3g} {_time(found)}"
        axes.axvline(1 / found.scales.period, color=MARK, lw=1.2, ls=":", label=period)
    return None


def _portrait(axes: Axes, found: Measures) -> None:
    series = found.series
    name, x = series.channels[0], series.values[:, 0]
    lag = found.delay or 1
    x = x[-POINTS - lag :]
    # Lines between the points of a map or of noise would hide them.
    smooth = np.median(np.abs(np.diff(x))) < 0.5 * x.std()
    axes.plot(x[:-lag], x[lag:], color=OBSERVED, lw=0.5 if smooth else 0, marker=".", ms=1.5, alpha=0.7)
    shift = f"{lag * series.dt:.3g} {_time(found)}" if series.time_unit != "samples" else f"{lag} samples"
    axes.set(xlabel=label(f"{name}(t)", series.units[0]), ylabel=label(f"{name}(t + {shift})", series.units[0]))


def _divergence(axes: Axes, found: Measures) -> None:
    axes.set(
        xlabel=label("time since they were neighbours", found.series.time_unit),
        ylabel="mean log distance of neighbours",
    )
    if found.divergence is None:
        return _missing(axes)
    times, curve = found.divergence.times.numpy(), found.divergence.curve.numpy()
    axes.plot(times, curve, color=FORECAST, lw=1.6, label="neighbours")
    begin, end = found.divergence.window
    inside = (times >= begin - 1e-9) & (times <= end + 1e-9)
    exponent = found.divergence.exponent
    line = curve[inside].mean() + exponent.mean * (times - times[inside].mean())
    seen = (times <= min(times[-1], end + 0.5 * (end - begin))) & (line <= curve.max() + 0.5)
    shown = f"{exponent.mean:.3g} [{exponent.low:.3g}, {exponent.high:.3g}] / {_time(found)}"
    axes.plot(times[seen], line[seen], color=MARK, lw=1.4, ls="--", label=f"slope {shown}")
    axes.axvspan(begin, end, color="0.9", lw=0)
    return None


def _dimension(axes: Axes, found: Measures) -> None:
    axes.set(xlabel="correlation sum C (middle of a decade)", ylabel="slope of log C against log r")
    if found.dimension is None:
        return _missing(axes)
    middle = np.sqrt(found.dimension.windows.prod(1).numpy())
    axes.semilogx(middle, found.dimension.slopes.numpy(), color=FORECAST, marker="o", ms=4, lw=1.4, label="slopes")
    axes.axvspan(*found.dimension.window, color="0.9", lw=0)
    value = found.dimension.dimension
    shown = f"dimension {value.mean:.2f} [{value.low:.2f}, {value.high:.2f}]"
    axes.axhline(value.mean, color=MARK, lw=1.4, ls="--", label=shown)
    axes.axhspan(value.low, value.high, color=MARK, alpha=0.12, lw=0)
    return None


def _missing(axes: Axes) -> None:
    axes.text(
        0.5, 0.5, "not to be had from this series", ha="center", va="center", transform=axes.transAxes, color="0.4"
    )

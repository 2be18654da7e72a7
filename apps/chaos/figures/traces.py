"""Forecasts beside the truth: in time, in state space, and their power spectra."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.figure import Figure as Drawing
from numpy.typing import NDArray
from scipy.signal import periodogram

from apps.chaos.evidence import Evidence
from apps.chaos.figures.appearance import LYAPUNOV_TIMES, TRUTH, legend, styles

BEST = 3
"""Methods that are drawn: those with the largest median valid time."""
SYSTEMS = 3
"""Systems that are drawn: at the quartiles of the best method's valid time."""
SHOWN = 1.6
"""Times the longest valid time drawn."""
FARTHEST = 1.6
"""Ranges of the truth beyond which a forecast is not drawn."""


def chosen(evidence: Evidence) -> tuple[list[str], list[int]]:
    """Methods and systems of the pictures: the best methods, and systems from easy to hard for the best one."""
    methods = sorted(evidence.methods, key=lambda name: -np.nan_to_num(evidence.median(name), nan=-1.0))[:BEST]
    values = evidence.by_system(methods[0])
    # The pictures are of the first replicate.
    known = np.flatnonzero(np.isfinite(evidence.valid_time(methods[0]).isel(replicate=0)))
    ranked = known[np.argsort(values[known])]
    places = np.unique((np.array([0.75, 0.5, 0.25]) * (len(ranked) - 1)).round().astype(int))[::-1]
    return methods, [int(ranked[place]) for place in places][:SYSTEMS]


def truth_of(series: Sequence[xr.Dataset], place: int, context: int, horizon: int) -> NDArray[np.float64]:
    """What follows the training part of the first replicate, ``(horizon, channels)``."""
    values: NDArray[np.float64] = series[place]["test"].isel(replicate=0).values[context : context + horizon]
    return values


def traces(evidence: Evidence, series: Sequence[xr.Dataset], context: int) -> Drawing:
    """The first channel of forecasts and truth, time from the last training sample in Lyapunov times."""
    methods, places = chosen(evidence)
    look = styles(evidence)
    drawing = Drawing(figsize=(10, 2.3 * len(places) + 0.5), layout="constrained")
    panels = drawing.subplots(len(places), 1, squeeze=False)[:, 0]
    for axes, place in zip(panels, places, strict=True):
        rate = float(evidence.rate[place])
        longest = np.nanmax([evidence.valid_time(m).values[place, 0] for m in methods])
        predicted = {m: evidence.methods[m]["forecast"].values[place, 0, :, 0] for m in methods}
        horizon = len(next(iter(predicted.values())))
        shown = min(horizon, max(int(SHOWN * longest / rate), 100))
        truth = truth_of(series, place, context, shown)[:, 0]
        at = rate * np.arange(1, shown + 1)
        axes.plot(at, truth, color=TRUTH, lw=2.6, alpha=0.55, label="truth")
        for name in methods:
            axes.plot(at, _bounded(predicted[name][:shown], truth), label=name, lw=1.3, **look[name])
        axes.set(
            title=str(evidence.systems["system"].values[place]), ylabel="channel 1 (system units)", xlim=(0, at[-1])
        )
        axes.grid(alpha=0.3)
    panels[-1].set_xlabel(f"time since the last training sample ({LYAPUNOV_TIMES})")
    legend(drawing, panels[0])
    return drawing


def _bounded(values: NDArray[np.float64], truth: NDArray[np.float64]) -> NDArray[np.float64]:
    """A forecast up to where it leaves the picture."""
    middle, reach = (truth.max() + truth.min()) / 2, FARTHEST * (np.ptp(truth) / 2)
    inside = np.abs(values - middle) <= reach
    end = len(values) if inside.all() else int(np.argmin(inside))
    return np.where(np.arange(len(values)) < end, values, np.nan)


def attractors(evidence: Evidence, series: Sequence[xr.Dataset], context: int) -> Drawing:
    """Whole forecasts in state space beside the truth, and the power spectra of the first channel."""
    methods, places = chosen(evidence)
    look = styles(evidence)
    columns = len(methods) + 2
    drawing = Drawing(figsize=(2.5 * columns, 2.4 * len(places)), layout="constrained")
    panels = drawing.subplots(len(places), columns, squeeze=False)
    for number, (row, place) in enumerate(zip(panels, places, strict=True)):
        forecasts = {m: evidence.methods[m]["forecast"].values[place, 0].astype(float) for m in methods}
        horizon, seen = next(iter(forecasts.values())).shape
        truth = truth_of(series, place, context, horizon)
        period, dt = float(evidence.systems["period"][place]), float(evidence.systems["dt"][place])
        last = min(truth.shape[1], seen, 3) - 1
        # A single channel is drawn against itself a quarter of a period before.
        lag = 0 if last else max(1, round(period / dt / 4))
        middle, reach = (truth.max(0) + truth.min(0)) / 2, 0.65 * np.ptp(truth, 0)
        for axes, (name, orbit) in zip(row, {"truth": truth, **forecasts}.items(), strict=False):
            colour = TRUTH if name == "truth" else look[name]["color"]
            axes.plot(orbit[lag:, 0], orbit[: len(orbit) - lag, last], color=colour, lw=0.6)
            axes.set(
                xlim=(middle[0] - reach[0], middle[0] + reach[0]),
                ylim=(middle[last] - reach[last], middle[last] + reach[last]),
            )
            axes.set_xticks([])
            axes.set_yticks([])
            axes.set_title("" if number else name, fontsize=10)
        against = f"channel {last + 1} against 1" if last else "1/4 period before, against now"
        row[0].set_ylabel(f"{evidence.systems['system'].values[place]}\n{against}", fontsize=9)
        for name, orbit in {"truth": truth, **forecasts}.items():
            # Channels that the system lacks are NaN.
            if np.isfinite(orbit[:, 0]).all():
                frequency, power = periodogram(orbit[:, 0], fs=period / dt, detrend="linear", window="hann")
                kept = (frequency > 0) & (frequency < 10)
                style = (
                    {"color": TRUTH, "ls": "-", "lw": 2.2, "alpha": 0.5}
                    if name == "truth"
                    else {**look[name], "lw": 0.9}
                )
                row[-1].plot(frequency[kept], np.maximum(power[kept] / power.max(), 1e-9), label=name, **style)
        row[-1].set(yscale="log", ylim=(1e-8, 2), title="" if number else "power spectrum")
        row[-1].yaxis.tick_right()
    panels[-1, -1].set_xlabel("frequency (1 / period)", fontsize=9)
    return drawing

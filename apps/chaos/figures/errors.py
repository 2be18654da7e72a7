"""Errors against the horizon in Lyapunov times, and their correlation with the largest exponent."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure as Drawing

from apps.chaos.evidence import Evidence, pairs
from apps.chaos.figures.appearance import LYAPUNOV_TIMES, legend, styles
from apps.chaos.valid_time import mean_curve
from core.stats import rank_correlation

FEWEST = 8
"""Systems for a correlation, and for the mean of an error: beyond, only the most chaotic are left."""


def _axis(evidence: Evidence) -> np.ndarray:
    """Horizons from that of the second sample of the slowest system to the longest that half of the systems have."""
    rate = evidence.rate.values[np.isfinite(evidence.rate.values)]
    longest = max(int(data["lead"].max()) for data in evidence.methods.values())
    return np.geomspace(2 * np.median(rate), np.median(rate) * longest, 60)


def error_curves(evidence: Evidence) -> Drawing:
    """Cumulative sMAPE of every method, mean over systems with its standard error."""
    drawing = Drawing(figsize=(9, 5), layout="constrained")
    axes = drawing.subplots()
    axis = _axis(evidence)
    for name, style in styles(evidence).items():
        curve = mean_curve(evidence.curve(name, "smape", axis), axis)
        mean, error = curve["mean"].values, curve["standard_error"].values
        shown = curve["systems"].values >= min(FEWEST, evidence.systems.sizes["system"])
        axes.plot(axis[shown], mean[shown], label=name, lw=1.8, **style)
        axes.fill_between(
            axis[shown], (mean - error)[shown], (mean + error)[shown], color=style["color"], alpha=0.12, lw=0
        )
    axes.set(
        xscale="log", xlabel=f"horizon ({LYAPUNOV_TIMES})", ylabel="cumulative sMAPE (%, 0 to 200)", ylim=(0, None)
    )
    axes.axvline(1, color="0.6", lw=0.8)
    axes.grid(alpha=0.3)
    legend(drawing, axes)
    return drawing


def correlation_curves(evidence: Evidence) -> Drawing:
    """Rank correlation over systems of the largest exponent with the error at each horizon, with 95 % intervals."""
    drawing = Drawing(figsize=(9, 5), layout="constrained")
    axes = drawing.subplots()
    exponent = evidence.systems["lyapunov"].values
    axis = _axis(evidence)
    for name, style in styles(evidence).items():
        points = []
        for horizon, errors in zip(axis, evidence.curve(name, "smape", axis).T, strict=True):
            a, b = pairs(exponent, errors)
            if len(a) >= FEWEST and np.ptp(b) > 0:
                found = rank_correlation(a, b)
                points.append((horizon, found.mean, found.low, found.high))
        if points:
            at, mean, low, high = np.array(points).T
            axes.plot(at, mean, label=name, lw=1.8, **style)
            if name == next(iter(evidence.methods)):
                axes.fill_between(at, low, high, color=style["color"], alpha=0.15, lw=0)
    axes.axhline(0, color="0.6", lw=0.8)
    axes.set(xscale="log", ylim=(-1, 1), xlabel=f"horizon ({LYAPUNOV_TIMES})")
    axes.set_ylabel("rank correlation of exponent and sMAPE")
    axes.grid(alpha=0.3)
    legend(drawing, axes)
    return drawing

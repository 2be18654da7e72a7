"""How large the extremes of the vorticity are that come back once in a given time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing

from apps.turbulence.figures.appearance import Entry, legend
from apps.turbulence.figures.spectra import plain_ticks
from apps.turbulence.metrics import Numbers, window
from simulators.turbulence.diagnostics import block_maxima, gap_closed, return_levels
from simulators.turbulence.diagnostics.extremes import FEWEST_MAXIMA

BLOCK = 5.0
"""Time units of a block of the largest |omega|."""
LONGEST = 500.0
"""Return period to which levels are drawn."""
GAP_PERIODS = (10.0, 50.0, 200.0)
"""Return periods at which the share of the gap is drawn."""
HIGHEST = 1.3
"""Multiple of the highest level at which the axis ends: bands of a far period may go on."""
RESAMPLES = 100
"""Of the bootstrap: each fits a distribution anew."""


def _blocks(entry: Entry) -> Numbers | None:
    """Block maxima ``(runs, blocks)``; None where there are too few to fit."""
    peaks, time = entry.runs("largest"), window(entry.parts[0])["time"].values
    if not len(peaks) or len(time) < 2 or len(time) * (time[1] - time[0]) * (1 + 1e-9) < BLOCK:
        return None
    maxima = block_maxima(peaks, time, BLOCK)
    return maxima if maxima.size >= FEWEST_MAXIMA and np.ptp(maxima) > 0 else None


def with_extremes(entries: Sequence[Entry]) -> list[Entry]:
    """Those whose simulations are long enough."""
    return [entry for entry in entries if _blocks(entry) is not None]


def return_curves(reference: xr.Dataset, entries: Sequence[Entry], none: Entry | None, truth: Entry | None) -> Drawing:
    """Return level against return period, and where truth is known the share of the gap to it that is closed.

    Args:
        reference: of the scenario.
        entries: what is drawn, of ``with_extremes``.
        none: the one without closure, if it is among them.
        truth: the resolved flow, if it is among them.
    """
    sigma = float(reference["sigma"])
    periods = np.union1d(np.geomspace(1.2 * BLOCK, LONGEST, 24), GAP_PERIODS)
    fits = {
        e.label: return_levels(
            e.runs("largest"),
            window(e.parts[0])["time"].values,
            sigma,
            periods=periods.tolist(),
            block=BLOCK,
            resamples=RESAMPLES,
        )
        for e in entries
    }
    rivals = [e for e in entries if e not in (none, truth)]
    gap = none is not None and truth is not None and bool(rivals)
    drawing = Drawing(figsize=(11.5, 4.8) if gap else (8.5, 4.8), layout="constrained")
    left, *rest = drawing.subplots(1, 2 if gap else 1, squeeze=False)[0]
    for entry in entries:
        _levels(left, entry, fits[entry.label], sigma)
    largest = reference["largest"].values / sigma
    left.axhline(largest.max(), color="0.5", lw=0.9, ls=":", label="largest of the\nreference's snapshots")
    left.set(xscale="log", xlabel="return period (time units)", ylabel=r"return level of $|\omega|/\sigma$ in the box")
    levels = np.concatenate([fit["level"].values for fit in fits.values()])
    left.set_ylim(max(0.0, left.get_ylim()[0]), min(left.get_ylim()[1], HIGHEST * levels.max()))
    if none is not None and truth is not None and rest:
        _gaps(rest[0], rivals, none, truth, fits)
    plain_ticks(left, "x", [5, 10, 20, 50, 100, 200, 500])
    for axes in (left, *rest):
        axes.grid(alpha=0.3)
    legend(drawing, left)
    return drawing


def _gaps(axes: Axes, rivals: Sequence[Entry], none: Entry, truth: Entry, fits: Mapping[str, xr.Dataset]) -> None:
    """The share of the gap from none to the truth that each of the others closes, side by side at some periods."""
    at = np.arange(len(GAP_PERIODS))
    for i, entry in enumerate(rivals):
        found = gap_closed(fits[entry.label], fits[none.label], fits[truth.label]).sel(period=list(GAP_PERIODS))
        share, low, high = (found[name].values for name in _ends("share"))
        # The estimate may lie beyond the percentiles of its own resamples.
        ends = np.maximum([share - low, high - share], 0)
        x = at + 0.7 * ((i + 0.5) / len(rivals) - 0.5)
        axes.errorbar(x, share, yerr=ends, color=entry.colour, ls="", marker=entry.marker or "P", ms=6, capsize=3)
    axes.axhline(1, color=truth.colour, lw=1.2, ls=truth.style)
    axes.axhline(0, color=none.colour, lw=1.2, ls=none.style)
    axes.set_xticks(at, [f"{period:g}" for period in GAP_PERIODS])
    axes.set(xlabel="return period (time units)", ylim=(-1.5, 1.1), xlim=(-0.5, len(at) - 0.5))
    axes.set_ylabel("share of the gap from none to resolved that is closed")


def _levels(axes: Axes, entry: Entry, fit: xr.Dataset, sigma: float) -> None:
    """The fitted curve with its band, and the maxima at their empirical periods."""
    x, (middle, low, high) = fit["period"].values, (fit[name].values for name in _ends("level"))
    axes.plot(x, middle, color=entry.colour, ls=entry.style, lw=2.0 if entry.marker else 1.5, label=entry.label)
    axes.fill_between(x, low, high, color=entry.colour, alpha=0.13, lw=0)
    maxima = _blocks(entry)
    assert maxima is not None
    ordered = np.sort(maxima.ravel())[::-1] / sigma
    periods = BLOCK * (len(ordered) + 1) / np.arange(1, len(ordered) + 1)
    shown = (periods >= x[0]) & (periods <= LONGEST)
    axes.plot(periods[shown], ordered[shown], ls="", marker=".", ms=4, color=entry.colour, alpha=0.7)


def _ends(name: str) -> tuple[str, str, str]:
    return name, f"{name}_low", f"{name}_high"

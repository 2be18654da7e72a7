"""Spectra of enstrophy and energy against the reference's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from numpy.typing import ArrayLike

from apps.turbulence.figures.appearance import RESOLVED, Entry, band, draw_band, legend
from apps.turbulence.metrics import Band, Letter, Numbers, mean_spectrum

FURTHEST = 100.0
"""Ratio to the reference beyond which the axis does not go."""
NAMES: dict[Letter, str] = {"Z": "enstrophy spectrum $Z(k)$", "E": "energy spectrum $E(k)$"}


def spectra(reference: xr.Dataset, entries: Sequence[Entry], band_name: Band) -> Drawing:
    """Z(k) and E(k), and below their ratio to the reference's."""
    drawing = Drawing(figsize=(11, 6.4), layout="constrained")
    panels = drawing.subplots(2, 2, sharex=True, height_ratios=(2, 1.2))
    for (above, below), letter in zip(panels.T, NAMES, strict=True):
        _column(above, below, reference, entries, band_name, letter)
    legend(drawing, panels[0, 0])
    return drawing


def _column(
    above: Axes, below: Axes, reference: xr.Dataset, entries: Sequence[Entry], band_name: Band, letter: Letter
) -> None:
    snapshots: Numbers = reference[f"{letter}_{band_name}"].mean("axis").transpose("snapshot", "k").values[:, 1:]
    k = reference["k"].values[1:]
    middle, low, high = band(snapshots)
    above.fill_between(k, low, high, color="0.75", lw=0)
    above.plot(k, middle, color=RESOLVED, lw=1.8, label="reference")
    below.fill_between(k, low / middle, high / middle, color="0.75", lw=0)
    below.axhline(1, color=RESOLVED, lw=1.2)
    for entry in entries:
        values = entry.over_starts(lambda found: mean_spectrum(found, letter).transpose("start", "k").values)[:, 1:]
        draw_band(above, k, values, entry)
        draw_band(below, k, values / middle, entry)
    above.set(xscale="log", yscale="log", ylabel=NAMES[letter])
    below.set(yscale="log", xlabel="wavenumber $k$", ylabel="ratio to the reference")
    ends = below.get_ylim()
    below.set_ylim(max(min(ends[0], 0.5), 1 / FURTHEST), min(max(ends[1], 2), FURTHEST))
    plain_ticks(below, "y", [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100])
    plain_ticks(below, "x", 2.0 ** np.arange(12))
    for axes in (above, below):
        axes.grid(alpha=0.3)


def plain_ticks(axes: Axes, which: str, ticks: ArrayLike) -> None:
    """Plain numbers on a logarithmic axis, those of the ticks that lie on it."""
    low, high = axes.get_xlim() if which == "x" else axes.get_ylim()
    places = np.asarray(ticks, dtype=np.float64)
    kept = places[(places >= low) & (places <= high)]
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_ticks(kept, [f"{tick:g}" for tick in kept])
    axis.set_ticks([], minor=True)

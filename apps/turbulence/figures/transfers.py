"""What closures take from the resolved flow, and where they give it back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure as Drawing

from apps.turbulence.figures.appearance import Entry, band, draw_band, legend
from apps.turbulence.figures.spectra import plain_ticks
from apps.turbulence.metrics import Numbers


def transfer_spectra(entries: Sequence[Entry]) -> Drawing:
    """Enstrophy and energy that the closure takes, by wavenumber, and the share of points where it gives enstrophy."""
    drawing = Drawing(figsize=(13, 4.4), layout="constrained")
    left, middle, right = drawing.subplots(1, 3, width_ratios=(1.15, 1.15, 0.8))
    for axes, kind in ((left, "enstrophy"), (middle, "energy")):
        for entry in entries:
            values = _spectrum(entry, kind)
            draw_band(axes, entry.parts[0]["shell"].values[1:], values[:, 1:], entry)
        axes.axhline(0, color="black", lw=0.8)
        axes.set(xscale="log", xlabel="wavenumber $k$", ylabel=f"{kind} taken at $k$")
        axes.ticklabel_format(axis="y", scilimits=(-2, 3))
        plain_ticks(axes, "x", 2.0 ** np.arange(12))
        axes.grid(alpha=0.3)
    for place, entry in enumerate(entries):
        values = 100 * entry.over_starts(lambda found: found["backscatter"].values)
        if not len(values):
            continue
        mean, low, high = band(values[:, None])[:, 0]
        right.barh(place, mean, color=entry.colour, alpha=0.75)
        if len(values) > 1:
            right.errorbar(mean, place, xerr=[[mean - low], [high - mean]], color="black", capsize=3, lw=1.2)
        right.text(max(high if np.isfinite(high) else mean, 0), place, f"  {mean:.1f}", va="center", fontsize=8)
    right.set_yticks(range(len(entries)), [entry.label for entry in entries], fontsize=9)
    right.set_ylim(len(entries) - 0.5, -0.5)
    right.set_xlabel("points that gain enstrophy (%)")
    right.set_xlim(0, max(1.15 * right.get_xlim()[1], 1.0))
    right.grid(axis="x", alpha=0.3)
    legend(drawing, left)
    return drawing


def _spectrum(entry: Entry, kind: str) -> Numbers:
    """``(starts, shell)``."""
    return entry.over_starts(lambda found: found[f"{kind}_transfer"].transpose("start", "shell"))

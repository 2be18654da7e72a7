"""The distribution of the vorticity and its tails."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.figure import Figure as Drawing
from scipy.stats import norm

from apps.turbulence.figures.appearance import RESOLVED, Entry, draw_band, legend, stayed
from apps.turbulence.metrics import Numbers

MERGED = 2
"""Bins of the histogram that are drawn as one."""
TAIL_FROM = 1.5
"""Multiple of sigma from which the tails are drawn."""


def distribution(reference: xr.Dataset, entries: Sequence[Entry]) -> Drawing:
    """Density of omega/sigma, and how often |omega| exceeds a multiple of sigma."""
    drawing = Drawing(figsize=(11, 4.6), layout="constrained")
    left, right = drawing.subplots(1, 2)
    edges = _edges(reference["omega"].values)
    counts = reference["counts"].values.astype(np.float64)
    z = np.linspace(edges[0], edges[-1], 400)
    left.plot(z, norm.pdf(z), color="0.85", lw=4, label="Gaussian")
    right.plot(z[z >= 0], 2 * norm.sf(z[z >= 0]), color="0.85", lw=4)
    left.set_yscale("log")
    right.set_yscale("log")
    reach, floor = 0.0, 1.0
    known = Entry("resolved", "reference", (), RESOLVED)
    for entry in (known, *entries):
        pooled = counts if entry is known else _pooled(entry)
        if not pooled.sum():
            continue
        middles, density = _density(pooled, edges)
        shown = density > 0
        style = {"ls": entry.style, "lw": 2.0 if entry.marker else 1.5, "color": entry.colour}
        left.plot(middles[shown], density[shown], label=entry.label, **style)
        beyond = counts[None] if entry is known else entry.over_starts(lambda found: _counts(found))
        levels, share = _exceedance(beyond, edges)
        tail = (levels >= TAIL_FROM) & (share.mean(0) > 0)
        draw_band(right, levels[tail], share[:, tail], entry, marks=False)
        reach = max(reach, float(np.abs(middles[shown]).max()))
        floor = min(floor, float(density[shown].min()))
    left.set(xlim=(-reach, reach), ylim=(floor / 1.5, 1.0))
    left.set(xlabel=r"vorticity $\omega/\sigma$", ylabel="probability density")
    right.set(xlim=(TAIL_FROM, reach), ylim=(floor / 5, 0.3))
    right.set(xlabel=r"multiple $q$ of $\sigma$", ylabel=r"$P(|\omega| > q\,\sigma)$")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    legend(drawing, left)
    return drawing


def _edges(centres: Numbers) -> Numbers:
    width = centres[1] - centres[0]
    return np.append(centres - width / 2, centres[-1] + width / 2)


def _counts(found: xr.Dataset) -> Numbers:
    return np.asarray(found["counts"].transpose("start", "omega").values, dtype=np.float64)


def _pooled(entry: Entry) -> Numbers:
    """Counts of all simulations that stayed finite, ``(bins,)``."""
    return np.asarray(sum(_counts(part)[stayed(part)].sum(0) for part in entry.parts))


def _density(counts: Numbers, edges: Numbers) -> tuple[Numbers, Numbers]:
    """Middles and density, without the two outermost bins, which are open."""
    inner, ends = counts[1:-1], edges[1:-1]
    whole = len(inner) // MERGED * MERGED
    merged, ends = inner[:whole].reshape(-1, MERGED).sum(1), ends[: whole + 1 : MERGED]
    return (ends[1:] + ends[:-1]) / 2, merged / counts.sum() / np.diff(ends)


def _exceedance(counts: Numbers, edges: Numbers) -> tuple[Numbers, Numbers]:
    """Levels q from 0 on, and the share of ``(starts, bins)`` beyond them on both sides."""
    half = counts.shape[1] // 2
    above, below = counts[:, half:], counts[:, half - 1 :: -1]
    both = above + below
    return edges[half:-1], both[:, ::-1].cumsum(1)[:, ::-1] / counts.sum(1, keepdims=True)

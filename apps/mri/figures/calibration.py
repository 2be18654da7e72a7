"""Whether the particles know how wrong their mean is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure as Drawing
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter
from numpy.typing import NDArray

from apps.mri.calibration import NOMINAL, coverage, errors_and_spread
from apps.mri.figures.appearance import COLOURS, marker
from apps.mri.figures.comparison import error_bar, in_percent
from apps.mri.methods import NAMES

_BINS = 12
_FILLED = {share: share == max(NOMINAL) for share in NOMINAL}
"""The widest nominal interval has filled marks and a dashed line, another has open marks and a dotted one."""


def binned(
    error: NDArray[np.float64], std: NDArray[np.float64], bins: int = _BINS
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean standard deviation and mean absolute error of equally full bins of the standard deviation."""
    kept = np.isfinite(std)
    e, s = error[kept], std[kept]
    order = np.argsort(s, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    return np.array([s[p].mean() for p in parts]), np.array([e[p].mean() for p in parts])


def calibration(found: Mapping[str, xr.Dataset], lines: Sequence[str]) -> Drawing:
    """Mean absolute error against predicted standard deviation, and coverage of nominal 50 and 90 % intervals."""
    sampled = {m: errors_and_spread(d) for m, d in found.items() if "std" in d}
    drawing = Drawing(figsize=(9, max(3.6, 1.2 + 0.27 * len(sampled))), layout="constrained")
    left, right = drawing.subplots(1, 2, width_ratios=[1, 1])
    low, high = math.inf, 0.0
    for method in (m for m in lines if m in sampled):
        std, error = binned(*sampled[method])
        low, high = min(low, float(std.min())), max(high, float(std.max()))
        style = {"color": COLOURS[method], "marker": marker(method), "ms": 4.5, "lw": 2 if method == "ads" else 1.2}
        left.plot(std, error, label=NAMES[method], zorder=4 if method == "ads" else 3, **style)
    ideal = np.array([low, high])
    left.plot(ideal, math.sqrt(2 / math.pi) * ideal, color="0.35", ls="--", lw=1.2, label="ideal, Gaussian errors")
    left.set(xscale="log", yscale="log", xlabel="predicted std of a pixel", ylabel="mean |error| of these pixels")
    for axis in (left.xaxis, left.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 50 * low else (1,)))
        axis.set_major_formatter(StrMethodFormatter("{x:.3g}"))
        axis.set_minor_formatter(NullFormatter())
    left.tick_params(labelsize=8)
    left.grid(alpha=0.3)
    left.legend(fontsize=8, frameon=False)
    for y, method in enumerate(sampled):
        for share in NOMINAL:
            error_bar(right, in_percent(coverage(*sampled[method], share)), y, method, filled=_FILLED[share])
    for share, filled in _FILLED.items():
        nominal: dict[str, Any] = {"color": "0.35", "ls": "--" if filled else ":", "lw": 1.4}
        right.axvline(100 * share, zorder=1, **nominal)
        mark = {"marker": "o", "mec": "black", "mfc": "0.35" if filled else "white"}
        right.plot([], [], label=f"nominal {100 * share:g} %", **nominal, **mark)
    right.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncol=2, fontsize=8, frameon=False)
    right.set_yticks(range(len(sampled)), [NAMES[m] for m in sampled], fontsize=8.5)
    right.set_ylim(len(sampled) - 0.5, -0.5)
    right.set(xlim=(0, 100), xlabel="pixels within mean ± z std (%)")
    right.grid(axis="x", alpha=0.3)
    return drawing

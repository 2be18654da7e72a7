"""The spectrum's error against the constant of a closure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing

from apps.turbulence.claims import Evidence
from apps.turbulence.figures.appearance import COLOURS, Entry, band, legend
from apps.turbulence.figures.spectra import plain_ticks
from apps.turbulence.metrics import Numbers, spectrum_errors

WORST = 2.0
"""Decades beyond which the axis does not go."""


def tuning(evidence: Evidence, arms: Sequence[Entry]) -> Drawing:
    """A panel a closure with several constants, with the agents' error across."""
    names = list(evidence.training)
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    drawing = Drawing(figsize=(3.5 * columns + 3.0, 3.5 * rows + 0.4), layout="constrained")
    panels = np.atleast_1d(drawing.subplots(rows, columns, sharey=True)).ravel()
    for axes, name in zip(panels, names, strict=False):
        _panel(axes, evidence, name, arms)
    for axes in panels[len(names) :]:
        axes.set_axis_off()
    for axes in panels[:: max(columns, 1)]:
        axes.set_ylabel("spectrum error (decades)")
    panels[0].set_yscale("log")
    low, high = panels[0].get_ylim()
    panels[0].set_ylim(low, min(high, WORST))
    for axes in panels[: len(names)]:
        plain_ticks(axes, "y", [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2])
    legend(drawing, panels[0])
    return drawing


def _panel(axes: Axes, evidence: Evidence, name: str, arms: Sequence[Entry]) -> None:
    settings, parts = evidence.closures[name]
    colour = COLOURS[settings.closure]
    x = evidence.training[name]["constant"].values
    sources: tuple[tuple[Sequence[xr.Dataset], str, dict[str, Any]], ...] = (
        ([evidence.training[name]], "training starts", {"ls": "--", "marker": "o", "mfc": "white"}),
        (parts, "evaluation starts", {"ls": "-", "marker": "o"}),
    )
    for data, label, style in sources:
        errors = np.mean([_errors(part, evidence) for part in data], axis=0)
        order = np.argsort(x)
        middle, low, high = np.array([band(e[np.isfinite(e)][:, None])[:, 0] if _some(e) else _NONE for e in errors]).T
        ends = np.nan_to_num([middle - low, high - middle])[:, order]
        axes.errorbar(x[order], middle[order], yerr=ends, color=colour, ms=5, capsize=2.5, lw=1.3, label=label, **style)
    place = evidence.place(name)
    best = float(x[place])
    axes.axvline(best, color="0.5", lw=0.9, ls=":", label="chosen on the training starts")
    for arm in arms:
        values = arm.over_starts(lambda d: spectrum_errors(d, evidence.reference, evidence.band).values)
        if not len(values):
            continue
        middle, low, high = band(values[:, None])[:, 0]
        axes.axhline(middle, color=arm.colour, lw=1.8, label=arm.label)
        if len(values) > 1:
            axes.axhspan(low, high, color=arm.colour, alpha=0.18, lw=0)
    axes.set_title(f"{name}, chosen {best:g}", fontsize=9)
    axes.set_xlabel("constant")
    axes.grid(alpha=0.3)


_NONE = np.full(3, np.nan)


def _some(errors: Numbers) -> bool:
    return bool(np.isfinite(errors).any())


def _errors(found: xr.Dataset, evidence: Evidence) -> Numbers:
    """``(constant, start)``."""
    errors = spectrum_errors(found, evidence.reference, evidence.band).transpose("constant", "start")
    return np.asarray(errors.values, dtype=np.float64)

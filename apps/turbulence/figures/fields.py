"""Vorticity fields: what the flow looks like with each closure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.image import AxesImage

from apps.turbulence.figures.appearance import FIELD, Entry
from apps.turbulence.metrics import Numbers, finite

COLUMNS = 5
"""Panels in a row; more are spread over rows of equal length."""
SCALE_END = 0.998
"""Quantile of |omega| at which the colours end."""


def common_start(entries: Sequence[Entry]) -> int:
    """The place of the first start that stayed finite with as many of them as any did."""
    return int(np.argmax(np.sum([finite(e.parts[0]).values for e in entries], 0)))


def last_vorticity(found: xr.Dataset, place: int, sigma: float) -> Numbers:
    """The last field of the start at a place, in sigma; NaN if it blew up."""
    last = found.isel(start=place)
    return np.asarray(np.where(finite(last), last["final"].transpose("x", "y").values / sigma, np.nan))


def picture(axes: Axes, field: Numbers, limit: float, cmap: str = FIELD) -> AxesImage:
    """A field ``(x, y)`` on axes in units of pi; empty where it is not finite."""
    shown = axes.imshow(
        field.T, origin="lower", extent=(0, 2, 0, 2), cmap=cmap, vmin=-limit, vmax=limit, interpolation="nearest"
    )
    axes.set_xticks([0, 1, 2])
    axes.set_yticks([0, 1, 2])
    if not np.isfinite(field).all():
        axes.text(1, 1, "blew up", ha="center", va="center", color="0.4")
    return shown


def scale_end(fields: Sequence[Numbers]) -> float:
    """Where a common colour scale of signed fields ends."""
    values = np.concatenate([np.abs(field[np.isfinite(field)]) for field in fields])
    return float(np.quantile(values, SCALE_END)) if values.size and values.any() else 1.0


def vorticity_fields(reference: xr.Dataset, entries: Sequence[Entry]) -> Drawing:
    """The first snapshot of the reference and the last field of each entry, from one start, in sigma."""
    sigma = float(reference["sigma"])
    place = common_start(entries)
    fields = {"reference": reference["field"].values / sigma}
    fields |= {e.label: last_vorticity(e.parts[0], place, sigma) for e in entries}
    rows = -(-len(fields) // COLUMNS)
    columns = -(-len(fields) // rows)
    drawing = Drawing(figsize=(2.6 * columns + 0.9, 2.75 * rows + 0.3), layout="constrained")
    panels = np.atleast_1d(drawing.subplots(rows, columns, sharex=True, sharey=True)).ravel()
    limit = scale_end(list(fields.values()))
    for axes, (name, field) in zip(panels, fields.items(), strict=False):
        shown = picture(axes, field, limit)
        spread = rf"$\sigma_\omega$ = {field.std():.2f}" if np.isfinite(field).all() else ""
        axes.set_title(f"{name}\n{spread}", fontsize=9)
    for axes in panels[len(fields) :]:
        axes.set_axis_off()
    for i, axes in enumerate(panels[: len(fields)]):
        if i + columns >= len(fields):
            axes.set_xlabel(r"$x/\pi$")
            axes.xaxis.set_tick_params(labelbottom=True)
        if i % columns == 0:
            axes.set_ylabel(r"$y/\pi$")
    drawing.colorbar(shown, ax=panels, extend="both", shrink=0.8, label=r"vorticity $\omega/\sigma$")
    return drawing

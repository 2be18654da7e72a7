"""What was acquired: masks of all subjects, how often each action is taken, and the scores that chose them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.image import AxesImage
from numpy.typing import NDArray

from apps.mri.figures.appearance import COLOURS
from apps.mri.figures.layout import ActionLayout
from apps.mri.figures.mosaic import Mosaic
from apps.mri.methods import NAMES, RECONSTRUCTIONS

SCORES = "viridis"
"""Colour map of scores and of how often an action is taken."""
CHOSEN = "#d55e00"
"""What ADS took."""
TILES = 24
"""Steps of which a plane of scores is drawn."""


def masks(found: Mapping[str, xr.Dataset], layout: ActionLayout) -> Drawing:
    """Masks and frequencies, a panel a method; reconstructions of a mask that another panel shows are left out."""
    shown = {m: d["mask"].values.reshape(-1, layout.actions) > 0 for m, d in found.items() if m not in RECONSTRUCTIONS}
    shown = shown or {m: d["mask"].values.reshape(-1, layout.actions) > 0 for m, d in found.items()}
    return _heat_maps(shown, layout) if layout.planar else _strips(shown, layout)


def _strips(shown: Mapping[str, NDArray[np.bool_]], layout: ActionLayout) -> Drawing:
    columns = min(4, len(shown))
    rows = math.ceil(len(shown) / columns)
    drawing = Drawing(figsize=(9, 0.55 + 1.95 * rows), layout="constrained")
    grid = drawing.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes, (method, mask) in zip(grid.flat, shown.items(), strict=False):
        low, high = layout.span
        ordered = mask[np.lexsort(mask.T[::-1])]
        axes.imshow(~ordered, extent=(low, high, 1, 0), cmap="gray", aspect="auto", interpolation="nearest", vmin=0)
        frequency = mask.mean(0)
        edges = np.linspace(low, high, layout.actions + 1)
        axes.stairs(1.08 + 0.6 * frequency, edges, baseline=1.08, fill=True, color=COLOURS[method])
        axes.set_title(NAMES[method], fontsize=9, color=COLOURS[method] if method == "ads" else "black")
        axes.set(xlim=(low, high), ylim=(0, 1.74), yticks=[0.5, 1.08, 1.68])
        axes.set_yticklabels(["subjects", "0 %", "100 %"], fontsize=8)
        axes.tick_params(axis="y", length=0)
        axes.tick_params(axis="x", labelsize=8)
    for axes in grid.flat[max(0, len(shown) - columns) : len(shown)]:
        axes.tick_params(labelbottom=True)  # the lowest of its column, also where the last row is not full
    for axes in grid.flat[len(shown) :]:
        axes.axis("off")
    drawing.supxlabel(layout.label, fontsize=9)
    return drawing


def _heat_maps(shown: Mapping[str, NDArray[np.bool_]], layout: ActionLayout) -> Drawing:
    columns = min(5, len(shown))
    rows = math.ceil(len(shown) / columns)
    side = min(1.55, 8.0 / columns - 0.1)
    high = side * layout.shape[0] / layout.shape[1]
    sheet = Mosaic(0.1 + columns * (side + 0.1) + 0.75, 0.05 + rows * (high + 0.35))
    mappable: Any = None
    for i, (method, mask) in enumerate(shown.items()):
        x, y = 0.1 + (i % columns) * (side + 0.1), 0.3 + (i // columns) * (high + 0.35)
        frequency = 100 * layout.picture(mask.mean(0))
        mappable = sheet.image(frequency, x, y, side, high, cmap=SCORES, vmin=0, vmax=100)
        colour = COLOURS[method] if method == "ads" else "black"
        sheet.text(x + side / 2, y - 0.12, NAMES[method], fontsize=8.5, color=colour)
    bar_high = min(rows * (high + 0.35) - 0.35, 2.2)
    sheet.colour_bar(mappable, 0.1 + columns * (side + 0.1) + 0.05, 0.3, 0.12, bar_high, "share of subjects (%)")
    return sheet.drawing


def waterfall(data: xr.Dataset, layout: ActionLayout, subjects: Mapping[int, str]) -> Drawing:
    """Scores at each acquisition, and what was taken; beside each other for the subjects (first seed)."""
    first = data.isel(seed=0)
    acquisitions = len(np.unique(first["acq_step"].values))
    if layout.planar:
        subjects = dict(list(subjects.items())[:1])
        tiles = min(acquisitions, TILES)
        across = _across(tiles)
        height = 0.7 + math.ceil(tiles / across) * (8.4 / across * 1.25 * layout.shape[0] / layout.shape[1])
    else:
        height = 1.5 + 0.28 * min(acquisitions, 22)
    drawing = Drawing(figsize=(9, height), layout="constrained")
    grid = drawing.subplots(1, len(subjects), squeeze=False, sharey=not layout.planar)[0]
    for axes, (subject, why) in zip(grid, subjects.items(), strict=True):
        one = first.sel(subject=subject)
        scores, order, step = (one[name].values for name in ("line_entropy", "acq_order", "acq_step"))
        shown = draw_scores(axes, scores, order, step, one["mask"].values > 0, layout)
        axes.set_title(f"subject {subject}: {why}", fontsize=9)
        axes.label_outer()
    bar = drawing.colorbar(
        shown, ax=list(grid), shrink=0.6 if layout.planar else min(1.0, 2.2 / height), aspect=16, pad=0.02
    )
    bar.set_label("score, share of the\nlargest of the step", fontsize=8.5)
    bar.ax.tick_params(labelsize=8)
    return drawing


def draw_scores(
    axes: Axes,
    scores: NDArray[np.floating[Any]],
    order: NDArray[np.integer[Any]],
    step: NDArray[np.integer[Any]],
    mask: NDArray[np.bool_],
    layout: ActionLayout,
) -> AxesImage:
    """Scores of the free actions at every acquisition step, as shares of the largest, with what was taken then.

    Args:
        axes: drawn on.
        scores: (n, A) from which each action was chosen.
        order: (n,) actions taken; -1: none.
        step: (n,) diffusion steps; actions of the same step share a row.
        mask: (A,) all that was acquired in the end.
        layout: of the actions.
    """
    steps, starts = np.unique(step, return_index=True)
    taken = [order[(step == s) & (order >= 0)] for s in steps]
    held = np.zeros((len(steps), layout.actions), dtype=bool)
    held[:, np.setdiff1d(np.flatnonzero(mask), order)] = True
    for i, actions in enumerate(taken):
        held[i + 1 :, actions] = True
    free = np.where(held, np.nan, scores[starts])
    largest = np.nanmax(np.where(held, 0.0, scores[starts]), axis=1)
    share = free / np.where(largest > 0, largest, 1.0)[:, None]
    axes.set_facecolor("0.8")
    if layout.planar:
        return _tiles(axes, share, taken, held, steps, layout)
    return _rows(axes, share, taken, steps, layout)


def _rows(
    axes: Axes,
    share: NDArray[np.floating[Any]],
    taken: list[NDArray[np.integer[Any]]],
    steps: NDArray[np.integer[Any]],
    layout: ActionLayout,
) -> AxesImage:
    count = len(steps)
    extent = (*layout.span, count - 0.5, -0.5)
    shown = axes.imshow(share, extent=extent, cmap=SCORES, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    x, y = layout.start + np.concatenate(taken), np.repeat(np.arange(count), [len(t) for t in taken])
    size = min(6.0, 200 / layout.actions, 130 / count)
    axes.plot(x, y, ls="", marker="o", ms=size, color=CHOSEN, mec="white", mew=0.1 * size)
    ticks = np.arange(0, count, math.ceil(count / 18))
    axes.set_yticks(ticks, [str(steps[t]) for t in ticks])
    axes.tick_params(labelsize=8)
    axes.set(xlabel=layout.label, ylabel="diffusion step", xlim=layout.span)
    return shown


def _across(tiles: int) -> int:
    return min(tiles, 8 if tiles > 6 else 6)


def _tiles(
    axes: Axes,
    share: NDArray[np.floating[Any]],
    taken: list[NDArray[np.integer[Any]]],
    held: NDArray[np.bool_],
    steps: NDArray[np.integer[Any]],
    layout: ActionLayout,
) -> AxesImage:
    """The planes of at most ``TILES`` steps, row after row on one sheet; evenly chosen where there are more."""
    some = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), TILES)).round().astype(int))
    share, held, steps, taken = share[some], held[some], steps[some], [taken[i] for i in some]
    high, wide = layout.shape
    across = _across(len(steps))
    rows = math.ceil(len(steps) / across)
    gap_x, gap_y = wide // 8 + 1, high // 4 + 1
    sheet = np.full((rows * (high + gap_y), across * (wide + gap_x) - gap_x), np.nan)
    grey = np.zeros_like(sheet)
    size = max(1.6, min(5.0, 300 / sheet.shape[1]))
    for i, (picture, acquired) in enumerate(zip(layout.picture(share), layout.picture(held), strict=True)):
        y, x = (i // across) * (high + gap_y) + gap_y, (i % across) * (wide + gap_x)
        sheet[y : y + high, x : x + wide] = picture
        grey[y : y + high, x : x + wide] = acquired
        axes.text(x + wide / 2 - 0.5, y - 0.07 * high - 0.5, f"step {steps[i]}", ha="center", va="bottom", fontsize=8)
        places = x + taken[i] % wide, y + taken[i] // wide
        axes.plot(*places, ls="", marker="o", ms=size, color=CHOSEN, mec="white", mew=0.1 * size)
    axes.imshow(np.where(grey > 0, 0.8, np.nan), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    shown = axes.imshow(sheet, cmap=SCORES, vmin=0, vmax=1, interpolation="nearest")
    axes.axis("off")
    axes.set_anchor("W")
    return shown

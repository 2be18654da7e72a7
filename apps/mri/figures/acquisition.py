"""One acquisition by itself: what was taken in which order, what came of it, and how it went."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.figure import SubFigure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from apps.mri.figures.layout import ActionLayout
from apps.mri.figures.masks import CHOSEN, draw_scores
from apps.mri.figures.reconstruction import ERRORS

_DIVERGED = 10.0
"""An image that exceeds its scale this many times says by how much."""
_BESIDE: dict[str, Any] = {"pad": 0.02, "aspect": 24}
_Picture = tuple[str, NDArray[Any], dict[str, Any]]


def acquisition_picture(found: xr.Dataset, operator: str = "kspace_lines") -> Drawing:
    """Image, spread, residual, order of acquisition and, where there were any, scores of the first recorded subject.

    Args:
        found: what ``recording.dataset`` made of one batch; target and error are drawn where it has the true image.
        operator: what one action measures.
    """
    one = found.isel(recorded=0).sel(subject=found["recorded"].values[0])
    layout = ActionLayout(operator, (one.sizes["y"], one.sizes["x"]))
    pictures = _pictures(one)
    scored = _scored(one)
    below = (1.7 if len(pictures) > 3 else 1.3) if scored.any() else (1.0 if layout.planar else 0.6)
    drawing = Drawing(figsize=(9, 2.4 * (1 + below)), layout="constrained")
    top, bottom = drawing.subfigures(2, 1, squeeze=False, height_ratios=[1, below])[:, 0]
    places = top.subplots(1, len(pictures) + 1, width_ratios=[1.0] * len(pictures) + [1.2])
    for axes, (words, values, style) in zip(places, pictures, strict=False):
        _show(top, axes, words, values, style)
    _residual(places[-1], one)
    _order_and_scores(bottom, one, layout, scored)
    taken = int((one["mask"].values > 0).sum())
    words = f"subject {int(one['subject'])}: {taken} of {layout.actions} {layout.noun}s"
    if taken:
        words += f" ({layout.actions / taken:.3g}×)"
    if "psnr" in one:
        words += f", PSNR {float(one['psnr']):.1f} dB, SSIM {float(one['ssim']):.3f}"
    drawing.suptitle(words, fontsize=10)
    return drawing


def _pictures(one: xr.Dataset) -> list[_Picture]:
    """Titles, values and styles of the images, each from 0 to the top of its scale."""
    image = one["image"].values
    grey = {"cmap": "gray", "vmin": 0, "vmax": finite_top([image])}
    pictures: list[_Picture] = [("reconstruction", image, grey)]
    if "std" in one:
        pictures.append(("particle std", one["std"].values, _spread(one["std"].values)))
    if "target_image" in one:
        truth = one["target_image"].values
        grey["vmax"] = float(truth.max())
        error = np.abs(image - truth)
        pictures = [("target", truth, grey), *pictures, ("|error|", error, _spread(error))]
    return pictures


def _spread(values: NDArray[Any]) -> dict[str, Any]:
    return {"cmap": ERRORS, "vmin": 0, "vmax": finite_top([values], 1.0)}


def finite_top(values: Sequence[NDArray[Any]], quantile: float = 0.999) -> float:
    """The largest quantile of images that may have diverged: of their finite pixels; 1 where there is none."""
    finite = [kept for image in values if len(kept := image[np.isfinite(image)])]
    return max((float(np.quantile(kept, quantile)) for kept in finite), default=1.0)


def _show(part: SubFigure, axes: Axes, words: str, values: NDArray[Any], style: dict[str, Any]) -> None:
    """An image with its scale; one that diverged says so, for all that is seen of it is one shade."""
    shown = axes.imshow(values, interpolation="nearest", **style)
    axes.set_title(words, fontsize=9)
    axes.set(xticks=[], yticks=[])
    axes.set_facecolor("0.8")  # seen where a pixel is not finite
    beyond = float(np.nanmax(np.where(np.isfinite(values), values, 0.0)))
    if words != "target":
        extend = "max" if beyond > style["vmax"] else "neither"
        bar = part.colorbar(shown, ax=axes, fraction=0.06, pad=0.03, extend=extend)
        bar.ax.tick_params(labelsize=8)
        bar.ax.locator_params(nbins=5)
    fault = "" if np.isfinite(values).all() else "not finite"
    if not fault and beyond > _DIVERGED * style["vmax"]:
        fault = f"up to {beyond:.2g}"
    _mark(axes, fault)


def _mark(axes: Axes, fault: str) -> None:
    if fault:
        box = {"facecolor": "white", "edgecolor": CHOSEN, "boxstyle": "round"}
        axes.text(0.5, 0.5, fault, transform=axes.transAxes, ha="center", va="center", fontsize=9, bbox=box)


def _scored(one: xr.Dataset) -> NDArray[np.bool_]:
    """Which acquisitions (n,) scores chose in a diffusion step, and no policy before it; none if nothing was taken."""
    step, scores = one["acq_step"].values, one["line_entropy"].values
    scored: NDArray[np.bool_] = (step >= 0) & np.isfinite(scores).all(-1)
    return scored & bool((one["acq_order"].values[scored] >= 0).any())


def _residual(axes: Axes, one: xr.Dataset) -> None:
    residual = one["residual"].values
    axes.plot(residual, color="black", lw=1.3)
    _mark(axes, "" if np.isfinite(residual).any() else "not finite")
    step = one["acq_step"].values[one["acq_order"].values >= 0]
    for at in np.unique(step[step >= 0]):
        axes.axvline(at, color=CHOSEN, lw=0.6, alpha=0.6, zorder=1)
    axes.set_title("distance from samples\n(lines: acquisitions)", fontsize=9)
    axes.set_xlabel("diffusion step", fontsize=8.5)
    axes.set_ylabel("Euclidean norm, in the\nprior's image units", fontsize=8.5)
    axes.set_ylim(bottom=0)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)


def _order_and_scores(part: SubFigure, one: xr.Dataset, layout: ActionLayout, scored: NDArray[np.bool_]) -> None:
    """The order of the actions, and below or beside it the scores of those that ``scored`` (n,) names, if any."""
    order, mask = one["acq_order"].values, one["mask"].values > 0
    left, right = _places(part, layout, bool(scored.any()))
    drawn = [left] if right is None else [left, right]
    shown = _order(left, order[order >= 0], mask, layout)
    if not (order >= 0).any():
        left.set_title(f"nothing was chosen (dark: the initial {layout.noun}s)", fontsize=9)
    else:
        alone = layout.planar or right is None
        where = {"location": "bottom", "shrink": 0.9, "pad": 0.04} if alone else _BESIDE
        bar = part.colorbar(shown, ax=left if alone else drawn, ticks=MaxNLocator(5, integer=True), **where)
        bar.set_label(f"order of the {layout.noun}s (0: initial)", fontsize=8.5)
        bar.ax.tick_params(labelsize=8)
    if right is None:
        left.set_xlabel("" if layout.planar else layout.label, fontsize=8.5)
        return
    scores, step = one["line_entropy"].values[scored], one["acq_step"].values[scored]
    picture = draw_scores(right, scores, order[scored], step, mask, layout)
    bar = part.colorbar(picture, ax=right if layout.planar else drawn, **_BESIDE)
    bar.set_label("score, share of the largest of the step", fontsize=8.5)
    bar.ax.tick_params(labelsize=8)


def _places(part: SubFigure, layout: ActionLayout, both: bool) -> tuple[Axes, Axes | None]:
    """Axes of the order and, where ``both`` are wanted, of the scores."""
    if not both:
        return part.subplots(), None
    if layout.planar:
        left, right = part.subplots(1, 2, width_ratios=[1, 2.6])
    else:
        left, right = part.subplots(2, 1, sharex=True, height_ratios=[1, 7])
    return left, right


def _order(axes: Axes, taken: NDArray[np.integer[Any]], mask: NDArray[np.bool_], layout: ActionLayout) -> AxesImage:
    rank = np.where(mask, 0.0, np.nan)
    rank[taken] = 1 + np.arange(len(taken))
    style: dict[str, Any] = {"cmap": "cividis", "interpolation": "nearest", "vmin": 0, "vmax": max(len(taken), 1)}
    axes.set_facecolor("white")
    if layout.planar:
        axes.set(xticks=[], yticks=[])
        return axes.imshow(layout.picture(rank), **style)
    axes.set_yticks([])
    axes.set_ylabel("order", fontsize=8.5, rotation=0, ha="right", va="center")
    axes.tick_params(labelsize=8)
    return axes.imshow(rank[None], extent=(*layout.span, 0, 1), aspect="auto", **style)

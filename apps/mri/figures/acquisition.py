"""One acquisition by itself: what was taken in which order, what came of it, and how it went."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray as xr
from matplotlib.animation import PillowWriter
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.figure import SubFigure
from numpy.typing import NDArray
from torch import Tensor

from apps.mri.figures.layout import ActionLayout
from apps.mri.figures.masks import CHOSEN, draw_scores
from apps.mri.figures.reconstruction import ERRORS
from core import files
from core.errors import InputError


@dataclass(frozen=True)
class Snapshot:
    """One moment of an acquisition.

    Attributes:
        image: (H, W) as it is looked at.
        std: (H, W) standard deviation of the particles.
        mask: (A,) what is acquired.
    """

    image: Tensor | NDArray[Any]
    std: Tensor | NDArray[Any]
    mask: Tensor | NDArray[Any]


def acquisition_picture(found: xr.Dataset, operator: str = "kspace_lines") -> Drawing:
    """Image, spread, order of acquisition, scores and residual of the first recorded subject.

    Args:
        found: what ``recording.dataset`` made of one batch; target and error are drawn where it has the true image.
        operator: what one action measures.
    """
    one = found.isel(recorded=0).sel(subject=found["recorded"].values[0])
    image = one["image"].values
    layout = ActionLayout(operator, image.shape)
    grey: dict[str, Any] = {"cmap": "gray", "vmin": 0, "vmax": float(np.quantile(image, 0.999))}
    pictures = [("reconstruction", image, grey)]
    if "std" in one:
        pictures.append(("particle std", one["std"].values, {"cmap": ERRORS, "vmin": 0}))
    if "target_image" in one:
        truth = one["target_image"].values
        grey["vmax"] = float(truth.max())
        pictures.insert(0, ("target", truth, grey))
        pictures.append(("|error|", np.abs(image - truth), {"cmap": ERRORS, "vmin": 0}))
    drawing = Drawing(figsize=(9, 6.0), layout="constrained")
    top, bottom = drawing.subfigures(2, 1, squeeze=False, height_ratios=[1, 1.7 if len(pictures) > 3 else 1.3])[:, 0]
    places = top.subplots(1, len(pictures) + 1, width_ratios=[1.0] * len(pictures) + [1.2])
    for axes, (words, values, style) in zip(places, pictures, strict=False):
        shown = axes.imshow(values, interpolation="nearest", **style)
        axes.set_title(words, fontsize=9)
        axes.set(xticks=[], yticks=[])
        if style["cmap"] == ERRORS:
            bar = top.colorbar(shown, ax=axes, fraction=0.06, pad=0.03)
            bar.ax.tick_params(labelsize=8)
            bar.ax.locator_params(nbins=5)
    _residual(places[-1], one)
    _order_and_scores(bottom, one, layout)
    taken = int((one["mask"].values > 0).sum())
    words = f"subject {int(one['subject'])}: {taken} of {layout.actions} {layout.noun}s ({layout.actions / taken:.3g}×)"
    if "psnr" in one:
        words += f", PSNR {float(one['psnr']):.1f} dB, SSIM {float(one['ssim']):.3f}"
    drawing.suptitle(words, fontsize=10)
    return drawing


def _residual(axes: Axes, one: xr.Dataset) -> None:
    axes.plot(one["residual"].values, color="black", lw=1.3)
    for step in np.unique(one["acq_step"].values):
        axes.axvline(step, color=CHOSEN, lw=0.6, alpha=0.6, zorder=1)
    axes.set_title("distance from the samples\n(vertical: acquisitions)", fontsize=9)
    axes.set_xlabel("diffusion step", fontsize=8.5)
    axes.set_ylim(bottom=0)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)


def _order_and_scores(part: SubFigure, one: xr.Dataset, layout: ActionLayout) -> None:
    order, mask = one["acq_order"].values, one["mask"].values > 0
    taken = order[order >= 0]
    rank = np.where(mask, 0.0, np.nan)
    rank[taken] = 1 + np.arange(len(taken))
    style: dict[str, Any] = {"cmap": "cividis", "interpolation": "nearest", "vmin": 0, "vmax": max(len(taken), 1)}
    if layout.planar:
        left, right = part.subplots(1, 2, width_ratios=[1, 2.6])
        shown = left.imshow(layout.picture(rank), **style)
        left.set(xticks=[], yticks=[])
        bar = part.colorbar(shown, ax=left, location="bottom", shrink=0.9, pad=0.04)
    else:
        left, right = part.subplots(2, 1, sharex=True, height_ratios=[1, 7])
        shown = left.imshow(rank[None], extent=(*layout.span, 0, 1), aspect="auto", **style)
        left.set_yticks([])
        left.set_ylabel("order", fontsize=8.5, rotation=0, ha="right", va="center")
        bar = part.colorbar(shown, ax=[left, right], pad=0.02, aspect=24)
    left.set_facecolor("white")
    bar.set_label(f"order of the {layout.noun}s (0: initial)", fontsize=8.5)
    bar.ax.tick_params(labelsize=8)
    if len(order):
        scores = draw_scores(right, one["line_entropy"].values, order, one["acq_step"].values, mask, layout)
        bar = part.colorbar(scores, ax=right if layout.planar else [left, right], pad=0.02, aspect=24)
        bar.set_label("score, share of the largest of the step", fontsize=8.5)
        bar.ax.tick_params(labelsize=8)
    else:
        right.axis("off")
        right.text(0.5, 0.5, "nothing was chosen", transform=right.transAxes, ha="center", color="0.4")


def acquisition_gif(
    path: Path, snapshots: Sequence[Snapshot], operator: str = "kspace_lines", *, per_second: int = 8
) -> None:
    """An animated GIF of how image, spread and mask grew, written atomically.

    Args:
        path: the file, whatever its ending.
        snapshots: in order, of equal shapes.
        operator: what one action measures.
        per_second: snapshots shown in a second.

    Raises:
        InputError: no snapshots.
    """
    if not snapshots:
        raise InputError(f"{path}: no snapshots to animate")
    moments = [(np.asarray(s.image), np.asarray(s.std), np.asarray(s.mask) > 0) for s in snapshots]
    layout = ActionLayout(operator, moments[0][0].shape)
    drawing = Drawing(figsize=(6.6, 2.9) if layout.planar else (4.6, 3.1), layout="constrained")
    places = drawing.subplot_mosaic(
        "ism" if layout.planar else "is;mm", height_ratios=None if layout.planar else [9, 1]
    )
    tops = [max(float(np.quantile(moment[i], 0.999)) for moment in moments[len(moments) // 2 :]) for i in (0, 1)]
    aspect: Literal["equal", "auto"] = "equal" if layout.planar else "auto"
    plain: dict[str, Any] = {"interpolation": "nearest", "vmin": 0}
    image = places["i"].imshow(moments[0][0], cmap="gray", vmax=tops[0], **plain)
    std = places["s"].imshow(moments[0][1], cmap=ERRORS, vmax=tops[1], **plain)
    taken = places["m"].imshow(_mask(moments[0][2], layout), cmap="gray_r", vmax=1, aspect=aspect, **plain)
    for axes, words in zip(
        places.values(), ("reconstruction", "particle std", f"{layout.noun}s acquired"), strict=True
    ):
        axes.set(xticks=[], yticks=[])
        if axes is not places["m"] or layout.planar:
            axes.set_title(words, fontsize=9)
    caption = places["m"].set_xlabel(" ", fontsize=9)
    drawing.draw_without_rendering()
    drawing.set_layout_engine("none")  # else every frame is laid out anew, in most of the time of all
    writer = PillowWriter(fps=per_second)
    with tempfile.TemporaryDirectory() as folder:
        gif = Path(folder) / "scan.gif"  # the writer knows the format by the ending of the name
        with writer.saving(drawing, str(gif), dpi=100):
            for shown, spread, mask in moments:
                image.set_data(shown)
                std.set_data(spread)
                taken.set_data(_mask(mask, layout))
                caption.set_text(f"{int(mask.sum())} of {layout.actions} {layout.noun}s")
                writer.grab_frame()
        files.write(path, gif.read_bytes())


def _mask(mask: NDArray[np.bool_], layout: ActionLayout) -> NDArray[Any]:
    return layout.picture(mask) if layout.planar else mask[None]

"""How an acquisition went, as an animation."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.animation import PillowWriter
from matplotlib.figure import Figure as Drawing
from numpy.typing import NDArray
from torch import Tensor

from apps.mri.figures.acquisition import finite_top
from apps.mri.figures.layout import ActionLayout
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
    tops = [finite_top([moment[i] for moment in moments[len(moments) // 2 :]]) for i in (0, 1)]
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

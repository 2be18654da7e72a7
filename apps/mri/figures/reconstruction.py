"""Reconstructions beside their targets: image, error, and what the particles say about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure as Drawing
from numpy.typing import NDArray

from apps.mri.figures.appearance import COLOURS
from apps.mri.figures.layout import ActionLayout
from apps.mri.figures.mosaic import Mosaic
from apps.mri.methods import NAMES

ERRORS = "magma"
"""Colour map of errors and standard deviations."""
STD_TOP = 0.98
"""Quantile of the standard deviations at which their scale ends: one pixel far out would leave the others black."""
_WIDTH, _LEFT, _GAP = 9.0, 0.95, 0.07


def typical_and_hardest(data: xr.Dataset, method: str) -> dict[int, str]:
    """Recorded subjects of median and of lowest PSNR (first seed): what is shown is chosen by rule, not by eye."""
    recorded = data["recorded"].values
    order = np.argsort(data["psnr"].isel(seed=0).sel(subject=recorded).values)
    among = f"PSNR of {NAMES[method]} among the {len(recorded)} recorded"
    subjects = {int(recorded[order[len(order) // 2]]): f"median {among}"}
    subjects.setdefault(int(recorded[order[0]]), f"lowest {among}")
    return subjects


def measured_pixels_differ(data: xr.Dataset) -> bool:
    """Whether particles of sampled pixels have any spread where they were measured: samples guide, and are not put in.

    Args:
        data: of one method that samples pixels; one whose std is not kept has none.
    """
    if "std" not in data:
        return False
    mask = data["mask"].sel(subject=data["recorded"].values).values > 0
    return bool((data["std"].values[mask.reshape(data["std"].shape)] > 0).any())


def panels(
    found: Mapping[str, xr.Dataset], layout: ActionLayout, methods: Sequence[str], subjects: Mapping[int, str]
) -> Drawing:
    """Target, and for each method its image with mask, PSNR and SSIM, its absolute error, and its particles' spread."""
    columns = len(methods) + 1
    side = min((_WIDTH - _LEFT) / columns, 1.9) - _GAP
    high = side * layout.shape[0] / layout.shape[1]
    mask_high = {"pixels": 0.0, "kspace_points": high + 0.08}.get(layout.operator, 0.2)
    block = 0.6 + mask_high + 0.3 + 3 * (high + _GAP)
    sheet = Mosaic(_LEFT + columns * (side + _GAP) + 0.1, 0.2 + block * len(subjects))
    chosen = {m: found[m].isel(seed=0).sel(recorded=list(subjects)) for m in methods}
    errors = [np.abs((d["image"] - d["target_image"]).values) for d in chosen.values()]
    spread = [d["std"].values for d in chosen.values() if "std" in d]
    page = _Page(sheet, layout, side, high, mask_high, _top(errors, 0.998), _top(spread, STD_TOP))
    for i, method in enumerate(methods):
        style = {"color": COLOURS["ads"], "weight": "bold"} if method == "ads" else {}
        sheet.text(page.column(i + 1) + side / 2, 0.17, _two_lines(NAMES[method]), **style)
    sheet.text(_LEFT + side / 2, 0.17, "target")
    for row, (subject, why) in enumerate(subjects.items()):
        y = 0.35 + row * block
        sheet.text(_LEFT, y + 0.15, f"subject {subject}: {why}", ha="left", style="italic")
        page.subject([d.sel(subject=subject, recorded=subject) for d in chosen.values()], y + 0.28)
    return sheet.drawing


def _top(values: Sequence[NDArray[Any]], quantile: float) -> float:
    return float(np.quantile(np.stack(values), quantile)) if values else 0.0


@dataclass(frozen=True)
class _Page:
    """Sizes in inches, and where the scales of error and standard deviation end."""

    sheet: Mosaic
    layout: ActionLayout
    side: float
    high: float
    mask_high: float
    top_error: float
    top_std: float

    def column(self, number: int) -> float:
        return _LEFT + number * (self.side + _GAP)

    def subject(self, shown: Sequence[xr.Dataset], y: float) -> None:
        """The rows of one subject from ``y`` downwards."""
        sheet, side, high = self.sheet, self.side, self.high
        target = shown[0]["target_image"].values
        grey: dict[str, Any] = {"vmin": 0.0, "vmax": float(target.max())}
        error_y = y + high + self.mask_high + 0.3
        std_y = error_y + high + _GAP
        sheet.image(target, _LEFT, y, side, high, **grey)
        for i, data in enumerate(shown):
            x, image = self.column(i + 1), data["image"].values
            sheet.image(image, x, y, side, high, **grey)
            self._mask(data["mask"].values > 0, x, y)
            words = f"{float(data['psnr']):.1f} dB, SSIM {float(data['ssim']):.3f}"
            sheet.text(x + side / 2, y + high + self.mask_high + 0.14, words, fontsize=8)
            error = sheet.image(
                np.abs(image - target), x, error_y, side, high, cmap=ERRORS, vmin=0, vmax=self.top_error
            )
            if i == 0:
                self._bar(error, error_y, "|error|")
            if "std" in data:
                std = sheet.image(data["std"].values, x, std_y, side, high, cmap=ERRORS, vmin=0, vmax=self.top_std)
                self._bar(std, std_y, "particle std") if i == 0 else None
            else:
                sheet.box(x, std_y, side, high, colour="0.8")
                sheet.text(x + side / 2, std_y + high / 2, "no particles", color="0.4")
        sheet.text(_LEFT - 0.08, y + high / 2, "image", ha="right")
        if self.layout.operator != "pixels":
            words = "points\nacquired" if self.layout.planar else f"{self.layout.noun}s\nacquired"
            sheet.text(_LEFT - 0.08, y + high + self.mask_high / 2 + 0.02, words, ha="right", fontsize=8)

    def _bar(self, mappable: Any, y: float, label: str) -> None:
        self.sheet.text(_LEFT - 0.08, y + self.high / 2, label, ha="right")
        box = (self.column(1) - 0.65, y + 0.08, 0.12, self.high - 0.16)
        self.sheet.colour_bar(mappable, *box, extend="max")

    def _mask(self, mask: NDArray[Any], x: float, y: float) -> None:
        """What was acquired: dots on the image for pixels, a picture for k-space points, a strip for columns."""
        if self.layout.operator == "pixels":
            rows, columns = np.nonzero(self.layout.picture(mask))
            pixel = self.side / self.layout.shape[1]
            style: dict[str, Any] = {"ls": "", "marker": "o", "mec": "black", "mew": 0.4, "mfc": "#ffd92f"}
            size = min(3.5, 72 * pixel * 0.35)
            self.sheet.axes.plot(x + (columns + 0.5) * pixel, y + (rows + 0.5) * pixel, ms=size, **style)
            return
        picture: NDArray[Any] = self.layout.picture(mask) if self.layout.planar else mask[None]
        at, thickness = y + self.high + 0.06, self.mask_high - 0.08
        self.sheet.image(1.0 - picture, x, at, self.side, thickness, vmin=0, vmax=1)
        self.sheet.box(x, at, self.side, thickness)


def _two_lines(words: str) -> str:
    return words.replace(" (", "\n(").replace(", ", ",\n").replace(" with ", "\nwith ")

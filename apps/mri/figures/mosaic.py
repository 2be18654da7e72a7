"""Many small images on one pair of axes, which draws in a tenth of the time that axes of their own take."""

from __future__ import annotations

from typing import Any

from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure as Drawing
from matplotlib.patches import Rectangle
from numpy.typing import NDArray


class Mosaic:
    """A sheet whose coordinates are inches from its upper left corner.

    Attributes:
        drawing: the figure.
        axes: its only axes, which cover all of it.
    """

    def __init__(self, width: float, height: float) -> None:
        self.size = width, height
        self.drawing = Drawing(figsize=(width, height))
        # Otherwise a PDF holds one resampled picture of the whole sheet, and takes longer to write.
        self.drawing.suppressComposite = True
        self.axes = self.drawing.add_axes((0, 0, 1, 1))
        self.axes.set(xlim=(0, width), ylim=(height, 0))
        self.axes.axis("off")

    def image(self, values: NDArray[Any], x: float, y: float, width: float, height: float, **style: Any) -> Any:
        """An image (H, W) in the box at (x, y), stretched to fill it."""
        style = {"cmap": "gray", "interpolation": "nearest", "aspect": "auto"} | style
        shown = self.axes.imshow(values, extent=(x, x + width, y + height, y), **style)
        # Every imshow moves the limits to its own extent.
        self.axes.set(xlim=(0, self.size[0]), ylim=(self.size[1], 0))
        return shown

    def text(self, x: float, y: float, words: str, **style: Any) -> None:
        """Words at (x, y), their middle by default."""
        centred: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 9}
        self.axes.text(x, y, words, **(centred | style))

    def box(self, x: float, y: float, width: float, height: float, colour: str = "0.4") -> None:
        """A frame."""
        self.axes.add_patch(Rectangle((x, y), width, height, fill=False, lw=0.6, edgecolor=colour))

    def colour_bar(
        self, mappable: ScalarMappable, x: float, y: float, width: float, height: float, label: str = "", **style: Any
    ) -> None:
        """A standing colour bar in the box at (x, y)."""
        wide, high = self.size
        axes = self.drawing.add_axes((x / wide, 1 - (y + height) / high, width / wide, height / high))
        bar = self.drawing.colorbar(mappable, cax=axes, **style)
        bar.set_label(label, fontsize=8.5)
        bar.ax.tick_params(labelsize=8)

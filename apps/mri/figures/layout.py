"""Where the actions of an operator lie in a figure: along one axis, or in a plane."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

_NOUNS = {
    "pixels": "pixel",
    "columns": "image column",
    "kspace_lines": "k-space line",
    "kspace_points": "k-space point",
}


@dataclass(frozen=True)
class ActionLayout:
    """The actions of an operator on images of ``shape``.

    Attributes:
        operator: its name in a config.
        shape: (H, W) of an image.
    """

    operator: str
    shape: tuple[int, int]

    @property
    def planar(self) -> bool:
        """Whether an action is a point of the plane rather than a column of it."""
        return self.operator in ("pixels", "kspace_points")

    @property
    def actions(self) -> int:
        """How many there are."""
        return self.shape[0] * self.shape[1] if self.planar else self.shape[1]

    @property
    def noun(self) -> str:
        """What an action is called."""
        return _NOUNS[self.operator]

    @property
    def start(self) -> int:
        """Coordinate of the first column: k-space counts from DC, images from their edge."""
        return -(self.shape[1] // 2) if self.operator.startswith("kspace") else 0

    @property
    def label(self) -> str:
        """Label of the axis along the columns."""
        return f"{self.noun} (offset from DC)" if self.operator.startswith("kspace") else self.noun

    @property
    def span(self) -> tuple[float, float]:
        """Left and right edge of the columns on that axis."""
        return self.start - 0.5, self.start + self.shape[1] - 0.5

    def picture(self, values: NDArray[Any]) -> NDArray[Any]:
        """Values (..., A) of planar actions, in their plane (..., H, W)."""
        return values.reshape(*values.shape[:-1], *self.shape)

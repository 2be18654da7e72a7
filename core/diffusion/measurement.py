"""What posterior sampling needs of an instrument: a linear transform whose samples are taken action by action."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Measurement(Protocol):
    """A fixed linear transform T of an image, its real components grouped by the action that acquires them.

    All of ``T x`` is a real tensor (..., A, R): A actions, R components each (a complex number counts as two). A mask
    (..., A) says which actions were taken; what was measured is ``mask[..., None] * (T x + n)``.
    """

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images it takes."""
        ...

    @property
    def actions(self) -> int:
        """Number of actions A."""
        ...

    @property
    def unitary(self) -> bool:
        """Whether the rows of T are orthonormal, so that ``adjoint`` is its inverse."""
        ...

    def forward(self, x: Tensor) -> Tensor:
        """All samples T x (..., A, R) of images (..., C, H, W)."""
        ...

    def adjoint(self, y: Tensor) -> Tensor:
        """T^H y (..., C, H, W) of samples (..., A, R)."""
        ...

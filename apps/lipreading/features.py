"""What a model sees of a clip: eigen-lips, the principal components of its mouth, and how they change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from apps.lipreading.clips import Clips
from core.errors import InputError
from core.study import Config

CHUNK = 128
"""Clips of which the covariance is summed at a time."""


class EigenLipSettings(Config):
    """Components and their first differences in time."""

    name: Literal["eigenlips"] = "eigenlips"
    components: int = Field(default=32, ge=1)
    """K; a frame has 2 K features."""
    differences: bool = True
    """Whether the change from the frame before follows each component."""


@dataclass(frozen=True)
class EigenLips:
    """A projection of frames on principal components.

    The mean image of a clip is taken away first, so that face, light and beard do not count; what is left is movement.

    Attributes:
        components: ``(K, H * W)`` orthonormal rows.
        scale: ``(K,)`` standard deviations of the components in the clips they were fitted on.
        explained: share of the variance that they hold.
        height, width: of a frame.
        differences: whether their changes are features too.
    """

    components: Tensor
    scale: Tensor
    explained: float
    height: int
    width: int
    differences: bool

    @classmethod
    def fit(cls, frames: Tensor, settings: EigenLipSettings) -> EigenLips:
        """Components of uint8 frames ``(N, T, H, W)``.

        Raises:
            InputError: more components than pixels.
        """
        _, _, height, width = frames.shape
        pixels = height * width
        if settings.components > pixels:
            raise InputError(f"components: {settings.components}; a frame has {pixels} pixels")
        covariance, count = torch.zeros(pixels, pixels, dtype=torch.float64), 0
        for part in frames.split(CHUNK):
            moved = _movement(part)
            covariance += (moved.T @ moved).double()
            count += len(moved)
        values, vectors = torch.linalg.eigh(covariance / count)
        values, vectors = values.flip(0)[: settings.components], vectors.flip(1)[:, : settings.components]
        # A sign is arbitrary; the same on every machine if the largest weight is positive.
        vectors = vectors * vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()
        explained = float(values.sum() / covariance.diagonal().sum() * count)
        components, scale = vectors.T.float().contiguous(), values.clamp(min=1e-12).sqrt().float()
        return cls(components, scale, explained, height, width, settings.differences)

    def __call__(self, frames: Tensor, length: Tensor | None = None) -> Clips:
        """Features ``(n, T, 2 K)`` of uint8 frames ``(n, T, H, W)`` of so many valid frames ``(n,)``.

        Raises:
            InputError: frames of another size.
        """
        if tuple(frames.shape[2:]) != (self.height, self.width):
            shape = f"{frames.shape[2]} x {frames.shape[3]}"
            raise InputError(f"frames: are {shape} pixels; the eigen-lips are of {self.height} x {self.width}")
        n, t = frames.shape[:2]
        if length is None:
            length = torch.full((n,), t, device=frames.device)
        parts = [self._project(part) for part in frames.split(CHUNK)]
        features = torch.cat(parts) if parts else torch.zeros(0, t, len(self.components))
        if self.differences:
            features = torch.cat([features, functional.pad(features[:, 1:] - features[:, :-1], (0, 0, 1, 0))], -1)
        return Clips(features, length)

    def _project(self, frames: Tensor) -> Tensor:
        """All components over the standard deviation of the first: the spectrum keeps its shape."""
        n, t = frames.shape[:2]
        return (_movement(frames) @ self.components.T / self.scale[0]).reshape(n, t, -1)

    def tensors(self) -> dict[str, Tensor]:
        """For a file of weights."""
        return {"components": self.components, "scale": self.scale}

    def record(self) -> dict[str, float | int | bool | str]:
        """For the JSON beside it."""
        return {
            "name": "eigenlips",
            "explained": self.explained,
            "height": self.height,
            "width": self.width,
            "differences": self.differences,
        }


def _movement(frames: Tensor) -> Tensor:
    """``(n * T, H * W)`` grey levels less the mean image of their clip."""
    grey = frames.float().flatten(2) / 255
    return (grey - grey.mean(1, keepdim=True)).flatten(0, 1)

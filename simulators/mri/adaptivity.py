"""A phantom in which no fixed set of k-space lines can be right: the subject's class says which line matters."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from core.errors import InputError
from simulators.mri.subjects import draw_subjects, each

# Lengths are stated in pixels of a grid of this size.
_GRID = 32


@dataclass(frozen=True)
class Adaptivity:
    """Textured disks: class c sets the disk's radius, which the central line shows, and the texture's frequency.

    Class c is uniform in 0..classes-1. The disk has its centre at (16, 16) + N(0, centre_std) in each axis, radius
    R = radius + radius_step c + N(0, radius_std), and edge e(rho) = sigmoid((R - rho) / edge). The texture is
    t = 0.5 a cos(2 pi (frequency + c) x / 32 + phi) with a ~ U(0.6, 1), phi ~ U(0, 2 pi) and x the index along W; the
    image is e (0.6 + t), real. Lengths are pixels of a 32 x 32 image and scale with ``size``. With more classes than
    lines in the budget, the best fixed mask misses most textures.

    Attributes:
        classes: number of classes.
        size: pixels along H and W.
        radius: of class 0, in pixels of 32.
        radius_step: from a class to the next, in pixels of 32.
        radius_std: standard deviation of the radius, in pixels of 32.
        centre_std: standard deviation of the centre in each axis, in pixels of 32.
        edge: width of the edge, in pixels of 32.
        frequency: of class 0, in cycles per field of view.

    Raises:
        InputError: no class, or a texture at or above the Nyquist frequency ``size / 2``.
    """

    classes: int = 12
    size: int = _GRID
    radius: float = 8.0
    radius_step: float = 0.45
    radius_std: float = 0.1
    centre_std: float = 0.7
    edge: float = 0.7
    frequency: int = 3

    def __post_init__(self) -> None:
        if self.classes < 1 or self.frequency < 1 or self.frequency + self.classes - 1 >= self.size / 2:
            raise InputError(
                f"classes = {self.classes}, frequency = {self.frequency}, size = {self.size}: the texture of the last "
                f"class must stay under {self.size / 2:g} cycles, and classes and frequency be at least 1"
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """(2, size, size); the imaginary part is zero."""
        return (2, self.size, self.size)

    def sample(self, count: int, seed: int, first: int = 0) -> Tensor:
        """Images (count, 2, size, size), float32, within [-0.5, 1.1]; image i depends on (seed, first + i) only.

        Raises:
            InputError: count < 1, or a negative seed or first subject.
        """
        return self.sample_labelled(count, seed, first)[0]

    def sample_labelled(self, count: int, seed: int, first: int = 0) -> tuple[Tensor, Tensor]:
        """The images of ``sample`` and their classes (count,), int64.

        Raises:
            InputError: count < 1, or a negative seed or first subject.
        """
        parameters = draw_subjects(self._draw, count, seed, first)
        label, row, column, radius, amplitude, angle = each(parameters)
        pixel = torch.arange(self.size, dtype=torch.float64)
        distance = torch.hypot(pixel[:, None] - row, pixel - column)
        disk = torch.sigmoid((radius - distance) / (self.edge * self.size / _GRID))
        cycles = (self.frequency + label) / self.size
        texture = 0.5 * amplitude * torch.cos(2 * math.pi * cycles * pixel + angle)
        real = (disk * (0.6 + texture)).float()
        return torch.stack((real, torch.zeros_like(real)), dim=1), parameters[:, 0].long()

    def _draw(self, rng: np.random.Generator) -> list[float]:
        unit = self.size / _GRID
        label = int(rng.integers(self.classes))
        row, column = self.size / 2 + unit * rng.normal(0.0, self.centre_std, 2)
        radius = unit * (self.radius + self.radius_step * label + rng.normal(0.0, self.radius_std))
        return [label, row, column, radius, rng.uniform(0.6, 1.0), rng.uniform(0.0, 2 * math.pi)]

"""Random sagittal knees: bones, cartilage, fat and striped muscle, of which each subject has its own best lines."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from core.errors import InputError
from simulators.mri.phase import draw_phase, with_phase
from simulators.mri.subjects import draw_subjects, each

_PHASE = 5


@dataclass(frozen=True)
class Knee:
    """A leg in its fat rim, with femur, tibia and the cartilage between them; two muscles with lamellae.

    Bones and leg are superellipses |u/a|^n + |v/b|^n <= 1 with edges one pixel wide. Each muscle has lamellae of
    random direction and of 4 to 0.35 ``size`` cycles per field of view, so that the lines that matter most differ per
    subject. The image has a smooth phase (``simulators.mri.phase``).

    Attributes:
        size: pixels along H and W, at least 16.

    Raises:
        InputError: size < 16.
    """

    size: int = 64

    def __post_init__(self) -> None:
        if self.size < 16:
            raise InputError(f"size = {self.size}: must be at least 16 pixels")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(2, size, size)."""
        return (2, self.size, self.size)

    def sample(self, count: int, seed: int, first: int = 0) -> Tensor:
        """Images (count, 2, size, size), float32, of modulus at most 1; image i depends on (seed, first + i) only.

        Raises:
            InputError: count < 1, or a negative seed or first subject.
        """
        parameters = draw_subjects(self._draw, count, seed, first)
        return with_phase(self._magnitude(parameters[:, :-_PHASE]), parameters[:, -_PHASE:])

    def _magnitude(self, parameters: Tensor) -> Tensor:
        outline, bones, rest = parameters[:, :4], parameters[:, 4:14], parameters[:, 14:]
        width, power, rim, fat = each(outline)
        gap, cartilage, bright = each(rest[:, :3])
        x = (torch.arange(self.size, dtype=torch.float64) - self.size // 2) * (2 / self.size)
        y = x[:, None]
        # The leg leaves the field of view above and below: it is wider in y than what is seen.
        tissue = self._inside(x, y, (width - rim, 2 + 0 * width), power)
        image = fat * self._inside(x, y, (width, 2 + 0 * width), power)
        image = image + tissue * (self._muscle(x, y, rest[:, 3:]) - image)
        for side, bone in zip((-1, 1), bones.split(5, dim=1), strict=True):
            half_width, half_height, bone_power, marrow, centre = each(bone)
            # The bone's end towards the joint lies half a gap from it.
            v = y - side * (gap / 2 + half_height)
            shell = self._inside(x - centre, v, (half_width + cartilage, half_height + cartilage), bone_power)
            end = torch.sigmoid((-side * v - 0.4 * half_height) * self.size)
            image = image + shell * end * (bright - image)
            image = image + self._inside(x - centre, v, (half_width, half_height), bone_power) * (marrow - image)
        return image

    def _inside(self, u: Tensor, v: Tensor, axes: tuple[Tensor, Tensor], power: Tensor) -> Tensor:
        """One inside a superellipse, zero outside, with a sigmoid edge of about one pixel."""
        a, b = axes
        radius = ((u / a).abs() ** power + (v / b).abs() ** power) ** (1 / power)
        return torch.sigmoid((1 - radius) * torch.minimum(a, b) * self.size)

    def _muscle(self, x: Tensor, y: Tensor, parameters: Tensor) -> Tensor:
        """The anterior muscle left of the middle, the posterior one right of it; each (N, H, W) grating."""
        front, back = (
            level * (1 + depth * torch.cos(2 * math.pi * cycles / 2 * (direction.cos() * x + direction.sin() * y) + at))
            for level, depth, cycles, direction, at in (each(half) for half in parameters.split(5, dim=1))
        )
        return torch.where(x < 0, front, back)

    def _draw(self, rng: np.random.Generator) -> list[float]:
        leg = rng.uniform((0.75, 3.0, 0.05, 0.85), (0.92, 5.0, 0.12, 1.0))
        # Half width, half height, exponent, marrow, and centre along x, of femur and tibia.
        bones = rng.uniform((0.36, 0.5, 2.4, 0.55, -0.06), (0.48, 0.7, 3.6, 0.75, 0.06), (2, 5))
        joint = rng.uniform((0.14, 0.04, 0.75), (0.2, 0.065, 0.95))
        fastest = 0.35 * self.size
        muscles = rng.uniform((0.3, 0.5, 4.0, 0.0, 0.0), (0.5, 0.95, fastest, math.pi, 2 * math.pi), (2, 5))
        return [*leg, *bones.ravel(), *joint, *muscles.ravel(), *draw_phase(rng)]

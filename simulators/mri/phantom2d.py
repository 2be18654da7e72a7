"""Random Shepp-Logan heads, as images and as their exact k-space."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from core.errors import InputError
from simulators.mri.subjects import draw_subjects

# Modified Shepp-Logan head (Toft 1996): amplitude, semi-axes a and b, centre x and y, angle in degrees. The field of
# view is [-1, 1]^2 with y pointing down the rows, so Toft's y and angles have the other sign here.
_HEAD = np.array(
    [
        [1.0, 0.69, 0.92, 0.0, 0.0, 0.0],
        [-0.8, 0.6624, 0.874, 0.0, 0.0184, 0.0],
        [-0.2, 0.11, 0.31, 0.22, 0.0, 18.0],
        [-0.2, 0.16, 0.41, -0.22, 0.0, -18.0],
        [0.1, 0.21, 0.25, 0.0, -0.35, 0.0],
        [0.1, 0.046, 0.046, 0.0, -0.1, 0.0],
        [0.1, 0.046, 0.046, 0.0, 0.1, 0.0],
        [0.1, 0.046, 0.023, -0.08, 0.605, 0.0],
        [0.1, 0.023, 0.023, 0.0, 0.606, 0.0],
        [0.1, 0.023, 0.046, 0.06, 0.605, 0.0],
    ]
)
# The first two ellipses are the skull; the others are what a sequence's contrast shows inside it.
_SKULL = 2


@dataclass(frozen=True)
class Phantom2D:
    """Modified Shepp-Logan heads of ten ellipses, each with a pose and an amplitude of its own.

    Amplitude times U(0.8, 1.2), centre plus N(0, 0.03) in each axis, semi-axes times U(0.9, 1.1), angle plus
    N(0, 5 degrees); one contrast ~ U(0.5, 1.5) multiplies the eight inner amplitudes. The amplitudes are then divided
    by the largest modulus that their sums can reach, so images lie within [-1, 1]; they are real.

    Attributes:
        size: pixels along H and W, at least 8.
        supersampling: points per pixel and axis that an image averages.

    Raises:
        InputError: size < 8 or supersampling < 1.
    """

    size: int = 32
    supersampling: int = 4

    def __post_init__(self) -> None:
        if self.size < 8 or self.supersampling < 1:
            raise InputError(
                f"size = {self.size}, supersampling = {self.supersampling}: must be at least 8 pixels and 1 point"
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """(2, size, size); the imaginary part is zero."""
        return (2, self.size, self.size)

    def ellipses(self, count: int, seed: int, first: int = 0) -> Tensor:
        """Amplitude, semi-axes, centre (x, y) and angle in radians of each ellipse: (count, 10, 6), float64.

        Lengths are halves of the field of view, x along W, y down the rows.

        Raises:
            InputError: count < 1, or a negative seed or first subject.
        """
        return draw_subjects(_draw, count, seed, first).unflatten(1, _HEAD.shape)

    def sample(self, count: int, seed: int, first: int = 0) -> Tensor:
        """Images (count, 2, size, size), float32; image i depends on (seed, first + i) only.

        Raises:
            InputError: count < 1, or a negative seed or first subject.
        """
        fine = self.supersampling
        points = (torch.arange(self.size * fine, dtype=torch.float64) + 0.5) / fine - 0.5
        place = (points - self.size // 2) * (2 / self.size)
        image = torch.zeros(count, self.size * fine, self.size * fine, dtype=torch.float64)
        for amplitude, a, b, x, y, angle in _columns(self.ellipses(count, seed, first)):
            u, v = _turned(place - x, place[:, None] - y, angle)
            image += amplitude * ((u / a) ** 2 + (v / b) ** 2 <= 1)
        real = image.unflatten(2, (self.size, fine)).unflatten(1, (self.size, fine)).mean((2, 4)).float()
        return torch.stack((real, torch.zeros_like(real)), dim=1)

    def kspace(self, count: int, seed: int, first: int = 0) -> Tensor:
        """Exact samples of the Fourier transform of the same heads: (count, size, size), complex64, DC in the middle.

        An ellipse has F(k) = rho a b J1(2 pi K) / K exp(-2 pi i k.c), with K = |(a k_u, b k_v)| along its axes. The
        scale is that of ``fft2c`` of an image, which it approaches as pixels shrink; reconstructions from it do not
        invert the model that made the data (the inverse crime).

        Raises:
            InputError: count < 1, or a negative seed or first subject.
        """
        # The field of view is 2 wide: neighbouring samples are half a cycle per unit apart.
        k = (torch.arange(self.size, dtype=torch.float64) - self.size // 2) / 2
        total = torch.zeros(count, self.size, self.size, dtype=torch.complex128)
        for amplitude, a, b, x, y, angle in _columns(self.ellipses(count, seed, first)):
            u, v = _turned(k, k[:, None], angle)
            radius = torch.hypot(a * u, b * v)
            ratio = torch.special.bessel_j1(2 * math.pi * radius) / radius
            modulus = amplitude * a * b * torch.where(radius > 0, ratio, math.pi)
            total += torch.polar(modulus, -2 * math.pi * (k * x + k[:, None] * y))
        return (total * (self.size / 4)).to(torch.complex64)


def _draw(rng: np.random.Generator) -> list[float]:
    head = _HEAD.copy()
    count = len(head)
    head[:, 0] *= rng.uniform(0.8, 1.2, count)
    head[_SKULL:, 0] *= rng.uniform(0.5, 1.5)
    head[:, 1:3] *= rng.uniform(0.9, 1.1, (count, 2))
    head[:, 3:5] += rng.normal(0.0, 0.03, (count, 2))
    head[:, 5] = np.radians(head[:, 5] + rng.normal(0.0, 5.0, count))
    amplitude = head[:, 0]
    head[:, 0] = amplitude / max(amplitude[amplitude > 0].sum(), -amplitude[amplitude < 0].sum())
    return head.ravel().tolist()


def _columns(ellipses: Tensor) -> list[tuple[Tensor, ...]]:
    """The parameters of each ellipse in turn, each (count, 1, 1)."""
    return [tuple(ellipse[..., None, None].unbind(1)) for ellipse in ellipses.unbind(1)]


def _turned(x: Tensor, y: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """Coordinates along the axes of an ellipse at ``angle``."""
    return angle.cos() * x + angle.sin() * y, angle.cos() * y - angle.sin() * x

"""The smooth phase of a complex MR image: receiver offset, gradients and low-order field inhomogeneity."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from simulators.mri.subjects import each

_STD = np.array([0.4, 0.4, 0.4, 0.3, 0.3])


def draw_phase(rng: np.random.Generator) -> list[float]:
    """Coefficients p0..p4 in radians: p0..p2 ~ N(0, 0.4), p3 and p4 ~ N(0, 0.3)."""
    return rng.normal(0.0, _STD).tolist()


def with_phase(magnitude: Tensor, coefficients: Tensor) -> Tensor:
    """Two-channel float32 images (N, 2, H, W) of magnitudes (N, H, W) under a smooth phase.

    The phase is p0 + p1 x + p2 y + p3 x y + p4 (x^2 - y^2), x along W and y along H, both from -1 to 1.

    Args:
        magnitude: (N, H, W), float64.
        coefficients: p0..p4 (N, 5), in radians.
    """
    height, width = magnitude.shape[-2:]
    y = torch.linspace(-1, 1, height, dtype=magnitude.dtype)[:, None]
    x = torch.linspace(-1, 1, width, dtype=magnitude.dtype)
    p0, p1, p2, p3, p4 = each(coefficients)
    angle = p0 + p1 * x + p2 * y + p3 * x * y + p4 * (x**2 - y**2)
    return torch.stack((magnitude * angle.cos(), magnitude * angle.sin()), dim=1).float()

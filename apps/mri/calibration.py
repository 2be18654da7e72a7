"""Whether particles know how wrong their mean is: errors against their spread."""

from __future__ import annotations

import math

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from core.stats import Interval, mean_interval

NOMINAL = {0.5: 0.6744897501960817, 0.9: 1.6448536269514722}
"""Half width, in standard deviations, of the interval that holds this share of a Gaussian."""


def errors_and_spread(data: xr.Dataset) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Absolute errors and standard deviations (seed, recorded, pixel); NaN where measured samples leave no spread."""
    error = np.abs((data["image"] - data["target_image"]).values.astype(float))
    std = data["std"].values.astype(float)
    known = std <= 0
    flat = (*std.shape[:2], -1)
    return np.where(known, np.nan, error).reshape(flat), np.where(known, np.nan, std).reshape(flat)


def coverage(error: NDArray[np.float64], std: NDArray[np.float64], share: float) -> Interval:
    """Share of pixels whose error lies within the nominal interval: mean over subjects with its interval.

    Args:
        error: (seed, recorded, pixel).
        std: of the same shape.
        share: of ``NOMINAL``.
    """
    kept = np.isfinite(std)
    inside = (error <= NOMINAL[share] * std) & kept
    subjects = inside.sum((0, 2)) / np.maximum(kept.sum((0, 2)), 1)
    subjects = subjects[kept.any((0, 2))]
    if len(subjects) < 2:
        mean = float(subjects.mean()) if len(subjects) else math.nan
        return Interval(mean, mean, mean, len(subjects), 0.95)
    return mean_interval(subjects, resamples=1000)

"""What every estimate from a series asks of it."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from core.errors import InputError

Series = ArrayLike | Tensor


def as_points(series: Series, shortest: int, name: str = "series") -> Tensor:
    """Samples ``(T, D)`` float64 of one series ``(T,)`` or ``(T, D)``.

    Raises:
        InputError: another shape, fewer than ``shortest`` samples, a value that is not finite, or a constant channel.
    """
    points = series.detach() if isinstance(series, Tensor) else torch.as_tensor(np.asarray(series, dtype=np.float64))
    points = points.double()
    points = points[:, None] if points.ndim == 1 else points
    if points.ndim != 2 or points.shape[1] == 0:
        raise InputError(f"{name}: has shape {tuple(points.shape)}, expected (T,) or (T, D)")
    if len(points) < shortest:
        raise InputError(f"{name}: has {len(points)} samples, at least {shortest} are needed")
    refused = (~points.isfinite()).nonzero()
    if len(refused):
        at, channel = refused[0].tolist()
        raise InputError(f"{name}: sample {at} of channel {channel} is {float(points[at, channel])}, must be finite")
    constant = (points == points[0]).all(0).nonzero()
    if len(constant):
        raise InputError(f"{name}: channel {int(constant[0])} is constant")
    return points


def check_spacing(dt: float) -> None:
    """Refuse a sample spacing that is not positive.

    Raises:
        InputError: it is not.
    """
    if not 0 < dt < float("inf"):
        raise InputError(f"dt: {dt} is not a positive time")


def check_theiler(theiler: int, samples: int) -> None:
    """Refuse a Theiler window that leaves too few pairs.

    Raises:
        InputError: it is negative, or longer than a quarter of the series.
    """
    if not 0 <= theiler <= samples // 4:
        raise InputError(f"theiler: {theiler} samples is outside [0, {samples // 4}], a quarter of the series")

"""Truth and forecast as tensors of one shape, in batches; a result comes back in the kind of its arguments."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.errors import InputError

Array: TypeAlias = "Tensor | NDArray[Any]"


def paired(truth: Array, forecast: Array) -> tuple[Tensor, Tensor]:
    """Truth and forecast ``(..., H, D)`` as float64 tensors on the device of the forecast, leading axes broadcast.

    Raises:
        InputError: fewer than two axes, other numbers of samples or channels, none of either, or leading axes that
            do not fit.
    """
    theirs = torch.as_tensor(forecast)
    device = theirs.device if isinstance(forecast, Tensor) or not isinstance(truth, Tensor) else truth.device
    y, p = torch.as_tensor(truth).to(device, torch.float64), theirs.to(device, torch.float64)
    shapes = f"truth {tuple(y.shape)}, forecast {tuple(p.shape)}"
    if y.ndim < 2 or p.ndim < 2 or y.shape[-2:] != p.shape[-2:] or 0 in y.shape[-2:]:
        raise InputError(f"{shapes}: must be (..., samples, channels) with as many samples and channels of each")
    try:
        leading = torch.broadcast_shapes(y.shape[:-2], p.shape[:-2])
    except RuntimeError as error:
        raise InputError(f"{shapes}: the leading axes do not fit") from error
    return y.expand(*leading, *y.shape[-2:]), p.expand(*leading, *p.shape[-2:])


def alike(result: Tensor, *arguments: Array) -> Array:
    """A NumPy array where no argument is a tensor, else the tensor."""
    return result if any(isinstance(a, Tensor) for a in arguments) else result.cpu().numpy()


def finite(truth: Tensor, forecast: Tensor) -> Tensor:
    """Which samples ``(..., H)`` are finite in both."""
    return (truth.isfinite() & forecast.isfinite()).all(-1)


def batched(compute: Callable[..., Tensor]) -> Callable[..., Array]:
    """A metric of paired tensors, ``(..., H, D)`` twice to ``(...)``, for arrays of either kind.

    It is NaN for a series that is not finite throughout, whatever ``compute`` says of it.
    """

    @wraps(compute)
    def metric(truth: Array, forecast: Array, **options: Any) -> Array:
        y, p = paired(truth, forecast)
        result = compute(y, p, **options)
        return alike(torch.where(finite(y, p).all(-1), result, torch.nan), truth, forecast)

    return metric


def each(
    compute: Callable[[NDArray[np.float64], NDArray[np.float64]], float], truth: Tensor, forecast: Tensor
) -> Tensor:
    """``compute`` of every finite series ``(H, D)`` of a batch by a library that takes one at a time; else NaN."""
    keep = finite(truth, forecast).all(-1).flatten().tolist()
    series = (x.reshape(-1, *x.shape[-2:]).cpu().numpy() for x in (truth, forecast))
    values = [compute(y, p) if use else np.nan for y, p, use in zip(*series, keep, strict=True)]
    return torch.tensor(values, dtype=torch.float64, device=truth.device).reshape(truth.shape[:-2])

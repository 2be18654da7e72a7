"""A mean with its interval, and the samples from which one is computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from core.errors import InputError

Sample: TypeAlias = ArrayLike | Tensor


@dataclass(frozen=True)
class Interval:
    """A mean (or a difference of means, or a proportion) and the interval that holds it.

    Attributes:
        mean: the point estimate, in the unit of the data.
        low: lower end of the two-sided interval.
        high: upper end.
        n: number of replicates behind it; of two samples of different size, the smaller size.
        level: nominal coverage.
        p: two-sided p-value against zero, None where there is no test.
    """

    mean: float
    low: float
    high: float
    n: int
    level: float = 0.95
    p: float | None = None


def as_sample(values: Sample, name: str, *, ndim: int = 1) -> NDArray[np.float64]:
    """``values`` as a float64 array of ``ndim`` dimensions, at least two replicates long (the last axis).

    Raises:
        InputError: not numbers, a wrong number of dimensions, fewer than two replicates, or a value that is not
            finite (its index is named).
    """
    if isinstance(values, Tensor):
        values = values.detach().cpu().numpy()
    try:
        sample = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name}: expected numbers, {error}") from error
    if sample.ndim != ndim or 0 in sample.shape[:-1]:
        raise InputError(f"{name}: has shape {sample.shape}, expected {ndim} non-empty dimension(s)")
    if sample.shape[-1] < 2:
        raise InputError(f"{name}: has {sample.shape[-1]} replicate(s), at least 2 are needed for an interval")
    refused = np.argwhere(~np.isfinite(sample))
    if refused.size:
        index = tuple(int(i) for i in refused[0])
        where = ", ".join(map(str, index))
        raise InputError(f"{name}[{where}] is {sample[index]}, every value must be finite")
    return sample


def check_level(level: float) -> None:
    """Refuse a confidence level outside (0, 1).

    Raises:
        InputError: it is outside.
    """
    if not 0.0 < level < 1.0:
        raise InputError(f"level: {level} is outside (0, 1)")


def check_paired(a: NDArray[np.float64], b: NDArray[np.float64]) -> None:
    """Refuse pairs of different number.

    Raises:
        InputError: ``a`` and ``b`` differ in length.
    """
    if a.shape != b.shape:
        raise InputError(f"a, b: have {len(a)} and {len(b)} replicates, pairs need as many of each")

"""What a series of generations shows: oscillation, swing and degradation, with a permutation test of the order."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

_PERMUTED_AT_ONCE = 1 << 20


def lag_one_autocorrelation(series: ArrayLike) -> NDArray[np.float64]:
    """Lag-1 autocorrelation along the last axis, about the series' own mean; NaN where the series is constant.

    Of n independent values its mean is about -1/n, so it is read against a series that cannot oscillate.
    """
    x = np.asarray(series, dtype=np.float64)
    varies = np.ptp(x, axis=-1) > 0  # the mean of equal values may differ from them by rounding
    x = x - x.mean(-1, keepdims=True)
    total = np.where(varies, (x**2).sum(-1), np.nan)
    found: NDArray[np.float64] = (x[..., 1:] * x[..., :-1]).sum(-1) / total
    return found


def swing(series: ArrayLike) -> NDArray[np.float64]:
    """Mean absolute change from one value to the next, along the last axis."""
    found: NDArray[np.float64] = np.abs(np.diff(np.asarray(series, dtype=np.float64))).mean(-1)
    return found


def zig_zags(series: ArrayLike) -> tuple[NDArray[np.int64], int]:
    """How many changes reverse the one before, along the last axis, and out of how many (n - 2)."""
    change = np.diff(np.asarray(series, dtype=np.float64))
    reversed_ = (change[..., 1:] * change[..., :-1] < 0).sum(-1)
    return np.asarray(reversed_, dtype=np.int64), change.shape[-1] - 1


def order_test(series: ArrayLike, *, draws: int = 9999, seed: int = 0) -> float:
    """One-sided permutation p-value of the mean lag-1 autocorrelation over worlds, ``series`` (worlds, n).

    Under the null hypothesis the order within a world carries nothing: each world's values are permuted by themselves,
    and the p-value is the share of draws, the observed order counted among them, whose mean is as low. It is 1 where a
    world's series is constant, and has no order.
    """
    x = np.asarray(series, dtype=np.float64)
    observed = lag_one_autocorrelation(x).mean()
    if not np.isfinite(observed):
        return 1.0
    generator = np.random.default_rng(seed)
    at_once = max(1, _PERMUTED_AT_ONCE // x.size)
    lower = 0
    for start in range(0, draws, at_once):
        count = min(at_once, draws - start)
        permuted = generator.permuted(np.broadcast_to(x, (count, *x.shape)), axis=-1)
        lower += int((lag_one_autocorrelation(permuted).mean(-1) <= observed + 1e-12).sum())
    return (1 + lower) / (1 + draws)

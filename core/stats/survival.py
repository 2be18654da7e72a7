"""Medians of times of which some are known only to be longer."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from core.errors import InputError
from core.stats.interval import Interval, Sample, as_sample, check_level


def kaplan_meier(times: Sample, censored: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Kaplan and Meier's estimate of the share that lasts longer than each time at which one ended.

    Args:
        times: ``(n,)``, not negative.
        censored: ``(n,)``, whether a time is only a lower bound; at equal times, ends come before censorings.

    Returns:
        The distinct times of ends ``(m,)``, increasing, and the shares ``(m,)`` that last longer.

    Raises:
        InputError: as ``kaplan_meier_median``.
    """
    at, ended, exposed = _counts(times, censored)
    return at, _shares(ended, exposed)


def kaplan_meier_median(times: Sample, censored: ArrayLike, *, level: float = 0.95) -> Interval:
    """Median of times, some censored, with the interval of Brookmeyer and Crowley (1982, Biometrics 38, 29-41).

    The median is the first time that at most half of the sample outlasts. The interval holds the times at which the
    share that lasts longer does not differ from a half, by Greenwood's variance on the scale log(-log). An end that
    the data do not reach is infinite, and so is the median where more than half are still there at the last end.

    Args:
        times: ``(n,)``, not negative.
        censored: ``(n,)``, whether a time is only a lower bound.
        level: of the interval.

    Raises:
        InputError: fewer than two times, one that is negative or not finite, as many flags as times are not given,
            or an impossible level.
    """
    check_level(level)
    at, ended, exposed = _counts(times, censored)
    share = _shares(ended, exposed)
    quantile = float(stats.norm.ppf((1 + level) / 2))
    lower, upper = share.copy(), share.copy()
    open_ = (share > 0) & (share < 1)
    greenwood = np.cumsum((ended / (exposed * np.maximum(exposed - ended, 1)))[open_])
    scale = np.exp(quantile * np.sqrt(greenwood) / np.abs(np.log(share[open_])))
    lower[open_], upper[open_] = share[open_] ** scale, share[open_] ** (1 / scale)
    return Interval(_first(at, share), _first(at, lower), _first(at, upper), np.size(censored), level)


def _counts(times: Sample, censored: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Distinct times of ends, how many ended there, and how many were there just before."""
    sample, flags = as_sample(times, "times"), np.asarray(censored, dtype=bool)
    if flags.shape != sample.shape:
        raise InputError(f"censored: has shape {flags.shape}, expected that of times, {sample.shape}")
    if sample.min() < 0:
        raise InputError(f"times[{int(sample.argmin())}] is {sample.min():g}, a time must not be negative")
    at, ended = np.unique(sample[~flags], return_counts=True)
    exposed = len(sample) - np.searchsorted(np.sort(sample), at, side="left")
    return at, ended, exposed


def _shares(ended: NDArray[np.int64], exposed: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.cumprod(1.0 - ended / exposed, dtype=np.float64)


def _first(at: NDArray[np.float64], share: NDArray[np.float64]) -> float:
    """The first time at which the share is at most a half, up to rounding."""
    reached = np.flatnonzero(share <= 0.5 + 1e-12)
    return float(at[reached[0]]) if len(reached) else math.inf

"""Tests of two samples, intervals of proportions, and p-values of a family of tests; scipy underneath."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from core.errors import InputError
from core.stats.bootstrap import paired_difference, unpaired_difference
from core.stats.interval import Interval, Sample, as_sample, check_level, check_paired

_PERMUTED_AT_ONCE = 1 << 20


def t_interval(x: Sample, *, level: float = 0.95) -> Interval:
    """Student's t interval of the mean of ``x`` (n,), and its test against zero; for few replicates, near normal.

    Raises:
        InputError: fewer than two values, a value that is not finite, or an impossible level.
    """
    sample = as_sample(x, "x")
    check_level(level)
    mean, n = float(sample.mean()), len(sample)
    if np.ptp(sample) == 0.0:
        mean = float(sample[0])
        return Interval(mean, mean, mean, n, level, p=float(mean == 0.0))
    result = stats.ttest_1samp(sample, 0.0)
    low, high = result.confidence_interval(level)
    return Interval(mean, float(low), float(high), n, level, p=float(result.pvalue))


def paired_t_test(a: Sample, b: Sample, *, level: float = 0.95) -> Interval:
    """Student's t interval and test of mean(a - b) of pairs, ``a`` and ``b`` (n,).

    Raises:
        InputError: different lengths, or as ``t_interval``.
    """
    first, second = as_sample(a, "a"), as_sample(b, "b")
    check_paired(first, second)
    return t_interval(first - second, level=level)


def welch_test(a: Sample, b: Sample, *, level: float = 0.95) -> Interval:
    """Welch's t interval and test of mean(a) - mean(b), independent samples of unequal variance (n_a,), (n_b,).

    Raises:
        InputError: fewer than two values, a value that is not finite, or an impossible level.
    """
    first, second = as_sample(a, "a"), as_sample(b, "b")
    check_level(level)
    difference, n = float(first.mean() - second.mean()), min(len(first), len(second))
    if np.ptp(first) == 0.0 and np.ptp(second) == 0.0:
        difference = float(first[0] - second[0])
        return Interval(difference, difference, difference, n, level, p=float(difference == 0.0))
    result = stats.ttest_ind(first, second, equal_var=False)
    low, high = result.confidence_interval(level)
    return Interval(difference, float(low), float(high), n, level, p=float(result.pvalue))


def permutation_test(
    a: Sample, b: Sample, paired: bool = True, *, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Permutation test of mean(a) - mean(b): signs of the pairs' differences flipped, or labels exchanged.

    All permutations where there are at most ``resamples`` of them, else that many at random. The interval around
    the difference is the bootstrap's (a permutation distribution describes the null hypothesis, not the estimate).

    Raises:
        InputError: as ``paired_difference`` or ``unpaired_difference``.
    """
    first, second = as_sample(a, "a"), as_sample(b, "b")
    if paired:
        check_paired(first, second)
        interval = paired_difference(first, second, level=level, resamples=resamples, seed=seed)
        data, kind, statistic = (first - second,), "samples", _mean
    else:
        interval = unpaired_difference(first, second, level=level, resamples=resamples, seed=seed)
        data, kind, statistic = (first, second), "independent", _mean_difference  # type: ignore[assignment]
    result = stats.permutation_test(
        data,
        statistic,
        permutation_type=kind,
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, _PERMUTED_AT_ONCE // sum(map(len, data))),
        random_state=np.random.default_rng(seed),
    )
    return Interval(interval.mean, interval.low, interval.high, interval.n, level, p=float(result.pvalue))


def proportion_interval(successes: int, n: int, *, level: float = 0.95, exact: bool = False) -> Interval:
    """Wilson's score interval of a proportion; if ``exact`` that of Clopper and Pearson, which never covers less.

    Raises:
        InputError: ``n`` below 1, ``successes`` outside [0, n], either not whole, or an impossible level.
    """
    check_level(level)
    if int(n) != n or n < 1:
        raise InputError(f"n: {n} is not a whole number of at least 1")
    if int(successes) != successes or not 0 <= successes <= n:
        raise InputError(f"successes: {successes} is not a whole number in [0, {n}]")
    test = stats.binomtest(int(successes), int(n))
    low, high = test.proportion_ci(level, method="exact" if exact else "wilson")
    return Interval(float(test.statistic), float(low), float(high), int(n), level)


def holm(p_values: Sample) -> NDArray[np.float64]:
    """Holm's step-down adjustment of the p-values (m,) of a family (Holm 1979), in the order given.

    An adjusted value of at most alpha rejects its hypothesis with a family-wise error of at most alpha.

    Raises:
        InputError: a p-value that is not in [0, 1].
    """
    p = np.asarray(p_values, dtype=np.float64)
    refused = np.flatnonzero(~((p >= 0) & (p <= 1)))
    if refused.size:
        raise InputError(f"p_values[{refused[0]}] is {p[refused[0]]}, allowed is [0, 1]")
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1.0)
    return adjusted


def _mean(x: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    return np.mean(x, axis=axis)


def _mean_difference(x: NDArray[np.float64], y: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    return np.mean(x, axis=axis) - np.mean(y, axis=axis)

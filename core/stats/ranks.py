"""Comparisons by rank, free of the shape of distributions: of pairs, of two orders, and of many methods at once."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from core.errors import InputError
from core.stats.interval import Interval, Sample, as_sample, check_level, check_paired

_EXACT_UP_TO = 50
_DRAWS_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class SignedRank(Interval):
    """The median of paired differences, its interval, and Wilcoxon's test of it.

    Attributes:
        mode: how ``p`` was found: ``exact``, ``normal`` (the approximation, where pairs are many) or ``none`` (all
            differences are zero, ``p`` is 1).
    """

    mode: str = "exact"


def signed_rank_test(
    a: Sample, b: Sample, *, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> SignedRank:
    """Median of a - b of pairs, ``a`` and ``b`` (n,), and the two-sided Wilcoxon signed-rank test against zero.

    The interval is the percentile bootstrap's over pairs. The test leaves out pairs without difference, and is exact
    for up to 50 others, given the mean ranks that differences of one size share.

    Raises:
        InputError: different lengths, fewer than two pairs, a value that is not finite, an impossible level or
            resamples.
    """
    first, second = as_sample(a, "a"), as_sample(b, "b")
    check_paired(first, second)
    check_level(level)
    differences = first - second
    low, high = np.quantile(_resampled_medians(differences, resamples, seed), [(1 - level) / 2, (1 + level) / 2])
    unequal = differences[differences != 0]
    if not len(unequal):
        p, mode = 1.0, "none"
    elif len(unequal) <= _EXACT_UP_TO:
        p, mode = _signed_rank_p(unequal), "exact"
    else:
        p, mode = float(stats.wilcoxon(unequal, method="asymptotic").pvalue), "normal"
    return SignedRank(float(np.median(differences)), float(low), float(high), len(differences), level, p, mode)


def _signed_rank_p(differences: NDArray[np.float64]) -> float:
    """Two-sided p-value of the sum of the ranks of the positive ones, over all choices of the signs."""
    # Ranks that ties share are halves.
    ranks = np.rint(2 * stats.rankdata(np.abs(differences))).astype(int)
    chances = np.zeros(ranks.sum() + 1)
    chances[0] = 1.0
    for rank in ranks:
        chances[rank:] = chances[rank:] + chances[:-rank]
        chances /= 2
    observed = int(ranks[differences > 0].sum())
    return float(min(1.0, 2 * min(chances[: observed + 1].sum(), chances[observed:].sum())))


def rank_correlation(x: Sample, y: Sample, *, level: float = 0.95) -> Interval:
    """Spearman's rank correlation of ``x`` and ``y`` (n,), Fisher's interval, and the two-sided t test against zero.

    In z = artanh(rho) the interval has half-width q / sqrt(n - 3), q the normal quantile of the level.

    Raises:
        InputError: different lengths, fewer than four pairs, a value that is not finite, one side constant, or an
            impossible level.
    """
    first, second = as_sample(x, "x"), as_sample(y, "y")
    check_paired(first, second)
    check_level(level)
    n = len(first)
    if n < 4:
        raise InputError(f"x, y: have {n} pairs, at least 4 are needed for an interval of a correlation")
    for name, sample in (("x", first), ("y", second)):
        if np.ptp(sample) == 0.0:
            raise InputError(f"{name}: is constant, there is no correlation")
    result = stats.spearmanr(first, second)
    rho = float(np.clip(result.statistic, -1.0, 1.0))
    if abs(rho) == 1.0:
        return Interval(rho, rho, rho, n, level, float(result.pvalue))
    z, half = math.atanh(rho), float(stats.norm.ppf((1 + level) / 2)) / math.sqrt(n - 3)
    return Interval(rho, math.tanh(z - half), math.tanh(z + half), n, level, float(result.pvalue))


@dataclass(frozen=True)
class AverageRanks:
    """Methods ranked on many systems.

    Attributes:
        ranks: ``(methods,)``, the mean rank of each over the systems, 1 the best.
        systems: their number.
        critical_difference: two methods whose mean ranks differ by at least this differ, family-wise (Nemenyi).
        statistic: Friedman's chi-square of the hypothesis that all methods are alike, corrected for ties.
        p: its p-value.
        level: 1 - the family-wise error.
    """

    ranks: NDArray[np.float64]
    systems: int
    critical_difference: float
    statistic: float
    p: float
    level: float


def average_ranks(scores: ArrayLike, *, higher_is_better: bool = False, level: float = 0.95) -> AverageRanks:
    """Mean ranks of methods, Friedman's test and Nemenyi's critical difference (Demsar 2006, JMLR 7, 1-30).

    Args:
        scores: ``(methods, systems)``; ties share their mean rank, and what is NaN ranks last.
        higher_is_better: of the scores.
        level: 1 - the family-wise error.

    Raises:
        InputError: not two-dimensional, fewer than two methods or systems, or an impossible level.
    """
    check_level(level)
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 2 or min(values.shape) < 2:
        raise InputError(f"scores: has shape {values.shape}, expected at least 2 methods and 2 systems")
    values = np.where(np.isnan(values), np.inf, -values if higher_is_better else values)
    methods, systems = values.shape
    ranked = stats.rankdata(values, axis=0)
    ranks = ranked.mean(axis=1)
    middle = (methods + 1) / 2
    within = ((ranked - middle) ** 2).sum() / (systems * (methods - 1))
    statistic = float(systems * ((ranks - middle) ** 2).sum() / within) if within > 0 else 0.0
    quantile = float(stats.studentized_range.ppf(level, methods, np.inf)) / math.sqrt(2)
    return AverageRanks(
        ranks=ranks,
        systems=systems,
        critical_difference=quantile * math.sqrt(methods * (methods + 1) / (6 * systems)),
        statistic=statistic,
        p=float(stats.chi2.sf(statistic, methods - 1)),
        level=level,
    )


def _resampled_medians(sample: NDArray[np.float64], resamples: int, seed: int) -> NDArray[np.float64]:
    if resamples < 1:
        raise InputError(f"resamples: {resamples} is below 1")
    generator = np.random.default_rng(seed)
    n = len(sample)
    step = max(1, _DRAWS_AT_ONCE // n)
    sizes = [min(step, resamples - begin) for begin in range(0, resamples, step)]
    return np.concatenate([np.median(sample[generator.integers(n, size=(size, n))], axis=1) for size in sizes])

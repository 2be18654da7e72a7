"""Percentile bootstrap intervals of means and of their differences (Efron and Tibshirani 1993, chapters 13 and 15)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from core.errors import InputError
from core.stats.interval import Interval, Sample, as_sample, check_level, check_paired

_DRAWS_AT_ONCE = 1 << 20


def mean_interval(x: Sample, *, level: float = 0.95, resamples: int = 10_000, seed: int = 0) -> Interval:
    """Percentile bootstrap interval of the mean of ``x`` (n,).

    Raises:
        InputError: fewer than two values, a value that is not finite, an impossible level or resamples.
    """
    sample = as_sample(x, "x")
    means = resampled_means(sample[None], resamples, seed)
    return _interval(_mean(sample), means, len(sample), level)


def paired_difference(a: Sample, b: Sample, *, level: float = 0.95, resamples: int = 10_000, seed: int = 0) -> Interval:
    """Bootstrap interval of mean(a - b), pairs resampled together; ``a`` and ``b`` (n,) share their random numbers.

    The p-value inverts the bootstrap: twice the smaller share of resampled means on one side of zero, the observed
    sample counted once more on each side, so that it is never zero.

    Raises:
        InputError: different lengths, or as ``mean_interval``.
    """
    first, second = as_sample(a, "a"), as_sample(b, "b")
    check_paired(first, second)
    differences = first - second
    means = resampled_means(differences[None], resamples, seed)
    return _interval(_mean(differences), means, len(differences), level, tested=True)


def unpaired_difference(
    a: Sample, b: Sample, *, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Bootstrap interval of mean(a) - mean(b) of independent samples (n_a,) and (n_b,), each resampled by itself.

    Raises:
        InputError: as ``mean_interval``.
    """
    first, second = as_sample(a, "a"), as_sample(b, "b")
    seed_a, seed_b = np.random.SeedSequence(seed).spawn(2)
    means = resampled_means(first[None], resamples, seed_a) - resampled_means(second[None], resamples, seed_b)
    estimate = _mean(first) - _mean(second)
    return _interval(estimate, means, min(len(first), len(second)), level, tested=True)


def clustered_difference(
    differences: Sample, *, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Bootstrap interval of the mean over seeds of paired differences (S, n), the replicates shared by all seeds.

    Each resample draws S seeds with replacement, and n replicates that are the same for every drawn seed, because all
    seeds met the same luck (the pigeonhole bootstrap of crossed factors, Owen 2007, Annals of Applied Statistics 1,
    386-411). ``n`` of the result is the number of replicates. With few seeds the spread between seeds is understated,
    as in every bootstrap of few clusters.

    Raises:
        InputError: not two-dimensional, or as ``mean_interval``.
    """
    sample = as_sample(differences, "differences", ndim=2)
    means = resampled_means(sample, resamples, seed)
    return _interval(_mean(sample), means, sample.shape[1], level, tested=True)


def nested_ratio(
    numerators: Sequence[Sample],
    denominators: Sequence[Sample] | None = None,
    *,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Bootstrap interval of the mean over S groups of sum(numerator) / sum(denominator) within the group.

    Each resample draws S groups with replacement, then the units of each drawn group anew, a unit's numerator and
    denominator together: studies whose seeds draw their own units (patients with several decisions each). ``n`` of the
    result is the number of units in all. With few groups the spread between them is understated, as in every bootstrap
    of few clusters.

    Args:
        numerators: by group, ``(n_g,)``.
        denominators: likewise, not negative, each group's sum positive; 1 a unit by default.
        level: of the interval.
        resamples: draws.
        seed: of the draws.

    Raises:
        InputError: no group, lengths that differ, a group without weight, or as ``mean_interval``.
    """
    if not numerators:
        raise InputError("numerators: no group; at least 1")
    tops = [as_sample(x, f"numerators[{g}]") for g, x in enumerate(numerators)]
    given = [np.ones(len(x)) for x in tops] if denominators is None else denominators
    if len(given) != len(tops):
        raise InputError(f"denominators: {len(given)} groups; must be {len(tops)}, as of numerators")
    if resamples < 1:
        raise InputError(f"resamples: {resamples} is below 1")
    bottoms = [as_sample(x, f"denominators[{g}]") for g, x in enumerate(given)]
    for g, (top, bottom) in enumerate(zip(tops, bottoms, strict=True)):
        check_paired(top, bottom)
        if bottom.min() < 0 or bottom.sum() <= 0:
            raise InputError(f"denominators[{g}]: must not be negative, and their sum must be positive")
    groups = len(tops)
    rng = np.random.default_rng(seed)
    chosen = rng.integers(groups, size=(resamples, groups))
    means = np.zeros(resamples)
    for g, (top, bottom) in enumerate(zip(tops, bottoms, strict=True)):
        rows, _ = np.nonzero(chosen == g)
        means += np.bincount(rows, _resampled_ratios(top, bottom, len(rows), rng), minlength=resamples) / groups
    estimate = float(np.mean([top.sum() / bottom.sum() for top, bottom in zip(tops, bottoms, strict=True)]))
    return _interval(estimate, means, sum(map(len, tops)), level, tested=True)


def _resampled_ratios(
    top: NDArray[np.float64], bottom: NDArray[np.float64], draws: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Ratios (draws,) of the sums of resampled units; a resample without weight has the ratio of all units."""
    n, ratios = len(top), np.empty(draws)
    step = max(1, _DRAWS_AT_ONCE // n)
    for begin in range(0, draws, step):
        index = rng.integers(n, size=(min(step, draws - begin), n))
        weight = bottom[index].sum(1)
        ratios[begin : begin + step] = np.divide(
            top[index].sum(1), weight, out=np.full(len(index), top.sum() / bottom.sum()), where=weight > 0
        )
    return ratios


def resampled_means(
    groups: NDArray[np.float64],
    resamples: int,
    seed: int | np.random.SeedSequence,
    *,
    draws_at_once: int = _DRAWS_AT_ONCE,
) -> NDArray[np.float64]:
    """Means (resamples,) of resampled ``groups`` (S, n): S rows drawn, then n columns, the same for every drawn row.

    ``draws_at_once`` bounds the memory and changes nothing in the result.

    Raises:
        InputError: ``resamples`` below 1.
    """
    if resamples < 1:
        raise InputError(f"resamples: {resamples} is below 1")
    count, n = groups.shape
    origin = groups.min()
    values = (groups - origin).ravel()
    rows, entries = (np.random.default_rng(s) for s in _spawn(seed))
    starts = n * rows.integers(count, size=(resamples, count, 1))
    means = np.empty(resamples)
    step = max(1, draws_at_once // values.size)
    for begin in range(0, resamples, step):
        drawn = starts[begin : begin + step]
        # 64-bit draws consume the stream value by value: narrower ones would depend on the size of the pieces.
        index = entries.integers(n, size=(len(drawn), 1, n)) + drawn
        means[begin : begin + step] = values[index.reshape(len(drawn), -1)].mean(axis=1)
    return origin + means


def _mean(sample: NDArray[np.float64]) -> float:
    # From the smallest value up, here and in resampled_means: constant data then have exactly their constant as mean.
    return float(sample.min() + (sample - sample.min()).mean())


def _spawn(seed: int | np.random.SeedSequence) -> list[np.random.SeedSequence]:
    sequence = seed if isinstance(seed, np.random.SeedSequence) else np.random.SeedSequence(seed)
    return sequence.spawn(2)


def _interval(estimate: float, means: NDArray[np.float64], n: int, level: float, *, tested: bool = False) -> Interval:
    check_level(level)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    p = None
    if tested:
        one_side = int(min(np.count_nonzero(means <= 0), np.count_nonzero(means >= 0)))
        p = min(1.0, 2 * (1 + one_side) / (1 + len(means)))
    return Interval(estimate, float(low), float(high), n, level, p)

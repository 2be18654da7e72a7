"""Scores of probabilistic forecasts given as ensembles: proper scores, spread against error, calibration."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from torch import Tensor

from core.errors import InputError

Array = NDArray[np.float64]


@dataclass(frozen=True)
class SpreadSkill:
    """How far the members lie apart, against how far their mean lies from the truth.

    Attributes:
        spread: root of the mean variance of the members (the variance with M - 1 below).
        error: root mean square error of the ensemble mean.
        ratio: ``sqrt((M + 1) / M) * spread / error``: 1 where truth and members come from one distribution, below 1
            for an ensemble too sure of itself.
    """

    spread: Array
    error: Array
    ratio: Array


@dataclass(frozen=True)
class RankHistogram:
    """How often the truth took each rank among the members.

    Attributes:
        counts: ``(M + 1,)``, flat for a calibrated ensemble; U-shaped where the spread is too small.
        n: cases counted.
        chi_square: Pearson's statistic against a flat histogram, M degrees of freedom.
        p: of the test. It takes the cases as independent, which neighbouring lead times are not.
    """

    counts: NDArray[np.int64]
    n: int
    chi_square: float
    p: float


def crps(ensemble: ArrayLike | Tensor, truth: ArrayLike | Tensor, *, fair: bool = True) -> Array:
    """Continuous ranked probability score, in the unit of the data; the less the better, ``(...)``.

    ``mean |x_i - y| - mean |x_i - x_j| / 2`` (Gneiting and Raftery 2007, eq. 21). The plain score has the mean over all
    M^2 pairs and scores the empirical distribution of the members; the fair one has it over the M (M - 1) pairs of two
    different members and estimates without bias the score of the distribution from which they were drawn (Ferro 2014).

    Args:
        ensemble: ``(..., M)``.
        truth: ``(...)``.
        fair: which of the two; one member allows the plain one alone, which is then the absolute error.

    Returns:
        ``(...)``; NaN where a member or the truth is not finite.

    Raises:
        InputError: shapes that do not belong together, no members, or one for the fair score.
    """
    x, y = _cases(ensemble, truth, 1, 2 if fair else 1)
    members = x.shape[-1]
    ordered = np.sort(x, axis=-1)
    # Sum over pairs |x_i - x_j| of the ordered members, in M log M instead of M^2.
    weights = 2.0 * np.arange(1, members + 1) - members - 1
    pairs = members * (members - 1) if fair else members**2
    with np.errstate(invalid="ignore"):
        score = np.abs(x - y[..., None]).mean(-1) - (ordered * weights).sum(-1) / pairs
    return _where_finite(score, x, y)


def energy_score(ensemble: ArrayLike | Tensor, truth: ArrayLike | Tensor, *, fair: bool = True) -> Array:
    """The CRPS of vectors: ``mean ||x_i - y|| - mean ||x_i - x_j|| / 2`` (Gneiting and Raftery 2007, eq. 22).

    Args:
        ensemble: ``(..., M, D)``.
        truth: ``(..., D)``.
        fair: as in ``crps``.

    Returns:
        ``(...)``; NaN where a member or the truth is not finite.

    Raises:
        InputError: as ``crps``.
    """
    x, y = _cases(ensemble, truth, 2, 2 if fair else 1)
    members = x.shape[-2]
    pairs = members * (members - 1) if fair else members**2
    with np.errstate(invalid="ignore"):
        score = np.linalg.norm(x - y[..., None, :], axis=-1).mean(-1)
        for i in range(members - 1):  # a member against all later ones: never M^2 D numbers at once
            score -= np.linalg.norm(x[..., i + 1 :, :] - x[..., i : i + 1, :], axis=-1).sum(-1) / pairs
    return _where_finite(score, x.reshape(*x.shape[:-2], -1), y.sum(-1))


def spread_skill(
    ensemble: ArrayLike | Tensor, truth: ArrayLike | Tensor, *, axis: int | tuple[int, ...] | None = None
) -> SpreadSkill:
    """Spread, error of the mean, and their ratio over many cases (Fortin et al. 2014, eq. 15).

    Args:
        ensemble: ``(..., M)``.
        truth: ``(...)``.
        axis: of ``truth`` over which cases are averaged, before the roots are taken; None takes all.

    Returns:
        Arrays of the axes that are left; NaN where a member or a truth is not finite.

    Raises:
        InputError: shapes that do not belong together, or fewer than two members.
    """
    x, y = _cases(ensemble, truth, 1, 2)
    members = x.shape[-1]
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        spread = np.sqrt(_where_finite(x.var(-1, ddof=1), x, y).mean(axis))
        error = np.sqrt(_where_finite((x.mean(-1) - y) ** 2, x, y).mean(axis))
        ratio = math.sqrt((members + 1) / members) * spread / error
    return SpreadSkill(np.asarray(spread), np.asarray(error), np.asarray(ratio))


def rank_histogram(ensemble: ArrayLike | Tensor, truth: ArrayLike | Tensor, *, seed: int = 0) -> RankHistogram:
    """Ranks of the truth among the members (Hamill 2001), and the chi-square test that they are uniform.

    A truth equal to members takes one of the ranks that it shares with them at random. Cases with a NaN are left out.

    Args:
        ensemble: ``(..., M)``.
        truth: ``(...)``.
        seed: of the ranks drawn.

    Raises:
        InputError: shapes that do not belong together, no members, or no case without a NaN.
    """
    x, y = _cases(ensemble, truth, 1, 1)
    members = x.shape[-1]
    known = ~(np.isnan(x).any(-1) | np.isnan(y))
    if not known.any():
        raise InputError("truth, ensemble: every case has a NaN, a rank histogram needs one case without")
    x, y = x[known], y[known][:, None]
    below, equal = (x < y).sum(-1), (x == y).sum(-1)
    ranks = below + np.random.default_rng(seed).integers(0, equal + 1)
    counts = np.bincount(ranks, minlength=members + 1)
    test = stats.chisquare(counts)
    return RankHistogram(counts, int(counts.sum()), float(test.statistic), float(test.pvalue))


def coverage(
    ensemble: ArrayLike | Tensor,
    truth: ArrayLike | Tensor,
    *,
    level: float = 0.9,
    axis: int | tuple[int, ...] | None = None,
) -> Array:
    """Share of cases whose truth lies in the central interval of the members; ``level`` for a calibrated ensemble.

    Quantiles are taken where the k-th of M members stands at k / (M + 1), so that the truth of a calibrated ensemble of
    any size lies between the two with probability ``level`` (between two members, up to the interpolation). M members
    reach no level beyond (M - 1) / (M + 1). A case with a NaN is a miss.

    Args:
        ensemble: ``(..., M)``.
        truth: ``(...)``.
        level: probability of the interval.
        axis: of ``truth`` over which cases are counted; None counts all.

    Raises:
        InputError: shapes that do not belong together, or a level that so many members do not reach.
    """
    x, y = _cases(ensemble, truth, 1, 2)
    members = x.shape[-1]
    highest = (members - 1) / (members + 1)
    if not 0 < level <= highest:
        raise InputError(f"level: {level}, {members} members give central intervals in (0, {highest:.4g}]")
    tail = (1 - level) / 2
    with np.errstate(invalid="ignore"):
        low, high = np.quantile(x, [tail, 1 - tail], axis=-1, method="weibull")
        return np.asarray(((low <= y) & (y <= high)).mean(axis))


def _cases(ensemble: ArrayLike | Tensor, truth: ArrayLike | Tensor, own: int, fewest: int) -> tuple[Array, Array]:
    """Both as float64, once they are known to belong together; ``own`` axes of the ensemble are a case's."""
    x, y = _array(ensemble), _array(truth)
    expected = (*x.shape[: x.ndim - own], *x.shape[x.ndim - own + 1 :])
    if x.ndim < own or y.shape != expected or 0 in y.shape:
        axes = "(..., M, D), (..., D)" if own == 2 else "(..., M), (...)"
        raise InputError(f"ensemble, truth: have shapes {x.shape} and {y.shape}, expected non-empty {axes}")
    if x.shape[-own] < fewest:
        raise InputError(f"ensemble: has {x.shape[-own]} member(s), needs at least {fewest}")
    return x, y


def _array(values: ArrayLike | Tensor) -> Array:
    if isinstance(values, Tensor):
        values = values.detach().cpu().numpy()
    return np.asarray(values, dtype=np.float64)


def _where_finite(score: Array, x: Array, y: Array) -> Array:
    return np.where(np.isfinite(x).all(-1) & np.isfinite(y), score, np.nan)

"""Intervals of a mean of per-row influence values: what each needs is summed, so none needs the rows again."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from core.errors import InputError
from core.stats.interval import Interval, check_level


@dataclass(frozen=True)
class Evidence:
    """What is known of an estimate.

    Attributes:
        name: what is estimated, for messages.
        value: the estimate.
        variance: sample variance of the rows' influence values (delta method where the estimate is not a mean).
        n: rows.
        width: largest less smallest value that a row's term can take; infinite where nothing bounds it.
        replicates: the estimate in each bootstrap replicate (B,), None where no bootstrap was summed.
        tested: whether zero is a hypothesis, as it is for a difference.
    """

    name: str
    value: float
    variance: float
    n: int
    width: float = math.inf
    replicates: NDArray[np.float64] | None = None
    tested: bool = False


IntervalMethod: TypeAlias = Callable[[Evidence], Interval]


@dataclass(frozen=True)
class _Level:
    level: float = 0.95

    def __post_init__(self) -> None:
        check_level(self.level)

    def _around(self, evidence: Evidence, half: float, p: float | None = None) -> Interval:
        value = evidence.value
        return Interval(value, value - half, value + half, evidence.n, self.level, p)


@dataclass(frozen=True)
class Normal(_Level):
    """Central limit theorem; a difference carries the two-sided p-value of zero.

    Attributes:
        level: nominal coverage.
    """

    def __call__(self, evidence: Evidence) -> Interval:
        """The interval."""
        error = math.sqrt(evidence.variance / evidence.n)
        p = None
        if evidence.tested:
            p = float(2 * stats.norm.sf(abs(evidence.value) / error)) if error else float(evidence.value == 0)
        return self._around(evidence, float(stats.norm.isf((1 - self.level) / 2)) * error, p)


@dataclass(frozen=True)
class Percentile(_Level):
    """Percentiles of the bootstrap replicates in which the estimate is defined (Efron and Tibshirani 1993, chapter 13).

    The p-value of a difference inverts them: twice the smaller share on one side of zero, the log itself counted once
    more on each side.

    Attributes:
        level: nominal coverage.
    """

    def __call__(self, evidence: Evidence) -> Interval:
        """The interval.

        Raises:
            InputError: no bootstrap was summed.
        """
        if evidence.replicates is None:
            raise InputError(f"{evidence.name}: no bootstrap was summed, give Sums.of a bootstrap and ids")
        found = evidence.replicates[np.isfinite(evidence.replicates)]
        if not len(found):
            return self._around(evidence, math.nan)
        low, high = np.quantile(found, [(1 - self.level) / 2, (1 + self.level) / 2])
        p = None
        if evidence.tested:
            one_side = int(min(np.count_nonzero(found <= 0), np.count_nonzero(found >= 0)))
            p = min(1.0, 2 * (1 + one_side) / (1 + len(found)))
        return Interval(evidence.value, float(low), float(high), evidence.n, self.level, p)


@dataclass(frozen=True)
class Bernstein(_Level):
    """Empirical Bernstein bound, valid for every n (Audibert, Munos and Szepesvari 2009, theorem 1).

    mean +- sqrt(2 s^2 log(3/d) / n) + 3 R log(3/d) / n, where d = 1 - level and R bounds the range of a row's term: it
    must be known before the rows are seen, so IPS and DR need ``max_weight``, and a ratio has none.

    Attributes:
        level: coverage that is guaranteed.
    """

    def __call__(self, evidence: Evidence) -> Interval:
        """The interval.

        Raises:
            InputError: nothing bounds a row's term.
        """
        if not math.isfinite(evidence.width):
            raise InputError(
                f"{evidence.name}: nothing bounds a row's term, as an empirical Bernstein interval needs: an unbounded "
                "weight (give max_weight), an unbounded reward, qhat outside the reward's range, or self-normalisation"
            )
        log, n = math.log(3 / (1 - self.level)), evidence.n
        # The theorem's variance divides by n.
        variance = evidence.variance * (n - 1) / n
        return self._around(evidence, math.sqrt(2 * variance * log / n) + 3 * evidence.width * log / n)


@dataclass(frozen=True)
class Anytime(_Level):
    """Asymptotic confidence sequence: covers at all n at once, so that one may look every day and stop at will.

    Robbins' normal mixture with the estimated variance (Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas 2024, Annals of
    Statistics 52): half-width s sqrt(2 (n rho^2 + 1) / (n rho)^2 log(sqrt(n rho^2 + 1) / d)).

    Attributes:
        level: coverage over all n.
        tight_at: the n at which it is as narrow as it can be; to be chosen before the rows are seen.
    """

    tight_at: int = 10_000

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tight_at < 1:
            raise InputError(f"tight_at: {self.tight_at} is below 1")

    def __call__(self, evidence: Evidence) -> Interval:
        """The interval."""
        d = 1 - self.level
        # u = n rho^2 + 1 minimises u log(u / d^2) / (u - 1) where u - log u = 1 - 2 log d.
        rho2 = (-float(special.lambertw(-(d**2) / math.e, -1).real) - 1) / self.tight_at
        u = evidence.n * rho2 + 1
        half = math.sqrt(2 * u * evidence.variance / (evidence.n**2 * rho2) * math.log(math.sqrt(u) / d))
        return self._around(evidence, half)

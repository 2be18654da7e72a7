"""Whether a log can say anything about a policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from core.stats.interval import Interval

Verdict: TypeAlias = Literal["ok", "weak", "unsupported"]

LEAST_ESS_SHARE = 0.01
LARGEST_WEIGHT_SHARE = 0.05


@dataclass(frozen=True)
class Diagnostics:
    """Overlap of a policy with the log.

    Attributes:
        n: rows.
        ess: effective sample size (sum w)^2 / sum w^2 (Kish 1965).
        ess_share: ess / n.
        max_weight: largest w.
        mean_weight: mean of w with its interval; its expectation is 1 if the propensities are right and nothing that
            the policy does is missing from the log.
        missing_mass: mean probability that the policy gives to actions the logging policy does not take, or takes less
            often than a floor; None where that was not given.
        verdict: ``unsupported`` if mass is missing; ``weak`` if ESS/n is below 1 %, if one row has more than 5 % of all
            weight, or if the interval of the mean weight leaves 1 out; else ``ok``.
        reasons: why it is not ``ok``, a sentence each.
    """

    n: int
    ess: float
    ess_share: float
    max_weight: float
    mean_weight: Interval
    missing_mass: float | None
    verdict: Verdict
    reasons: tuple[str, ...]


def diagnose(mean_weight: Interval, mean_square: float, max_weight: float, missing_mass: float | None) -> Diagnostics:
    """Diagnostics from the mean of w with its interval, the mean of w^2, the largest w and the missing mass."""
    n, mean = mean_weight.n, mean_weight.mean
    share = mean**2 / mean_square if mean_square else 0.0
    weak = []
    if share < LEAST_ESS_SHARE:
        weak.append(f"effective sample size is {share:.2%} of the rows, below {LEAST_ESS_SHARE:.0%}")
    if max_weight > LARGEST_WEIGHT_SHARE * n * mean:
        weak.append(f"one row has {max_weight / (n * mean):.1%} of all weight, above {LARGEST_WEIGHT_SHARE:.0%}")
    if not mean_weight.low <= 1 <= mean_weight.high:
        weak.append(
            f"mean weight is {mean:.4g} [{mean_weight.low:.4g}, {mean_weight.high:.4g}], which leaves out 1: wrong "
            "propensities, or actions that the log lacks"
        )
    lacking = [f"{missing_mass:.3%} of the policy's probability is on unsupported actions"] if missing_mass else []
    verdict: Verdict = "unsupported" if lacking else "weak" if weak else "ok"
    return Diagnostics(n, share * n, share, max_weight, mean_weight, missing_mass, verdict, (*lacking, *weak))

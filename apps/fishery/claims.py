"""The claims of the fishery study, and how each is decided from paired returns.

A replicate is one episode; all methods of a scenario meet the same replicates, so differences are paired. Learned
methods have one row of replicates for each training seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from core.stats import Interval, clustered_difference, paired_difference
from core.study import Claim, adjusted

ClaimId = Literal[
    "ppo_beats_escapement",
    "ppo_beats_constant_mortality",
    "ppo_survives_at_least_as_often",
    "dp_equals_escapement_model1",
    "poor_model_loses_model1",
]
CLAIMS: tuple[ClaimId, ...] = get_args(ClaimId)


@dataclass(frozen=True)
class Evidence:
    """Per-episode results by model of the paper and method.

    Attributes:
        results: for each (model, method) the evaluations, one a training seed (one alone for methods without).
        resamples: of the bootstrap.
    """

    results: dict[tuple[int, str], list[xr.Dataset]]
    resamples: int

    def missing(self, model: int, *methods: str) -> str:
        """What the study does not contain, in words; empty if nothing."""
        absent = [m for m in methods if (model, m) not in self.results]
        return f"not decided here: the study has no {', '.join(absent)} on Model {model}" if absent else ""

    def difference(self, model: int, method: str, rival: str, metric: str = "return") -> NDArray[np.float64]:
        """Paired differences, ``(seeds, replicates)``."""
        ours, theirs = self.results[model, method], self.results[model, rival]
        a = np.stack([d[metric].values.astype(float) for d in ours])
        b = np.stack([d[metric].values.astype(float) for d in theirs])
        difference: NDArray[np.float64] = a - b
        return difference

    def over_seeds(self, difference: NDArray[np.float64]) -> Interval:
        """Interval of the mean over seeds: seeds and replicates are resampled, crossed."""
        return clustered_difference(difference, resamples=self.resamples)

    def of_seed(self, difference: NDArray[np.float64]) -> Interval:
        """Paired bootstrap interval of one seed."""
        return paired_difference(difference, np.zeros_like(difference), resamples=self.resamples)

    @property
    def test(self) -> str:
        """The intervals in words."""
        return f"95 % percentile bootstrap of paired differences, {self.resamples} resamples"


def decide(evidence: Evidence, ids: tuple[ClaimId, ...] = CLAIMS) -> list[Claim]:
    """Decide the claims; p-values are adjusted over the family by Holm's method."""
    claims = adjusted([_DECISIONS[name](evidence) for name in ids])
    told = "p two-sided against 0, adjusted by Holm"
    return [c if c.p is None else replace(c, test=f"{c.test}; {told}") for c in claims]


def _by_seed(
    evidence: Evidence,
    name: str,
    statement: str,
    rival: str,
    *,
    metric: str = "return",
    least: float | None = None,
    low: float = 0.0,
    every: bool = False,
) -> Claim:
    """A claim on Model 3 that holds seed by seed: in every seed, or in at least two thirds of them."""
    reason = evidence.missing(3, "ppo", rival)
    if reason:
        return Claim(name, statement, None, reason)
    differences = evidence.difference(3, "ppo", rival, metric)
    each = [evidence.of_seed(d) for d in differences]
    good = sum(i.low >= low if least is None else (i.mean > least and i.low > low) for i in each)
    needed = len(each) if every else math.ceil(2 * len(each) / 3)
    margin = f"low >= {low:g}" if least is None else f"d > {least:g} and low > {low:g}"
    whole = evidence.over_seeds(differences)
    return Claim(
        name,
        statement,
        good >= needed,
        f"{good} of {len(each)} seeds meet {margin}; {needed} needed; by seed d = "
        + ", ".join(f"{i.mean:.3g} [{i.low:.3g}, {i.high:.3g}]" for i in each),
        whole.mean,
        whole.low,
        whole.high,
        whole.n,
        # Non-inferiority is not a difference from zero: its p-value would answer another question.
        None if least is None else whole.p,
        f"{evidence.test} over seeds and replicates; decided seed by seed, over replicates: {margin} in "
        f"{'every seed' if every else 'at least two thirds of the seeds'}",
    )


def _beats_escapement(evidence: Evidence) -> Claim:
    return _by_seed(
        evidence,
        "ppo_beats_escapement",
        "Model 3: PPO returns more than 10 above tuned constant escapement",
        "constant_escapement",
        least=10.0,
        every=True,
    )


def _beats_mortality(evidence: Evidence) -> Claim:
    return _by_seed(
        evidence,
        "ppo_beats_constant_mortality",
        "Model 3: PPO returns more than 1.5 above tuned constant mortality",
        "constant_mortality",
        least=1.5,
    )


def _survives(evidence: Evidence) -> Claim:
    return _by_seed(
        evidence,
        "ppo_survives_at_least_as_often",
        "Model 3: PPO loses a species at most one percentage point more often than tuned constant mortality",
        "constant_mortality",
        metric="survived",
        low=-0.01,
    )


def _dp_equals_escapement(evidence: Evidence) -> Claim:
    name = "dp_equals_escapement_model1"
    statement = "Model 1: the stationary exact solution equals tuned constant escapement within 0.05; both beat tuned "
    statement += "constant mortality by more than 1"
    methods = ("dynamic_programming", "constant_escapement", "constant_mortality")
    reason = evidence.missing(1, *methods)
    if reason:
        return Claim(name, statement, None, reason)
    gap = evidence.of_seed(evidence.difference(1, methods[0], methods[1])[0])
    over = [evidence.of_seed(evidence.difference(1, m, methods[2])[0]) for m in methods[:2]]
    holds = gap.low > -0.05 and gap.high < 0.05 and all(i.low > 1 for i in over)
    leads = " and ".join(f"{i.mean:.3g} [{i.low:.3g}, {i.high:.3g}]" for i in over)
    return Claim(
        name,
        statement,
        holds,
        f"exact - escapement = {gap.mean:.3f} [{gap.low:.3f}, {gap.high:.3f}]; they lead constant mortality by {leads}",
        gap.mean,
        gap.low,
        gap.high,
        gap.n,
        None,
        f"{evidence.test} over replicates: inside (-0.05, 0.05), leads with low > 1",
    )


def _poor_model_loses(evidence: Evidence) -> Claim:
    name = "poor_model_loses_model1"
    statement = "Model 1: the exact solution of a fitted logistic model loses in the true world to tuned constant "
    statement += "escapement and to PPO"
    rivals = ("constant_escapement", "ppo")
    reason = evidence.missing(1, "poor_model", *rivals)
    if reason:
        return Claim(name, statement, None, reason)
    poor = evidence.results[1, "poor_model"][0]["return"].values
    intervals = {}
    for rival in rivals:
        returns = np.stack([d["return"].values for d in evidence.results[1, rival]])
        intervals[rival] = (
            evidence.over_seeds(returns - poor) if len(returns) > 1 else evidence.of_seed(returns[0] - poor)
        )
    least = min(intervals.values(), key=lambda i: i.low)
    told = "; ".join(f"{rival} - poor = {i.mean:.3g} [{i.low:.3g}, {i.high:.3g}]" for rival, i in intervals.items())
    return Claim(
        name,
        statement,
        all(i.low > 0 for i in intervals.values()),
        told,
        least.mean,
        least.low,
        least.high,
        least.n,
        least.p,
        f"{evidence.test} over replicates, and training seeds for PPO: low > 0 against both",
    )


_DECISIONS: dict[str, Callable[[Evidence], Claim]] = {
    "ppo_beats_escapement": _beats_escapement,
    "ppo_beats_constant_mortality": _beats_mortality,
    "ppo_survives_at_least_as_often": _survives,
    "dp_equals_escapement_model1": _dp_equals_escapement,
    "poor_model_loses_model1": _poor_model_loses,
}

"""The claims of the chaos study, and how each is decided.

All are about the valid prediction time V1 of the first scenario in Lyapunov times, a system's number being the mean
over its replicates; methods meet the same series, so that differences are paired by system.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import xarray as xr

from apps.chaos.evidence import Evidence, pairs
from core.stats import SignedRank, holm, proportion_interval, signed_rank_test
from core.study import Claim

ClaimId = Literal[
    "nbeats_beats_linear",
    "nbeats_beats_nvar",
    "tuned_polynomial_beats_nbeats",
    "published_smape_reproduced",
    "published_truth_reproduced",
]
CLAIMS: tuple[ClaimId, ...] = get_args(ClaimId)
CONTESTS: dict[str, tuple[str, str]] = {
    "nbeats_beats_linear": ("nbeats", "linear"),
    "nbeats_beats_nvar": ("nbeats", "nvar"),
    "tuned_polynomial_beats_nbeats": ("polynomial", "nbeats"),
}
"""The family of comparisons: who is said to be valid longer than whom."""
STATEMENTS: dict[str, str] = {
    "nbeats_beats_linear": "N-BEATS is valid longer than the linear model with lags",
    "nbeats_beats_nvar": "N-BEATS is valid longer than the published (order 1) vector autoregression",
    "tuned_polynomial_beats_nbeats": "Polynomial increments with order, lags and ridge tuned are valid longer than "
    "N-BEATS",
    "published_smape_reproduced": "sMAPE recomputed from the published forecasts of three methods equals the published "
    "sMAPE to 1e-4; it tests the metric, not the forecasters",
    "published_truth_reproduced": "Integrated from its first sample, the published series is met over 25 samples to a "
    "normalised error below 0.01 in at least 100 of 109 systems",
}
LEVEL = 0.05
SMAPE_TOLERANCE = 1e-4
FEWEST_REPRODUCED = 100
RESAMPLES = 10_000


def decide(evidence: Evidence, published: dict[str, xr.Dataset], claims: tuple[ClaimId, ...]) -> list[Claim]:
    """Each claim with its verdict; the comparisons of methods are adjusted by Holm as one family."""
    contests = {claim: _contest(evidence, *CONTESTS[claim]) for claim in claims if claim in CONTESTS}
    tested = {claim: found for claim, found in contests.items() if isinstance(found, SignedRank)}
    adjusted = (
        dict(zip(tested, holm(np.array([t.p for t in tested.values()], dtype=float)), strict=True)) if tested else {}
    )
    decided = []
    for claim in claims:
        if claim in tested:
            decided.append(_decided(claim, tested[claim], float(adjusted[claim]), len(tested), evidence))
        elif claim in contests:
            decided.append(Claim(claim, _statement(claim, evidence), None, reason=str(contests[claim])))
        elif claim == "published_smape_reproduced":
            decided.append(_smape(published[claim]))
        else:
            decided.append(_truth(published[claim]))
    return decided


def _contest(evidence: Evidence, first: str, second: str) -> SignedRank | str:
    """The paired test, or why there is none."""
    absent = [name for name in (first, second) if name not in evidence.methods]
    if absent:
        return f"scenario {evidence.name} has no method {' and no '.join(absent)}"
    a, b = pairs(evidence.by_system(first), evidence.by_system(second))
    if len(a) < 2:
        return "fewer than two systems with a Lyapunov time"
    return signed_rank_test(a, b, resamples=RESAMPLES)


def _statement(claim: str, evidence: Evidence) -> str:
    return f"{STATEMENTS[claim]}, as set in this study (V1 of {evidence.scaling} series, scenario {evidence.name})"


def _decided(claim: str, test: SignedRank, p: float, family: int, evidence: Evidence) -> Claim:
    return Claim(
        claim,
        _statement(claim, evidence),
        p < LEVEL and test.mean > 0,
        reason="median over systems of the paired difference, in Lyapunov times",
        difference=test.mean,
        low=test.low,
        high=test.high,
        n=test.n,
        p=p,
        test=f"two-sided Wilcoxon by system, Holm over {family}, p < {LEVEL}; interval 95 % bootstrap over systems",
    )


def _smape(found: xr.Dataset) -> Claim:
    deviation = np.abs(found["deviation"].values)
    return Claim(
        "published_smape_reproduced",
        STATEMENTS["published_smape_reproduced"],
        bool((deviation <= SMAPE_TOLERANCE).all()),
        reason="largest relative deviation; the interval is from the smallest to the largest",
        difference=float(deviation.max()),
        low=float(deviation.min()),
        high=float(deviation.max()),
        n=deviation.size,
        test=f"every relative deviation at most {SMAPE_TOLERANCE:g}",
    )


def _truth(found: xr.Dataset) -> Claim:
    met = int(found["met"].sum())
    share = proportion_interval(met, found["met"].size)
    missed = ", ".join(found["system"].values[~found["met"].values])
    return Claim(
        "published_truth_reproduced",
        STATEMENTS["published_truth_reproduced"],
        met >= FEWEST_REPRODUCED,
        reason=f"{met} of {share.n} met; not {missed}",
        difference=share.mean,
        low=share.low,
        high=share.high,
        n=share.n,
        test=f"at least {FEWEST_REPRODUCED} of {share.n}; interval 95 % Wilson",
    )

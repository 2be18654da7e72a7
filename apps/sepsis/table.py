"""The table of the sepsis study: every number with its interval over seeds and the patients within them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np

from apps.sepsis.evidence import (
    Evidence,
    Parts,
    Seeds,
    by_patient,
    difference,
    interval,
)
from apps.sepsis.matches import SETTINGS
from core.stats import Interval, nested_ratio, t_interval
from core.study import Row, Undecided

T = TypeVar("T")
MOST_FLOORED = 0.01
"""Share of the logged actions whose behaviour probability may be raised to the floor without a word."""
MEASURES = (
    "survival: probability of surviving the 72 h of the simulator, mean of the product of (1 - hazard) over patients "
    "that all policies and seeds have in common; preference: share of the test steps at which a policy and that of "
    "lambda 0 (same learner) differ where the judge prefers the policy's action, after a debate or seeing the whole "
    "state; baseline, equal, policy preferred: shares of all test steps; aligned decisions: share of the test pairs "
    "with Q(logged) >= Q(rejected); clipped targets: share of the bootstrapped values that the bound on Q cut.",
    "accuracy: share of the test pairs in which the judge sides with the logged action: shown random features, the "
    "whole state, or the outcome of a debate. alone: the debater of the logged action chooses all items (a "
    "precommitted one its half); itself: against its like; refuted: by a one-step search for "
    "the rejected action; confused: by a debater that was trained against it.",
    "Intervals are 95 % bootstrap intervals that draw seeds, then patients within a seed; each seed draws patients "
    "(records and their split stay the same), judge and networks anew. With few seeds the spread between them is "
    "understated, and so is that of patients whom seeds have in common.",
    "Off-policy estimates are of softmax(Q) from the test patients, the mean discounted outcome (+1 or -1), with the "
    "effective sample size; where it is below 5 % of the patients or below 30 the value is not identifiable and ranks "
    "nothing. The truth beside them is from new patients treated by the same stochastic policy.",
)
LIMITS = (
    "Limits. Plain double Q-learning can exploit actions that nobody took. Where lambda 0 does, survival gained over "
    "it is no merit of debate: any bonus for logged actions regularises. Nor does it show the published little loss.",
    "A conservative learner keeps lambda 0 closer to the log and leaves the debate reward less to change; where the "
    "study has one it is in the table, the claims use the plain learner, as published.",
    "A policy that copies the clinician also pleases a judge trained on the clinician's choices: the rows of the "
    "cloned clinician say by how much.",
)
STRATEGIES = {
    "random": "random features",
    "first_order": "first-order debate",
    "precommit_first_order": "precommitted, first order",
    "lookahead": "one-step search",
    "lookahead_first": "one-step search, always first",
    "untrained_lookahead": "one-step search, untrained judge",
    "untrained_precommit": "precommitted, untrained judge",
    "ppo_isolated": "PPO isolated",
    "ppo_precommit": "PPO precommitted",
    "ppo_self_play": "PPO self-play",
    "ppo_maxmin": "PPO maxmin",
}
"""Names of the strategies in words."""


def rows_of(evidence: Evidence, learners: tuple[str, ...]) -> list[Row]:
    """All rows: judges, debates, then the policies of each learner."""
    return [*_judges(evidence), *_debates(evidence), *(row for name in learners for row in _policies(evidence, name))]


def row_of(scenario: str, method: str, metric: str, unit: str, i: Interval, scale: float = 1.0) -> Row:
    """A row of an interval, its numbers multiplied by ``scale``."""
    return Row(scenario, method, metric, unit, scale * i.mean, scale * i.low, scale * i.high, i.n)


def _judges(evidence: Evidence) -> Iterator[Row]:
    for name, method in (("random", "random features"), ("full", "whole state"), ("ceiling", "true behaviour")):
        if all(name in data for data in evidence.prepared.values()):
            values = [data[name].values.astype(np.float64) for data in evidence.prepared.values()]
            yield row_of("judge", method, "accuracy", "%", interval(evidence.by_patient(values)), 100)
    cloned = by_patient((d["step_patient"].values, d["cloned"].values) for d in evidence.prepared.values())
    yield row_of("judge", "cloned clinician", "logged action chosen", "%", interval(cloned), 100)


def _debates(evidence: Evidence) -> Iterator[Row]:
    for strategy in evidence.strategies:
        measures = {f"accuracy, {s}": evidence.of_strategy(strategy, "correct", setting=s) for s in SETTINGS}
        measures["items shared with the one-step search"] = evidence.of_strategy(strategy, "overlap")
        for metric, parts in measures.items():
            if parts is not None:
                yield row_of("debate", STRATEGIES.get(strategy, strategy), metric, "%", interval(parts), 100)


def _policies(evidence: Evidence, learner: str) -> Iterator[Row]:
    arms = [arm for name, arm in evidence.trained if name == learner]
    physician = _or_none(evidence.physician)
    baseline = _or_none(lambda: evidence.survival(learner, "lambda 0"))
    if physician is not None:
        yield row_of(learner, "physician", "survival", "%", nested_ratio(physician), 100)
    cloned = [data.get("clinician_survival") for data in evidence.prepared.values()]
    if all(x is not None for x in cloned):
        lived = nested_ratio([x.values.astype(np.float64) for x in cloned if x is not None])
        yield row_of(learner, "cloned clinician", "survival", "%", lived, 100)
    for who, method in (("clinician", "cloned clinician"), ("logged", "logged actions")):
        yield from _preferences(learner, method, lambda by, w=who: evidence.preference_of(learner, w, by))  # type: ignore[misc]
    for arm in arms:
        survival = _or_none(lambda a=arm: evidence.survival(learner, a))  # type: ignore[misc]
        if survival is not None:
            yield row_of(learner, arm, "survival", "%", nested_ratio(survival), 100)
            if arm != "lambda 0" and baseline is not None:
                yield row_of(learner, arm, "survival less lambda 0", "points", difference(survival, baseline), 100)
            if physician is not None:
                yield row_of(learner, arm, "survival less physician", "points", difference(survival, physician), 100)
        if arm != "lambda 0":
            yield from _preferences(learner, arm, lambda by, a=arm: evidence.preference(learner, a, by))  # type: ignore[misc]
            yield from _split(evidence, learner, arm)
        data = evidence.trained[learner, arm]
        aligned = by_patient((d["pair_patient"].values, d["aligned"].values) for d in data.values())
        yield row_of(learner, arm, "aligned decisions", "%", interval(aligned), 100)
        clipped = [float(d.attrs["clipped_share"]) for d in data.values()]
        if len(clipped) > 1:
            yield row_of(learner, arm, "clipped targets", "%", t_interval(clipped), 100)
        else:
            yield Row(learner, arm, "clipped targets", "%", 100 * clipped[0], n=1)
        yield from _estimates(learner, arm, data)


def _preferences(learner: str, method: str, parts: Callable[[str], Parts]) -> Iterator[Row]:
    for by, words in (("by_debate", "after a debate"), ("by_full_judge", "by the full judge")):
        found = _or_none(lambda b=by: parts(b))  # type: ignore[misc]
        if found is not None:
            yield row_of(learner, method, f"preferred to lambda 0 {words}", "%", interval(found), 100)


def _split(evidence: Evidence, learner: str, arm: str) -> Iterator[Row]:
    """Shares of all test steps: baseline preferred, equal actions, policy preferred."""
    baseline = evidence.policy(learner, "lambda 0")
    for value, metric in ((-1, "baseline preferred"), (0, "equal actions"), (1, "policy preferred")):
        rows = []
        for seed, data in evidence.policy(learner, arm).items():
            equal = data["action"].values == baseline[seed]["action"].values
            rows.append((data["patient"].values, equal if value == 0 else ~equal & (data["by_debate"].values == value)))
        yield row_of(learner, arm, metric, "% of steps", interval(by_patient(rows)), 100)


def _estimates(learner: str, arm: str, data: Seeds) -> Iterator[Row]:
    """Off-policy estimates, seed by seed, because their intervals are over the patients of one log."""
    scenario, unit = f"{learner}, off-policy estimates", "mean outcome"
    for seed, found in data.items():
        method = f"{arm}, seed {seed}"
        if "estimate_truth" in found:
            yield row_of(scenario, method, "truth", unit, nested_ratio([found["estimate_truth"].values]))
        poor = "estimator" in found.dims and bool((found["estimate_verdict"] == "not identifiable").any())
        for name in found["estimator"].values if "estimator" in found.dims else ():
            one = found.sel(estimator=name)
            value, low, high = (float(one[x]) for x in ("estimate_value", "estimate_low", "estimate_high"))
            flag = ", not identifiable" if str(one["estimate_verdict"].item()) == "not identifiable" else ""
            if name == "FQE" and poor:
                flag = ", extrapolates"
            yield Row(scenario, method, f"{name}{flag}", unit, value, low, high, int(one["estimate_episodes"]))
        weighed = [name for name in found["estimator"].values if name != "FQE"] if "estimator" in found.dims else []
        if weighed:  # the weights are the same for all of them
            one = found.sel(estimator=weighed[0])
            ess, n = float(one["estimate_ess"]), int(one["estimate_episodes"])
            yield Row(scenario, method, "effective sample size", "patients", ess, n=n)


def doubts(evidence: Evidence) -> list[str]:
    """A line for each seed whose behaviour probabilities were too often raised to be believed."""
    lines = {}
    for of_arm in evidence.trained.values():
        for seed, data in of_arm.items():
            if "estimate_floored" in data:
                share = float(data["estimate_floored"].max()) / data.sizes["step"]
                if share > MOST_FLOORED:
                    lines[seed] = (
                        f"off-policy estimates, seed {seed}: the behaviour policy gave {share:.1%} of the logged "
                        f"actions next to no probability, which was raised (more than {MOST_FLOORED:.0%}: estimate it "
                        "better)"
                    )
    return list(lines.values())


def _or_none(made: Callable[[], T]) -> T | None:
    try:
        return made()
    except Undecided:
        return None

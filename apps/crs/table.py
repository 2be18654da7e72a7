"""The rows of the table, and what its numbers mean."""

from __future__ import annotations

from collections.abc import Iterator

from apps.crs.evidence import Evidence
from core.stats import Interval
from core.study import Row

MEASURES = (
    "SR@t: share of the test dialogues that end with an accepted item within t turns; success: SR@T, T the most turns. "
    "AT: turns of a dialogue, T for a failure. hDCG: gain of a success by turn and place in the list. return: sum of "
    "rewards. less Threshold: differences from the tuned rule on the same dialogues.",
    "All methods meet the same users, targets, openings and luck. Intervals are 95 % bootstrap intervals that draw "
    "trainings, then dialogues that all trainings have in common; one training has the spread over dialogues alone. "
    "With few seeds the spread between trainings is understated.",
    "The threshold is tuned, weights are chosen and a calibrated prior is fitted on validation pairs; the figures are "
    "those of test pairs, for one catalogue and one fit of its embeddings in each problem, and say nothing of others.",
    "Unless a problem says otherwise the simulated user answers exactly and independently of taste, as published; that "
    "suits a Bayesian who assumes just this. Where answers contradict each other, policies that rank by a belief go "
    "on; for the others the dialogue is over, unless on_empty is relax. Figures say nothing about real users.",
)
UNITS = {"AT": "turns"}


def rows_of(evidence: Evidence) -> list[Row]:
    """All rows."""
    return [row for problem in evidence.problems for row in _problem(evidence, problem)]


def row_of(scenario: str, method: str, metric: str, unit: str, i: Interval) -> Row:
    """A row of an interval."""
    return Row(scenario, method, metric, unit, i.mean, i.low, i.high, i.n)


def _problem(evidence: Evidence, problem: str) -> Iterator[Row]:
    success = evidence.success(problem)
    shown = [f"SR@{t}" for t in (5, 10) if t < evidence.last(problem)]
    for method in evidence.methods:
        for measure in (success, "AT", "hDCG", "return", *shown):
            found = evidence.interval(problem, method, measure)
            yield row_of(problem, method, _named(measure, success), UNITS.get(measure, "1"), found)
        yield Row(problem, method, "trainings", "1", len(evidence.of(problem, method)), n=found.n)
    for method in evidence.methods:
        if "Threshold" in evidence.methods and method != "Threshold":
            for measure in ("AT", success):
                found = evidence.difference(problem, method, "Threshold", measure)
                named = f"{_named(measure, success)} less Threshold"
                yield row_of(problem, method, named, UNITS.get(measure, "1"), found)


def _named(measure: str, success: str) -> str:
    """A measure in the table; success within a whole dialogue has one name, however long dialogues are."""
    return "success" if measure == success else measure

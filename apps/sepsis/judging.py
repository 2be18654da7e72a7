"""From a cohort to judges of a chosen kind of preference, and how good they are on patients that they did not see."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from apps.sepsis.evidence import share
from apps.sepsis.judge import Judge, JudgeEnsemble, calibration_error, judge_accuracy, random_evidence
from apps.sepsis.preferences import How, Preferences, read_preferences, truth_preferences
from apps.sepsis.products import preferences_of
from apps.sepsis.table import row_of
from core.errors import InputError
from core.seeds import stream
from core.study import Row
from simulators.sepsis.cohort import SPLITS, Cohort, Split
from simulators.sepsis.features import STATE

DRAWS = 5
"""Sets of random evidence for each pair."""


def logged_pairs(cohort: Cohort, split: Split, how: How, seed: int, at_most: int | None = None) -> Preferences:
    """The clinician's choices in a split against others, a random part of them if there are more than ``at_most``."""
    pairs = preferences_of(cohort, split, how, seed)
    if at_most is None or len(pairs) <= at_most:
        return pairs
    generator = torch.Generator().manual_seed(stream(seed, f"{split} pairs"))
    chosen = torch.randperm(len(pairs), generator=generator)[:at_most].sort().values
    return pairs.take(chosen.to(pairs.state.device))


def scored_pairs(cohort: Cohort, split: Split, seed: int) -> Preferences:
    """Logged choices in a split against random others, judged by what the simulator knows.

    Raises:
        InputError: the cohort has no such scores.
    """
    if "score" not in cohort.truth:
        raise InputError("cohort: has no true scores; only simulated ones do")
    steps = cohort.steps(split)
    generator = torch.Generator(steps.action.device).manual_seed(stream(seed, f"{split} preferences"))
    return truth_preferences(steps, cohort.flat(cohort.truth["score"], split), generator)


def labelled_pairs(path: Path, cohort: Cohort) -> dict[Split, Preferences]:
    """The answers of clinicians in a file, by the split of the patient; see ``read_preferences``."""
    labels = read_preferences(path, cohort)
    split = cohort.split.cpu()[labels.patient]
    return {name: labels.take(split == number).to(cohort.state.device) for number, name in enumerate(SPLITS)}


def together(first: Preferences, second: Preferences) -> Preferences:
    """Both one after the other."""
    evidence = None
    if first.evidence is not None or second.evidence is not None:
        cited = [
            torch.zeros_like(p.state, dtype=torch.bool) if p.evidence is None else p.evidence for p in (first, second)
        ]
        evidence = torch.cat(cited)
    names = ("state", "preferred", "rejected", "patient", "step", "label")
    joined = {name: torch.cat([getattr(first, name), getattr(second, name)]) for name in names}
    return Preferences(**joined, evidence=evidence)


def judge_rows(judge: Judge | JudgeEnsemble, pairs: Preferences, source: str, seed: int) -> list[Row]:
    """Accuracy and calibration error of a judge under random evidence, patients being resampled.

    Args:
        judge: on the device of the pairs.
        pairs: of patients that it was not trained on; ties are left out, none has a right answer.
        source: whose preferences they are, in words.
        seed: of the evidence.
    """
    pairs = pairs.take(pairs.label != 0.5)
    if len(torch.unique(pairs.patient)) < 2:
        return []
    generator = torch.Generator(pairs.state.device).manual_seed(stream(seed, "random evidence"))
    method = "whole state" if judge.items == len(STATE) else f"{judge.items} random features"
    # A label of 0 is the other action's preference.
    turned = pairs.label < 0.5
    first, second = (torch.where(turned, a, b) for a, b in ((pairs.rejected, pairs.preferred),
                                                            (pairs.preferred, pairs.rejected)))  # fmt: skip
    pairs = replace(pairs, preferred=first, rejected=second, label=torch.ones_like(pairs.label))
    rows = []
    right = share(judge_accuracy(judge, pairs, generator, DRAWS), pairs.patient)
    assert right is not None
    rows.append(row_of("judge", method, f"accuracy on {source}", "%", right, 100))
    error = calibration_error(judge, pairs, generator)
    rows.append(row_of("judge", method, f"calibration error on {source}", "points", error, 100))
    if isinstance(judge, JudgeEnsemble):
        mask = random_evidence(len(pairs), judge.items, generator, pairs.state.device)
        said = judge.verdict(pairs.state, mask, pairs.preferred, pairs.rejected)
        agreed = share((said != 0).float(), pairs.patient)
        assert agreed is not None
        rows.append(row_of("judge", "all members agree", f"share of {source}", "%", agreed, 100))
        if (sure := share((said > 0).float(), pairs.patient, said != 0)) is not None:
            rows.append(row_of("judge", "all members agree", f"accuracy on {source}", "%", sure, 100))
    return rows

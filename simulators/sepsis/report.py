"""What a cohort holds, in counts and quartiles: enough to compare extractions, nothing of a single patient."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from core.errors import MissingExtra
from core.files import jsonable
from simulators.sepsis.cohort import SPLITS, Cohort
from simulators.sepsis.features import ACTIONS, STATE, UNITS
from simulators.sepsis.measures import DatasetMeasures, dataset_measures


@dataclass(frozen=True)
class Stage:
    """How many are left after a filter.

    Attributes:
        name: of the filter.
        trajectories: left.
        steps: left, 4 h each.
    """

    name: str
    trajectories: int
    steps: int


@dataclass(frozen=True)
class SplitCounts:
    """Size of a split.

    Attributes:
        name: train, validation or test.
        trajectories: in it.
        steps: in it.
        survived: share of its trajectories; NaN if it has none.
        actions: (25,) counts.
    """

    name: str
    trajectories: int
    steps: int
    survived: float
    actions: tuple[int, ...]


@dataclass(frozen=True)
class FeatureQuartiles:
    """Spread of a feature over the steps of the training split.

    Attributes:
        name: of the feature.
        unit: "1" if it has none, "normalised" if units are unknown.
        low: lower quartile.
        median: of all steps.
        high: upper quartile.
    """

    name: str
    unit: str
    low: float
    median: float
    high: float


@dataclass(frozen=True)
class ScoreCheck:
    """A bedside score of a file against the one computed from its own columns.

    Attributes:
        name: SOFA or SIRS.
        maximum: in the file.
        recomputed_maximum: of ours.
        differs: share of the steps at which they differ.
        differs_much: share at which they differ by more than 1.
    """

    name: str
    maximum: float
    recomputed_maximum: float
    differs: float
    differs_much: float


@dataclass(frozen=True)
class CohortReport:
    """What was read or simulated.

    Attributes:
        source: of the cohort, such as ``mimic_sepsis`` or ``sepsis44``.
        synthetic: no patient behind it.
        origin: how it was made, plain data.
        flow: what each filter left.
        splits: train, validation, test.
        survived: share of all trajectories.
        lengths: shortest, median and longest trajectory, steps.
        features: in the order of the state.
        scores: SOFA and SIRS checked; empty where they could not be.
        measures: quality and coverage; None if scikit-learn is absent or they were not asked for.
        warnings: a line each.
    """

    source: str
    synthetic: bool
    origin: Mapping[str, Any]
    flow: tuple[Stage, ...]
    splits: tuple[SplitCounts, ...]
    survived: float
    lengths: tuple[int, float, int]
    features: tuple[FeatureQuartiles, ...]
    scores: tuple[ScoreCheck, ...]
    measures: DatasetMeasures | None
    warnings: tuple[str, ...]

    @property
    def actions(self) -> tuple[int, ...]:
        """(25,) counts of the actions in all splits."""
        return tuple(map(sum, zip(*(split.actions for split in self.splits), strict=True)))

    def to_json(self) -> str:
        """The report as JSON; what is not a number is null."""
        return json.dumps(jsonable(asdict(self)), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def describe(
    cohort: Cohort,
    *,
    flow: Sequence[Stage] = (),
    scores: Sequence[ScoreCheck] = (),
    warnings: Sequence[str] = (),
    measures: bool = True,
    seed: int = 0,
) -> CohortReport:
    """The report of a cohort, read or simulated.

    Args:
        cohort: any.
        flow: what the filters before it left; the cohort itself is added.
        scores: that were checked.
        warnings: that arose.
        measures: compute quality and coverage, seconds for 200 000 steps.
        seed: of the clustering in coverage.

    Raises:
        InputError: no step in the training split.
    """
    warnings = list(warnings)
    found = None
    if measures:
        try:
            found = dataset_measures(cohort, seed=seed)
        except MissingExtra as error:
            warnings.append(f"quality and coverage are left out: {error}")
    train = cohort.flat(cohort.state if cohort.raw is None else cohort.raw, "train").double().numpy()
    quartiles = np.quantile(train, (0.25, 0.5, 0.75), axis=0).T.tolist()
    lengths = cohort.lengths
    return CohortReport(
        source=str(cohort.origin.get("source", "unknown")),
        synthetic=bool(cohort.origin.get("synthetic", False)),
        origin=dict(cohort.origin),
        flow=(*flow, Stage("cohort", cohort.patients, int(lengths.sum()))),
        splits=tuple(_counts(cohort, i) for i in range(len(SPLITS))),
        survived=_survived(cohort.outcome),
        lengths=(int(lengths.min()), float(np.median(lengths.numpy())), int(lengths.max())),
        features=tuple(
            FeatureQuartiles(name, "normalised" if cohort.raw is None else UNITS[name], *row)
            for name, row in zip(STATE, quartiles, strict=True)
        ),
        scores=tuple(scores),
        measures=found,
        warnings=tuple(warnings),
    )


def _counts(cohort: Cohort, split: int) -> SplitCounts:
    inside = cohort.split == split
    steps = cohort.mask & inside[:, None]
    return SplitCounts(
        name=SPLITS[split],
        trajectories=int(inside.sum()),
        steps=int(steps.sum()),
        survived=_survived(cohort.outcome[inside]),
        actions=tuple(torch.bincount(cohort.action[steps], minlength=ACTIONS).tolist()),
    )


def _survived(outcome: torch.Tensor) -> float:
    return float((outcome > 0).double().mean()) if len(outcome) else float("nan")

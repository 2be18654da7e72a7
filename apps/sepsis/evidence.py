"""The results of a study by seed, and the comparisons that the table and the claims make of them.

The unit of every interval is the patient: the steps and pairs of a patient are drawn together, and seeds before them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from core.stats import Interval, nested_ratio
from core.study import Undecided

Numbers = NDArray[np.float64]
Parts = tuple[list[Numbers], list[Numbers]]
"""Numerators and denominators of the units of each seed."""
Seeds = Mapping[int, xr.Dataset]


@dataclass(frozen=True)
class Evidence:
    """Results by seed.

    Attributes:
        prepared: of ``Prepare``.
        debates: of ``Debates``.
        trained: of ``Train``, by learner and arm.
        reference: of ``Reference``, by learner.
    """

    prepared: Seeds
    debates: Seeds
    trained: Mapping[tuple[str, str], Seeds]
    reference: Mapping[str, Seeds]

    def policy(self, learner: str, arm: str) -> Seeds:
        """The results of an arm.

        Raises:
            Undecided: the study has none of that name.
        """
        if (learner, arm) not in self.trained:
            raise Undecided(f"not decided here: the study has no arm {arm} of the learner {learner}")
        return self.trained[learner, arm]

    def survival(self, learner: str, arm: str) -> list[Numbers]:
        """Survival probability of each subject, by seed.

        Raises:
            Undecided: the patients are records: nobody knows how others would have fared.
        """
        return [_variable(data, "survival") for data in self.policy(learner, arm).values()]

    def physician(self) -> list[Numbers]:
        """Survival probability of each subject under the physician, by seed.

        Raises:
            Undecided: as ``survival``.
        """
        return [_variable(data, "physician_survival") for data in self.prepared.values()]

    def preference(self, learner: str, arm: str, by: str = "by_debate") -> Parts:
        """Won and differing steps of each test patient against lambda 0 of the same learner, by seed."""
        baseline = self.policy(learner, "lambda 0")
        return _won({seed: (data, baseline[seed]["action"]) for seed, data in self.policy(learner, arm).items()}, by)

    def preference_of(self, learner: str, who: str, by: str = "by_debate") -> Parts:
        """The same for ``clinician`` (cloned, greedy) or ``logged`` actions.

        Raises:
            Undecided: the study has no such reference.
        """
        if learner not in self.reference:
            raise Undecided(f"not decided here: no reference for the learner {learner}")
        baseline = self.policy(learner, "lambda 0")
        chosen = {s: (data.sel(who=who), baseline[s]["action"]) for s, data in self.reference[learner].items()}
        return _won(chosen, by)

    def correct(self, strategy: str, setting: str) -> list[Numbers]:
        """Whether the judge sides with the logged action, a test pair each, by seed."""
        return [_correct(data, strategy, setting) for data in self.debates.values()]

    @property
    def strategies(self) -> list[str]:
        """Who debates in any seed."""
        return list(dict.fromkeys(str(name) for data in self.debates.values() for name in data["strategy"].values))

    def of_strategy(self, strategy: str, variable: str, **at: str) -> Parts | None:
        """A variable of the debates by patient, in the seeds where the strategy takes part.

        None where it makes no sense for the strategy. Trained debaters take part in the first seeds alone.
        """
        held = [data for data in self.debates.values() if strategy in data["strategy"].values]
        rows = [(data["patient"].values, data[variable].sel({"strategy": strategy, **at}).values) for data in held]
        return by_patient(rows) if all(np.isfinite(values).all() for _, values in rows) else None

    def random(self) -> list[Numbers]:
        """Share of draws of random features with which the judge sides with the logged action, likewise."""
        return [data["random"].values.astype(np.float64) for data in self.prepared.values()]

    def by_patient(self, values: list[Numbers]) -> Parts:
        """Sum and number of ``values``, a test pair each, of each test patient, by seed."""
        patients = [data["patient"].values for data in self.prepared.values()]
        return by_patient(zip(patients, values, strict=True))


def interval(parts: Parts) -> Interval:
    """Of the mean over seeds of a ratio of sums over patients."""
    return nested_ratio(*parts)


def difference(a: list[Numbers], b: list[Numbers]) -> Interval:
    """Of the mean over seeds of paired differences of subjects."""
    return nested_ratio([x - y for x, y in zip(a, b, strict=True)])


def preference_difference(a: Parts, b: Parts, resamples: int = 10_000) -> Interval:
    """Of the mean over seeds of the difference of two shares, the patients of both drawn together.

    To first order a ratio's error is the mean of (won - share x differing) / (mean of differing), which is what is
    resampled.
    """
    linear = []
    for won_a, all_a, won_b, all_b in zip(*a, *b, strict=True):
        shares = won_a.sum() / all_a.sum(), won_b.sum() / all_b.sum()
        parts = ((won_a, all_a, shares[0]), (won_b, all_b, shares[1]))
        influence = [share + (won - share * of) / of.mean() for won, of, share in parts]
        linear.append(influence[0] - influence[1])
    return nested_ratio(linear, resamples=resamples)


def per_patient(patient: NDArray[np.int64], top: Numbers, bottom: Numbers) -> tuple[Numbers, Numbers]:
    """Sums of the rows of each patient that has any."""
    _, index = np.unique(patient, return_inverse=True)
    return np.bincount(index, top).astype(np.float64), np.bincount(index, bottom).astype(np.float64)


def by_patient(rows: Iterable[tuple[NDArray[np.int64], NDArray[np.generic]]]) -> Parts:
    """Sum and number of the values of each patient, from the patient and the value of each row, by seed."""
    found = [per_patient(patient, x.astype(np.float64), np.ones(len(x))) for patient, x in rows]
    return [top for top, _ in found], [bottom for _, bottom in found]


def share(value: Tensor, patient: Tensor, where: Tensor | None = None) -> Interval | None:
    """Mean of ``value`` (N,) over the rows ``where`` (N,) bool, patients resampled; None with fewer than 2 of them."""
    kept = torch.ones_like(value, dtype=torch.float64) if where is None else where.double()
    arrays = [x.cpu().numpy() for x in (patient, value.double() * kept, kept)]
    top, bottom = per_patient(*arrays)
    return nested_ratio([top], [bottom]) if len(top) > 1 and bottom.sum() else None


def _won(results: Mapping[int, tuple[xr.Dataset, xr.DataArray]], by: str) -> Parts:
    won, differing = [], []
    for data, rival in results.values():
        if by not in data:
            raise Undecided("not decided here: it is the policy of lambda 0 itself")
        differs = (data["action"].values != rival.values).astype(np.float64)
        top, bottom = per_patient(data["patient"].values, (data[by].values > 0) * differs, differs)
        if not bottom.sum():
            raise Undecided("not decided here: the two policies agree at every step")
        won.append(top)
        differing.append(bottom)
    return won, differing


def _variable(data: xr.Dataset, name: str) -> Numbers:
    if name not in data:
        raise Undecided("not decided here: the survival of other treatments is known in a simulator alone")
    found: Numbers = data[name].values.astype(np.float64)
    return found


def _correct(data: xr.Dataset, strategy: str, setting: str) -> Numbers:
    if strategy not in data["strategy"].values:
        raise Undecided(f"not decided here: {strategy} debaters do not take part")
    found: Numbers = data["correct"].sel(strategy=strategy, setting=setting).values.astype(np.float64)
    return found

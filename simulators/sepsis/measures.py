"""What a data set offers to learn from: how good its trajectories are and how much of the choices it shows.

Schweighofer et al. (2022), "A Dataset Perspective on Offline Reinforcement Learning", CoLLAs, PMLR 199, 470-517. Both
are relative to a reference and compare only with figures of the same one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from core.errors import InputError, require
from simulators.sepsis.cohort import Cohort, Split
from simulators.sepsis.features import ACTIONS

_FITTED_STEPS = 50_000


@dataclass(frozen=True)
class DatasetMeasures:
    """Quality and coverage of a cohort.

    Attributes:
        trajectory_quality: TQ = (mean return - worst) / (expert's - worst).
        coverage: SACo, distinct pairs of a cluster of states and an action over those of the reference.
        pairs: the distinct pairs.
        clusters: of the states.
        reference: what the coverage is relative to, in words.
    """

    trajectory_quality: float
    coverage: float
    pairs: int
    clusters: int
    reference: str


def dataset_measures(
    cohort: Cohort,
    split: Split | None = "train",
    *,
    reference: Cohort | None = None,
    expert: float = 1.0,
    worst: float = -1.0,
    clusters: int = 750,
    seed: int = 0,
) -> DatasetMeasures:
    """Measure a cohort.

    Args:
        cohort: any; its return is the outcome.
        split: that is measured; all patients if None.
        reference: cohort, of the same normalisation, whose pairs are 1 and whose states (of the same split) are
            clustered; every cluster with every action if None.
        expert: mean return of an expert; 1 if nobody dies.
        worst: mean return of the worst policy.
        clusters: of k-means over states; fewer if there are fewer than ten steps for each.
        seed: of k-means.

    Raises:
        InputError: no steps in the split, or an expert who is no better than the worst.
        MissingExtra: scikit-learn is absent.
    """
    if expert <= worst:
        raise InputError(f"expert = {expert}: must be above worst = {worst}")
    k_means = require("sklearn.cluster", "sepsis").MiniBatchKMeans
    steps = cohort.steps(split)
    base = steps if reference is None else reference.steps(split)
    if not len(steps) or not len(base):
        raise InputError(f"split {split}: has no steps")
    clusters = max(1, min(clusters, len(base) // 10))
    chosen = torch.randperm(len(base), generator=torch.Generator().manual_seed(seed))[:_FITTED_STEPS]
    model = k_means(clusters, random_state=seed, n_init=1, max_iter=20, batch_size=4096)
    model.fit(base.state[chosen].numpy())

    def pairs(state: Tensor, action: Tensor) -> int:
        cluster = torch.from_numpy(model.predict(state.numpy())).long()
        return len(torch.unique(cluster * ACTIONS + action))

    found = pairs(steps.state, steps.action)
    possible = clusters * ACTIONS if reference is None else pairs(base.state, base.action)
    returns = (cohort if split is None else cohort.subset(split)).outcome
    return DatasetMeasures(
        trajectory_quality=(float(returns.mean()) - worst) / (expert - worst),
        coverage=found / possible,
        pairs=found,
        clusters=clusters,
        reference="every cluster with every action"
        if reference is None
        else str(reference.origin.get("source", "a cohort")),
    )

"""A simple model fitted to data from the true world: the approximate model of the paper's question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from apps.fishery.dynamic_programming import solve
from apps.fishery.policies import ConstantMortality
from core.errors import InputError
from core.seeds import stream
from core.simulation import Policy, rollout
from simulators.fishery import YEARS, Fishery, OneSpecies


@dataclass(frozen=True)
class LogisticFit:
    """Logistic growth fitted by least squares.

    Attributes:
        r: intrinsic growth rate, 1/year.
        K: carrying capacity, population.
        transitions: years of data used.
    """

    r: float
    K: float
    transitions: int

    def world(self, like: Fishery) -> Fishery:
        """The fitted model as a world: the solver is told the true noise, threshold and penalty."""
        return Fishery(
            OneSpecies(r=self.r, K=self.K, beta_H=0.0),
            1,
            like.sigma,
            initial=like.initial[:1],
            threshold=like.threshold,
            penalty=like.penalty,
        )


def fit_logistic(
    simulator: Fishery, *, species: int = 0, episodes: int = 20, years: int = 50, seed: int = 0
) -> LogisticFit:
    """Fit (N' - N)/N = r - (r/K) N to unharvested years of the true world.

    Args:
        simulator: the true world.
        species: which species to model.
        episodes: unharvested histories observed.
        years: length of each; years that end in an extinction are dropped.
        seed: of the histories.

    Raises:
        InputError: the data do not identify a logistic model (r or r/K is not positive).
    """
    unharvested = ConstantMortality([0.0] * simulator.harvested)
    data = rollout(simulator.to(torch.float64), unharvested, years + 1, episodes, stream(seed, "unharvested data"))
    population, alive = data["population"].values[..., species], data["alive"].values
    before, after = population[:, :-1][alive[:, 1:]], population[:, 1:][alive[:, 1:]]
    if len(before) < 3:
        raise InputError(f"episodes = {episodes}, years = {years}: fewer than 3 years of data without an extinction")
    x = torch.as_tensor(before)
    design = torch.stack([torch.ones_like(x), -x], dim=1)
    r, slope = torch.linalg.lstsq(design, torch.as_tensor(after) / x - 1).solution.tolist()
    if r <= 0 or slope <= 0:
        raise InputError(f"the logistic model is not identified: r = {r:.3g}, r/K = {slope:.3g}, both must be positive")
    return LogisticFit(r, r / slope, len(before))


@dataclass(frozen=True)
class SpeciesBySpecies:
    """One single-species rule for each harvested species, blind to the others."""

    rules: Sequence[Policy]

    def __call__(self, observation: Tensor, state: Any = None) -> Tensor:
        """Mortalities ``(B, harvested)``."""
        return torch.cat([rule(observation[:, i : i + 1], state) for i, rule in enumerate(self.rules)], dim=1)


def poor_model_rule(
    simulator: Fishery, *, episodes: int = 20, years: int = 50, horizon: int = YEARS, seed: int = 0
) -> SpeciesBySpecies:
    """The exact solution of a poor model: a logistic fitted to each harvested species, solved, applied to the truth.

    Args:
        simulator: the true world.
        episodes: unharvested histories that the models are fitted to.
        years: length of each.
        horizon: years that the rule is optimised for (its stationary rule is used).
        seed: of the histories.

    Raises:
        InputError: see ``fit_logistic``.
    """
    fits = [
        fit_logistic(simulator, species=i, episodes=episodes, years=years, seed=seed)
        for i in range(simulator.harvested)
    ]
    return SpeciesBySpecies([solve(f.world(simulator), mode="stationary", horizon=horizon).policy() for f in fits])

"""The fishery as a simulator: harvest, growth, noise and extinction, in this order, for a batch of copies."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from gymnasium.spaces import Box
from torch import Tensor

from core.errors import InputError
from core.simulation import Step, Variable
from simulators.fishery.growth import VARIANTS, Variant, at_year, increments
from simulators.fishery.parameters import OneSpecies, Parameters, ThreeSpecies, override

YEARS = 200
"""Length of an episode in the paper, years; the views and roll-outs take it as their horizon."""


@dataclass(frozen=True)
class FisheryState:
    """Population at the start of a year.

    Attributes:
        population: ``(B, species)``, units of the carrying capacity.
        year: ``(B,)``, years since the start.
    """

    population: Tensor
    year: Tensor


@dataclass(frozen=True)
class FisheryNoise:
    """Environmental noise of one year.

    Attributes:
        growth: ``(B, species)``, standard normal.
    """

    growth: Tensor


@dataclass(frozen=True)
class Fishery:
    """Control of the mortality of the first ``harvested`` species of a one- or three-species model.

    A year: the agent sees N_t and sets a mortality M_i in [0, 1] for each harvested species; the harvest is
    h_i = M_i N_i; the survivors E grow to E + growth(E) + sigma E xi with xi standard normal, clipped at 0. The reward
    is the weighted harvest less ``cost`` times the mortalities. When a population ends the year at or below
    ``threshold`` the episode terminates and ``penalty`` / (t + 1) is subtracted, t counted from 0.

    Source: Montealegre-Mora et al. (2023), section 2, with the order of events of the authors' code.

    Attributes:
        parameters: the biology.
        harvested: number of harvested species, counted from the first.
        sigma: standard deviation of the multiplicative noise, 1/sqrt(year).
        variant: name in ``VARIANTS`` of a drift or forcing of the three-species model.
        initial: mean initial population of each species.
        initial_std: standard deviation of the initial population.
        threshold: population at or below which a species counts as lost.
        penalty: cost of an extinction in the first year.
        weights: value of a unit of harvest of each harvested species; 1 if not given.
        cost: cost of a unit of mortality.
        bound: upper end of the observation space; it bounds what a learner's view shows, not the population.
        observe_time: append the year to the observation.
        dtype: float32 for learning and grids, float64 for evaluation and tests.

    Raises:
        InputError: a value outside its range.
    """

    parameters: Parameters
    harvested: int
    sigma: float
    variant: str | None = None
    initial: tuple[float, ...] = ()
    initial_std: float = 0.02
    threshold: float = 0.05
    penalty: float = 100.0
    weights: tuple[float, ...] = ()
    cost: float = 0.0
    bound: float = 2.0
    observe_time: bool = False
    dtype: torch.dtype = torch.float32
    agents: int = 1

    def __post_init__(self) -> None:
        species = len(self.parameters.species)
        if not 1 <= self.harvested <= species:
            raise InputError(f"harvested = {self.harvested}: must be between 1 and {species}")
        for name in ("sigma", "initial_std", "penalty", "cost"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name} = {getattr(self, name)}: must be at least 0 and finite")
        if not 0 <= self.threshold < min(self.parameters.capacities):
            raise InputError(
                f"threshold = {self.threshold}: must be at least 0 and below the carrying capacity "
                f"{min(self.parameters.capacities)}"
            )
        if len(self.initial) != species or not all(self.threshold < n < math.inf for n in self.initial):
            raise InputError(
                f"initial = {self.initial}: must be {species} finite populations above the threshold {self.threshold}"
            )
        if self.weights and (len(self.weights) != self.harvested or not all(map(math.isfinite, self.weights))):
            raise InputError(f"weights = {self.weights}: must be {self.harvested} finite numbers, one a species")
        if not 0 < self.bound < math.inf:
            raise InputError(f"bound = {self.bound}: must be greater than 0 and finite")
        if self.variant is None:
            return
        if self.variant not in VARIANTS:
            raise InputError(f"variant = {self.variant!r}: must be one of {', '.join(VARIANTS)}")
        if not isinstance(self.parameters, ThreeSpecies):
            raise InputError(f"variant = {self.variant!r}: only the three-species models have variants")
        forced = VARIANTS[self.variant].forced
        if forced is not None and forced < self.harvested:
            raise InputError(
                f"variant = {self.variant!r}, harvested = {self.harvested}: a forced species cannot be harvested; "
                f"harvested must be at most {forced}"
            )

    @property
    def species(self) -> tuple[str, ...]:
        """Names of the species, in the order of the population's last axis."""
        return self.parameters.species

    @cached_property
    def observation_space(self) -> Box:
        """Populations, and the year when ``observe_time`` is set."""
        high = [self.bound] * len(self.species) + [float(YEARS)] * self.observe_time
        return Box(np.zeros(len(high), np.float32), np.array(high, np.float32))

    @cached_property
    def action_space(self) -> Box:
        """Mortality of each harvested species."""
        return Box(0.0, 1.0, (self.harvested,), np.float32)

    @cached_property
    def variables(self) -> Mapping[str, Variable]:
        """What a roll-out records."""
        species = {"species": self.species}
        fleet = {"harvested": self.species[: self.harvested]}
        return {
            "population": Variable(("species",), "K", "population at the start of the year", species),
            "mortality": Variable(("harvested",), "1/year", "fishing mortality (share harvested)", fleet),
            "harvest": Variable(("harvested",), "K/year", "harvest", fleet),
            "reward": Variable((), "K/year", "reward: harvest less cost and extinction penalty"),
        }

    @cached_property
    def _variant(self) -> Variant | None:
        return None if self.variant is None else VARIANTS[self.variant]

    def reset(self, batch: int, generator: torch.Generator) -> FisheryState:
        """Initial populations around ``initial``."""
        mean = torch.tensor(self.initial, dtype=self.dtype, device=generator.device)
        population = (mean + self.initial_std * self.noise(batch, generator).growth).clamp(min=0)
        if self._variant is not None and self._variant.start is not None:
            population[:, self._variant.forced] = self._variant.start
        return FisheryState(population, population.new_zeros(batch))

    def noise(self, batch: int, generator: torch.Generator) -> FisheryNoise:
        """Standard normals, one a species."""
        shape = (len(self.species), batch)
        # Drawn species by species: the columns that ``step`` works on are then contiguous.
        return FisheryNoise(torch.randn(shape, generator=generator, dtype=self.dtype, device=generator.device).T)

    def step(self, state: FisheryState, action: Tensor, noise: FisheryNoise) -> Step:
        """Harvest, grow, disturb, test for extinction.

        Args:
            state: populations and years of B copies.
            action: ``(B, harvested)`` mortalities, clipped to [0, 1].
            noise: of B copies.

        Returns:
            Step with info ``mortality`` and ``harvest``, both ``(B, harvested)``.

        Raises:
            InputError: an action of another shape.
        """
        population, year = state.population, state.year
        if action.shape != (len(population), self.harvested):
            raise InputError(f"action of shape {tuple(action.shape)}: must be ({len(population)}, {self.harvested})")
        rows = population.T  # one row a species, contiguous
        mortality = action.T.to(population.dtype).clamp(0, 1)
        harvest = mortality * rows[: self.harvested]
        after = torch.cat([rows[: self.harvested] - harvest, rows[self.harvested :]])
        grown = self._grow(after, year, noise.growth.T)
        if self._variant is not None and self._variant.schedule is not None:
            forced = self._variant.forced
            grown[forced] = self._variant.schedule(rows[forced], year)
        terminated = self._extinct(grown)
        value = harvest * harvest.new_tensor(self.weights).unsqueeze(1) if self.weights else harvest
        reward = value.sum(0)
        if self.cost:
            reward = reward - self.cost * mortality.sum(0)
        following = year + 1
        reward = torch.where(terminated, reward - self.penalty / following, reward)
        info = {"mortality": mortality.T, "harvest": harvest.T}
        return Step(FisheryState(grown.T, following), reward, terminated, info)

    def _grow(self, after: Tensor, year: Tensor, normals: Tensor) -> Tensor:
        """Populations a year after the harvest; all ``(species, B)``."""
        p = self.parameters
        in_force = at_year(p, self._variant, year) if isinstance(p, ThreeSpecies) else p
        if isinstance(p, ThreeSpecies) and p.alpha != 1:
            normals = normals * normals.new_tensor([[1.0], [1.0], [p.alpha]])
        natural = after + torch.stack(increments(in_force, after.unbind(0)))
        return torch.addcmul(natural, after, normals, value=self.sigma).clamp(min=0)

    def _extinct(self, grown: Tensor) -> Tensor:
        """Whether any species that is not forced stands at or below the threshold; ``(B,)`` bool."""
        if self._variant is not None and self._variant.forced is not None:
            grown = grown[[i for i in range(len(grown)) if i != self._variant.forced]]
        return grown.amin(0) <= self.threshold

    def observe(self, state: FisheryState, noise: FisheryNoise | None = None) -> Tensor:
        """The populations, unclipped (and the year, when ``observe_time`` is set)."""
        if self.observe_time:
            return torch.cat([state.population, state.year.unsqueeze(-1)], dim=-1)
        return state.population

    def action_mask(self, state: FisheryState) -> None:
        """Every mortality is allowed."""
        return None

    def to(self, dtype: torch.dtype) -> Fishery:
        """The same world in another precision."""
        return replace(self, dtype=dtype)


def model(
    number: int,
    *,
    variant: str | None = None,
    parameters: dict[str, float] | None = None,
    sigma: float | None = None,
    harvested: int | None = None,
    **options: object,
) -> Fishery:
    """One of the four models of the paper.

    1: one species with a fixed predator (May 1977). 2: three species, X harvested. 3: X and Y harvested.
    4: as 3, with r_x falling to half over a century (variant ``rx_drift``).

    The noise is a standard deviation: 0.05 in Model 1 and 0.1 in Models 2-4, which reproduces the published results
    (the paper's text says variance 0.05; its code uses 0.1 as a standard deviation).

    Args:
        number: 1 to 4.
        variant: see ``VARIANTS``; Model 4 has its own.
        parameters: biological parameters to replace, by name.
        sigma: noise to use instead.
        harvested: number of harvested species to use instead.
        **options: further fields of ``Fishery``.

    Raises:
        InputError: an unknown model, parameter or variant, or a value outside its range.
    """
    if number not in (1, 2, 3, 4):
        raise InputError(f"model = {number!r}: must be 1, 2, 3 or 4")
    if number == 4:
        if variant not in (None, "rx_drift"):
            raise InputError(f"model = 4, variant = {variant!r}: Model 4 is Model 3 with rx_drift; use model 3")
        variant = "rx_drift"
    biology: Parameters = OneSpecies() if number == 1 else ThreeSpecies()
    fleet = {1: 1, 2: 1, 3: 2, 4: 2}[number]
    if variant == "y_abiotic":
        fleet = 1
    return Fishery(
        parameters=override(biology, parameters or {}),
        harvested=fleet if harvested is None else harvested,
        sigma=(0.05 if number == 1 else 0.1) if sigma is None else sigma,
        variant=variant,
        **{"initial": (0.7,) if number == 1 else (0.5, 0.5, 0.7), **options},  # type: ignore[arg-type]
    )


def stock_world(r: float, depletion: float, exponent: float = 1.0, sigma: float = 0.05, **options: object) -> Fishery:
    """A fitted stock as a one-species fishery scaled to K = 1.

    Args:
        r: intrinsic growth rate, 1/year.
        depletion: biomass after the last catch, as a share of K.
        exponent: shape of the surplus production.
        sigma: process noise; a fit with observation error alone does not estimate it, so it is an assumption.
        **options: further fields of ``Fishery``.
    """
    biology = OneSpecies(r=r, K=1.0, beta_H=0.0, exponent=exponent)
    return Fishery(biology, 1, sigma, initial=(depletion,), **options)  # type: ignore[arg-type]

"""A scenario: which payments world, for how many generations, and the arms that are compared in it."""

from __future__ import annotations

from typing import Literal, Self

import torch
from pydantic import Field, ValidationError, model_validator

from apps.payments.exploration import WEIGHED, Exploration, Falcon
from apps.payments.oracles import FactoredSettings, ImbalanceSettings, OracleSettings
from core.errors import InputError
from core.study import Config
from simulators.payments import Delay, Drift, Outage, Payments, Sizes

Window = int | Literal["all"]
RULES_WITH: dict[str, tuple[str, ...]] = {
    "gamma": WEIGHED,
    "epsilon": ("epsilon", "epsilon_slice"),
    "temperature": ("softmax",),
    "mellowness": ("igw_elim",),
}
"""The rules that take a number; the others are taken by all."""


class Scenario(Config):
    """A family of worlds, one a seed, and how long each is played."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    """Name in the report."""
    sizes: Sizes = Sizes()
    """Numbers of issuers, merchants, countries and interventions."""
    heterogeneity: float = Field(default=0.9, ge=0)
    """Spread of the effects between issuers and merchants."""
    drift: Drift | None = None
    """How issuers change between generations."""
    delay: Delay | None = None
    """Of the bank's answers; what has not arrived when a generation ends is learned from later, or never."""
    outage: Outage | None = None
    """Of issuers."""
    duration: float = Field(default=168.0, gt=0)
    """Hours of a generation."""
    generations: int = Field(default=12, ge=2, le=10_000)
    """How many policies are deployed one after the other; the first is uniform."""
    payments: int = Field(default=15_000, ge=100)
    """Payments a generation."""
    evaluation: int = Field(default=3_000, ge=100)
    """Payments of the fixed set on which models are measured."""
    feature_coverage: bool = False
    """Also measure how well a log covers the next policy in the directions of linear features."""
    dtype: Literal["float32", "float64"] = "float64"
    """Of the world and the predictions."""

    def world(self, seed: int, device: torch.device | str = "cpu") -> Payments:
        """The world of a seed before its first generation."""
        return Payments(
            seed=seed,
            sizes=self.sizes,
            heterogeneity=self.heterogeneity,
            drift=self.drift,
            delay=self.delay,
            outage=self.outage,
            duration=self.duration,
            dtype=getattr(torch, self.dtype),
        ).on(device)


class Tuning(Config):
    """One number of an arm's rule, chosen by mean online value on worlds that are never scored."""

    parameter: Literal["epsilon", "gamma", "temperature", "floor", "minimum", "mellowness"]
    """Which number."""
    grid: tuple[float, ...] = Field(min_length=2)
    """The values tried."""


class Arm(Config):
    """What is compared: a rule of exploration, a memory and an oracle."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    """Name in the report."""
    exploration: Exploration
    """The rule."""
    window: Window = 1
    """Generations that the oracle learns from."""
    oracle: OracleSettings = FactoredSettings()
    """The regression."""
    imbalance: ImbalanceSettings = ImbalanceSettings()
    """What is done about the rare declines."""
    weights: Literal["none", "inverse_propensity"] = "none"
    """Of the rows in the regression."""
    cap: float = Field(default=50.0, ge=1)
    """Largest inverse-propensity weight."""
    tune: Tuning | None = None
    """The number that is chosen first, on worlds of its own."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        rule, window = self.exploration.rule, self.window
        if isinstance(window, int) and window < 1:
            raise InputError(f"window = {window}: must be at least 1, or all")
        if window != "all" and self.falcon is not None:
            raise InputError(f"window = {window}: a falcon schedule decides what is learned from; give all")
        if rule == "epsilon_slice" and window != 1:
            raise InputError("epsilon_slice: learns from the coin's rows of one generation: window must be 1")
        mixed = self.exploration.floor or self.exploration.minimum
        if rule == "epsilon_slice" and (mixed or (self.tune and self.tune.parameter in ("floor", "minimum"))):
            raise InputError("epsilon_slice: its coin is the only uniform share: floor and minimum must be 0")
        if rule == "epsilon_slice" and self.weights != "none":
            raise InputError("weights = inverse_propensity: the rows of a slice are uniform already; give none")
        if self.tune is not None:
            self._check(self.tune)
        return self

    def _check(self, tune: Tuning) -> None:
        if self.exploration.rule not in RULES_WITH.get(tune.parameter, (self.exploration.rule,)):
            raise InputError(f"tune.parameter = {tune.parameter}: {self.exploration.rule} has none")
        for value in tune.grid:
            try:
                self.exploration.at(tune.parameter, value)
            except ValidationError as error:
                message = error.errors()[0]["msg"].removeprefix("Value error, ")
                raise InputError(f"tune.grid: {tune.parameter} cannot be {value:g}: {message}") from error

    @property
    def falcon(self) -> Falcon | None:
        """The schedule by whose epochs the oracle is refitted, if gamma has such a one."""
        gamma = self.exploration.gamma
        return gamma if self.exploration.rule in WEIGHED and isinstance(gamma, Falcon) else None

    def at(self, value: float) -> Arm:
        """The arm with the tuned number set."""
        if self.tune is None:
            return self
        return self.model_copy(update={"exploration": self.exploration.at(self.tune.parameter, value), "tune": None})

"""Biological parameters of the fishery models, with units.

Populations are in units of a carrying capacity (K = 1 unless said otherwise); time is in years.

Source: Montealegre-Mora, Lapeyrolerie, Chapman, Keller and Boettiger (2023), "Pretty darn good control: when are
approximate solutions better than approximate models", Bull. Math. Biol., section 2; May (1977) for one species.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal

from core.errors import InputError


def _require_positive(parameters: object, *names: str) -> None:
    for name in names:
        value = getattr(parameters, name)
        if not 0 < value < math.inf:
            raise InputError(f"parameters.{name} = {value}: must be greater than 0 and finite")


def _require_non_negative(parameters: object, *names: str) -> None:
    for name in names:
        value = getattr(parameters, name)
        if not 0 <= value < math.inf:
            raise InputError(f"parameters.{name} = {value}: must be at least 0 and finite")


@dataclass(frozen=True)
class OneSpecies:
    """One exploited species with a predator of fixed abundance (May 1977); ``beta_H = 0`` leaves surplus production.

    Increment: (r/p) X (1 - (X/K)^p) - beta_H X^2 / (c^2 + X^2).

    Attributes:
        r: intrinsic growth rate, 1/year.
        K: carrying capacity, population.
        beta_H: predation rate times predator abundance, population/year.
        c: half-saturation population of the predation.
        exponent: shape p of the surplus production (1 is logistic; Pella and Tomlinson 1969).
    """

    r: float = 1.0
    K: float = 1.0
    beta_H: float = 0.25
    c: float = 0.1
    exponent: float = 1.0

    species = ("X",)

    def __post_init__(self) -> None:
        _require_positive(self, "r", "K", "c", "exponent")
        _require_non_negative(self, "beta_H")

    @property
    def capacities(self) -> tuple[float, ...]:
        """Carrying capacities that an extinction threshold must stay below."""
        return (self.K,)


@dataclass(frozen=True)
class ThreeSpecies:
    """Two competing prey X and Y and their predator Z.

    dX = r_x X (1 - X/K_x) - beta Z X^2/(c^2 + X^2) - c_xy X Y + tau_yx Y - tau_xy X
    dY = r_y Y (1 - Y/K_y) - D beta Z Y^2/(c^2 + Y^2) - c_xy X Y + tau_xy X - tau_yx Y
    dZ = alpha Z (b (X + D Y) - d_z)

    Attributes:
        r_x, r_y: intrinsic growth rates, 1/year.
        K_x, K_y: carrying capacities, population.
        beta: predation rate, 1/year (``beta``).
        c: half-saturation prey population (``v0`` in the authors' code).
        c_xy: competition between the prey, 1/(population year) (``cV``).
        b: conversion of prey into predators, 1/(population year) (``f``).
        D: preference of the predator for Y relative to X.
        d_z: death rate of the predator, 1/year (``dH``).
        alpha: factor on the whole increment of Z and on its noise.
        tau_xy, tau_yx: share of X that turns into Y each year, and back.
        competition: ``linear`` as above; ``capacity`` lowers the capacities instead, K_x - c_xy Y and K_y - c_xy X.
    """

    r_x: float = 1.0
    K_x: float = 1.0
    r_y: float = 1.0
    K_y: float = 1.0
    beta: float = 0.3
    c: float = 0.3
    c_xy: float = 0.1
    b: float = 0.1
    D: float = 1.1
    d_z: float = 0.1
    alpha: float = 1.0
    tau_xy: float = 0.0
    tau_yx: float = 0.0
    competition: Literal["linear", "capacity"] = "linear"

    species = ("X", "Y", "Z")

    def __post_init__(self) -> None:
        _require_positive(self, "r_x", "K_x", "r_y", "K_y", "c")
        _require_non_negative(self, "beta", "c_xy", "b", "D", "d_z", "alpha", "tau_xy", "tau_yx")
        if self.competition not in ("linear", "capacity"):
            raise InputError(f"parameters.competition = {self.competition!r}: must be linear or capacity")

    @property
    def capacities(self) -> tuple[float, ...]:
        """Carrying capacities that an extinction threshold must stay below."""
        return (self.K_x, self.K_y)


Parameters = OneSpecies | ThreeSpecies


def override(parameters: Parameters, changes: dict[str, float]) -> Parameters:
    """The parameters with some values replaced.

    Raises:
        InputError: an unknown parameter or an impossible value.
    """
    known = [f.name for f in dataclasses.fields(parameters)]
    for name in changes:
        if name not in known:
            raise InputError(f"parameters.{name}: unknown parameter; known here: {', '.join(known)}")
    return dataclasses.replace(parameters, **changes)  # type: ignore[arg-type]

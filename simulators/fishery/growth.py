"""Natural growth between two harvests, and the drifts and forcings of its parameters in time.

Each species is a column, a tensor of any batch shape, in the units of ``parameters``: operations then run over
contiguous memory, which on a CPU is several times faster than the batch-first layout.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from simulators.fishery.parameters import OneSpecies, Parameters, ThreeSpecies


def predation(prey: Tensor, rate: Any, c: Any) -> Tensor:
    """Holling type III functional response, rate X^2 / (c^2 + X^2)."""
    square = prey * prey
    return rate * square / (c * c + square)


def surplus_production(biomass: Tensor, r: Any, K: Any, exponent: float = 1.0) -> Tensor:
    """(r/p) X (1 - (X/K)^p): logistic growth at p = 1."""
    if exponent == 1:
        return biomass * (r - (r / K) * biomass)
    return (r / exponent) * biomass * (1 - (biomass / K) ** exponent)


def increments_one(p: OneSpecies, x: Tensor) -> tuple[Tensor]:
    """Increment of the one-species model."""
    production = surplus_production(x, p.r, p.K, p.exponent)
    return (production - predation(x, p.beta_H, p.c) if p.beta_H else production,)


def increments_three(p: Any, x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Increments of X, Y and Z. Parameters are numbers or tensors of the batch shape."""
    K_x, K_y, c_xy = p.K_x, p.K_y, p.c_xy
    if p.competition == "capacity":
        K_x, K_y, c_xy = K_x - c_xy * y, K_y - c_xy * x, 0.0
    # The predator has the same functional response to both prey, to Y weighted by its preference D.
    attack, competition = p.beta * z, c_xy * x * y
    dx = surplus_production(x, p.r_x, K_x) - predation(x, attack, p.c) - competition
    dy = surplus_production(y, p.r_y, K_y) - predation(y, p.D * attack, p.c) - competition
    dz = z * (p.b * (x + p.D * y) - p.d_z)
    if p.tau_xy or p.tau_yx:
        exchange = p.tau_yx * y - p.tau_xy * x
        dx, dy = dx + exchange, dy - exchange
    return dx, dy, dz if p.alpha == 1 else p.alpha * dz


def increments(p: Parameters | SimpleNamespace, columns: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Increment of each species in one year without harvest and noise, from the column of each species."""
    return increments_one(p, *columns) if isinstance(p, OneSpecies) else increments_three(p, *columns)


def growth(p: Parameters, population: Tensor) -> Tensor:
    """Increment of one year without harvest and noise; ``(..., species)`` from ``(..., species)``."""
    return torch.stack(increments(p, population.unbind(-1)), dim=-1)


def _seasonal(t: Tensor) -> Tensor:
    return torch.sin(2 * math.pi * t / 50)


@dataclass(frozen=True)
class Variant:
    """A way in which the three-species model changes with the year t.

    Attributes:
        parameters: values, at year t, of the parameters that change.
        forced: index of a species that follows a schedule instead of its growth; it carries no noise, is not harvested
            and is exempt from the extinction test.
        schedule: the forced species at year t + 1, from its value at t and t.
        start: the forced species at year 0, where the schedule fixes it.
    """

    parameters: Callable[[ThreeSpecies, Tensor], dict[str, Any]] = lambda p, t: {}
    forced: int | None = None
    schedule: Callable[[Tensor, Tensor], Tensor] | None = None
    start: float | None = None


VARIANTS: dict[str, Variant] = {
    "rx_drift": Variant(lambda p, t: {"r_x": p.r_x * (1 - t / 200).clamp(min=0.5)}),
    "v0_drift": Variant(lambda p, t: {"c": p.c * (1 - t / 150).clamp(min=1 / 3)}),
    "D_drift": Variant(lambda p, t: {"D": p.D - t * abs(p.D - 1) / 100}),
    "cV_drift": Variant(lambda p, t: {"c_xy": p.c_xy * (1 + t / 100).clamp(max=2)}),
    "beta_drift": Variant(lambda p, t: {"beta": p.beta * (1 + t / 100)}),
    "k_limit": Variant(lambda p, t: {"competition": "capacity"}),
    "k_limit_rx_drift": Variant(lambda p, t: {"competition": "capacity", "r_x": p.r_x * (1 - t / 200).clamp(min=0.5)}),
    "k_fluct": Variant(lambda p, t: {"K_x": p.K_x * (1 + 0.1 * _seasonal(t))}),
    "coupling_fluct": Variant(lambda p, t: {"c": p.c * (1 + 0.1 * _seasonal(t)).sqrt()}),
    "comp_fluct": Variant(lambda p, t: {"c_xy": p.c_xy * (1 + 0.1 * _seasonal(t))}),
    "y_abiotic": Variant(forced=1, schedule=lambda y, t: 0.4 + 0.4 * _seasonal(t + 1), start=0.4),
    "z_abiotic": Variant(forced=2, schedule=lambda z, t: z * (1 + 0.02 * torch.cos(2 * math.pi * t / 50))),
}
"""Named variants of the three-species model (``growth_functions.py`` of the authors), t in years from 0.

``beta_drift`` is the drift that the authors' text intends; their code computes it and does not use it.
"""


def at_year(p: ThreeSpecies, variant: Variant | None, year: Tensor) -> ThreeSpecies | SimpleNamespace:
    """The parameters in force at ``year`` (the batch's shape); drifting ones become tensors of that shape."""
    if variant is None:
        return p
    return SimpleNamespace(**{**vars(p), **variant.parameters(p, year)})

"""Fisheries under harvest: Models 1-4 of Montealegre-Mora et al. (2023), their variants, and fitted stocks."""

from simulators.fishery.fixed_points import FixedPointDiagram, fixed_points
from simulators.fishery.growth import VARIANTS, growth
from simulators.fishery.parameters import OneSpecies, ThreeSpecies
from simulators.fishery.world import YEARS, Fishery, FisheryNoise, FisheryState, model, stock_world

__all__ = [
    "VARIANTS",
    "YEARS",
    "Fishery",
    "FisheryNoise",
    "FisheryState",
    "FixedPointDiagram",
    "OneSpecies",
    "ThreeSpecies",
    "fixed_points",
    "growth",
    "model",
    "stock_world",
]

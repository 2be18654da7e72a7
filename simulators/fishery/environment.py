"""Entry point of the gymnasium registry: ``gymnasium.make("Fishery-v0", model=3)``."""

from __future__ import annotations

from typing import Any

from core.simulation import GymEnv
from simulators.fishery import world


def make(model: int = 3, *, horizon: int | None = world.YEARS, scaled: bool = True, **options: Any) -> GymEnv:
    """One copy of a model as a gymnasium environment.

    Args:
        model: model of the paper, 1 to 4.
        horizon: years after which the episode is truncated; None for never.
        scaled: observations and actions in [-1, 1] (a learner's view) instead of populations and mortalities.
        **options: see ``simulators.fishery.model``.
    """
    return GymEnv(world.model(model, **options), horizon=horizon, scaled=scaled)

"""Entry points of the gymnasium registry: ``gymnasium.make("Sepsis44-v0")``, and likewise of its two sisters."""

from __future__ import annotations

from typing import Any

from core.simulation import GymEnv
from simulators.sepsis.gumbel import HORIZON, GumbelSepsis
from simulators.sepsis.icusepsis import ICUSepsis44
from simulators.sepsis.sepsis44 import Sepsis44


def make(*, scaled: bool = True, **options: Any) -> GymEnv:
    """One patient of the mechanistic simulator, until death or the end of the third day.

    Args:
        scaled: features in [-1, 1] (a learner's view) instead of their units.
        **options: fields of ``Sepsis44``.
    """
    return GymEnv(Sepsis44(**options), scaled=scaled)


def make_icusepsis(*, horizon: int | None = None, scaled: bool = True, **options: Any) -> GymEnv:
    """One patient of the chain counted in real records.

    Args:
        horizon: steps of 4 h after which the episode is truncated; None for never, since the chain ends by itself.
        scaled: features in [-1, 1] (a learner's view) instead of normalised.
        **options: fields of ``ICUSepsis44``.
    """
    return GymEnv(ICUSepsis44(**options), horizon=horizon, scaled=scaled)


def make_gumbel(*, horizon: int | None = HORIZON, **options: Any) -> GymEnv:
    """One patient of the small world with four vital signs and a diabetes that is not seen.

    Args:
        horizon: steps after which the episode is truncated; None for never.
        **options: fields of ``GumbelSepsis``.
    """
    return GymEnv(GumbelSepsis(**options), horizon=horizon)

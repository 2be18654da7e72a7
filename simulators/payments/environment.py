"""Entry point of the gymnasium registry: ``gymnasium.make("Payments-v0", seed=3)``."""

from __future__ import annotations

from typing import Any

from core.simulation import GymEnv
from simulators.payments.options import Retry
from simulators.payments.world import Payments


def make(*, retry: Retry | None = None, scaled: bool = True, **options: Any) -> GymEnv:
    """One payment at a time as a gymnasium environment; with ``retry`` an episode is up to five attempts.

    Args:
        retry: soft declines may be tried again; None ends every episode with the answer.
        scaled: numbers in [-1, 1] (a learner's view) instead of the domain's units.
        **options: further fields of ``Payments``.
    """
    return GymEnv(Payments(retry=retry, **options), scaled=scaled)

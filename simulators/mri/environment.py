"""Entry point of the gymnasium registry: ``gymnasium.make("MRIAcquisition-v0", reward="ssim_gain")``."""

from __future__ import annotations

from functools import cache
from typing import Any, Literal, get_args

import numpy as np

from core.diffusion.exact_posterior import ExactPosterior
from core.diffusion.mixture import GaussianMixturePrior
from core.errors import InputError
from core.simulation import GymEnv
from simulators.mri.adaptivity import Adaptivity
from simulators.mri.operators import KSpaceLines
from simulators.mri.world import MRILineWorld

OnTaken = Literal["penalty", "raise"]

SIGMA = 0.01
"""Standard deviation of the scanner's noise, of each real component."""


class AcquisitionEnv(GymEnv):
    """One scan; see ``MRILineWorld``.

    Args:
        world: what is scanned, seen and paid.
        on_taken: "penalty" (a line taken before changes nothing and pays -1), or "raise".
        **options: of ``GymEnv``; the episode is truncated after ``2 * budget`` steps unless ``horizon`` says otherwise.

    Raises:
        InputError: an unknown ``on_taken``; in ``step``, with "raise", a line that was taken before.
    """

    def __init__(self, world: MRILineWorld, *, on_taken: OnTaken = "penalty", **options: Any) -> None:
        if on_taken not in get_args(OnTaken):
            raise InputError(f"on_taken: {on_taken!r}; allowed: {', '.join(get_args(OnTaken))}")
        super().__init__(world, **{"horizon": 2 * world.budget, **options})
        self.on_taken = on_taken

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Acquire one line."""
        if self.on_taken == "raise":
            free = np.flatnonzero(self._action_masks())
            if action not in free:
                raise InputError(
                    f"action: {int(action)}; allowed: the lines not yet taken, {', '.join(map(str, free))}"
                )
        return super().step(action)


@cache
def phantom_posterior(images: int = 1000, components: int = 24, rank: int = 8, seed: int = 0) -> ExactPosterior:
    """Posterior of the adaptivity phantom's images, 32 x 32, under a mixture prior fitted to ``images`` of them.

    Raises:
        MissingExtra: scikit-learn is not installed.
    """
    phantom = Adaptivity()
    prior = GaussianMixturePrior.fit(phantom.sample(images, seed), components=components, rank=rank, seed=seed)
    return ExactPosterior(prior, KSpaceLines(phantom.shape), SIGMA)


def make(
    *,
    budget: int = 8,
    reward: str = "info_gain",
    observation: str = "images",
    on_taken: OnTaken = "penalty",
    scaled: bool = True,
    **options: Any,
) -> AcquisitionEnv:
    """Scans of the adaptivity phantom, a line a step.

    Args:
        budget: lines in all, the central one included.
        reward: "info_gain", "ssim_gain" or "psnr_gain".
        observation: "images" (a Dict, for ``MultiInputPolicy``) or "lines" (a flat Box).
        on_taken: see ``AcquisitionEnv``.
        scaled: observations in [-1, 1] (a learner's view) instead of the image's unit.
        **options: further fields of ``MRILineWorld``.
    """
    targets = {"images": Adaptivity().sample(500, seed=1)}
    world = MRILineWorld(
        phantom_posterior(),
        budget=budget,
        reward=reward,  # type: ignore[arg-type]
        observation=observation,  # type: ignore[arg-type]
        **(targets | options),
    )
    return AcquisitionEnv(world, on_taken=on_taken, scaled=scaled)

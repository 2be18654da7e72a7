"""Entry point of the gymnasium registry: ``gymnasium.make("MRIAcquisition-v0", reward="ssim_gain")``."""

from __future__ import annotations

import inspect
from dataclasses import fields
from functools import cache
from typing import Any, Literal, get_args

import numpy as np

from core.diffusion.exact_posterior import ExactPosterior
from core.diffusion.guided import GuidedSampler
from core.diffusion.mixture import GaussianMixturePrior
from core.errors import InputError
from core.simulation import GymEnv
from simulators.mri.adaptivity import Adaptivity
from simulators.mri.guided_posterior import GuidedPosterior
from simulators.mri.operators import KSpaceLines
from simulators.mri.world import MRILineWorld, Posterior

OnTaken = Literal["penalty", "raise"]
Redraw = Literal["exact", "dps"]

SIGMA = 0.01
"""Standard deviation of the scanner's noise, of each real component."""
DPS_STEPS = 40
"""Guided steps with which ``posterior="dps"`` redraws the particles, as many as Active Diffusion Subsampling takes."""


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


def _posterior(kind: Redraw | Posterior, dps_steps: int | None) -> Posterior:
    if dps_steps is not None and kind != "dps":
        raise InputError(f"dps_steps: {dps_steps}; allowed: only with posterior 'dps'")
    if not isinstance(kind, str) and hasattr(kind, "sample"):
        return kind
    if kind not in get_args(Redraw):
        raise InputError(f"posterior: {kind!r}; allowed: {', '.join(get_args(Redraw))}, or a posterior of your own")
    exact = phantom_posterior()
    if kind == "exact":
        return exact
    sampler = GuidedSampler(exact.prior, exact.measurement, DPS_STEPS if dps_steps is None else dps_steps)
    return GuidedPosterior(sampler, SIGMA)


def _check(options: dict[str, Any]) -> None:
    # ``render_mode`` is left to fail as a TypeError: by that SB3's make_vec_env knows to leave it out.
    further = {field.name for field in fields(MRILineWorld)} - {"agents"}
    if unknown := sorted(options.keys() - further - {"render_mode"}):
        allowed = sorted(further | (inspect.signature(make).parameters.keys() - {"options"}))
        raise InputError(f"{', '.join(unknown)}: unknown; allowed: {', '.join(allowed)}")


def make(
    *,
    posterior: Redraw | Posterior = "exact",
    dps_steps: int | None = None,
    budget: int = 8,
    reward: str = "info_gain",
    observation: str = "images",
    on_taken: OnTaken = "penalty",
    scaled: bool = True,
    **options: Any,
) -> AcquisitionEnv:
    """Scans of the adaptivity phantom, a line a step.

    Args:
        posterior: what redraws the particles: "exact", of the phantom's prior; "dps", guided diffusion under the same
            prior, approximate and slow; or one of your own, for instance a ``GuidedPosterior`` of a neural prior.
        dps_steps: guided steps of "dps"; None stands for ``DPS_STEPS``.
        budget: lines in all, the central one included.
        reward: "info_gain", "ssim_gain" or "psnr_gain".
        observation: "images" (a Dict, for ``MultiInputPolicy``) or "lines" (a flat Box).
        on_taken: see ``AcquisitionEnv``.
        scaled: observations in [-1, 1] (a learner's view) instead of the image's unit.
        **options: further fields of ``MRILineWorld``. Without ``images`` the phantom's are scanned.

    Raises:
        InputError: an unknown option, or a value outside its range.
        MissingExtra: see ``phantom_posterior``.
    """
    _check(options)
    targets = {"images": Adaptivity().sample(500, seed=1)}
    world = MRILineWorld(
        _posterior(posterior, dps_steps),
        budget=budget,
        reward=reward,  # type: ignore[arg-type]
        observation=observation,  # type: ignore[arg-type]
        **(targets | options),
    )
    return AcquisitionEnv(world, on_taken=on_taken, scaled=scaled)

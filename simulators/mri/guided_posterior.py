"""Diffusion posterior sampling as the posterior of ``MRILineWorld``: for neural priors, and slow."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from core.diffusion.guided import GuidedSampler, sample_posterior
from core.errors import InputError


@dataclass(frozen=True)
class SampleSeeds:
    """What is random in a draw of P particles for each of B subjects.

    Attributes:
        seed: ``(B,)`` int64, of the subject's own generator.
        particles: P.
    """

    seed: Tensor
    particles: int


class GuidedPosterior:
    """Runs all steps of a guided sampler for every ``sample``; an episode of B lines costs B such runs.

    Args:
        sampler: prior, measurement, number of steps and guidance.
        sigma: standard deviation of the scanner's noise, of each real component; the sampler does not use it.

    Raises:
        InputError: a negative sigma.
    """

    def __init__(self, sampler: GuidedSampler, sigma: float = 0.0) -> None:
        if not sigma >= 0:
            raise InputError(f"sigma: {sigma}; allowed: at least 0")
        self.sampler, self.sigma = sampler, sigma
        self.prior, self.measurement = sampler.prior, sampler.measurement

    def noise(self, batch: int, particles: int, generator: torch.Generator) -> SampleSeeds:
        """A seed for each subject."""
        return SampleSeeds(torch.randint(2**62, (batch,), generator=generator, device=generator.device), particles)

    def sample(self, y: Tensor, mask: Tensor, noise: SampleSeeds) -> Tensor:
        """Approximate posterior samples (B, P, C, H, W); deterministic given ``noise``."""
        generators = [torch.Generator(y.device).manual_seed(seed) for seed in noise.seed.tolist()]
        return sample_posterior(self.sampler, y, mask, noise.particles, generators)

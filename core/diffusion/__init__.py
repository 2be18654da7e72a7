"""Diffusion priors, their training, and posterior sampling with measurements."""

from core.diffusion.exact_posterior import ExactPosterior, PosteriorNoise
from core.diffusion.guided import Guidance, GuidedSampler, consistent, sample_posterior
from core.diffusion.measurement import Measurement
from core.diffusion.mixture import GaussianMixturePrior
from core.diffusion.prior import Prior
from core.diffusion.schedule import CosineAngle, DiscreteSchedule, Schedule

__all__ = [
    "CosineAngle",
    "DiscreteSchedule",
    "ExactPosterior",
    "GaussianMixturePrior",
    "Guidance",
    "GuidedSampler",
    "Measurement",
    "PosteriorNoise",
    "Prior",
    "Schedule",
    "consistent",
    "sample_posterior",
]

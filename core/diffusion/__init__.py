"""Diffusion priors, their training, and posterior sampling with measurements."""

from core.diffusion.diffusers_prior import DiffusersPrior
from core.diffusion.exact_posterior import ExactPosterior, PosteriorNoise
from core.diffusion.guided import Guidance, GuidedSampler, consistent, sample_posterior
from core.diffusion.loading import load_prior
from core.diffusion.measurement import Measurement
from core.diffusion.mixture import GaussianMixturePrior
from core.diffusion.preference import DiffusionPreference, Preference
from core.diffusion.prior import Prior
from core.diffusion.schedule import CosineAngle, DiscreteSchedule, Schedule
from core.diffusion.training import Training, train
from core.diffusion.unet import NetworkPrior, ResidualUNet

__all__ = [
    "CosineAngle",
    "DiffusersPrior",
    "DiffusionPreference",
    "DiscreteSchedule",
    "ExactPosterior",
    "GaussianMixturePrior",
    "Guidance",
    "GuidedSampler",
    "Measurement",
    "NetworkPrior",
    "PosteriorNoise",
    "Preference",
    "Prior",
    "ResidualUNet",
    "Schedule",
    "Training",
    "consistent",
    "load_prior",
    "sample_posterior",
    "train",
]

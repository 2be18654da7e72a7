"""The methods that are compared: how each chooses its actions, and how it makes an image of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from apps.mri.board import Acquisition
from apps.mri.ledger import Ledger
from apps.mri.masks import FIXED_RULES, FixedRule
from simulators.mri.quality import magnitude
from simulators.mri.scanner import Instrument

Adaptive = Literal[
    "ads", "ads_exact", "ads_stop", "ads_roi", "greedy_variance", "bhattacharyya", "reference_positive", "kl_pixelwise",
    "noise_aware",
]  # fmt: skip
"""Active Diffusion Subsampling as configured; with exact posterior samples; with the stop rule; with the region of
interest; and with other scores."""
Learned = Literal["loupe", "loupe_unet", "pg", "subpo"]
"""LOUPE's mask with posterior sampling, and with its own network; greedy policy gradient; SubPO."""
Reconstruction = Literal["zero_filled", "wavelet", "tv", "unet"]
"""Other reconstructions of the reference mask's samples."""
Method = Literal[Adaptive, FixedRule, "greedy_fixed", Learned, Reconstruction]

ADAPTIVE: tuple[Adaptive, ...] = get_args(Adaptive)
RECONSTRUCTIONS: tuple[Reconstruction, ...] = get_args(Reconstruction)
SAMPLED: tuple[str, ...] = (*ADAPTIVE, *FIXED_RULES, "greedy_fixed", "loupe", "subpo")
"""The methods whose images are diffusion posterior samples."""

NAMES = {
    "ads": "ADS",
    "ads_exact": "ADS, exact posterior",
    "ads_stop": "ADS with stop rule",
    "ads_roi": "ADS, region of interest",
    "greedy_variance": "greedy variance",
    "bhattacharyya": "ADS, lower bound",
    "reference_positive": "ADS, reference score",
    "kl_pixelwise": "ADS, point by point",
    "noise_aware": "ADS, noise-aware",
    "random": "random",
    "equispaced": "equispaced",
    "uniform": "centre + equispaced",
    "fastmri": "fastMRI",
    "vds": "variable density",
    "vds_gaussian": "variable density (Gaussian)",
    "lowpass": "low-pass",
    "data_variance": "data variance",
    "data_variance_top": "data variance, largest",
    "greedy_fixed": "searched fixed mask",
    "loupe": "LOUPE mask",
    "loupe_unet": "LOUPE with its U-Net",
    "pg": "greedy policy gradient",
    "subpo": "SubPO",
    "zero_filled": "zero-filled",
    "wavelet": "wavelet CS",
    "tv": "total variation CS",
    "unet": "U-Net",
}
"""What a method is called in a figure."""


def display(x: Tensor) -> Tensor:
    """What is looked at (..., H, W): the magnitude of complex images, and real ones from [-1, 1] to [0, 1]."""
    return (magnitude(x) + 1) / 2 if x.shape[-3] == 1 else magnitude(x)


def point_estimate(particles: Tensor) -> Tensor:
    """The image (S, H, W) of posterior samples (S, P, C, H, W): the mean of what is looked at."""
    return display(particles).mean(1)


def deterministic(images: Tensor, ledger: Ledger, order: Tensor) -> Acquisition:
    """The outcome of a method that makes one image a subject (S, C, H, W) and has no posterior."""
    subjects, actions = ledger.mask.shape
    none = torch.zeros_like(ledger.dropped)
    alone = Acquisition(
        particles=images[:, None],
        mask=ledger.mask,
        samples=ledger.samples,
        order=order,
        step=torch.zeros(0),
        scores=images.new_zeros(subjects, 0, actions),
        residual=images.new_zeros(subjects, 0),
        restarts=none,
        collapsed=none.bool(),
        saturated=none.bool(),
        dropped=ledger.dropped,
        forwards=0,
    )
    return ordered(alone, order)


def ordered(outcome: Acquisition, order: Tensor) -> Acquisition:
    """The same outcome, of actions that a policy took in the order (S, n), without scores and before any diffusion."""
    scores = outcome.samples.new_full((*order.shape, outcome.mask.shape[1]), torch.nan)
    return replace(outcome, order=order, step=torch.full(order.shape[1:], -1), scores=scores)


@dataclass(frozen=True)
class Sequential:
    """A policy that chooses one action after another from what was measured so far.

    Attributes:
        choose: actions (S,) from measured components (S, A, R) and masks (S, A) of what is measured or cannot be.
        start: ``(A,)`` actions taken before the first choice.
        budget: actions in all.
    """

    choose: Callable[[Tensor, Tensor], Tensor]
    start: Tensor
    budget: int

    def acquire(self, scanner: Instrument) -> tuple[Ledger, Tensor]:
        """What is held in the end, and the order (S, n) of the choices."""
        ledger = Ledger(scanner, self.start.expand(scanner.subjects, -1))
        choices = range(self.budget - int(self.start.sum()))
        order = [ledger.take(self.choose(ledger.samples, ~ledger.free)[:, None]) for _ in choices]
        return ledger, torch.cat(order, 1)


def generators(seeds: Sequence[int], device: torch.device) -> list[torch.Generator]:
    """One generator a seed, on ``device``."""
    return [torch.Generator(device).manual_seed(seed) for seed in seeds]

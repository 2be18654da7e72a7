"""The methods that are compared: how each chooses its actions, and how it makes an image of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from apps.mri.board import Acquisition
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


def deterministic(images: Tensor, mask: Tensor, samples: Tensor, order: Tensor) -> Acquisition:
    """The outcome of a method that makes one image a subject (S, C, H, W) and has no posterior."""
    subjects, actions = mask.shape
    none = torch.zeros(subjects, dtype=torch.long, device=mask.device)
    return Acquisition(
        particles=images[:, None],
        mask=mask,
        samples=samples,
        order=order,
        step=torch.zeros(order.shape[1], dtype=torch.long),
        scores=images.new_full((subjects, order.shape[1], actions), torch.nan),
        residual=images.new_zeros(subjects, 0),
        restarts=none,
        collapsed=none.bool(),
        dropped=none,
        forwards=0,
    )


def acquire_mask(scanner: Instrument, mask: Tensor) -> Tensor:
    """Ask for all actions of masks (S, A), as many for each subject: real components (S, A, R), zero elsewhere."""
    scanner.acquire(mask.nonzero()[:, 1].view(len(mask), -1))
    return scanner.measured()[0]


@dataclass(frozen=True)
class Sequential:
    """A policy that chooses one action after another from what was measured so far.

    Attributes:
        choose: actions (S,) from measured components (S, A, R) and masks (S, A).
        start: ``(A,)`` actions taken before the first choice.
        budget: actions in all.
    """

    choose: Callable[[Tensor, Tensor], Tensor]
    start: Tensor
    budget: int

    def acquire(self, scanner: Instrument) -> tuple[Tensor, Tensor, Tensor]:
        """Masks (S, A), measured components (S, A, R) and the order (S, n) of the choices."""
        if bool(self.start.any()):
            acquire_mask(scanner, self.start.expand(scanner.subjects, -1))
        order: list[Tensor] = []
        for _ in range(self.budget - int(self.start.sum())):
            samples, mask = self._state(scanner)
            order.append(self.choose(samples, mask))
            scanner.acquire(order[-1])
        samples, mask = self._state(scanner)
        return mask, samples, torch.stack(order, 1)

    @staticmethod
    def _state(scanner: Instrument) -> tuple[Tensor, Tensor]:
        if int(scanner.counts.sum()) == 0:
            blank = torch.zeros(1, *scanner.operator.shape, device=scanner.available.device)
            samples = scanner.operator.forward(blank).repeat(scanner.subjects, 1, 1)
            return samples, torch.zeros_like(scanner.available)
        return scanner.measured()


def generators(seeds: Sequence[int], device: torch.device) -> list[torch.Generator]:
    """One generator a seed, on ``device``."""
    return [torch.Generator(device).manual_seed(seed) for seed in seeds]

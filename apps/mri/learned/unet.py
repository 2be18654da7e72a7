"""A U-Net from the zero-filled image to the image, trained on random masks: the supervised reconstruction."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from apps.mri.classical import ZeroFilled, peak
from apps.mri.learned.operator_network import OperatorNetwork
from core import torchvision_guard
from core.errors import InputError, require
from core.rl import TrainingDiverged
from core.seeds import stream
from core.study import Config
from simulators.mri.operators import Operator
from simulators.mri.quality import magnitude, ssim

Masks = Callable[[int, torch.Generator], Tensor]
"""A sampler of training masks: (count, A), binary, on the device of the generator; may be differentiable."""
Progress = Callable[[float, str], None]
"""Told the share done and a message."""


class UNetSettings(Config):
    """Settings of the U-Net and of its training; 500 images of 32 x 32 take about two minutes of one CPU core."""

    channels: int = Field(default=16, ge=1)
    """Channels of the first level; each further level has twice as many."""
    levels: int = Field(default=3, ge=1, le=8)
    """Levels below the first, each at half the resolution."""
    loss: Literal["l1", "ssim"] = "ssim"
    """Mean absolute error of all channels, or one minus SSIM of the magnitude."""
    epochs: int = Field(default=50, ge=1)
    """Passes over the training images."""
    batch: int = Field(default=16, ge=1)
    """Images a step."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Step size of Adam (SeqMRI: 5e-5)."""
    decay_epochs: int = Field(default=10, ge=1)
    """Epochs between two reductions of the step size."""
    decay: float = Field(default=0.5, gt=0, le=1)
    """Factor of a reduction."""
    noise: float = Field(default=0.0, ge=0)
    """Standard deviation of the noise added to each real component of the training samples."""


class UNetReconstruction(OperatorNetwork):
    """Zero-filled image plus what fastMRI's U-Net (Zbontar et al. 2018) adds to it.

    The image is divided by its largest modulus before the network and multiplied after it: the result scales with the
    data.

    Args:
        operator: the measurement.
        settings: of the network.

    Raises:
        InputError: the image is too small for so many levels.
        MissingExtra: fastmri is not installed.
    """

    settings_class = UNetSettings

    def __init__(self, operator: Operator, settings: UNetSettings) -> None:
        super().__init__(operator, settings)
        channels, height, width = operator.shape
        if (height >> settings.levels) * (width >> settings.levels) < 2:
            raise InputError(f"levels {settings.levels}: an image of {height} x {width} is too small for that")
        torchvision_guard.shield()
        models = require("fastmri.models", "mri")
        self.network = models.Unet(channels, channels, settings.channels, settings.levels)

    def forward(self, samples: Tensor, mask: Tensor) -> Tensor:
        """Images (S, C, H, W) of samples (S, A, R) under masks (S, A), binary or differentiable."""
        start = ZeroFilled(self.operator)(samples, mask)
        scale = peak(start)
        return start + scale * self.network(start / scale)


def train(
    operator: Operator,
    images: Tensor,
    masks: Masks,
    settings: UNetSettings | None = None,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> UNetReconstruction:
    """Train a U-Net on random masks; a function of its arguments, on the device of the images.

    Args:
        operator: the measurement.
        images: training images (N, C, H, W).
        masks: the sampler of masks.
        settings: of network and training.
        seed: of first weights, order, masks and noise.
        progress: told once an epoch.

    Raises:
        TrainingDiverged: the loss is not finite.
    """
    settings = UNetSettings() if settings is None else settings
    network = UNetReconstruction.drawn(operator, settings, seed).to(images.device)
    generator = torch.Generator(images.device).manual_seed(stream(seed, "u-net training"))
    groups = [{"params": network.parameters(), "lr": settings.learning_rate}]
    fit(network, images, masks, settings, groups, generator, progress)
    return network.eval()


def fit(
    reconstruction: nn.Module,
    images: Tensor,
    masks: Masks,
    settings: UNetSettings,
    groups: Iterable[dict[str, object]],
    generator: torch.Generator,
    progress: Progress | None = None,
) -> None:
    """Train ``reconstruction`` in place, and with it whatever else the parameter groups hold (a sampler of masks).

    Raises:
        TrainingDiverged: the loss is not finite.
    """
    operator: Operator = reconstruction.operator  # type: ignore[assignment]
    optimiser = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.StepLR(optimiser, settings.decay_epochs, settings.decay)
    for epoch in range(settings.epochs):
        total = torch.zeros((), device=images.device)
        for part in torch.randperm(len(images), generator=generator, device=images.device).split(settings.batch):
            target = images[part]
            samples = noisy(operator.forward(target), settings.noise, generator)
            error = loss(reconstruction(samples, masks(len(part), generator)), target, settings.loss)
            optimiser.zero_grad()
            error.backward()
            optimiser.step()
            total += error.detach() * len(part)
        schedule.step()
        mean = total.item() / len(images)
        if not math.isfinite(mean):
            raise TrainingDiverged(f"epoch {epoch + 1}: the loss of the reconstruction is {mean}")
        if progress is not None:
            progress((epoch + 1) / settings.epochs, f"loss {mean:.4f}")


def loss(x: Tensor, target: Tensor, kind: Literal["l1", "ssim"]) -> Tensor:
    """Mean loss of images (S, C, H, W); see ``UNetSettings.loss``."""
    if kind == "l1":
        return (x - target).abs().mean()
    return 1 - ssim(magnitude(target), magnitude(x)).mean()


def noisy(samples: Tensor, std: float, generator: torch.Generator) -> Tensor:
    """Samples with Gaussian noise of standard deviation ``std`` on each real component."""
    if not std:
        return samples
    return samples + std * torch.randn(samples.shape, generator=generator, device=samples.device, dtype=samples.dtype)

"""A problem: images, what is measured of them, how many samples may be taken, and the prior that all methods share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from apps.mri.images import Images
from apps.mri.masks import MaskProblem
from core import files
from core.diffusion.loading import load_prior
from core.diffusion.mixture import GaussianMixturePrior
from core.diffusion.prior import Prior
from core.diffusion.training import Training, train
from core.diffusion.unet import NetworkPrior, Precision, ResidualUNet
from core.errors import InputError
from core.study import Config, Context, Product
from simulators.mri.operators import Columns, KSpaceLines, KSpacePoints, Operator, Pixels

OperatorName = Literal["pixels", "columns", "kspace_lines", "kspace_points"]
OPERATORS: dict[str, Callable[[tuple[int, int, int]], Operator]] = {
    "pixels": Pixels,
    "columns": Columns,
    "kspace_lines": KSpaceLines,
    "kspace_points": KSpacePoints,
}
FAR_SCALE = 1e3
"""Ratio of norms from which data are taken to be scaled otherwise than the prior's training images."""
_STATISTICS = 4096  # training images, at most about so many, from which variances and mixtures are taken


class MixtureSettings(Config):
    """The analytic prior."""

    kind: Literal["gmm"] = "gmm"
    """A mixture of probabilistic PCA."""
    components: int = Field(default=32, ge=1)
    """Clusters."""
    rank: int = Field(default=20, ge=1)
    """Principal directions of each."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Of the clustering."""


class NetworkSettings(Config):
    """The reference U-Net, trained here."""

    kind: Literal["unet"]
    """A residual U-Net with the cosine-angle schedule."""
    widths: tuple[int, ...] = (32, 64, 96, 128)
    """Channels of each level."""
    block_depth: int = Field(default=2, ge=1)
    """Residual blocks of each level."""
    norm: Literal["batch", "group"] = "batch"
    """``group`` is safer for tiny batches."""
    training: Training = Training(epochs=500)
    """How it is trained."""
    precision: Precision = "float32"
    """Inside the network, when it is used."""


class StoredPrior(Config):
    """A prior from a folder."""

    kind: Literal["stored"]
    """Of ``szilard mri train-prior``, or a directory of diffusers."""
    path: Path
    """The folder."""
    precision: Precision = "float32"
    """Inside a network, when it is used."""


PriorSettings = Annotated[MixtureSettings | NetworkSettings | StoredPrior, Field(discriminator="kind")]


class Problem(Config):
    """What is measured of which images."""

    name: str = Field(pattern=r"^[A-Za-z0-9_]+$")
    """Name of the scenario."""
    images: Images
    """Training and test images."""
    operator: OperatorName = "kspace_lines"
    """What one action measures."""
    budget: int = Field(ge=1)
    """Actions, the initial ones included."""
    initial: int = Field(default=0, ge=0)
    """Central actions that every method holds from the start."""
    center_fraction: float = Field(default=0.08, ge=0, le=1)
    """Share of the actions in the centre block of the masks ``fastmri`` and ``vds``."""
    snr: float | None = Field(default=None)
    """Signal-to-noise ratio of the simulated scanner, dB; no noise if null."""
    coils: int = Field(default=1, ge=1, le=64)
    """Receiver coils of the simulated scanner; above 1 their maps are estimated from the initial lines."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.initial > self.budget:
            raise InputError(f"{self.name}: budget {self.budget} is below the {self.initial} initial actions")
        if self.initial and self.operator in ("pixels", "columns"):
            raise InputError(f"{self.name}: initial: {self.operator} have no centre, must be 0")
        if self.coils > 1 and (self.operator != "kspace_lines" or self.initial < 16):
            raise InputError(f"{self.name}: coils: {self.coils} need kspace_lines and at least 16 initial lines")
        return self

    def measurement(self, shape: tuple[int, int, int]) -> Operator:
        """The operator, for one coil.

        Raises:
            InputError: real images in k-space, or a budget above the number of actions.
        """
        operator = OPERATORS[self.operator](shape)
        if self.budget > operator.actions:
            raise InputError(f"{self.name}: budget {self.budget}, must be at most the {operator.actions} actions")
        return operator

    def known(self, operator: Operator, context: Context) -> MaskProblem:
        """What the fixed masks are made from, with the variance of the training images' samples."""
        variance = SampleVariance(images=self.images, operator=self.operator).load(context)
        return self.mask_problem(operator, variance, context.device)

    def unknown(self, operator: Operator, context: Context) -> MaskProblem:
        """What the fixed masks are made from that need no training images."""
        return self.mask_problem(operator, None, context.device)

    def mask_problem(self, operator: Operator, variance: Tensor | None, device: torch.device | str) -> MaskProblem:
        """What the fixed masks are made from, with the initial actions."""
        plane = operator.shape[2] if operator.actions == operator.shape[1] * operator.shape[2] else None
        none = torch.zeros(operator.actions, dtype=torch.bool, device=device)
        whole = MaskProblem(operator.actions, self.budget, none, operator.center, self.center_fraction, variance, plane)
        if self.initial == 0:
            return whole
        held = whole.nearest(self.initial)
        return MaskProblem(operator.actions, self.budget, held, operator.center, self.center_fraction, variance, plane)


class TrainingImages(Product):
    """The training images, made or read once."""

    images: Images

    @property
    def label(self) -> str:
        """Name on the screen."""
        return f"{self.images.kind} training images"

    def make(self, directory: Path, context: Context) -> None:
        """Write ``images.npy``."""
        images = self.images.training().numpy()
        files.write(directory / "images.npy", lambda path: _save(path, images))

    def load(self, context: Context) -> Tensor:
        """The images (N, C, H, W), mapped from the file rather than read."""
        array = np.load(context.product(self) / "images.npy", mmap_mode="c", allow_pickle=False)
        return torch.from_numpy(array)


class SampleVariance(Product):
    """Variance of the training images' samples, summed over an action."""

    images: Images
    operator: OperatorName

    @property
    def label(self) -> str:
        """Name on the screen."""
        return f"{self.images.kind} variance of {self.operator}"

    def make(self, directory: Path, context: Context) -> None:
        """Write ``variance.npy`` (A,)."""
        images = TrainingImages(images=self.images).load(context)
        operator = OPERATORS[self.operator]((images.shape[1], images.shape[2], images.shape[3]))
        variance = sample_variance(operator, images).numpy()
        files.write(directory / "variance.npy", lambda path: _save(path, variance))

    def load(self, context: Context) -> Tensor:
        """The variance (A,), on the device of ``context``."""
        array = np.load(context.product(self) / "variance.npy", allow_pickle=False)
        return torch.from_numpy(array).to(context.device)


class FittedPrior(Product):
    """A prior fitted to the training images."""

    images: Images
    prior: MixtureSettings | NetworkSettings

    @property
    def label(self) -> str:
        """Name on the screen."""
        return f"{self.images.kind} {self.prior.kind} prior"

    def make(self, directory: Path, context: Context) -> None:
        """Fit or train, and write the prior's files."""
        images = TrainingImages(images=self.images).load(context)
        state = context.checkpoint / "training.safetensors"
        fit_prior(self.prior, images, context.device, checkpoint=state, progress=context.progress).save(directory)


def fit_prior(
    settings: MixtureSettings | NetworkSettings,
    images: Tensor,
    device: torch.device | str = "cpu",
    *,
    checkpoint: Path | None = None,
    progress: Callable[[float, str], None] | None = None,
) -> GaussianMixturePrior | NetworkPrior:
    """A prior of training images (N, C, H, W).

    Raises:
        InputError: images that the prior cannot take.
        TrainingDiverged: the training of a network diverged.
    """
    if isinstance(settings, MixtureSettings):
        images = images[:: max(1, len(images) // _STATISTICS)]
        return GaussianMixturePrior.fit(images, components=settings.components, rank=settings.rank, seed=settings.seed)
    shape = (int(images.shape[1]), int(images.shape[2]), int(images.shape[3]))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.training.seed)
        network = ResidualUNet(shape[0], settings.widths, settings.block_depth, norm=settings.norm)
    prior = NetworkPrior(network, shape, precision=settings.precision)
    return train(prior, images, settings.training, checkpoint=checkpoint, progress=progress, device=device)


def prior_of(settings: PriorSettings, images: Images, context: Context) -> Prior:
    """The prior, fitted once for the study or read from its folder, on the device of ``context``."""
    if isinstance(settings, StoredPrior):
        return load_prior(settings.path, context.device, precision=settings.precision)
    precision = settings.precision if isinstance(settings, NetworkSettings) else "float32"
    folder = context.product(FittedPrior(images=images, prior=settings))
    return load_prior(folder, context.device, precision=precision)


def scale_warning(images: Tensor, prior: Prior) -> str:
    """What to tell when images (N, C, H, W) are scaled otherwise than those the prior was trained on; empty if not."""
    norm, usual = float(images.flatten(1).norm(dim=1).mean()), prior.training_norm
    if usual is None or 1 / FAR_SCALE < norm / usual < FAR_SCALE:
        return ""
    return f"the images have norm {norm:.3g}, the prior's training images {usual:.3g}"


def sample_variance(operator: Operator, images: Tensor) -> Tensor:
    """Variance of the training images' samples, summed over an action: (A,)."""
    some = images[:: max(1, len(images) // _STATISTICS)]
    total = operator.forward(torch.zeros_like(some[0])).double()
    square = total.clone()
    for part in some.split(256):
        y = operator.forward(part).double()
        total += y.sum(0)
        square += y.square().sum(0)
    return (square / len(some) - (total / len(some)).square()).clamp(min=0).sum(-1).float()


def _save(path: Path, images: np.ndarray) -> None:
    with path.open("wb") as file:
        np.save(file, images, allow_pickle=False)

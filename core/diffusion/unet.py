"""The residual U-Net of Active Diffusion Subsampling, and the prior that it is once trained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, Self

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional

from core import files
from core.diffusion.prior import Prior
from core.diffusion.schedule import CosineAngle
from core.errors import InputError
from core.rl.checkpoint import read_tensors

Precision = Literal["float32", "bfloat16", "float16"]
EMBEDDING = 32  # channels: sine and cosine of 16 frequencies
HIGHEST_FREQUENCY = 1000.0


class ResidualUNet(nn.Module):
    """Predicts the noise in images from the images and the variance of the noise.

    Nolan et al., "Active Diffusion Subsampling" (TMLR 2025), whose defaults for fastMRI are the defaults here; MNIST:
    widths (32, 64, 128). The head starts at zero, so an untrained network answers zero.

    Args:
        channels: C of the images, in and out.
        widths: channels of each resolution, finest first; each further one halves height and width.
        depth: residual blocks a resolution.
        norm: ``batch`` (the paper's), or ``group``, which does not depend on the batch: for batches of a few images.

    Raises:
        InputError: an empty or impossible architecture.
    """

    frequencies: Tensor

    def __init__(
        self,
        channels: int,
        widths: Sequence[int] = (32, 64, 96, 128),
        depth: int = 2,
        norm: Literal["batch", "group"] = "batch",
    ) -> None:
        super().__init__()
        if not widths or min(channels, depth, *widths) < 1:
            raise InputError(f"channels {channels}, widths {list(widths)}, depth {depth}: each must be at least 1")
        if norm not in ("batch", "group"):
            raise InputError(f"norm {norm!r}; allowed: batch, group")
        self.architecture = {"channels": channels, "widths": list(widths), "depth": depth, "norm": norm}
        self.stem = nn.Conv2d(channels, widths[0], 1)
        here = widths[0] + EMBEDDING
        skips: list[int] = []
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for width in widths[:-1]:
            self.down.append(nn.ModuleList(_Residual(here if i == 0 else width, width, norm) for i in range(depth)))
            skips += [width] * depth
            here = width
        self.bottleneck = nn.Sequential(
            *(_Residual(here if i == 0 else widths[-1], widths[-1], norm) for i in range(depth))
        )
        here = widths[-1]
        for width in reversed(widths[:-1]):
            level = nn.ModuleList()
            for _ in range(depth):
                level.append(_Residual(here + skips.pop(), width, norm))
                here = width
            self.up.append(level)
        self.head = nn.Conv2d(here, channels, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]
        frequencies = torch.linspace(0.0, math.log(HIGHEST_FREQUENCY), EMBEDDING // 2).exp()
        self.register_buffer("frequencies", frequencies, persistent=False)

    def check(self, shape: Sequence[int]) -> None:
        """Refuse a shape (C, H, W) that the network cannot take.

        Raises:
            InputError: other channels, or a height or width that cannot be halved often enough.
        """
        channels, multiple = self.architecture["channels"], 2 ** len(self.down)
        if shape[0] != channels:
            raise InputError(f"images of {shape[0]} channels: the network has {channels}")
        check_multiple(shape, multiple)

    def embedding(self, variance: Tensor) -> Tensor:
        """Sine and cosine of 2 pi f q^2, ``(N, 32)``, of noise variances ``(N,)``."""
        angle = 2 * math.pi * variance[:, None] * self.frequencies
        return torch.cat((angle.sin(), angle.cos()), dim=1)

    def forward(self, x: Tensor, variance: Tensor) -> Tensor:
        """The noise (N, C, H, W) in images ``x`` (N, C, H, W) whose noise has ``variance`` (N,)."""
        self.check(x.shape[1:])
        embedding = self.embedding(variance)[:, :, None, None].expand(-1, -1, *x.shape[2:])
        h = torch.cat((self.stem(x), embedding), dim=1)
        skips: list[Tensor] = []
        for level in self.down:
            for block in level:  # type: ignore[attr-defined]
                h = block(h)
                skips.append(h)
            h = functional.avg_pool2d(h, 2)
        h = self.bottleneck(h)
        for level in self.up:
            h = functional.interpolate(h, scale_factor=2.0, mode="bilinear", align_corners=False)
            for block in level:  # type: ignore[attr-defined]
                h = block(torch.cat((h, skips.pop()), dim=1))
        return self.head(h)


class NetworkPrior(Prior):
    """A prior whose denoiser is a ``ResidualUNet``.

    Args:
        network: predicts noise.
        shape: (C, H, W) of one image.
        schedule: signal and noise rates of diffusion time.
        training_norm: mean over the training images of their L2 norm, from which a user of the prior sees whether new
            data are scaled alike; ``training.train`` sets it.
        precision: arithmetic inside the network; everything around it stays in the precision of the images.

    Raises:
        InputError: the network cannot take images of that shape.
    """

    schedule: CosineAngle

    def __init__(
        self,
        network: ResidualUNet,
        shape: tuple[int, int, int],
        schedule: CosineAngle | None = None,
        *,
        training_norm: float | None = None,
        precision: Precision = "float32",
    ) -> None:
        super().__init__()
        network.check(shape)
        self.network = network
        self.shape = shape
        self.schedule = schedule or CosineAngle()
        self.training_norm = training_norm
        self.precision = precision

    def noise(self, x: Tensor, tau: Tensor) -> Tensor:
        """See ``Prior.noise``; the network is told the variance q^2 of the noise."""
        variance = (self.schedule.rates(tau)[1] ** 2).expand(len(x))
        with autocast(self.precision, x.device):
            eps = self.network(x, variance)
        return eps.to(x.dtype)

    def save(self, directory: str | Path) -> None:
        """Write ``weights.safetensors`` (with the running statistics) and ``prior.json``, each atomically."""
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: value.detach().cpu().contiguous() for name, value in self.network.state_dict().items()}
        files.write(folder / "weights.safetensors", safetensors.torch.save(weights))
        record = {"network": self.network.architecture, "shape": list(self.shape), "schedule": asdict(self.schedule)}
        files.write_json(folder / "prior.json", record | {"training_norm": self.training_norm})

    @classmethod
    def load(cls, directory: str | Path, *, precision: Precision = "float32") -> Self:
        """Read what ``save`` wrote, on the CPU and ready to be used (not to be trained).

        Raises:
            InputError: a file is absent, damaged, or does not fit the other.
        """
        folder = Path(directory)
        source = folder / "prior.json"
        record = files.read_json(source, ("network", "shape", "schedule", "training_norm"))
        try:
            network, schedule = ResidualUNet(**record["network"]), CosineAngle(**record["schedule"])
            channels, height, width = record["shape"]
            shape = (channels, height, width)
            prior = cls(network, shape, schedule, training_norm=record["training_norm"], precision=precision)
        except (TypeError, ValueError) as error:
            raise InputError(f"{source}: {error}") from error
        weights = folder / "weights.safetensors"
        load_weights(network, read_tensors(weights)[0], str(weights))
        return prior.eval()


class _Residual(nn.Module):
    """skip(x) + conv(swish(conv(norm(x)))); the skip is a 1x1 convolution where the width changes."""

    def __init__(self, before: int, width: int, norm: str) -> None:
        super().__init__()
        self.skip: nn.Module = nn.Identity() if before == width else nn.Conv2d(before, width, 1)
        self.norm: nn.Module
        if norm == "batch":
            self.norm = nn.BatchNorm2d(before, affine=False)
        else:
            self.norm = nn.GroupNorm(math.gcd(8, before), before, affine=False)
        self.first = nn.Conv2d(before, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.skip(x) + self.second(functional.silu(self.first(self.norm(x))))


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[Any]:
    """Mixed precision inside the block; ``float32`` leaves things as they are.

    Raises:
        InputError: an unknown precision.
    """
    if precision == "float32":
        return nullcontext()
    if precision not in ("bfloat16", "float16"):
        raise InputError(f"precision {precision!r}; allowed: float32, bfloat16, float16")
    return torch.autocast(device.type, getattr(torch, precision))


def check_multiple(shape: Sequence[int], multiple: int) -> None:
    """Refuse images (C, H, W) that a U-Net cannot halve often enough.

    Raises:
        InputError: height or width is not a positive multiple of ``multiple``.
    """
    if any(side < 1 or side % multiple for side in shape[1:]):
        raise InputError(f"images of {shape[1]} x {shape[2]}: height and width must be multiples of {multiple}")


def load_weights(module: nn.Module, tensors: dict[str, Tensor], source: str) -> None:
    """Put named tensors in a module.

    Raises:
        InputError: they are those of another module; the message names ``source``.
    """
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        raise InputError(f"{source}: {' '.join(str(error).split())}") from error

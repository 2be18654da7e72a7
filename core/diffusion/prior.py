"""What every diffusion prior offers: its image shape, its noise schedule, and the noise it sees in an image."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from core.diffusion.schedule import Schedule
from core.errors import InputError


class Prior(nn.Module, ABC):
    """A distribution of images known through its denoiser.

    Attributes:
        shape: (C, H, W) of one image; two channels are the real and the imaginary part.
        schedule: signal and noise rates of diffusion time.
        training_norm: mean L2 norm of the images it knows, by which others see whether theirs are scaled alike; None
            where that is not known.
    """

    shape: tuple[int, int, int]
    schedule: Schedule
    training_norm: float | None = None

    @abstractmethod
    def noise(self, x: Tensor, tau: Tensor) -> Tensor:
        """The noise eps_hat (N, C, H, W) in the noisy images ``x`` (N, C, H, W), differentiable in ``x``.

        Args:
            x: noisy images.
            tau: diffusion time in [0, 1], of shape () for all images or (N,).
        """

    def denoise(self, x: Tensor, tau: Tensor) -> tuple[Tensor, Tensor]:
        """Tweedie's estimate x0_hat = (x - q eps_hat) / s of the clean images, and eps_hat; each (N, C, H, W)."""
        signal, noise = (broadcast(rate, x) for rate in self.schedule.rates(tau))
        eps = self.noise(x, tau)
        return (x - noise * eps) / signal, eps

    @torch.no_grad()
    def sample(self, count: int, *, steps: int, generator: torch.Generator) -> Tensor:
        """``count`` images (count, C, H, W) by deterministic DDIM in ``steps`` steps (Song et al. 2021, eq. 12).

        The images are on the device of ``generator``, where the prior must be too.

        Raises:
            InputError: fewer than one step.
        """
        if steps < 1:
            raise InputError(f"steps: {steps}, must be at least 1")
        x = torch.randn((count, *self.shape), generator=generator, device=generator.device)
        x0 = x
        for k in range(steps):
            now, then = times(k, steps, x)
            x0, eps = self.denoise(x, now)
            signal, noise = self.schedule.rates(then)
            x = signal * x0 + noise * eps
        return x0


def times(k: int, steps: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Diffusion times before and after step k of ``steps``: 1 - k/T and 1 - (k+1)/T, on the device of ``like``."""
    return (torch.tensor(1 - (k + i) / steps, dtype=like.dtype, device=like.device) for i in (0, 1))  # type: ignore[return-value]


def broadcast(rate: Tensor, x: Tensor) -> Tensor:
    """A rate of shape () or (N,) shaped to multiply images (N, ...)."""
    return rate.reshape(-1, *(1,) * (x.dim() - 1)) if rate.dim() else rate

"""Noise schedules: how much signal and how much noise an image holds at diffusion time tau in [0, 1]."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from core.errors import InputError


class Schedule(Protocol):
    """A variance-preserving path from data (tau = 0) to noise (tau = 1): x_tau = s x + q eps with s^2 + q^2 = 1."""

    def rates(self, tau: Tensor) -> tuple[Tensor, Tensor]:
        """Signal rate s and noise rate q, shaped like ``tau``."""
        ...


@dataclass(frozen=True)
class CosineAngle:
    """The schedule of Active Diffusion Subsampling: the angle between signal and noise grows linearly with tau.

    Attributes:
        max_signal_rate: s at tau = 0.
        min_signal_rate: s at tau = 1.

    Raises:
        InputError: not 0 < min_signal_rate < max_signal_rate < 1.
    """

    max_signal_rate: float = 0.95
    min_signal_rate: float = 0.02

    def __post_init__(self) -> None:
        if not 0 < self.min_signal_rate < self.max_signal_rate < 1:
            raise InputError(
                f"signal rates {self.min_signal_rate} and {self.max_signal_rate}: must be 0 < min < max < 1"
            )

    def rates(self, tau: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine of the angle at ``tau``."""
        start, end = math.acos(self.max_signal_rate), math.acos(self.min_signal_rate)
        angle = start + tau * (end - start)
        return torch.cos(angle), torch.sin(angle)


class DiscreteSchedule:
    """The N steps of a DDPM as a path in tau: step t stands at tau = (t + 1) / N, and tau = 0 is free of noise.

    Args:
        alphas_cumprod: ``(N,)``, falling, each in (0, 1): the squared signal rate of step t.

    Raises:
        InputError: values outside (0, 1), or fewer than two.
    """

    def __init__(self, alphas_cumprod: Sequence[float] | Tensor) -> None:
        self.alphas_cumprod = torch.as_tensor(alphas_cumprod, dtype=torch.float64)
        if len(self.alphas_cumprod) < 2 or not bool(((self.alphas_cumprod > 0) & (self.alphas_cumprod < 1)).all()):
            raise InputError("alphas_cumprod: must be at least two numbers in (0, 1)")

    def step(self, tau: Tensor) -> Tensor:
        """The integer step nearest to ``tau``, 0 to N - 1."""
        count = len(self.alphas_cumprod)
        return (torch.round(tau * count).long() - 1).clamp(0, count - 1)

    def rates(self, tau: Tensor) -> tuple[Tensor, Tensor]:
        """Square roots of alpha_bar and of 1 - alpha_bar at the nearest step; (1, 0) below the first half step."""
        alpha = self.alphas_cumprod.to(tau.device)[self.step(tau)]
        alpha = torch.where(tau * len(self.alphas_cumprod) < 0.5, 1.0, alpha)
        return alpha.sqrt().to(tau.dtype), (1 - alpha).sqrt().to(tau.dtype)

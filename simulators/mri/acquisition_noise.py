"""What goes wrong in an acquisition: noise, correlated between coils; motion between lines; decay along the train."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from core.errors import InputError
from simulators.mri.coils import noise_factor


def noise_std(images: Tensor, snr_db: float = 30.0) -> Tensor:
    """Noise sigma_n (N,) per real component that gives images (N, C, H, W) a signal-to-noise ratio.

    The ratio is of power, ||x||^2 / E||n||^2 over the whole image, in decibel; the transforms are orthonormal, so the
    noise is as strong in k-space as in the image.
    """
    return images.square().mean((1, 2, 3)).sqrt() * 10 ** (-snr_db / 20)


def shifted(samples: Tensor, line: Tensor, shift: Tensor, width: int) -> Tensor:
    """Lines of a subject that had moved when each was acquired: a rigid shift is a linear phase along and across it.

    Args:
        samples: complex (..., H) or (..., coils, H).
        line: index of each line, shaped as the leading axes of ``samples``.
        shift: displacement in pixels at the time of each line, (*line.shape, 2): down the rows, along the columns.
        width: W, the number of lines of k-space.
    """
    height = samples.shape[-1]
    along = (torch.arange(height, device=samples.device) - height // 2) / height
    across = (line - width // 2) / width
    angle = -2 * math.pi * (shift[..., :1] * along + (shift[..., 1] * across)[..., None])
    phase = torch.polar(torch.ones_like(angle), angle)
    return samples * phase.unflatten(-1, (*(1,) * (samples.dim() - phase.dim()), height))


def t2_decay(line: Tensor, center: int, echo_spacing: float, t2: float) -> Tensor:
    """The factor exp(-|line - center| ESP / T2) of each line of an echo train that starts at the centre.

    Args:
        line: line indices.
        center: the line of the first echo.
        echo_spacing: ESP, ms per line.
        t2: T2, ms.
    """
    return torch.exp(-(line - center).abs() * (echo_spacing / t2))


@dataclass(frozen=True)
class Imperfections:
    """What a scanner adds to ideal k-space lines, beside noise of one strength.

    Attributes:
        coil_covariance: (coils, coils) noise correlation Psi, Hermitian and positive definite: the noise of the coils
            has covariance 2 sigma_n^2 Psi. None: independent coils.
        shift_std: standard deviation, in pixels along each axis, of the subject's place when a line is acquired.
        echo_spacing: ESP, ms per line away from the centre.
        t2: T2, ms; infinite: no decay.

    Raises:
        InputError: a negative or non-finite shift or echo spacing, T2 <= 0, or an impossible covariance.
    """

    coil_covariance: Tensor | None = field(default=None, compare=False)
    shift_std: float = 0.0
    echo_spacing: float = 0.0
    t2: float = math.inf

    def __post_init__(self) -> None:
        for name in ("shift_std", "echo_spacing"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise InputError(f"{name} = {value}: must be finite and >= 0")
        if not self.t2 > 0:
            raise InputError(f"t2 = {self.t2} ms: must be > 0")
        if self.coil_covariance is not None:
            noise_factor(self.coil_covariance)

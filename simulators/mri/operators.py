"""Measurements of an image: pixels, columns, k-space lines, k-space points, and lines seen by several coils.

Every operator is a mask on a fixed linear transform (``core.diffusion.measurement.Measurement``): its samples are a
real tensor (..., A, R), A actions of R components each, the C components of one point side by side. ``samples`` and
``components`` go between that and what an instrument delivers, which is complex in k-space.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from core.errors import InputError


def to_complex(x: Tensor) -> Tensor:
    """Complex images (..., H, W) of two-channel images (..., 2, H, W)."""
    return torch.complex(x[..., 0, :, :], x[..., 1, :, :])


def to_channels(x: Tensor) -> Tensor:
    """Two-channel images (..., 2, H, W) of complex images (..., H, W)."""
    return torch.stack((x.real, x.imag), dim=-3)


def fft2c(x: Tensor) -> Tensor:
    """Centred orthonormal Fourier transform of the last two axes; DC at (H // 2, W // 2)."""
    axes = (-2, -1)
    return torch.fft.fftshift(torch.fft.fft2(torch.fft.ifftshift(x, dim=axes), norm="ortho"), dim=axes)


def ifft2c(k: Tensor) -> Tensor:
    """Inverse of ``fft2c``."""
    axes = (-2, -1)
    return torch.fft.fftshift(torch.fft.ifft2(torch.fft.ifftshift(k, dim=axes), norm="ortho"), dim=axes)


@dataclass(frozen=True)
class Operator(ABC):
    """A measurement of images (C, H, W) by A actions of equal size.

    Attributes:
        shape: (C, H, W) of an image.
    """

    shape: tuple[int, int, int]

    @property
    @abstractmethod
    def actions(self) -> int:
        """Number of actions A."""

    @property
    def unitary(self) -> bool:
        """Whether the rows of the transform are orthonormal, so that the adjoint of all samples is the image."""
        return True

    @property
    def center(self) -> int | None:
        """The action that holds DC; None where there is no such action."""
        return None

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """All samples (..., A, R) of images (..., C, H, W)."""

    @abstractmethod
    def adjoint(self, y: Tensor) -> Tensor:
        """Adjoint of ``forward``: images (..., C, H, W) of samples (..., A, R)."""

    def samples(self, components: Tensor) -> Tensor:
        """What the instrument delivers of components (..., R): real values, or complex ones in k-space."""
        return components

    def components(self, samples: Tensor) -> Tensor:
        """The real components (..., R) of what the instrument delivered."""
        return samples


@dataclass(frozen=True)
class Pixels(Operator):
    """One pixel an action, all its channels; row-major: action i is pixel (i // W, i % W)."""

    @property
    def actions(self) -> int:
        """H W."""
        return self.shape[1] * self.shape[2]

    def forward(self, x: Tensor) -> Tensor:
        """Pixel values (..., H W, C)."""
        return x.flatten(-2).transpose(-1, -2)

    def adjoint(self, y: Tensor) -> Tensor:
        """The image of pixel values."""
        return y.transpose(-1, -2).unflatten(-1, self.shape[1:])


@dataclass(frozen=True)
class Columns(Operator):
    """One image column an action, all rows and channels of it."""

    @property
    def actions(self) -> int:
        """W."""
        return self.shape[2]

    def forward(self, x: Tensor) -> Tensor:
        """Columns (..., W, H C)."""
        return x.movedim(-3, -1).transpose(-3, -2).flatten(-2)

    def adjoint(self, y: Tensor) -> Tensor:
        """The image of columns."""
        return y.unflatten(-1, (self.shape[1], self.shape[0])).transpose(-3, -2).movedim(-1, -3)


@dataclass(frozen=True)
class _KSpace(Operator):
    def __post_init__(self) -> None:
        if self.shape[0] != 2:
            raise InputError(
                f"images of shape {self.shape}: k-space needs two channels, the real and the imaginary part"
            )

    def samples(self, components: Tensor) -> Tensor:
        """Complex samples (..., R / 2)."""
        return torch.view_as_complex(components.unflatten(-1, (-1, 2)).contiguous())

    def components(self, samples: Tensor) -> Tensor:
        """Real and imaginary parts, interleaved (..., R)."""
        return torch.view_as_real(samples).flatten(-2)


@dataclass(frozen=True)
class KSpaceLines(_KSpace):
    """One phase-encode line an action: one column of centred k-space along W, with all H readout samples."""

    @property
    def actions(self) -> int:
        """W."""
        return self.shape[2]

    @property
    def center(self) -> int:
        """W // 2."""
        return self.shape[2] // 2

    def forward(self, x: Tensor) -> Tensor:
        """Lines (..., W, 2 H)."""
        return self.components(fft2c(to_complex(x)).transpose(-1, -2))

    def adjoint(self, y: Tensor) -> Tensor:
        """The image of lines."""
        return to_channels(ifft2c(self.samples(y).transpose(-1, -2)))


@dataclass(frozen=True)
class KSpacePoints(_KSpace):
    """One position of centred k-space an action, row-major."""

    @property
    def actions(self) -> int:
        """H W."""
        return self.shape[1] * self.shape[2]

    @property
    def center(self) -> int:
        """Index of (H // 2, W // 2)."""
        return self.shape[1] // 2 * self.shape[2] + self.shape[2] // 2

    def forward(self, x: Tensor) -> Tensor:
        """Positions (..., H W, 2)."""
        return torch.view_as_real(fft2c(to_complex(x)).flatten(-2))

    def adjoint(self, y: Tensor) -> Tensor:
        """The image of positions."""
        return to_channels(ifft2c(torch.view_as_complex(y.contiguous()).unflatten(-1, self.shape[1:])))


@dataclass(frozen=True)
class MulticoilLines(_KSpace):
    """One phase-encode line an action, seen by all coils: y_c = F (S_c x).

    Attributes:
        maps: coil sensitivities S (coils, H, W), complex; where their squared moduli sum to one, the adjoint of all
            samples is the image.

    Raises:
        InputError: the maps do not have the image's shape, or are not complex.
    """

    maps: Tensor = field(default=None, compare=False)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.maps is None or self.maps.dim() != 3 or not self.maps.is_complex():
            raise InputError("maps: must be complex coil sensitivities of shape (coils, H, W)")
        if tuple(self.maps.shape[1:]) != self.shape[1:]:
            raise InputError(f"maps of shape {tuple(self.maps.shape)}: images are {self.shape[1]} x {self.shape[2]}")

    @cached_property
    def coils(self) -> int:
        """Number of coils."""
        return len(self.maps)

    @property
    def actions(self) -> int:
        """W."""
        return self.shape[2]

    @property
    def unitary(self) -> bool:
        """Never: a line of one coil is not orthogonal to the same line of another."""
        return False

    @property
    def center(self) -> int:
        """W // 2."""
        return self.shape[2] // 2

    def forward(self, x: Tensor) -> Tensor:
        """Lines (..., W, 2 coils H)."""
        k = fft2c(to_complex(x).unsqueeze(-3) * self._maps(x))
        return torch.view_as_real(k.movedim(-1, -3)).flatten(-3)

    def adjoint(self, y: Tensor) -> Tensor:
        """Sum over the coils of conj(S_c) F^H y_c."""
        k = self.samples(y).movedim(-3, -1)
        return to_channels((ifft2c(k) * self._maps(y).conj()).sum(-3))

    def samples(self, components: Tensor) -> Tensor:
        """Complex samples (..., coils, H)."""
        return torch.view_as_complex(components.unflatten(-1, (self.coils, -1, 2)).contiguous())

    def components(self, samples: Tensor) -> Tensor:
        """Real and imaginary parts (..., 2 coils H)."""
        return torch.view_as_real(samples).flatten(-3)

    def _maps(self, like: Tensor) -> Tensor:
        return self.maps.to(like.device)

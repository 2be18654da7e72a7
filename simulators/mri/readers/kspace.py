"""Measured k-space of some slices, with what is known about which of it was acquired."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from core.errors import InputError
from simulators.mri.operators import ifft2c, to_channels

# Noise makes an exact zero rare where a sample was taken; acquisitions that leave out lines leave out far more.
FULL = 0.99
WHOLE = 0.9
"""Share of their samples that recorded lines hold at least; where points were left out they hold less."""


@dataclass(frozen=True, eq=False)
class KSpace:
    """Cartesian k-space, DC at (H // 2, W // 2); W is the phase-encode axis, a column of it is a line.

    Attributes:
        kspace: samples (slices, coils, H, W), complex64, in the file's own unit; zero where nothing was acquired.
        sampled: which lines were acquired (slices, W), bool.
        padding: the lines [left, right) that the protocol could acquire at all; those outside belong to no action set.
        target: the file's own reconstruction (slices, h, w), float32, where it has one.
        attrs: what the file says about the acquisition. Never who the patient is.
        path: the file.
        index: the number of each slice within the file.

    Raises:
        InputError: wrong number of axes, not complex, NaN or infinite samples, no sample but zero, or fields that do
            not fit each other.
    """

    kspace: Tensor
    sampled: Tensor
    padding: tuple[int, int]
    target: Tensor | None = None
    attrs: Mapping[str, str | float | tuple[int, ...]] = field(default_factory=dict)
    path: Path | None = None
    index: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.index:
            object.__setattr__(self, "index", tuple(range(self.kspace.shape[:1].numel())))
        _check(self)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        return self.kspace.shape[-2], self.kspace.shape[-1]

    @property
    def coils(self) -> int:
        """Number of coils; 1 for single-coil data."""
        return self.kspace.shape[1]

    @cached_property
    def points(self) -> Tensor:
        """Positions that hold a sample of any coil (slices, H, W), bool."""
        return (self.kspace != 0).any(1)

    @property
    def fraction(self) -> float:
        """Share of all positions that hold a sample."""
        return self.points.float().mean().item()

    def filled(self, number: int) -> float:
        """Share of the samples of a slice's recorded lines that are there; empty rows of the slice do not count."""
        left, right = self.padding
        points = self.points[number][:, left:right][:, self.sampled[number, left:right]]
        rows = self.points[number].any(1)
        return points[rows].float().mean().item() if points[rows].numel() else 0.0

    @cached_property
    def fully_sampled(self) -> bool:
        """Whether the protocol's lines were all acquired, so that an image of this is a ground truth.

        Rows that are empty in a whole slice (an asymmetric echo) and the padding do not count as missing.
        """
        left, right = self.padding
        if not self.sampled[:, left:right].all():
            return False
        points = self.points[..., left:right]
        rows = points.any(-1)
        return bool(rows.any(-1).all() and points.sum() >= FULL * (right - left) * rows.sum())

    def require_full(self) -> KSpace:
        """The same k-space, if it can serve as ground truth.

        Raises:
            InputError: it is undersampled, as the files of a test split are.
        """
        if not self.fully_sampled:
            raise InputError(
                f"{self.path or 'k-space'}: undersampled ({self.fraction:.2%} of its positions hold a sample): "
                "a ground truth must be fully sampled"
            )
        return self

    def coil_images(self) -> Tensor:
        """Complex image of each coil (slices, coils, H, W): the centred orthonormal inverse Fourier transform."""
        return ifft2c(self.kspace)

    def rss(self) -> Tensor:
        """Root of the sum of squares over the coils (slices, H, W), float32; the magnitude for a single coil."""
        return self.coil_images().abs().square().sum(1).sqrt()

    def image(self) -> Tensor:
        """Two-channel images (slices, 2, H, W) of single-coil k-space.

        Raises:
            InputError: there are several coils, which only coil maps combine into one complex image.
        """
        if self.coils != 1:
            raise InputError(
                f"{self.path or 'k-space'}: {self.coils} coils: a complex image needs one coil, or coil maps"
            )
        return to_channels(self.coil_images()[:, 0])

    def fit(self, size: int | tuple[int, int]) -> KSpace:
        """The same slices on another grid (``fit_kspace``); without the target, which belongs to the first grid."""
        if _pair(size) == self.size:
            return self
        width = _pair(size)[1]
        shift = width // 2 - self.size[1] // 2
        left, right = (min(max(edge + shift, 0), width) for edge in self.padding)
        sampled = F.pad(self.sampled, (shift, width - self.size[1] - shift))
        return replace(self, kspace=fit_kspace(self.kspace, size), sampled=sampled, padding=(left, right), target=None)


def fit_kspace(kspace: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Centre-crop or zero-pad k-space (..., H, W) to (..., h, w), each axis by itself; DC goes to (h // 2, w // 2).

    Cropping k-space lowers the resolution and keeps the field of view; padding interpolates.

    Raises:
        InputError: a size under 1.
    """
    height, width = _pair(size)
    top = height // 2 - kspace.shape[-2] // 2
    left = width // 2 - kspace.shape[-1] // 2
    return F.pad(kspace, (left, width - kspace.shape[-1] - left, top, height - kspace.shape[-2] - top))


def stack(volumes: Sequence[KSpace], size: int | tuple[int, int] | None = None) -> Tensor:
    """All slices of several files as one batch (N, coils, H, W), each fitted to ``size`` where it is given.

    Raises:
        InputError: no file, slices of unequal size without ``size``, or unequal numbers of coils.
    """
    if not volumes:
        raise InputError("k-space to stack: none given")
    fitted = list(volumes) if size is None else [volume.fit(size) for volume in volumes]
    first = fitted[0].kspace.shape[1:]
    for volume in fitted:
        if volume.kspace.shape[1:] != first:
            raise InputError(
                f"{volume.path or 'k-space'}: slices of (coils, H, W) = {tuple(volume.kspace.shape[1:])} do not stack "
                f"on {tuple(first)} of {fitted[0].path or 'k-space'}: give a size to fit to; coils must be equal"
            )
    return torch.cat([volume.kspace for volume in fitted])


def acquired_lines(kspace: Tensor) -> Tensor:
    """Lines (slices, W) of k-space (slices, coils, H, W) that hold anything but zeros, bool."""
    return (kspace != 0).flatten(1, 2).any(1)


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    if height < 1 or width < 1:
        raise InputError(f"size {height} x {width}: must be at least 1 x 1")
    return height, width


def _check(volume: KSpace) -> None:
    where, kspace = f"{volume.path}: kspace" if volume.path else "kspace", volume.kspace
    if kspace.dim() != 4 or not kspace.numel():
        raise InputError(f"{where}: shape {tuple(kspace.shape)}, must be (slices, coils, H, W), none of them 0")
    if kspace.dtype != torch.complex64:
        raise InputError(f"{where}: {kspace.dtype}, must be complex64")
    count, width = len(kspace), kspace.shape[-1]
    if tuple(volume.sampled.shape) != (count, width) or volume.sampled.dtype != torch.bool:
        raise InputError(f"{where}: sampled of shape {tuple(volume.sampled.shape)}, must be bool ({count}, {width})")
    if not 0 <= volume.padding[0] < volume.padding[1] <= width:
        raise InputError(f"{where}: lines [{volume.padding[0]}, {volume.padding[1]}) do not lie within 0..{width}")
    for name, held in (("reconstruction", volume.target), ("index", volume.index)):
        if held is not None and len(held) != count:
            raise InputError(f"{where}: {count} slices, but {name} has {len(held)}")
    # One pass of a dot product tells both faults at the speed of memory; the exact answer is only for a suspicion.
    parts = torch.view_as_real(kspace).reshape(-1)
    energy = torch.dot(parts, parts)
    if not torch.isfinite(energy):
        finite = torch.isfinite(torch.view_as_real(kspace)).flatten(1).all(1)
        if not finite.all():
            raise InputError(f"{where}: NaN or infinite samples in slice {volume.index[int(finite.int().argmin())]}")
    if energy == 0 and not parts.any():
        raise InputError(f"{where}: all samples are zero")

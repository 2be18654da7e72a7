"""Receiver coils: simulated and estimated sensitivities, noise whitening, and the combination of coil images."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from core.errors import InputError
from simulators.mri.operators import ifft2c

FEWEST_CALIBRATION_LINES = 16
_LOBE = 0.7
_RING = 1.1
_SUPPORT = 0.05


def coil_maps(coils: int, height: int, width: int, *, seed: int = 0) -> Tensor:
    """Smooth sensitivities S (coils, H, W), complex64, of coils on a circle of radius 1.1 around the image [-1, 1]^2.

    Coil c at r_c has exp(-|r - r_c|^2 / (2 0.7^2)) exp(i (theta_c + k_c.r)), with theta_c ~ U(0, 2 pi) and each
    component of k_c ~ N(0, 0.5) from the seed; all are divided by one factor per pixel so that sum_c |S_c|^2 = 1.

    Raises:
        InputError: no coil, or an empty image.
    """
    if coils < 1 or height < 1 or width < 1:
        raise InputError(f"coils = {coils}, image {height} x {width}: must be at least 1 each")
    rng = np.random.default_rng(seed)
    theta, slope = rng.uniform(0, 2 * math.pi, coils), rng.normal(0.0, 0.5, (2, coils))
    place = 2 * math.pi * np.arange(coils) / coils
    offset, cx, cy, kx, ky = (
        torch.as_tensor(v)[:, None, None] for v in (theta, _RING * np.cos(place), _RING * np.sin(place), *slope)
    )
    y = torch.linspace(-1, 1, height, dtype=torch.float64)[:, None]
    x = torch.linspace(-1, 1, width, dtype=torch.float64)
    lobe = torch.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * _LOBE**2))
    lobe = lobe / lobe.square().sum(0).sqrt()
    return torch.polar(lobe, offset + kx * x + ky * y).to(torch.complex64)


def estimate_maps(kspace: Tensor, lines: Tensor) -> Tensor:
    """Sensitivities (S, coils, H, W), complex, from the calibration lines in the middle of k-space.

    Coil images of low resolution (a Hann window over the calibration block, and as wide along the readout), divided
    by their root sum of squares; zero where that is under 5 % of its maximum. They hold the true sensitivities times
    a phase that all coils share, the object's own: an image combined with them has little phase left.

    Args:
        kspace: centred k-space (S, coils, H, W), complex; only calibration lines are read.
        lines: bool (W,) or (S, W), the calibration lines: one block around W // 2.

    Raises:
        InputError: wrong shapes, fewer than 16 calibration lines, or lines that are not one block around the centre.
    """
    if kspace.dim() != 4 or not kspace.is_complex():
        raise InputError(f"kspace of shape {tuple(kspace.shape)}, {kspace.dtype}: must be complex (S, coils, H, W)")
    subjects, _, height, width = kspace.shape
    if lines.dtype != torch.bool or tuple(lines.shape) not in ((width,), (subjects, width)):
        raise InputError(f"lines of shape {tuple(lines.shape)}, {lines.dtype}: must be bool ({width},) or (S, {width})")
    lines = lines.expand(subjects, width)
    _check_block(lines)
    away = (torch.arange(width, device=kspace.device) - width // 2).abs()
    # The window falls to zero one line outside the block; along the readout it is there to keep out noise.
    reach = (away * lines).amax(-1, keepdim=True) + 1
    across = _hann(away / reach)
    along = _hann((torch.arange(height, device=kspace.device) - height // 2).abs() * (width / height) / reach)
    images = ifft2c(torch.where(lines[:, None, None], kspace, 0) * (along[:, None, :, None] * across[:, None, None]))
    total = images.abs().square().sum(1, keepdim=True).sqrt()
    inside = total > _SUPPORT * total.amax((-2, -1), keepdim=True)
    return torch.where(inside, images / total, 0)


def whiten(kspace: Tensor, covariance: Tensor, *, coil_axis: int = -3) -> Tensor:
    """Virtual coils chol(Psi)^-1 k whose noise is independent and of unit variance.

    Args:
        kspace: complex, coils along ``coil_axis``: -3 in k-space (..., coils, H, W), -2 in samples (..., coils, H).
            Sensitivities are whitened in the same way.
        covariance: Psi = E[n n^H] of the noise n of the coils, (coils, coils), Hermitian and positive definite.
        coil_axis: axis of the coils.

    Raises:
        InputError: a covariance of the wrong shape, or not Hermitian and positive definite.
    """
    factor = noise_factor(covariance).to(kspace.device, kspace.dtype)
    if kspace.shape[coil_axis] != len(factor):
        raise InputError(f"covariance of {len(factor)} coils: the data have {kspace.shape[coil_axis]}")
    rows = kspace.movedim(coil_axis, 0)
    white = torch.linalg.solve_triangular(factor, rows.flatten(1), upper=False)
    return white.unflatten(1, rows.shape[1:]).movedim(0, coil_axis)


def noise_factor(covariance: Tensor) -> Tensor:
    """The lower triangular L with L L^H = Psi, complex.

    Raises:
        InputError: not square, not Hermitian, or not positive definite.
    """
    if covariance.dim() != 2 or covariance.shape[0] != covariance.shape[1]:
        raise InputError(f"coil covariance of shape {tuple(covariance.shape)}: must be (coils, coils)")
    psi = covariance if covariance.is_complex() else torch.complex(covariance, torch.zeros_like(covariance))
    factor, failed = torch.linalg.cholesky_ex(psi)
    if bool(failed) or not torch.allclose(psi, psi.mH, rtol=1e-4, atol=1e-6 * float(psi.abs().max())):
        raise InputError("coil covariance: must be Hermitian and positive definite")
    return factor


def combine(kspace: Tensor, maps: Tensor | None = None) -> Tensor:
    """One image (..., H, W) of the k-space (..., coils, H, W) of all coils.

    With sensitivities, the complex adjoint sum_c conj(S_c) F^H k_c; without, the real root sum of squares.

    Raises:
        InputError: sensitivities whose coils or pixels are not those of the k-space.
    """
    images = ifft2c(kspace)
    if maps is None:
        return images.abs().square().sum(-3).sqrt()
    if maps.shape[-3:] != kspace.shape[-3:]:
        raise InputError(
            f"maps of shape {tuple(maps.shape)}: k-space is (..., {', '.join(map(str, kspace.shape[-3:]))})"
        )
    return (maps.conj() * images).sum(-3)


def _hann(u: Tensor) -> Tensor:
    return torch.where(u < 1, 0.5 * (1 + torch.cos(math.pi * u)), 0.0)


def _check_block(lines: Tensor) -> None:
    width = lines.shape[-1]
    count = lines.sum(-1)
    # One block has one rising edge.
    edges = (lines[:, 1:] & ~lines[:, :-1]).sum(-1) + lines[:, 0]
    if bool((count < min(FEWEST_CALIBRATION_LINES, width)).any()):
        raise InputError(
            f"lines: {int(count.min())} calibration lines, must be at least {FEWEST_CALIBRATION_LINES} central ones"
        )
    if bool((edges != 1).any()) or not bool(lines[:, width // 2].all()):
        raise InputError(f"lines: the calibration lines must be one block around line {width // 2}")

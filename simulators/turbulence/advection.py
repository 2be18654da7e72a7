"""The advection u.grad omega in spectral space, with the ways of treating its aliased part."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from core.errors import InputError
from simulators.turbulence.flow import Flow
from simulators.turbulence.grid import Grid

Dealias = Literal["padded", "two_thirds", "skew_none"]
Advection = Callable[[Tensor], Tensor]


def advection(grid: Grid, dealias: Dealias | Tensor) -> tuple[Advection, Tensor]:
    """The function from the spectrum of omega to that of u.grad omega, and the modes that it keeps.

    ``padded`` multiplies on 3N/2 points, so that every mode with |kx|, |ky| < N/2 is right; ``two_thirds`` drops the
    modes of |kx| or |ky| above N/3; ``skew_none`` is the mean of the advective and the conservative form without any
    de-aliasing. A mask ``(N, N/2+1)`` keeps what it says.

    The first two use the form of two products, (d_xx - d_yy)(uv) + d_xy(v^2 - u^2), which equals u.grad omega where
    the products are free of aliases.

    Returns:
        The function ``(..., N, N/2+1) -> (..., N, N/2+1)``, and the mask of the modes kept.

    Raises:
        InputError: an unknown way, or a mask of another shape.
    """
    if isinstance(dealias, Tensor):
        if dealias.shape != grid.k2.shape:
            raise InputError(f"dealias: mask of shape {tuple(dealias.shape)}: must be {tuple(grid.k2.shape)}")
        mask = dealias.to(grid.device).bool() & grid.resolved
        return _two_products(grid, mask), mask
    if dealias == "padded":
        return _padded(grid), grid.resolved
    if dealias == "two_thirds":
        mask = (grid.kx.abs() <= (grid.n - 1) // 3) & (grid.ky <= (grid.n - 1) // 3)
        return _two_products(grid, mask), mask
    if dealias == "skew_none":
        return _skew(grid), grid.resolved
    raise InputError(f"dealias = {dealias!r}: must be one of {', '.join(get_args(Dealias))}, or a mask")


def _velocity_operator(grid: Grid) -> Tensor:
    """``(2, 1, N, N/2+1)`` from the spectrum of omega to those of u and v."""
    return torch.stack((grid.dy * grid.inverse_k2, -grid.dx * grid.inverse_k2)).unsqueeze(1)


def _product_operators(grid: Grid) -> tuple[Tensor, Tensor]:
    """What the spectra of uv and of v^2 - u^2 are multiplied by."""
    return grid.dx**2 - grid.dy**2, grid.dx * grid.dy


def _products(velocity: Tensor) -> Tensor:
    """(uv, v^2 - u^2) of stacked (u, v)."""
    u, v = velocity.unbind(0)
    return torch.stack((u * v, (v - u) * (v + u)))


def _two_products(grid: Grid, mask: Tensor) -> Advection:
    to_velocity = _velocity_operator(grid)
    to_uv, to_squares = (operator * mask for operator in _product_operators(grid))
    shape = (grid.n, grid.n)

    def apply(vorticity_hat: Tensor) -> Tensor:
        velocity = torch.fft.irfft2(to_velocity * vorticity_hat.unsqueeze(0), s=shape)
        uv, squares = torch.fft.rfft2(_products(velocity)).unbind(0)
        return torch.addcmul(to_uv * uv, to_squares, squares)

    return apply


def _padded(grid: Grid) -> Advection:
    n, half = grid.n, grid.n // 2
    fine = 3 * n // 2
    to_velocity = _velocity_operator(grid)[..., :half] * (fine / n) ** 2
    # The rows of the Nyquist wavenumber come back as 0: their products are not kept.
    to_uv, to_squares = (
        (operator * grid.resolved)[..., :half] * (n / fine) ** 2 for operator in _product_operators(grid)
    )

    def apply(vorticity_hat: Tensor) -> Tensor:
        spectra = to_velocity * vorticity_hat[..., :half].unsqueeze(0)
        padded = spectra.new_zeros(*spectra.shape[:-2], fine, fine // 2 + 1)
        padded[..., :half, :half] = spectra[..., :half, :]
        padded[..., fine - half :, :half] = spectra[..., half:, :]
        products = torch.fft.rfft2(_products(torch.fft.irfft2(padded, s=(fine, fine))))
        kept = torch.cat((products[..., :half, :half], products[..., fine - half :, :half]), dim=-2)
        uv, squares = kept.unbind(0)
        return torch.nn.functional.pad(torch.addcmul(to_uv * uv, to_squares, squares), (0, 1))

    return apply


def _skew(grid: Grid) -> Advection:
    def apply(vorticity_hat: Tensor) -> Tensor:
        flow = Flow(grid, vorticity_hat)
        u, v = flow.velocity
        omega = flow.vorticity
        advective, along_x, along_y = grid.to_spectral(torch.stack((flow.advection, u * omega, v * omega))).unbind(0)
        return 0.5 * grid.resolved * (advective + grid.dx * along_x + grid.dy * along_y)

    return apply

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

    All but ``skew_none`` use the form of two products, (d_xx - d_yy)(uv) + d_xy(v^2 - u^2), which equals u.grad omega
    where the products are free of aliases; modes that are not kept must be 0 before.

    Returns:
        The function ``(..., N, N/2+1) -> (..., N, N/2+1)``, and the mask of the modes kept.

    Raises:
        InputError: an unknown way, or a mask of another shape.
    """
    if isinstance(dealias, Tensor):
        if dealias.shape != grid.k2.shape:
            raise InputError(f"dealias: mask of shape {tuple(dealias.shape)}: must be {tuple(grid.k2.shape)}")
        mask = dealias.to(grid.device).bool() & grid.resolved
        return _two_products(grid, mask, grid.n), mask
    if dealias == "padded":
        return _two_products(grid, grid.resolved, 3 * grid.n // 2), grid.resolved
    if dealias == "two_thirds":
        mask = (grid.kx.abs() <= (grid.n - 1) // 3) & (grid.ky <= (grid.n - 1) // 3)
        return _two_products(grid, mask, grid.n), mask
    if dealias == "skew_none":
        return _skew(grid), grid.resolved
    raise InputError(f"dealias = {dealias!r}: must be one of {', '.join(get_args(Dealias))}, or a mask")


def _two_products(grid: Grid, mask: Tensor, fine: int) -> Advection:
    """The form of two products on ``fine`` points a side, from and to the modes of the mask."""
    n, half = grid.n, grid.n // 2
    # Transforms along x are of the columns that hold something, and these lie along memory: see the .mT.
    columns = int(mask.any(0).nonzero().max()) + 1
    to_velocity = grid.to_velocity[:, :columns].unsqueeze(1)
    # The advection is the curl of the divergence of the stress u_i u_j.
    from_stress = (grid.to_curl * mask)[..., :columns].mT * (n / fine) ** 2
    from_squares, from_uv = 0.5 * from_stress[0].contiguous(), from_stress[1].contiguous()

    def apply(vorticity_hat: Tensor) -> Tensor:
        spectra = to_velocity * vorticity_hat[..., :columns].mT
        if fine > n:
            gap = spectra.new_zeros(*spectra.shape[:-1], fine - n)
            spectra = torch.cat((spectra[..., :half], gap, spectra[..., half:]), dim=-1)
        u, v = torch.fft.irfft(torch.fft.ifft(spectra, norm="forward").mT, n=fine, norm="forward").unbind(0)
        along_y = torch.fft.rfft(torch.stack(((u - v) * (u + v), u * v)))
        products = torch.fft.fft(along_y[..., :columns].mT)
        if fine > n:
            products = torch.cat((products[..., :half], products[..., fine - half :]), dim=-1)
        squares, uv = products.unbind(0)
        advected = torch.addcmul(from_squares * squares, from_uv, uv)
        return torch.nn.functional.pad(advected.mT, (0, half + 1 - columns))

    return apply


def _skew(grid: Grid) -> Advection:
    def apply(vorticity_hat: Tensor) -> Tensor:
        flow = Flow(grid, vorticity_hat)
        u, v = flow.velocity
        omega = flow.vorticity
        advective, along_x, along_y = grid.to_spectral(torch.stack((flow.advection, u * omega, v * omega))).unbind(0)
        return 0.5 * grid.resolved * (advective + grid.dx * along_x + grid.dy * along_y)

    return apply

"""What follows from the vorticity at one instant: velocities, gradients, strain, energy."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from simulators.turbulence.grid import Grid


class Flow:
    """The fields of one vorticity, each computed when it is first asked for; products are not de-aliased.

    With lap psi = -omega, u = d psi/dy, v = -d psi/dx and omega = dv/dx - du/dy.

    Args:
        grid: of N points.
        vorticity_hat: ``(..., N, N/2+1)`` spectrum of omega.
    """

    def __init__(self, grid: Grid, vorticity_hat: Tensor) -> None:
        self.grid = grid
        self.vorticity_hat = vorticity_hat

    @cached_property
    def vorticity(self) -> Tensor:
        """Omega, ``(..., N, N)``."""
        return self.grid.to_physical(self.vorticity_hat)

    @cached_property
    def psi_hat(self) -> Tensor:
        """Spectrum of the stream function."""
        return self.vorticity_hat * self.grid.inverse_k2

    @cached_property
    def psi(self) -> Tensor:
        """Stream function."""
        return self.grid.to_physical(self.psi_hat)

    @cached_property
    def velocity_hat(self) -> tuple[Tensor, Tensor]:
        """Spectra of u and v."""
        return self.grid.dy * self.psi_hat, -self.grid.dx * self.psi_hat

    @cached_property
    def velocity(self) -> tuple[Tensor, Tensor]:
        """(u, v)."""
        u, v = self.grid.fields(self.grid.to_velocity, self.vorticity_hat).unbind(0)
        return u, v

    @cached_property
    def velocity_gradient(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(u_x, u_y, v_x, v_y); v_y = -u_x."""
        u_x, u_y, v_x = self.grid.fields(self.grid.to_velocity_gradient, self.vorticity_hat).unbind(0)
        return u_x, u_y, v_x, -u_x

    @cached_property
    def strain(self) -> Tensor:
        """(S11, S12) of the strain rate, ``(2, ..., N, N)``: S11 = du/dx = -S22, S12 = (du/dy + dv/dx)/2."""
        return self.grid.fields(self.grid.to_strain, self.vorticity_hat)

    @cached_property
    def strain_norm(self) -> Tensor:
        """|S| = 2 sqrt(S11^2 + S12^2)."""
        return 2 * _length(self.strain)

    @cached_property
    def vorticity_gradient(self) -> Tensor:
        """(d omega/dx, d omega/dy), ``(2, ..., N, N)``."""
        return self.grid.fields(self.grid.to_gradient, self.vorticity_hat)

    @cached_property
    def gradient_norm(self) -> Tensor:
        """|grad omega|."""
        return _length(self.vorticity_gradient)

    @cached_property
    def laplacian(self) -> Tensor:
        """Laplacian of omega."""
        return self.grid.to_physical(-self.grid.k2 * self.vorticity_hat)

    @cached_property
    def advection(self) -> Tensor:
        """U d omega/dx + v d omega/dy."""
        u, v = self.velocity
        w_x, w_y = self.vorticity_gradient
        return u * w_x + v * w_y

    @cached_property
    def energy(self) -> Tensor:
        """<u^2 + v^2>/2 of each copy, ``(...)``."""
        return self._summed(self.grid.to_mean_square[1])

    @cached_property
    def enstrophy(self) -> Tensor:
        """<omega^2>/2 of each copy, ``(...)``."""
        return self._summed(self.grid.to_mean_square[0])

    def _summed(self, weights: Tensor) -> Tensor:
        """The squared real and imaginary parts ``(..., N, N+2)`` of the modes of omega, weighed (Parseval)."""
        return (torch.view_as_real(self.vorticity_hat).square().flatten(-2) * weights).sum((-2, -1))


def _length(vector: Tensor) -> Tensor:
    x, y = vector.unbind(0)
    return x.square().addcmul_(y, y).sqrt_()


def stress_curl(grid: Grid, tau11: Tensor, tau12: Tensor, tau22: Tensor | None = None) -> Tensor:
    """Spectrum of Pi = curl(div tau) for a symmetric stress in physical space.

    Pi_hat = kx ky (tau11 - tau22)_hat - (kx^2 - ky^2) tau12_hat; of tau = -2 nu S, nu constant, it is
    nu k^2 omega_hat.

    Args:
        grid: of N points.
        tau11: ``(..., N, N)``.
        tau12: likewise.
        tau22: likewise; None for a traceless stress, -tau11.
    """
    normal = tau11 if tau22 is None else 0.5 * (tau11 - tau22)
    return _curl(grid, grid.to_curl, torch.stack((normal, tau12)))


def viscous_curl(flow: Flow, viscosity: Tensor) -> Tensor:
    """``stress_curl`` of tau_ij = -2 nu S_ij, products not de-aliased.

    Args:
        flow: of N points.
        viscosity: nu, ``(..., N, N)`` or what broadcasts to it.
    """
    return _curl(flow.grid, flow.grid.to_viscous_curl, viscosity * flow.strain)


def _curl(grid: Grid, operators: Tensor, deviator: Tensor) -> Tensor:
    from_normal, from_shear = operators.unbind(0)
    normal, shear = grid.to_spectral(deviator).unbind(0)
    return torch.addcmul(from_normal * normal, from_shear, shear)

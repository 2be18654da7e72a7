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

    def _physical(self, *spectra: Tensor) -> tuple[Tensor, ...]:
        """Several spectra in one transform."""
        return self.grid.to_physical(torch.stack(spectra)).unbind(0)

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
        u, v = self._physical(*self.velocity_hat)
        return u, v

    @cached_property
    def velocity_gradient(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(u_x, u_y, v_x, v_y); v_y = -u_x."""
        u, v = self.velocity_hat
        u_x, u_y, v_x = self._physical(self.grid.dx * u, self.grid.dy * u, self.grid.dx * v)
        return u_x, u_y, v_x, -u_x

    @cached_property
    def strain(self) -> tuple[Tensor, Tensor]:
        """(S11, S12) of the strain rate: S11 = du/dx = -S22, S12 = (du/dy + dv/dx)/2."""
        u, v = self.velocity_hat
        s11, s12 = self._physical(self.grid.dx * u, 0.5 * (self.grid.dy * u + self.grid.dx * v))
        return s11, s12

    @cached_property
    def strain_norm(self) -> Tensor:
        """|S| = 2 sqrt(S11^2 + S12^2)."""
        s11, s12 = self.strain
        return 2 * torch.sqrt(s11**2 + s12**2)

    @cached_property
    def vorticity_gradient(self) -> tuple[Tensor, Tensor]:
        """(d omega/dx, d omega/dy)."""
        w_x, w_y = self._physical(self.grid.dx * self.vorticity_hat, self.grid.dy * self.vorticity_hat)
        return w_x, w_y

    @cached_property
    def gradient_norm(self) -> Tensor:
        """|grad omega|."""
        w_x, w_y = self.vorticity_gradient
        return torch.sqrt(w_x**2 + w_y**2)

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
        return self._mean_square(self.grid.inverse_k2)

    @cached_property
    def enstrophy(self) -> Tensor:
        """<omega^2>/2 of each copy, ``(...)``."""
        return self._mean_square(torch.ones_like(self.grid.k2))

    def _mean_square(self, weight: Tensor) -> Tensor:
        """Half the mean square of omega, mode by mode times ``weight`` (Parseval)."""
        twice = torch.where((self.grid.ky > 0) & (self.grid.ky < self.grid.n / 2), 2.0, 1.0)
        power = self.vorticity_hat.real**2 + self.vorticity_hat.imag**2
        return 0.5 * (power * weight * twice).sum((-2, -1)) / self.grid.n**4


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
    difference = 2 * tau11 if tau22 is None else tau11 - tau22
    normal, shear = grid.to_spectral(torch.stack((difference, tau12))).unbind(0)
    return -grid.dx * grid.dy * normal + (grid.dx**2 - grid.dy**2) * shear

"""Transfer of energy and enstrophy from the resolved to the sub-grid scales; positive is dissipation."""

from __future__ import annotations

import xarray as xr
from torch import Tensor

from simulators.turbulence.closures import Stress, Term, eddy_viscosity_stress, subgrid_term
from simulators.turbulence.diagnostics.records import Numbers, as_numbers, described, runs
from simulators.turbulence.diagnostics.spectra import angle_average
from simulators.turbulence.flow import Flow, stress_curl
from simulators.turbulence.grid import Grid


def least_stress(grid: Grid, pi_hat: Tensor) -> Stress:
    """The smallest stress without trace, in the mean square, with curl(div tau) = Pi.

    It is that of a unit viscosity on the flow of vorticity -lap^-1 Pi. A Pi alone fixes its stress only so far; of a
    constant eddy viscosity this is the stress -2 nu_e S_ij.

    Args:
        grid: of N points.
        pi_hat: ``(..., N, N/2+1)``.
    """
    return eddy_viscosity_stress(Flow(grid, pi_hat * grid.inverse_k2), 1.0)


def energy_transfer(flow: Flow, stress: Stress) -> Tensor:
    """P_tau = -tau_ij S_ij, ``(..., N, N)``; its mean is <psi Pi>."""
    tau11, tau12, tau22 = stress
    s11, s12 = flow.strain
    return -(tau11 - tau22) * s11 - 2 * tau12 * s12


def vorticity_flux(grid: Grid, stress: Stress) -> tuple[Tensor, Tensor]:
    """Sub-grid flux of vorticity of a stress, with div sigma = Pi.

    For tau_ij = filter(u_i u_j) - ubar_i ubar_j it is sigma_i = filter(u_i omega) - ubar_i omegabar.
    """
    tau11, tau12, tau22 = stress
    half, shear = grid.to_spectral(0.5 * (tau11 - tau22)), grid.to_spectral(tau12)
    return (
        grid.to_physical(grid.dx * shear - grid.dy * half),
        grid.to_physical(-grid.dx * half - grid.dy * shear),
    )


def enstrophy_transfer(flow: Flow, stress: Stress) -> Tensor:
    """P_Z = -sigma_i d_i omega with the ``vorticity_flux`` sigma, ``(..., N, N)``; its mean is <omega Pi>."""
    sigma_x, sigma_y = vorticity_flux(flow.grid, stress)
    w_x, w_y = flow.vorticity_gradient
    return -sigma_x * w_x - sigma_y * w_y


def transfer_spectra(flow: Flow, pi_hat: Tensor) -> tuple[Tensor, Tensor]:
    """Angle-averaged Re(conj(Pi) psi)/N^4 and Re(conj(Pi) omega)/N^4, each ``(..., N/2)`` for k = 0..N/2-1.

    Over all shells, corners included, they add up to <psi Pi> and <omega Pi>.
    """
    grid = flow.grid
    density = (pi_hat.conj() * flow.vorticity_hat).real / grid.n**4
    return angle_average(grid, density * grid.inverse_k2), angle_average(grid, density)


def backscatter_fraction(transfer: Tensor) -> Tensor:
    """Share of the points of ``(..., N, N)`` where the transfer is negative, ``(...)``."""
    return (transfer < 0).double().mean((-2, -1))


def transfers(flow: Flow, subgrid: Term | Stress) -> xr.Dataset:
    """Both transfers of a sub-grid term or stress: local fields, means, spectra and shares of backscatter.

    The local fields of a ``Term`` are those of its ``least_stress``; the means and the spectra do not depend on it.

    Args:
        flow: B copies.
        subgrid: what a closure returned, or a stress (tau11, tau12, tau22).

    Returns:
        Dims ``start``, ``x``, ``y`` and ``k``.
    """
    grid = flow.grid
    if isinstance(subgrid, Term):
        pi_hat = subgrid_term(flow, subgrid)
        stress = least_stress(grid, pi_hat)
    else:
        pi_hat, stress = stress_curl(grid, *subgrid), subgrid
    variables: dict[str, tuple[str | tuple[str, ...], Numbers, dict[str, str]]] = {}
    for symbol, name, field, spectrum in zip(
        ("P_tau", "P_Z"),
        ("energy", "enstrophy"),
        (energy_transfer(flow, stress), enstrophy_transfer(flow, stress)),
        transfer_spectra(flow, pi_hat),
        strict=True,
    ):
        long_name = f"transfer of {name} to the sub-grid scales"
        variables |= {
            symbol: (("start", "x", "y"), as_numbers(field), described(long_name)),
            f"{symbol}_mean": ("start", as_numbers(field.mean((-2, -1))), described(f"mean {long_name}")),
            f"{symbol}_spectrum": (("start", "k"), as_numbers(spectrum), described(f"angle-averaged {long_name}")),
            f"{symbol}_backscatter": (
                "start",
                as_numbers(backscatter_fraction(field)),
                described(f"share of points that gain {name}"),
            ),
        }
    x = as_numbers(grid.x)
    return xr.Dataset(
        variables,
        coords={
            "start": runs(flow.vorticity_hat.shape[0]),
            "x": ("x", x, described("position along x")),
            "y": ("y", x, described("position along y")),
            "k": ("k", list(range(grid.n // 2)), described("wavenumber")),
        },
    )

"""The exact sub-grid term and stress of a resolved flow, as a coarse grid would need them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from simulators.turbulence.filters import Filter, FilterKind, coarse_grain, refined
from simulators.turbulence.flow import Flow, stress_curl
from simulators.turbulence.grid import Grid, resample


@dataclass(frozen=True)
class Subgrid:
    """What the coarse grid lacks.

    Attributes:
        flow: the filtered flow, on the coarse grid.
        stress: (tau11, tau12, tau22), tau_ij = filter(u_i u_j) - ubar_i ubar_j, each ``(..., n, n)``.
        filter: its kind and its width D.
    """

    flow: Flow
    stress: tuple[Tensor, Tensor, Tensor]
    filter: Filter

    @property
    def pi_hat(self) -> Tensor:
        """Spectrum of Pi = filter(u.grad omega) - ubar.grad omegabar = curl(div tau), ``(..., n, n/2+1)``."""
        return stress_curl(self.flow.grid, *self.stress)

    @property
    def pi(self) -> Tensor:
        """Pi, ``(..., n, n)``."""
        return self.flow.grid.to_physical(self.pi_hat)


def subgrid(
    grid: Grid,
    vorticity_hat: Tensor,
    n_les: int,
    kind: FilterKind = "gaussian",
    width: float | None = None,
    *,
    cut_last: bool = False,
) -> Subgrid:
    """Filter a resolved flow to a coarse grid and keep what its equation then lacks.

    By default ubar is what the coarse grid carries, filtered and cut to its modes, so that adding Pi makes the coarse
    equation exact. A-priori studies often multiply the filtered flow on the fine grid and cut the product alone, which
    leaves out what the cut itself does: ``cut_last``. The products are multiplied on 3/2 of the points of either grid:
    none of the modes kept holds an alias.

    Args:
        grid: of the resolved flow; float64, as the stress is a small difference.
        vorticity_hat: ``(..., N, N/2+1)``.
        n_les: points of the coarse grid.
        kind: of filter.
        width: D; 2 (2 pi/n_les) if not given.
        cut_last: ubar is the filtered flow before the cut.

    Raises:
        InputError: a coarse grid finer than the flow's, or an impossible filter.
    """
    filtered = coarse_grain(grid, vorticity_hat, n_les, kind, width)
    coarse = filtered.flow.grid
    of_all = _products(Flow(grid, vorticity_hat), n_les) * filtered.filter.transfer(coarse)
    own = Flow(grid, vorticity_hat * filtered.filter.transfer(grid)) if cut_last else filtered.flow
    tau11, tau12, tau22 = coarse.to_physical(of_all - _products(own, n_les)).unbind(0)
    return Subgrid(filtered.flow, (tau11, tau12, tau22), filtered.filter)


def _products(flow: Flow, n: int) -> Tensor:
    """``(3, ..., n, n/2+1)`` spectra of uu, uv and vv at the modes of n points."""
    fine = refined(flow)
    u, v = fine.velocity
    return resample(fine.grid.to_spectral(torch.stack((u * u, u * v, v * v))), n)

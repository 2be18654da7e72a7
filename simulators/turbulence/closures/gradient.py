"""Gradient models: the stress as the Taylor series of a Gaussian filter, without any constant to choose."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from core.errors import InputError
from simulators.turbulence.closures.closure import Term
from simulators.turbulence.closures.constant import Stress
from simulators.turbulence.flow import Flow, stress_curl


@dataclass(frozen=True)
class GradientModel:
    """tau_ij = (D^2/12) d_k u_i d_k u_j, and at order 4 also (D^4/288) d_kl u_i d_kl u_j, summed over k and l.

    These are the first terms of the exact stress of the Gaussian filter exp(-k^2 D^2/24). They return energy as well
    as take it, and blow up online: in five runs of ``kolmogorov4`` at N = 32 and dt = 5e-3 order 2 within t = 5 (not
    before t = 20 at dt = 1e-3) and order 4 within t = 10 (11).

    Source: Clark, Ferziger and Reynolds (1979), Journal of Fluid Mechanics 91:1; order 4 as in Jakhar et al. (2024),
    doi 10.1029/2023MS003874.

    Attributes:
        order: 2 or 4.
        width: D in grid spacings; 2 for the filter that coarse-graining uses by default.

    Raises:
        InputError: another order, or a width that is not above 0.
    """

    order: int = 2
    width: float = 2.0

    def __post_init__(self) -> None:
        if self.order not in (2, 4):
            raise InputError(f"order = {self.order}: must be 2 or 4")
        if not 0 < self.width < math.inf:
            raise InputError(f"width = {self.width}: must be above 0 and finite, in grid spacings")

    def stress(self, flow: Flow) -> Stress:
        """The stress, its trace included; products are not de-aliased."""
        square = (self.width * flow.grid.spacing) ** 2
        u_x, u_y, v_x, v_y = flow.velocity_gradient
        first = u_x**2 + u_y**2, u_x * v_x + u_y * v_y, v_x**2 + v_y**2
        if self.order == 2:
            tau11, tau12, tau22 = (square / 12 * product for product in first)
            return tau11, tau12, tau22
        dx, dy, (u_hat, v_hat) = flow.grid.dx, flow.grid.dy, flow.velocity_hat
        spectra = torch.stack((dx * dx * u_hat, dx * dy * u_hat, dy * dy * u_hat, dx * dx * v_hat))
        u_xx, u_xy, u_yy, v_xx = flow.grid.to_physical(spectra).unbind(0)
        v_xy, v_yy = -u_xx, -u_xy
        second = (
            u_xx**2 + 2 * u_xy**2 + u_yy**2,
            u_xx * v_xx + 2 * u_xy * v_xy + u_yy * v_yy,
            v_xx**2 + 2 * v_xy**2 + v_yy**2,
        )
        tau11, tau12, tau22 = (square / 12 * a + square**2 / 288 * b for a, b in zip(first, second, strict=True))
        return tau11, tau12, tau22

    def __call__(self, flow: Flow) -> Term:
        """Explicit."""
        return Term(pi_hat=stress_curl(flow.grid, *self.stress(flow)))

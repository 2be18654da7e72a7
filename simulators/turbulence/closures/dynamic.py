"""Dynamic eddy viscosities: the coefficient follows from the flow itself, seen through a second, coarser filter."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from core.errors import InputError
from simulators.turbulence.closures.closure import Term
from simulators.turbulence.closures.constant import Stress, eddy_viscosity_stress, eddy_viscosity_term
from simulators.turbulence.flow import Flow
from simulators.turbulence.grid import Grid

Clip = Literal["positive_product", "mean_then_clip", "local"]


@lru_cache(maxsize=16)
def _test_filter(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """``(N, N/2+1)`` 1 where |kx|, |ky| < N/4, else 0."""
    with torch.inference_mode(False):  # a cached tensor must also serve a later backward pass
        grid = Grid(n, dtype, device)
        return ((grid.kx.abs() < n / 4) & (grid.ky < n / 4)).to(dtype)


@lru_cache(maxsize=16)
def _operators(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """``(7, 1, N, N/2+1)`` from the spectrum of omega to u, v, omega_x, omega_y, lap omega, S11, S12."""
    with torch.inference_mode(False):
        grid = Grid(n, dtype, device)
        to_u, to_v = grid.dy * grid.inverse_k2, -grid.dx * grid.inverse_k2
        dx, dy = grid.dx.expand_as(to_u), grid.dy.expand_as(to_u)
        strain = dx * to_u, 0.5 * (dy * to_u + dx * to_v)
        return torch.stack((to_u, to_v, dx, dy, (-grid.k2).to(to_u.dtype), *strain)).unsqueeze(1)


@dataclass(frozen=True, eq=False)
class _Dynamic:
    """nu_e = c D^n times a scale of the flow, with c = (L M)/(M M) averaged as ``clip`` says.

    Attributes:
        clip: ``positive_product`` for c = <max(L M, 0)>/<M M>, ``mean_then_clip`` for c = max(<L M>, 0)/<M M>,
            ``local`` for the field c(x, y) = max(L M, 0)/<M M>.
        padded: de-alias the stress of the local coefficient, see ``eddy_viscosity_term``.

    Raises:
        InputError: another clip.
    """

    clip: Clip = "positive_product"
    padded: bool = False
    power: ClassVar[int] = 2
    width: ClassVar[float] = 2.0
    """D in grid spacings; the test filter's is twice that."""

    def __post_init__(self) -> None:
        if self.clip not in get_args(Clip):
            raise InputError(f"clip = {self.clip!r}: must be one of {', '.join(get_args(Clip))}")

    def _identity(self, flow: Flow) -> tuple[Tensor, Tensor, Tensor]:
        """L M / D^n and M M / D^2n ``(B, N, N)``, and the scale ``(B, 1, 1)`` of the viscosity."""
        raise NotImplementedError

    def _measured(self, flow: Flow) -> tuple[Tensor, Tensor]:
        """C D^n, ``(B, 1, 1)`` or ``(B, N, N)``, and the scale."""
        product, square, scale = self._identity(flow)
        if self.clip == "mean_then_clip":
            product = product.mean((-2, -1), keepdim=True)
        product = product.clamp(min=0)
        if self.clip == "positive_product":
            product = product.mean((-2, -1), keepdim=True)
        # A flow at rest has neither L nor M: its coefficient is 0.
        return product / square.mean((-2, -1), keepdim=True).clamp(min=torch.finfo(square.dtype).tiny), scale

    def coefficient(self, flow: Flow) -> Tensor:
        """C for D = 2 (2 pi/N), ``(B,)``, or ``(B, N, N)`` with the clip ``local``."""
        c = self._measured(flow)[0] / (self.width * flow.grid.spacing) ** self.power
        return c if self.clip == "local" else c[:, 0, 0]

    def viscosity(self, flow: Flow) -> Tensor:
        """nu_e, ``(B, 1, 1)``, or ``(B, N, N)`` with the clip ``local``."""
        c, scale = self._measured(flow)
        return c * scale

    def stress(self, flow: Flow) -> Stress:
        """-2 nu_e S_ij."""
        return eddy_viscosity_stress(flow, self.viscosity(flow))

    def __call__(self, flow: Flow) -> Term:
        """Implicit where c is one number a copy, explicit where it is a field."""
        viscosity = self.viscosity(flow)
        if self.clip == "local":
            return eddy_viscosity_term(flow, viscosity, self.padded)
        return Term(viscosity=viscosity)


def _filtered(flow: Flow, *fields: Tensor) -> tuple[Tensor, ...]:
    """Fields under the test filter, on the same grid."""
    grid = flow.grid
    spectra = grid.to_spectral(torch.stack(fields)) * _test_filter(grid.n, grid.dtype, grid.device)
    return grid.to_physical(spectra).unbind(0)


def _derived(flow: Flow, first: int, last: int) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Fields number ``first`` to ``last`` (excluded) of ``_operators``, of the flow and of the test-filtered flow."""
    grid = flow.grid
    spectra = _operators(grid.n, grid.dtype, grid.device)[first:last] * flow.vorticity_hat
    # Two stacks, not one: on CPUs the allocator returns larger buffers to the system after each use.
    resolved = grid.to_physical(spectra).unbind(0)
    return resolved, grid.to_physical(spectra * _test_filter(grid.n, grid.dtype, grid.device)).unbind(0)


class _VorticityForm(_Dynamic):
    """L = ^(u.grad omega) - ^u.grad ^omega and M = D^n ^(chi lap omega) - (2D)^n ^chi lap ^omega, ^ the test filter."""

    def _rate(self, w_x: Tensor, w_y: Tensor, flow: Flow) -> Tensor:
        """chi, ``(B, N, N)``."""
        raise NotImplementedError

    def _mean_rate(self, chi: Tensor) -> Tensor:
        """The scale of the viscosity, ``(B, 1, 1)``."""
        raise NotImplementedError

    def _identity(self, flow: Flow) -> tuple[Tensor, Tensor, Tensor]:
        (u, v, w_x, w_y, laplacian), (tu, tv, tw_x, tw_y, t_laplacian) = _derived(flow, 0, 5)
        chi = self._rate(w_x, w_y, flow)
        advection, diffusion, t_chi = _filtered(flow, torch.addcmul(u * w_x, v, w_y), chi * laplacian, chi)
        leonard = advection - torch.addcmul(tu * tw_x, tv, tw_y)
        model = torch.addcmul(diffusion, t_chi, t_laplacian, value=-(2.0**self.power))
        return leonard * model, model.square(), self._mean_rate(chi)


class DynamicSmagorinsky(_VorticityForm):
    """nu_e = c D^2 sqrt(<|S|^2>), c from the vorticity equation under a sharp test filter |kx|, |ky| < N/4.

    D = 2 (2 pi/N), |S| = 2 sqrt(S11^2 + S12^2); products are not de-aliased. Source: Germano et al. (1991), Physics of
    Fluids A 3:1760, in the form for the vorticity of the package py2d (Jakhar et al. 2024, doi 10.1029/2023MS003874).
    """

    def _rate(self, w_x: Tensor, w_y: Tensor, flow: Flow) -> Tensor:
        return flow.strain_norm

    def _mean_rate(self, chi: Tensor) -> Tensor:
        return chi.square().mean((-2, -1), keepdim=True).sqrt()


class DynamicLeith(_VorticityForm):
    """nu_e = c D^3 <|grad omega|>, c from the vorticity equation under a sharp test filter |kx|, |ky| < N/4.

    D = 2 (2 pi/N); products are not de-aliased. Source: as ``DynamicSmagorinsky``.
    """

    power: ClassVar[int] = 3

    def _rate(self, w_x: Tensor, w_y: Tensor, flow: Flow) -> Tensor:
        return torch.addcmul(w_x.square(), w_y, w_y).sqrt()

    def _mean_rate(self, chi: Tensor) -> Tensor:
        return chi.mean((-2, -1), keepdim=True)


@dataclass(frozen=True, eq=False)
class TensorDynamicSmagorinsky(_Dynamic):
    """nu_e = c D^2 sqrt(<|S|^2>), here with |S| = sqrt(S11^2 + 2 S12^2 + S22^2), c from the stresses.

    With ^ the test filter (sharp, |kx|, |ky| < N/4), L_ij = ^(u_i u_j) - ^u_i ^u_j without its trace, M_ij =
    2 D^2 ^(|S| S_ij) - 2 (2D)^2 ^|S| ^S_ij, and c = (L:M)/(M:M) with D = 2 (2 pi/N). Source: Germano et al. (1991),
    Physics of Fluids A 3:1760; Lilly (1992), Physics of Fluids A 4:633.
    """

    clip: Clip = "mean_then_clip"

    def _identity(self, flow: Flow) -> tuple[Tensor, Tensor, Tensor]:
        (u, v), (tu, tv) = _derived(flow, 0, 2)
        (s11, s12), (ts11, ts12) = _derived(flow, 5, 7)
        norm = (2 * torch.addcmul(s11.square(), s12, s12)).sqrt()
        squares, uv, m11, m12, t_norm = _filtered(flow, 0.5 * (u - v) * (u + v), u * v, norm * s11, norm * s12, norm)
        l11, l12 = squares - 0.5 * (tu - tv) * (tu + tv), uv - tu * tv
        m11, m12 = 2 * (m11 - 4 * t_norm * ts11), 2 * (m12 - 4 * t_norm * ts12)
        # Both are symmetric and have no trace: A:B = 2 (A11 B11 + A12 B12).
        product, square = 2 * torch.addcmul(l11 * m11, l12, m12), 2 * torch.addcmul(m11.square(), m12, m12)
        return product, square, norm.square().mean((-2, -1), keepdim=True).sqrt()

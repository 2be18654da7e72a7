"""Eddy viscosities with a given constant (Smagorinsky, Leith), and the stress of any eddy viscosity."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from core.errors import InputError
from simulators.turbulence.closures.closure import Term
from simulators.turbulence.filters import refined
from simulators.turbulence.flow import Flow, viscous_curl
from simulators.turbulence.grid import Grid, resample

Constant = float | Tensor
Stress = tuple[Tensor, Tensor, Tensor]
"""(tau11, tau12, tau22), each ``(B, N, N)``."""


def eddy_viscosity_stress(flow: Flow, viscosity: Tensor | float) -> Stress:
    """tau_ij = -2 nu_e S_ij on the grid of the flow, without de-aliasing.

    Args:
        flow: B copies.
        viscosity: nu_e, ``(B, N, N)`` or anything that broadcasts to it.
    """
    s11, s12 = flow.strain
    normal = -2 * viscosity * s11
    return normal, -2 * viscosity * s12, -normal


def eddy_viscosity_term(flow: Flow, viscosity: Tensor, padded: bool = False) -> Term:
    """Pi = curl(div tau) of tau_ij = -2 nu_e S_ij, for the solver's explicit part.

    Two inverse and two forward transforms of each copy. The explicit step needs max|nu_e| k_max^2 dt < 2: see
    ``largest_step``.

    Args:
        flow: B copies.
        viscosity: ``(B, N, N)`` nu_e; negative values are local backscatter.
        padded: multiply on 3N/2 points, free of aliases, in place of N.
    """
    grid = flow.grid
    if not padded:
        return Term(pi_hat=viscous_curl(flow, viscosity))
    fine = refined(flow)
    on_fine = fine.grid.to_physical(resample(grid.to_spectral(viscosity), fine.grid.n))
    return Term(pi_hat=resample(viscous_curl(fine, on_fine), grid.n))


def largest_step(grid: Grid, viscosity: Tensor) -> Tensor:
    """The dt of each copy up to which an explicit eddy viscosity is stable: 2 / (max|nu_e| k_max^2).

    Args:
        grid: of the flow.
        viscosity: ``(B, ...)`` nu_e.

    Returns:
        ``(B,)``; infinite where nu_e is 0.
    """
    return 2 / (viscosity.abs().flatten(1).amax(1) * 2 * (grid.n / 2 - 1) ** 2)


def check_constant(name: str, value: Constant, below: float = math.inf) -> None:
    """Refuse a constant that is not a number, or one number a copy, in [0, below).

    Raises:
        InputError: naming the constant and the value.
    """
    numbers = value.detach() if isinstance(value, Tensor) else torch.tensor(float(value), dtype=torch.float64)
    if isinstance(value, Tensor) and value.dim() != 1:
        raise InputError(f"{name} of shape {tuple(value.shape)}: must be a number or a tensor (B,)")
    refused = ~((numbers >= 0) & (numbers < below))
    if bool(refused.any()):
        allowed = "at least 0 and " + ("finite" if below == math.inf else f"below {below:g}")
        raise InputError(f"{name} = {numbers[refused].flatten()[0].item():g}: must be {allowed}")


def per_copy(name: str, value: Constant, flow: Flow) -> Constant:
    """A number as it is; a tensor ``(B,)`` as ``(B, 1, 1)`` with dtype and device of the flow.

    Raises:
        InputError: a tensor of another length than the batch.
    """
    if not isinstance(value, Tensor):
        return value
    copies = flow.vorticity_hat.shape[0]
    if len(value) != copies:
        raise InputError(f"{name}: has {len(value)} values, the batch has {copies} copies")
    return value.to(flow.grid.device, flow.grid.dtype).view(-1, 1, 1)


@dataclass(frozen=True, eq=False)
class _EddyViscosity:
    """nu_e = (C D)^n times a rate of strain or vorticity gradient, its domain mean or its local value."""

    constant: Constant
    local: bool = False
    padded: bool = False
    power: ClassVar[int]
    width: ClassVar[float] = 1.0
    """D in grid spacings."""

    def __post_init__(self) -> None:
        check_constant("constant", self.constant)

    def _scale(self, flow: Flow) -> Tensor:
        """What (C D)^n multiplies, ``(B, 1, 1)`` or ``(B, N, N)``."""
        raise NotImplementedError

    def viscosity(self, flow: Flow) -> Tensor:
        """nu_e, ``(B, 1, 1)`` or, if local, ``(B, N, N)``."""
        factor = per_copy("constant", self.constant, flow) * (self.width * flow.grid.spacing)
        return factor**self.power * self._scale(flow)

    def stress(self, flow: Flow) -> Stress:
        """-2 nu_e S_ij."""
        return eddy_viscosity_stress(flow, self.viscosity(flow))

    def __call__(self, flow: Flow) -> Term:
        """Implicit where nu_e is constant in space, explicit where it is local."""
        viscosity = self.viscosity(flow)
        return eddy_viscosity_term(flow, viscosity, self.padded) if self.local else Term(viscosity=viscosity)


@dataclass(frozen=True, eq=False)
class Smagorinsky(_EddyViscosity):
    """nu_e = (C_s D)^2 sqrt(<|S|^2>), or (C_s D)^2 |S|(x, y) if local, with D = 2 pi/N and |S| = 2 sqrt(S11^2 + S12^2).

    Source: Smagorinsky (1963), Monthly Weather Review 91:99; the default constant is that of the published code of
    Mojgani et al. (2023), arXiv 2312.00907.

    Attributes:
        constant: C_s, a number or ``(B,)`` numbers.
        local: the local strain in place of its mean square.
        padded: de-alias the local stress, see ``eddy_viscosity_term``.

    Raises:
        InputError: a constant that is negative or not finite.
    """

    constant: Constant = 0.11
    power: ClassVar[int] = 2

    def _scale(self, flow: Flow) -> Tensor:
        # <|S|^2> = <omega^2> in a periodic box, which needs no transform.
        return flow.strain_norm if self.local else (2 * flow.enstrophy).sqrt()[:, None, None]


@dataclass(frozen=True, eq=False)
class Leith(_EddyViscosity):
    """nu_e = (C_l D)^3 <|grad omega|>, or (C_l D)^3 |grad omega|(x, y) if local, with D = 2 pi/N.

    Source: Leith (1996), Physica D 98:481; the default constant is that of the published code of Mojgani et al. (2023),
    arXiv 2312.00907.

    Attributes:
        constant: C_l, a number or ``(B,)`` numbers.
        local: the local gradient in place of its mean.
        padded: de-alias the local stress, see ``eddy_viscosity_term``.

    Raises:
        InputError: a constant that is negative or not finite.
    """

    constant: Constant = 0.17
    power: ClassVar[int] = 3

    def _scale(self, flow: Flow) -> Tensor:
        return flow.gradient_norm if self.local else flow.gradient_norm.mean((-2, -1), keepdim=True)

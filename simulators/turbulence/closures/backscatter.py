"""Backscatter: a biharmonic sink of enstrophy whose energy an anti-viscosity returns to the large scales."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from simulators.turbulence.closures.closure import Term
from simulators.turbulence.closures.constant import Constant, check_constant, per_copy
from simulators.turbulence.flow import Flow


@dataclass(frozen=True, eq=False)
class Backscatter:
    """Pi = nu_B lap^2 omega - nu_back lap omega with nu_B = (C_b D)^4 sqrt(<|S|^2>) and D = 2 pi/N.

    The sink takes the energy nu_B <|grad omega|^2>; nu_back = -share nu_B <|grad omega|^2>/<omega^2>, negative,
    returns ``share`` of it, exactly. Both act explicitly: nu_B k_max^4 dt must stay below 2.

    Source: after Jansen and Held (2014), Ocean Modelling 80:36, whose energy budget is local in time and space; here it
    is that of the whole box.

    Attributes:
        constant: C_b, a number or ``(B,)`` numbers.
        share: of the energy that is returned, in [0, 1), likewise.

    Raises:
        InputError: a value outside its range.
    """

    constant: Constant = 0.2
    share: Constant = 0.5
    width: ClassVar[float] = 1.0
    """D in grid spacings."""

    def __post_init__(self) -> None:
        check_constant("constant", self.constant)
        check_constant("share", self.share, below=1.0)

    def coefficients(self, flow: Flow) -> tuple[Tensor, Tensor]:
        """(nu_B, nu_back), each ``(B, 1, 1)``."""
        grid = flow.grid
        sink = (per_copy("constant", self.constant, flow) * (self.width * grid.spacing)) ** 4
        sink = sink * (2 * flow.enstrophy).sqrt()[:, None, None]  # <|S|^2> = <omega^2>
        # |k| omega_hat has the mean square of grad omega.
        steepness = Flow(grid, grid.k2.sqrt() * flow.vorticity_hat).enstrophy / flow.enstrophy.clamp(min=1e-30)
        return sink, -per_copy("share", self.share, flow) * sink * steepness[:, None, None]

    def largest_step(self, flow: Flow) -> Tensor:
        """The dt of each copy up to which the explicit sink is stable, ``(B,)``: 2/(nu_B k_max^4)."""
        sink, _ = self.coefficients(flow)
        return 2 / (sink[:, 0, 0] * float(flow.grid.k2[flow.grid.resolved].max()) ** 2)

    def __call__(self, flow: Flow) -> Term:
        """Explicit."""
        sink, anti = self.coefficients(flow)
        k2 = flow.grid.k2
        return Term(pi_hat=(sink * k2 + anti) * k2 * flow.vorticity_hat)

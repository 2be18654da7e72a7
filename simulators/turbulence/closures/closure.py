"""What a closure is: from the resolved flow to the sub-grid term of the vorticity equation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from simulators.turbulence.flow import Flow


@dataclass(frozen=True)
class Term:
    """The sub-grid term at one instant; either part, both or neither.

    Attributes:
        viscosity: ``(B, 1, 1)`` eddy viscosity constant in space, which the solver treats implicitly.
        pi_hat: ``(B, N, N/2+1)`` spectrum of Pi, which enters as -Pi explicitly.
    """

    viscosity: Tensor | None = None
    pi_hat: Tensor | None = None


class Closure(Protocol):
    """Any callable from the resolved flow of B copies to their sub-grid term."""

    def __call__(self, flow: Flow) -> Term:
        """The term for ``flow``, whose fields are ``(B, N, N)``."""
        ...


def subgrid_term(flow: Flow, term: Term) -> Tensor:
    """The whole term as ``(B, N, N/2+1)`` spectrum of Pi, whichever way the solver treats it."""
    pi_hat = term.pi_hat if term.pi_hat is not None else flow.vorticity_hat * 0
    if term.viscosity is not None:
        pi_hat = pi_hat + term.viscosity * flow.grid.k2 * flow.vorticity_hat
    return pi_hat


class NoClosure:
    """Pi = 0."""

    def __call__(self, flow: Flow) -> Term:
        """Nothing."""
        return Term()

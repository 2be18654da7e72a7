"""The flows: forced two-dimensional and beta-plane turbulence, non-dimensional, in a box of side 2 pi."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any

from core.errors import InputError


@dataclass(frozen=True)
class Case:
    """Parameters of d omega/dt + u.grad omega + beta v = (1/Re) lap omega - alpha omega - f - Pi.

    The forcing is f(x, y) = fkx cos(fkx x) + fky cos(fky y); everything is non-dimensional, the box is [0, 2 pi)^2.

    Attributes:
        name: of the case.
        reynolds: Re, the inverse of the viscosity.
        fkx: wavenumber of the forcing along x; 0 for none.
        fky: wavenumber of the forcing along y; 0 for none.
        beta: gradient of the Coriolis parameter; positive drifts Rossby waves westward.
        drag: linear (Rayleigh) drag alpha.
        sigma: standard deviation of the vorticity of the direct simulation, where it is known.
    """

    name: str
    reynolds: float = 20e3
    fkx: int = 4
    fky: int = 4
    beta: float = 0.0
    drag: float = 0.1
    sigma: float | None = None

    def __post_init__(self) -> None:
        for name, low in (("reynolds", 0.0), ("drag", -1e-300)):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > low):
                raise InputError(f"{name} = {value}: must be {'above' if name == 'reynolds' else 'at least'} 0")
        if not math.isfinite(self.beta):
            raise InputError(f"beta = {self.beta}: must be finite")
        for name in ("fkx", "fky"):
            value = getattr(self, name)
            if value != int(value) or value < 0:
                raise InputError(f"{name} = {value}: must be a whole wavenumber of at least 0")

    @property
    def viscosity(self) -> float:
        """Nu = 1 / Re."""
        return 1.0 / self.reynolds

    @property
    def forcing(self) -> int:
        """The largest forced wavenumber."""
        return max(self.fkx, self.fky)


CASES = {
    c.name: c
    for c in (
        Case("case1", fkx=4, fky=4, sigma=6.0705),
        Case("case2", fkx=4, fky=4, beta=20.0, sigma=10.3789),
        Case("case4", fkx=25, fky=25, sigma=12.85),
        Case("kolmogorov4", fkx=4, fky=0),
    )
}
"""Cases 1, 2 and 4 of Mojgani et al. (2023), arXiv 2312.00907, as in its code, and that of the shipped snapshots."""


def case(name: str, **changes: Any) -> Case:
    """A named case, with some of its parameters replaced.

    Raises:
        InputError: an unknown case or an impossible value.
    """
    if name not in CASES:
        raise InputError(f"case = {name!r}: must be one of {', '.join(CASES)}")
    allowed = [f.name for f in fields(Case)]
    for key in changes:
        if key not in allowed:
            raise InputError(f"case {name}: has no {key}; it has {', '.join(allowed)}")
    return replace(CASES[name], **changes)

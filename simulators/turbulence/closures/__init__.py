"""Sub-grid closures: what the scales that the grid does not resolve do to those that it does."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from core.errors import InputError
from simulators.turbulence.closures.backscatter import Backscatter
from simulators.turbulence.closures.closure import Closure, NoClosure, Term, subgrid_term
from simulators.turbulence.closures.constant import (
    Leith,
    Smagorinsky,
    Stress,
    eddy_viscosity_stress,
    eddy_viscosity_term,
    largest_step,
)
from simulators.turbulence.closures.custom import FunctionClosure
from simulators.turbulence.closures.dynamic import DynamicLeith, DynamicSmagorinsky, TensorDynamicSmagorinsky
from simulators.turbulence.closures.gradient import GradientModel

CLOSURES: dict[str, Callable[..., Closure]] = {
    "none": NoClosure,
    "smag": Smagorinsky,
    "smag_local": partial(Smagorinsky, local=True),
    "leith": Leith,
    "leith_local": partial(Leith, local=True),
    "dsmag": DynamicSmagorinsky,
    "dleith": DynamicLeith,
    "dsmag_tensor": TensorDynamicSmagorinsky,
    "gm2": partial(GradientModel, order=2),
    "gm4": partial(GradientModel, order=4),
    "backscatter": Backscatter,
}
"""The closures that a configuration can name."""


def closure(name: str, **options: Any) -> Closure:
    """A named closure, with options of its class.

    Raises:
        InputError: an unknown name or option, or an impossible value.
    """
    if name not in CLOSURES:
        raise InputError(f"closure = {name!r}: must be one of {', '.join(CLOSURES)}")
    allowed = inspect.signature(CLOSURES[name]).parameters
    for option in options:
        if option not in allowed:
            raise InputError(f"closure {name}: has no option {option!r}; it takes {', '.join(allowed) or 'none'}")
    return CLOSURES[name](**options)


__all__ = [
    "CLOSURES",
    "Backscatter",
    "Closure",
    "DynamicLeith",
    "DynamicSmagorinsky",
    "FunctionClosure",
    "GradientModel",
    "Leith",
    "NoClosure",
    "Smagorinsky",
    "Stress",
    "TensorDynamicSmagorinsky",
    "Term",
    "closure",
    "eddy_viscosity_stress",
    "eddy_viscosity_term",
    "largest_step",
    "subgrid_term",
]

"""A closure from a user's own function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from core.errors import InputError
from simulators.turbulence.closures.closure import Term
from simulators.turbulence.closures.constant import eddy_viscosity_term
from simulators.turbulence.flow import Flow

Returns = Literal["viscosity", "pi"]
Kind = Literal["torch", "numpy"]


@dataclass(frozen=True)
class FunctionClosure:
    """The sub-grid term that a function gives, as an eddy viscosity or as Pi itself.

    A torch function is called with the ``Flow`` of B copies and returns a tensor; a numpy function with the vorticity
    ``(B, N, N)`` and returns an array. The result is checked in every call, which a device has to wait for.

    Attributes:
        function: of the resolved flow.
        returns: ``viscosity`` for nu_e, ``(B, N, N)`` or ``(B, 1, 1)`` where it is constant in space; ``pi`` for Pi,
            ``(B, N, N)``.
        kind: ``torch`` or ``numpy``.
        padded: de-alias the stress of a viscosity, see ``eddy_viscosity_term``.

    Raises:
        InputError: an unknown choice; in a call, a result of another type or shape, or not finite for a finite flow.
    """

    function: Callable[[Any], Any]
    returns: Returns = "viscosity"
    kind: Kind = "torch"
    padded: bool = False

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise InputError(f"function = {self.function!r}: must be callable")
        for name, value, allowed in (("returns", self.returns, Returns), ("kind", self.kind, Kind)):
            if value not in get_args(allowed):
                raise InputError(f"{name} = {value!r}: must be one of {', '.join(get_args(allowed))}")

    def _result(self, flow: Flow) -> Tensor:
        """The function's result, checked, with dtype and device of the flow."""
        name, grid = getattr(self.function, "__name__", "function"), flow.grid
        if self.kind == "torch":
            result = self.function(flow)
            if not isinstance(result, Tensor):
                raise InputError(f"{name}: returned {type(result).__name__}, must be a tensor")
        else:
            array = np.asarray(self.function(flow.vorticity.detach().cpu().numpy()))
            if array.dtype.kind not in "fiu":
                raise InputError(f"{name}: returned an array of {array.dtype}, must be of real numbers")
            result = torch.from_numpy(np.array(array, dtype=np.float64))
        if result.is_complex():
            raise InputError(f"{name}: returned a tensor of {result.dtype}, must be of real numbers")
        copies = flow.vorticity_hat.shape[0]
        shapes = [(copies, grid.n, grid.n)] + [(copies, 1, 1)] * (self.returns == "viscosity")
        if tuple(result.shape) not in shapes:
            allowed = " or ".join(map(str, shapes))
            raise InputError(f"{name}: returned {self.returns} of shape {tuple(result.shape)}, must be {allowed}")
        result = result.to(grid.device, grid.dtype)
        # A copy that has blown up is not the function's fault, and ends without the others.
        sound = torch.isfinite(torch.view_as_real(flow.vorticity_hat)).flatten(1).all(1)
        refused = sound & ~torch.isfinite(result).flatten(1).all(1)
        if bool(refused.any()):
            raise InputError(f"{name}: returned {self.returns} that is not finite in copy {int(refused.nonzero()[0])}")
        return result

    def viscosity(self, flow: Flow) -> Tensor:
        """nu_e, ``(B, N, N)`` or ``(B, 1, 1)``.

        Raises:
            InputError: the function returns Pi.
        """
        if self.returns != "viscosity":
            raise InputError(f"returns = {self.returns!r}: has no viscosity")
        return self._result(flow)

    def __call__(self, flow: Flow) -> Term:
        """Implicit for a viscosity that is constant in space, else explicit."""
        result = self._result(flow)
        if self.returns == "pi":
            return Term(pi_hat=flow.grid.to_spectral(result))
        return Term(viscosity=result) if result.shape[-1] == 1 else eddy_viscosity_term(flow, result, self.padded)

"""Harvest rules of the field, from populations to fishing mortalities.

Every rule is a callable ``rule(observation, state=None) -> mortality``: observation ``(B, species)`` populations,
mortality ``(B, harvested)`` in [0, 1]. Parameters are one value a harvested species, or ``(B, harvested)`` tensors when
each copy follows its own rule (that is how a grid of rules is tuned in one batch).

Source: Montealegre-Mora et al. (2023), section 3; the precautionary ramp is the "40-10"-type rule of its follow-up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from core.errors import InputError


def _per_species(values: Sequence[float] | Tensor, observation: Tensor) -> Tensor:
    """Parameters as ``(B, harvested)``, in the precision and on the device of the observation."""
    tensor = torch.as_tensor(values, dtype=observation.dtype, device=observation.device)
    return tensor.expand(len(observation), tensor.shape[-1])


def _check(rule: str, field: str, values: Sequence[float] | Tensor, high: float | None) -> None:
    tensor = torch.as_tensor(values)
    limit = float("inf") if high is None else high
    if tensor.dim() == 0 or not bool(((tensor >= 0) & (tensor <= limit)).all()):
        allowed = "at least 0" if high is None else f"in [0, {high:g}]"
        raise InputError(
            f"{rule}.{field} = {values}: must be a list of numbers, one a harvested species, each {allowed}"
        )


@dataclass(frozen=True)
class ConstantMortality:
    """The same share of each stock every year, whatever its size (CMort).

    Attributes:
        mortality: M_i in [0, 1], one a harvested species or ``(B, harvested)``.
    """

    mortality: Sequence[float] | Tensor

    def __post_init__(self) -> None:
        _check("constant_mortality", "mortality", self.mortality, 1.0)

    def __call__(self, observation: Tensor, state: Any = None) -> Tensor:
        """Mortalities of the batch."""
        return _per_species(self.mortality, observation)


@dataclass(frozen=True)
class ConstantEscapement:
    """Harvest all above a fixed escapement S and nothing below it: M = max(1 - S/(N + 1e-12), 0) (CEsc).

    Attributes:
        escapement: S_i >= 0 in units of the population, one a harvested species or ``(B, harvested)``.
    """

    escapement: Sequence[float] | Tensor

    def __post_init__(self) -> None:
        _check("constant_escapement", "escapement", self.escapement, None)

    def __call__(self, observation: Tensor, state: Any = None) -> Tensor:
        """Mortalities of the batch."""
        escapement = _per_species(self.escapement, observation)
        return (1 - escapement / (observation[:, : escapement.shape[1]] + 1e-12)).clamp(min=0)


@dataclass(frozen=True)
class PrecautionaryRamp:
    """No harvest below x1, a mortality rising linearly to y2 at x2, and y2 above.

    Attributes:
        x1: limit population, shared by the species; a number or ``(B, 1)``.
        x2: trigger population, x1 < x2; a number or ``(B, 1)``.
        y2: mortality above x2 in [0, 1], one a harvested species or ``(B, harvested)``.
    """

    x1: float | Tensor
    x2: float | Tensor
    y2: Sequence[float] | Tensor

    def __post_init__(self) -> None:
        if not bool((torch.as_tensor(self.x1) < torch.as_tensor(self.x2)).all()) or not bool(
            (torch.as_tensor(self.x1) >= 0).all()
        ):
            raise InputError(f"precautionary_ramp: x1 = {self.x1}, x2 = {self.x2}: must be 0 <= x1 < x2")
        _check("precautionary_ramp", "y2", self.y2, 1.0)

    def __call__(self, observation: Tensor, state: Any = None) -> Tensor:
        """Mortalities of the batch."""
        y2 = _per_species(self.y2, observation)
        return y2 * ((observation[:, : y2.shape[1]] - self.x1) / (self.x2 - self.x1)).clamp(0, 1)

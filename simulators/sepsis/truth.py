"""What only the simulator knows: the doses that a patient needs now, and how far each action is from them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from simulators.sepsis.features import FLUID_ML, LEVELS, VASOPRESSOR
from simulators.sepsis.sepsis44 import HALF_DOSE, REACH, Sepsis44State


def truth_dose(state: Sepsis44State) -> tuple[Tensor, Tensor]:
    """Doses that make up for the deficit and the vasoplegia without harm.

    Args:
        state: B patients.

    Returns:
        Fluid ``(B,)`` in L (0 to 1) and vasopressor ``(B,)`` in ug/kg/min (0 to 0.68).
    """
    fluid = (1.1 * state.deficit.relu() - 0.5 * state.lung_water).clamp(0, 1)
    need = ((state.vasoplegia - 0.55) / (REACH * state.response.sqrt())).clamp(0, 0.82)
    return fluid, (HALF_DOSE * need / (1 - need)).clamp(0, VASOPRESSOR[-1])


def truth_levels(state: Sepsis44State) -> tuple[Tensor, Tensor]:
    """Levels 0..4 of fluid and vasopressor nearest to ``truth_dose`` in the square root of the dose, ``(B,)`` each."""
    fluid, vasopressor = truth_dose(state)
    return _nearest(1000 * fluid, FLUID_ML), _nearest(vasopressor, VASOPRESSOR)


def truth_scores(state: Sepsis44State) -> Tensor:
    """``(B, 25)`` minus the squared distance, in levels, of every action from ``truth_levels``; 0 is the best."""
    levels = torch.arange(LEVELS, device=state.deficit.device)
    fluid, vasopressor = (-(levels - needed[:, None]).square() for needed in truth_levels(state))
    return (fluid[:, :, None] + vasopressor[:, None, :]).flatten(1).to(state.deficit.dtype)


class TruthDose:
    """The policy that gives ``truth_levels``: it sees the patient's inside, as nobody can."""

    def __call__(self, observation: Any, state: Sepsis44State) -> Tensor:
        """``(B,)`` actions."""
        fluid, vasopressor = truth_levels(state)
        return LEVELS * fluid + vasopressor


def _nearest(dose: Tensor, levels: tuple[float, ...]) -> Tensor:
    roots = dose.new_tensor(levels).sqrt()
    return (dose.sqrt()[:, None] - roots).abs().argmin(1)

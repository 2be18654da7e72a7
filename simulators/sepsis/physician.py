"""The physician of the simulator: a known stochastic rule that reacts to what is seen and gives a little much fluid."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from core.errors import InputError
from simulators.sepsis.features import INDEX, LEVELS


def physician_probabilities(
    observation: Tensor, previous_vasopressor: Tensor, temperature: float = 0.8, bias: float = 0.8
) -> Tensor:
    """Probabilities of the 25 actions: discrete normals around the levels that the signs ask for.

    Fluid follows lactate, low pressure, little urine, and holds back with poor oxygenation and a positive balance;
    vasopressor follows low pressure, lactate and its own level of the step before.

    Args:
        observation: ``(B, 44)`` in units.
        previous_vasopressor: ``(B,)`` level 0..4 of the step before.
        temperature: variance of the levels around what is asked for.
        bias: levels of fluid given beyond need.

    Returns:
        ``(B, 25)``, rows that sum to 1.
    """
    names = ("Arterial_lactate", "MeanBP", "output_4hourly", "PaO2_FiO2", "cumulated_balance")
    lactate, pressure, urine, ratio, balance = (observation[:, INDEX[name]] for name in names)
    fluid = 1.6 + 1.1 * (lactate - 2) / 1.5 + 0.9 * (75 - pressure) / 12 + 0.7 * (200 - urine) / 150
    fluid = fluid - 0.5 * (ratio < 250) - 0.15 * balance / 3000 + bias
    vasopressor = 0.2 + 2 * (68 - pressure) / 9 + 0.5 * (lactate - 2.5) / 1.5 + 0.72 * previous_vasopressor
    levels = torch.arange(LEVELS, device=observation.device)
    asked = torch.stack([fluid, vasopressor], 1).clamp(0, LEVELS - 1)
    each = torch.softmax(-(levels - asked[:, :, None]).square() / (2 * temperature), 2)
    return (each[:, 0, :, None] * each[:, 1, None, :]).flatten(1)


def sample_actions(probabilities: Tensor, generator: torch.Generator) -> Tensor:
    """``(B,)`` int64 actions drawn from the rows of ``probabilities (B, A)``, one uniform number a row."""
    uniform = torch.rand(len(probabilities), 1, generator=generator, device=generator.device)
    cumulated = probabilities.cumsum(1)
    return (cumulated[:, :-1] <= uniform.to(cumulated) * cumulated[:, -1:]).sum(1)


@dataclass
class Physician:
    """The physician as a policy; the draws are its own, and start again with every roll-out.

    Attributes:
        temperature: variance of the levels around what the signs ask for, above 0.
        bias: levels of fluid given beyond need.
        seed: of the draws.

    Raises:
        InputError: a temperature that is not above 0, or a bias that is not finite.
    """

    temperature: float = 0.8
    bias: float = 0.8
    seed: int = 0
    _generator: torch.Generator | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not (0 < self.temperature < math.inf and math.isfinite(self.bias)):
            raise InputError(
                f"temperature = {self.temperature}, bias = {self.bias}: must be finite, the temperature above 0"
            )

    def reset(self, batch: int) -> None:
        """Begin a roll-out."""
        self._generator = None

    def probabilities(self, observation: Tensor, state: Any) -> Tensor:
        """``(B, 25)`` for observations in units; of the state only the vasopressor of the step before is used."""
        return physician_probabilities(observation, state.vasopressor, self.temperature, self.bias)

    def __call__(self, observation: Tensor, state: Any = None) -> Tensor:
        """``(B,)`` actions."""
        if self._generator is None or self._generator.device != observation.device:
            self._generator = torch.Generator(observation.device).manual_seed(self.seed)
        return sample_actions(self.probabilities(observation, state), self._generator)

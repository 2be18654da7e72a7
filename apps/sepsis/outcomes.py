"""What a policy would truly lead to, where patients are simulated: new patients are treated with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from core.errors import InputError
from core.seeds import stream
from simulators.sepsis import Sepsis44, icusepsis, sample_actions, survival
from simulators.sepsis.cohort import Cohort
from simulators.sepsis.icusepsis import ICUSepsis44
from simulators.sepsis.survival import discounted_outcome

SEED = stream(0, "patients that every policy meets")
"""Of the new patients and their luck, which all policies have in common."""
SIMULATED = ("sepsis44", "icusepsis44")
"""Sources of cohorts whose patients can be treated again."""


def is_simulated(cohort: Cohort) -> bool:
    """Whether a simulator made the cohort."""
    return bool(cohort.origin.get("synthetic")) and cohort.origin.get("source") in SIMULATED


def true_survival(
    cohort: Cohort,
    greedy: Callable[[Tensor], Tensor],
    subjects: int,
    seed: int = SEED,
    *,
    device: str | torch.device = "cpu",
) -> Tensor:
    """Survival of new patients ``(subjects,)`` of the simulator that made a cohort; its mean is what counts.

    Args:
        cohort: whose simulator and normalisation are used.
        greedy: from normalised states ``(B, 44)`` to actions ``(B,)``, a tensor or an array.
        subjects: how many.
        seed: of the patients and their luck.
        device: where to compute.

    Raises:
        InputError: the cohort is not simulated.
    """
    world, act = _world(cohort, greedy, device)
    if isinstance(world, ICUSepsis44):
        return icusepsis.survival(world, act, subjects, seed, device)
    return survival(world, act, subjects, seed, device=device)


def true_outcome(
    cohort: Cohort,
    probabilities: Callable[[Tensor], Tensor],
    subjects: int,
    gamma: float,
    seed: int = SEED,
    *,
    device: str | torch.device = "cpu",
) -> Tensor:
    """Discounted outcome of new patients ``(subjects,)`` under a stochastic policy: what estimates are after.

    Args:
        cohort: see ``true_survival``.
        probabilities: from normalised states ``(B, 44)`` to ``(B, 25)``.
        subjects: how many.
        gamma: discount of a step.
        seed: of the patients, their luck and the policy's choices.
        device: where to compute.

    Raises:
        InputError: the cohort is not simulated.
    """
    generator = torch.Generator(device).manual_seed(stream(seed, "choices"))
    world, act = _world(cohort, lambda state: sample_actions(probabilities(state), generator), device)
    if isinstance(world, ICUSepsis44):
        return icusepsis.discounted_outcome(world, act, subjects, seed, gamma, device)
    return discounted_outcome(world, act, subjects, seed, gamma, device=device)


def _world(cohort: Cohort, chosen: Callable[[Tensor], Tensor], device: str | torch.device) -> tuple[Any, Any]:
    """The simulator of a cohort, and a policy of what it shows."""
    if not is_simulated(cohort):
        raise InputError("cohort: not simulated; how patients fare under another treatment is not known")

    def choose(states: Tensor) -> Tensor:
        return torch.as_tensor(chosen(states), device=states.device)

    if cohort.origin["source"] == "icusepsis44":
        chain = ICUSepsis44(kappa=float(cohort.origin["kappa"]))
        return chain.on(device), lambda seen, state=None: choose(seen.float())
    scale = cohort.normalisation
    assert scale is not None
    return Sepsis44(horizon=int(cohort.origin["horizon"])), lambda seen, state=None: choose(scale.apply(seen.float()))

"""Cohorts of simulated patients, with everything that real records do not tell."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from core.errors import InputError
from core.seeds import stream
from simulators.sepsis.cohort import FRACTIONS, Cohort, split_patients
from simulators.sepsis.features import Normalisation
from simulators.sepsis.physician import Physician, sample_actions
from simulators.sepsis.sepsis44 import Sepsis44
from simulators.sepsis.truth import truth_scores


class StochasticPolicy(Protocol):
    """A behaviour whose probabilities are known."""

    def probabilities(self, observation: Tensor, state: Any) -> Tensor:
        """``(B, 25)`` for observations in units ``(B, 44)``."""
        ...


@torch.no_grad()
def simulate_cohort(
    world: Sepsis44,
    patients: int,
    seed: int,
    *,
    physician: StochasticPolicy | None = None,
    split_seed: int | None = None,
    fractions: tuple[float, float, float] = FRACTIONS,
    record_truth: bool = True,
) -> Cohort:
    """Patients as the physician treated them, until death or the horizon.

    Patients who die in their first step are kept: without them survival would look better than it is.

    Args:
        world: the simulator.
        patients: how many.
        seed: of the patients, their luck and the physician's choices.
        physician: the behaviour; ``Physician()`` if None.
        split_seed: of the split of the patients; ``seed`` if None.
        fractions: shares of train, validation and test.
        record_truth: keep ``score`` ``(P, T, 25)`` (``truth_scores``) and ``latent`` ``(P, T, 61)``, from which, with
            ``raw``, ``world.reset_to`` restarts a patient at a step.

    Returns:
        The cohort, its normalisation fitted to the training split.

    Raises:
        InputError: fewer than 1 patient.
    """
    if patients < 1:
        raise InputError(f"patients = {patients}: must be at least 1")
    physician = Physician() if physician is None else physician
    generator = torch.Generator().manual_seed(stream(seed, "patients"))
    choices = torch.Generator().manual_seed(stream(seed, "physician"))
    state = world.reset(patients, generator)
    alive = torch.ones(patients, dtype=torch.bool)
    outcome = torch.ones(patients)
    frames: dict[str, list[Tensor]] = {name: [] for name in ("raw", "action", "mask", "behaviour")}
    if record_truth:
        frames |= {"score": [], "latent": []}
    for _ in range(world.horizon):
        probabilities = physician.probabilities(state.observation, state)
        action = sample_actions(probabilities, choices)
        frame = {"raw": state.observation, "action": action, "mask": alive, "behaviour": probabilities}
        if record_truth:
            frame |= {"score": truth_scores(state), "latent": world.latent(state)}
        for name, values in frame.items():
            frames[name].append(values)
        step = world.step(state, action, world.noise(patients, generator))
        outcome[alive & step.info["died"]] = -1.0
        state, alive = step.state, alive & ~step.terminated
    longest = int(torch.stack(frames["mask"]).any(1).sum())
    stacked = {name: torch.stack(values[:longest], 1) for name, values in frames.items()}
    mask = stacked.pop("mask")
    # Nothing is known of what did not happen: zeros behind the last step, as in a file of records.
    kept = {
        name: values.masked_fill(~mask.view(*mask.shape, *(1,) * (values.dim() - 2)), 0)
        for name, values in stacked.items()
    }
    split_seed = seed if split_seed is None else split_seed
    split = split_patients(outcome, split_seed, fractions)
    raw = kept["raw"].float()
    fitted = Normalisation.fit(raw[mask & (split == 0)[:, None]])
    return Cohort(
        state=fitted.apply(raw).masked_fill(~mask[..., None], 0),
        action=kept["action"],
        mask=mask,
        outcome=outcome,
        split=split,
        raw=raw,
        behaviour=kept["behaviour"].float(),
        truth={name: kept[name] for name in ("score", "latent") if name in kept},
        normalisation=fitted,
        origin={
            "source": "sepsis44",
            "synthetic": True,
            "patients": patients,
            "seed": seed,
            "split_seed": split_seed,
            "horizon": world.horizon,
            "physician": repr(physician),
        },
    )

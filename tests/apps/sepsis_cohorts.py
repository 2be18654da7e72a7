"""Small cohorts for the tests of the sepsis application."""

import torch

from simulators.sepsis.cohort import Cohort
from simulators.sepsis.features import ACTIONS, INDEX, STATE, Normalisation


def small_cohort(patients: int = 40, steps: int = 6, seed: int = 0, *, units: bool = True) -> Cohort:
    """Patients who stay 1 to ``steps`` steps, with random features, integer SOFA scores and a random clinician."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, steps + 1, (patients,), generator=generator)
    mask = torch.arange(steps) < lengths[:, None]
    raw = torch.rand(patients, steps, len(STATE), generator=generator) * 10
    raw[..., INDEX["SOFA"]] = torch.randint(0, 3, (patients, steps), generator=generator).float()
    scale = Normalisation.fit(raw[mask])
    behaviour = torch.softmax(torch.randn(patients, steps, ACTIONS, generator=generator), -1)
    action = torch.multinomial(behaviour.flatten(0, 1), 1, generator=generator).view(patients, steps)
    outcome = torch.where(torch.arange(patients) % 3 > 0, 1.0, -1.0)
    # Two of three patients are trained on.
    split = torch.where(torch.rand(patients, generator=generator) < 2 / 3, 0, 2)
    shown = mask[..., None]
    return Cohort(
        state=scale.apply(raw) * shown,
        action=action * mask,
        mask=mask,
        outcome=outcome,
        split=split,
        raw=raw * shown if units else None,
        behaviour=behaviour,
        normalisation=scale if units else None,
        origin={"source": "made up", "synthetic": True},
    )

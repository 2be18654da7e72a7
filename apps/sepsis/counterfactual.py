"""Does the evidence that convinced the judge bear on the outcome? On a simulator that can be asked, with twins.

Debate makes a decision convincing, not right (Sukovic and Radanovic, ICLR 2024, arXiv 2402.15826, reward it by the
judge's verdict alone). A simulated patient can be treated twice under the same luck, and again with a part of the body
exchanged: an item of evidence bears on the choice between two treatments if the difference between their outcomes
changes once what the feature shows is another patient's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from apps.sepsis.debate import Debate
from apps.sepsis.preferences import Preferences
from core.errors import InputError
from core.seeds import stream
from core.simulation import Policy, tree
from core.stats import Interval, nested_ratio
from simulators.sepsis import STATE, Cohort, Sepsis44, Sepsis44State, TruthDose, truth_scores
from simulators.sepsis.sepsis44 import SCALARS

_PRESSURE = ("deficit", "response", "vasoplegia")
_COMA = ("infection", "ventilated", *_PRESSURE)
_HEART = ("infection", *_PRESSURE)
_LUNGS = ("infection", "lung_water")

CAUSES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("Chloride", "Magnesium", "Calcium"), ()),
    **{"gender": ("male",), "mechvent": ("ventilated",), "age": ("age",), "Weight_kg": ("weight",)},
    **{"GCS": _COMA, "HR": _HEART, "Shock_Index": _HEART},
    "SOFA": (*_COMA, "kidney", "liver", "lung_water"),
    "SIRS": (*_HEART, "lactate", "lung_water"),
    **dict.fromkeys(("SysBP", "MeanBP", "DiaBP"), _PRESSURE),
    "output_4hourly": (*_PRESSURE, "kidney"),
    **{"output_total": ("output_total",), "input_total": ("input_total",)},
    "cumulated_balance": ("input_total", "output_total"),
    **dict.fromkeys(("Temp_C", "Glucose", "WBC_count"), ("infection",)),
    **dict.fromkeys(("RR", "paO2", "PaO2_FiO2"), _LUNGS),
    **dict.fromkeys(("FiO2_1", "SpO2"), ("lung_water",)),
    **dict.fromkeys(("Sodium", "Hb"), ("deficit",)),
    **dict.fromkeys(("Potassium", "BUN", "Creatinine"), ("kidney",)),
    **dict.fromkeys(("PTT", "PT", "SGOT", "SGPT", "Total_bili", "INR"), ("liver",)),
    "Platelets_count": ("infection", "liver"),
    **{"Arterial_pH": ("kidney", "lactate"), "paCO2": ("lactate", "lung_water")},
    **dict.fromkeys(("Arterial_BE", "HCO3", "Arterial_lactate"), ("lactate",)),
}
"""What each feature of ``sepsis44`` shows of the patient; noise and the past treatment aside, it shows nothing else."""

Cited = Literal["winner", "loser", "both", "any"]
"""Features cited by the side that won, by the side that lost, by either; or all features, as random evidence would."""


@torch.no_grad()
def evidence_check(
    world: Sepsis44,
    cohort: Cohort,
    preferences: Preferences,
    debate: Debate,
    utility: Tensor,
    seed: int,
    *,
    afterwards: Policy | TruthDose | None = None,
    draws: int = 4,
    progress: Callable[[float, str], object] | None = None,
) -> xr.Dataset:
    """Treat the patients of N debates with both actions under the same luck, then again with causes exchanged.

    The outcome is the survival to the horizon, the product of 1 - hazard over the steps that are left. Causes are
    exchanged for those of the patient of another debate, and each draw has its own luck and partners.

    Args:
        world: the simulator that made the cohort.
        cohort: with ``raw`` and ``truth["latent"]``.
        preferences: which patient at which step, N rows.
        debate: about the same N states; its two actions are compared.
        utility: ``(N,)`` of player 1, from ``verdict``.
        seed: of luck and partners.
        afterwards: treats from the next step on, without chance; ``TruthDose()`` if None.
        draws: of luck and partners.
        progress: told the fraction done and a message.

    Returns:
        Dims debate (N) and feature (44): ``treatment_effect`` (debate), the survival under player 1's action less that
        under player 2's; ``effect`` (debate, feature), by how much that difference changes when the causes of the
        feature are exchanged (mean of absolute values); ``need`` (debate, feature), by how much the difference of the
        two actions in ``truth_scores`` does; ``speaker`` (debate, feature), 1 or 2 who cited the feature, else 0;
        ``utility`` (debate); coordinate ``patient`` (debate).

    Raises:
        InputError: a cohort without latent states, fewer than 2 debates, or numbers of rows that differ.
    """
    if "latent" not in cohort.truth or cohort.raw is None:
        raise InputError("cohort: has no latent states; must be simulated by sepsis44 with record_truth")
    rows = len(debate)
    if rows < 2 or not rows == len(preferences) == len(utility):
        raise InputError(
            f"debate, preferences, utility: {rows}, {len(preferences)} and {len(utility)} rows; "
            "must be equally many, at least 2"
        )
    latent = cohort.truth["latent"][preferences.patient, preferences.step]
    raw = cohort.raw[preferences.patient, preferences.step]
    first, second = debate.first, debate.second
    after = TruthDose() if afterwards is None else afterwards

    def twins(rows: Tensor, luck: int) -> tuple[Tensor, Tensor]:
        state = world.reset_to(rows, raw)
        scores = truth_scores(state).double()
        need = scores.gather(1, first[:, None]) - scores.gather(1, second[:, None])
        return _treatment_effect(world, state, first, second, after, luck), need[:, 0]

    causes = sorted(set(CAUSES.values()))
    treatment = torch.zeros(rows, dtype=torch.float64)
    changes = torch.zeros(2, rows, len(causes), dtype=torch.float64)
    for draw in range(draws):
        luck = stream(seed, f"luck {draw}")
        generator = torch.Generator().manual_seed(stream(seed, f"partners {draw}"))
        order = torch.randperm(rows, generator=generator)
        partner = torch.empty_like(order)
        partner[order] = order.roll(1)
        effect, need = twins(latent, luck)
        treatment += effect / draws
        for k, names in enumerate(causes):
            if names:
                columns = [SCALARS.index(name) for name in names]
                exchanged = latent.clone()
                exchanged[:, columns] = latent[partner][:, columns]
                other_effect, other_need = twins(exchanged, luck)
                changes[0, :, k] += (other_effect - effect).abs() / draws
                changes[1, :, k] += (other_need - need).abs() / draws
            if progress is not None:
                progress((draw + (k + 1) / len(causes)) / draws, "counterfactual twins")
    by_feature = changes[:, :, [causes.index(CAUSES[name]) for name in STATE]].numpy()
    speaker = torch.zeros(debate.state.shape, dtype=torch.int64).scatter(1, debate.items, debate.speaker)
    return xr.Dataset(
        {
            "treatment_effect": ("debate", treatment.numpy(), {"units": "1"}),
            "effect": (("debate", "feature"), by_feature[0], {"units": "1"}),
            "need": (("debate", "feature"), by_feature[1], {"units": "squared levels"}),
            "speaker": (("debate", "feature"), speaker.numpy()),
            "utility": ("debate", utility.numpy()),
        },
        {"feature": list(STATE), "patient": ("debate", preferences.patient.numpy())},
    )


def evidence_precision(
    checks: Sequence[xr.Dataset],
    cited: Cited = "winner",
    by: Literal["effect", "need"] = "effect",
    *,
    tolerance: float = 0.01,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Share of cited items that bear on the choice, a mean over seeds; its interval draws seeds, then patients.

    Args:
        checks: of ``evidence_check``, one a seed.
        cited: whose items; undecided debates have neither winner nor loser.
        by: ``effect``, the twins' difference in survival changes by more than ``tolerance``; ``need``, the doses that
            the patient needs change so that they speak otherwise about the two actions.
        tolerance: smallest change of survival that counts.
        resamples: draws of the bootstrap.
        seed: of the bootstrap.

    Raises:
        InputError: no check, or one without any such item.
    """
    hits, items = [], []
    for check in checks:
        bears = check[by].values > (tolerance if by == "effect" else 0)
        speaker, utility = check["speaker"].values, check["utility"].values[:, None]
        winner = np.where(utility > 0, 1, np.where(utility < 0, 2, -1))
        loser = np.where(winner > 0, 3 - winner, -1)
        counted = {
            "winner": speaker == winner,
            "loser": speaker == loser,
            "both": speaker > 0,
            "any": np.ones_like(bears),
        }[cited]
        _, patient = np.unique(check["patient"].values, return_inverse=True)
        hits.append(np.bincount(patient, (bears & counted).sum(1)))
        items.append(np.bincount(patient, counted.sum(1)))
    return nested_ratio(hits, items, resamples=resamples, seed=seed)


def _treatment_effect(
    world: Sepsis44, state: Sepsis44State, first: Tensor, second: Tensor, afterwards: Policy | TruthDose, luck: int
) -> Tensor:
    """``(N,)`` survival under one action now less that under the other, the same luck for both."""
    generator = torch.Generator().manual_seed(luck)
    patients, both = tree.repeat(state, 2), torch.cat([first, second])
    log_alive = torch.zeros(len(both), dtype=torch.float64)
    if hasattr(afterwards, "reset"):
        afterwards.reset(len(both))
    for _ in range(world.horizon - int(state.step.min())):
        noise = tree.repeat(world.noise(len(first), generator), 2)
        step = world.step(patients, both, noise)
        log_alive += torch.where(patients.step < world.horizon, torch.log1p(-step.info["hazard"].double()), 0.0)
        patients = step.state
        both = afterwards(world.observe(patients, noise), patients)
    one, other = log_alive.exp().chunk(2)
    return one - other

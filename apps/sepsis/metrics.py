"""What is measured of a policy and of a debate besides survival (Sukovic and Radanovic 2024, section 5)."""

from __future__ import annotations

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from simulators.sepsis.cohort import Cohort
from simulators.sepsis.features import (
    ACTIONS,
    FLUID_ML,
    INDEX,
    STATE,
    VASOPRESSOR,
    fluid_level,
    vasopressor_level,
)

LARGEST_SOFA = 15.0
"""Sicker patients are left out of the dose excess, as published."""
DOSES = {"fluid": (FLUID_ML, fluid_level, "mL per 4 h"), "vasopressor": (VASOPRESSOR, vasopressor_level, "ug/kg/min")}
DOSE_BINS = {"fluid": 7, "vasopressor": 5}
"""Bins of the dose excess, as published."""


def dose_excess(cohort: Cohort, split_rows: Tensor, action: Tensor) -> xr.Dataset:
    """Observed mortality by how much more the clinician gave than the policy would have, at each patient's last step.

    Args:
        cohort: the patients; with units, patients with SOFA above 15 are left out.
        split_rows: ``(K,)`` rows of the patients looked at.
        action: ``(P, T)`` of the policy at the cohort's steps.

    Returns:
        By ``drug``, ``fluid`` and ``vasopressor``: ``excess_<drug>`` (centre of the bin, units), ``deaths_<drug>`` and
        ``patients_<drug>`` along ``bin_<drug>``.
    """
    last = cohort.mask.sum(1) - 1
    rows = split_rows
    if cohort.raw is not None:
        rows = rows[cohort.raw[rows, last[rows], INDEX["SOFA"]] <= LARGEST_SOFA]
    given, chosen = cohort.action[rows, last[rows]], action[rows, last[rows]]
    died = (cohort.outcome[rows] < 0).cpu().numpy()
    data: dict[str, tuple[str, NDArray[np.generic], dict[str, str]]] = {}
    for drug, (doses, level, units) in DOSES.items():
        table = torch.tensor(doses, device=given.device)
        excess = (table[level(given)] - table[level(chosen)]).cpu().numpy()
        edges = np.linspace(-doses[-1], doses[-1], DOSE_BINS[drug] + 1)
        index = np.clip(np.digitize(excess, edges) - 1, 0, DOSE_BINS[drug] - 1)
        dim = f"bin_{drug}"
        centres = (edges[1:] + edges[:-1]) / 2
        data[f"excess_{drug}"] = (dim, centres, {"units": units, "long_name": f"{drug}: clinician less policy"})
        data[f"patients_{drug}"] = (dim, np.bincount(index, minlength=DOSE_BINS[drug]), {"units": "1"})
        data[f"deaths_{drug}"] = (dim, np.bincount(index, died, DOSE_BINS[drug]).astype(np.int64), {"units": "1"})
    return xr.Dataset(data)


def action_counts(action: Tensor) -> Tensor:
    """``(25,)`` how often each action is chosen in ``action`` (any shape)."""
    return torch.bincount(action.flatten(), minlength=ACTIONS)


def evidence_counts(evidence: Tensor, action: Tensor) -> Tensor:
    """``(44, 25)`` how often each feature is evidence ``(N, 44)`` in debates on an action ``(N,)``."""
    counts = torch.zeros(ACTIONS, len(STATE), device=evidence.device)
    return counts.index_add_(0, action, evidence.to(counts)).T

"""The patient's state: 44 features in the order of the sepsis literature, their units, and how they are normalised.

The columns are those of the Sepsis-3 cohort of Komorowski et al. (2018), Nature Medicine 24, 1716-1720, as the public
extraction scripts write them; the state leaves out the three that leak the treatment or the admission.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from core.errors import InputError

LEVELS = 5
"""Levels of each drug; action = 5 * fluid level + vasopressor level."""
ACTIONS = LEVELS**2
FLUID_ML = (0.0, 30.0, 85.0, 320.0, 946.0)
"""Intravenous fluid of each level, mL in 4 h (medians of the bins)."""
VASOPRESSOR = (0.0, 0.04, 0.13, 0.27, 0.68)
"""Vasopressor of each level, micrograms of noradrenaline equivalent per kg and minute (medians of the bins)."""

CENTRED = ("gender", "mechvent")
"""Binary features of the state: 0.5 is subtracted."""
LOG_SCALED = (
    *("SpO2", "BUN", "Creatinine", "SGOT", "SGPT", "Total_bili", "INR"),
    *("input_total", "output_total", "output_4hourly"),
)
"""Features of the state whose logarithm ln(0.1 + x) is standardised."""

STATE: tuple[str, ...] = (
    *("gender", "mechvent", "age", "Weight_kg"),
    *("SOFA", "SIRS", "Shock_Index", "output_4hourly", "output_total", "cumulated_balance", "GCS", "HR"),
    *("SysBP", "MeanBP", "DiaBP", "RR", "Temp_C", "FiO2_1", "Potassium", "Sodium", "Chloride", "Glucose"),
    *("Magnesium", "Calcium", "Hb", "WBC_count", "Platelets_count", "PTT", "PT", "Arterial_pH", "paO2", "paCO2"),
    *("Arterial_BE", "HCO3", "Arterial_lactate", "PaO2_FiO2", "SpO2", "BUN", "Creatinine", "SGOT", "SGPT"),
    *("Total_bili", "INR", "input_total"),
)
"""The 44 features, in order."""
INDEX = {name: i for i, name in enumerate(STATE)}

COHORT_COLUMNS: tuple[str, ...] = (
    *("gender", "mechvent", "max_dose_vaso", "re_admission"),
    *("age", "Weight_kg", "GCS", "HR", "SysBP", "MeanBP", "DiaBP", "RR", "Temp_C", "FiO2_1", "Potassium", "Sodium"),
    *("Chloride", "Glucose", "Magnesium", "Calcium", "Hb", "WBC_count", "Platelets_count", "PTT", "PT"),
    *("Arterial_pH", "paO2", "paCO2", "Arterial_BE", "HCO3", "Arterial_lactate", "SOFA", "SIRS", "Shock_Index"),
    *("PaO2_FiO2", "cumulated_balance"),
    *("SpO2", "BUN", "Creatinine", "SGOT", "SGPT", "Total_bili", "INR"),
    *("input_total", "input_4hourly", "output_total", "output_4hourly"),
)
"""The 47 columns of a cohort file, in order."""

UNITS: dict[str, str] = {
    **dict.fromkeys(("gender", "mechvent", "re_admission", "SOFA", "SIRS", "GCS", "FiO2_1", "INR", "Arterial_pH"), "1"),
    **{"age": "years", "Weight_kg": "kg", "Shock_Index": "1/(min mmHg)", "Temp_C": "degC", "SpO2": "%"},
    **dict.fromkeys(("output_4hourly", "input_4hourly"), "mL per 4 h"),
    **dict.fromkeys(("output_total", "input_total", "cumulated_balance"), "mL"),
    **dict.fromkeys(("HR", "RR"), "1/min"),
    **dict.fromkeys(("SysBP", "MeanBP", "DiaBP", "paO2", "paCO2", "PaO2_FiO2"), "mmHg"),
    **dict.fromkeys(("Potassium", "Sodium", "Chloride", "Arterial_BE", "HCO3"), "mmol/L"),
    **dict.fromkeys(("Glucose", "Magnesium", "Calcium", "BUN", "Creatinine", "Total_bili"), "mg/dL"),
    **{"Hb": "g/dL", "Arterial_lactate": "mmol/L", "max_dose_vaso": "ug/kg/min"},
    **dict.fromkeys(("WBC_count", "Platelets_count"), "10^9/L"),
    **dict.fromkeys(("PTT", "PT"), "s"),
    **dict.fromkeys(("SGOT", "SGPT"), "U/L"),
}
"""Units of the columns before normalisation."""


def fluid_level(action: Tensor) -> Tensor:
    """Level 0..4 of intravenous fluid of an action 0..24."""
    return action // LEVELS


def vasopressor_level(action: Tensor) -> Tensor:
    """Level 0..4 of vasopressor of an action 0..24."""
    return action % LEVELS


def action_name(action: int) -> str:
    """An action in words, such as "fluid 2, vasopressor 0"."""
    return f"fluid {action // LEVELS}, vasopressor {action % LEVELS}"


def feature_hash(features: Sequence[str] = STATE) -> str:
    """First 16 hex digits of the SHA-256 of the ordered list of features: a model knows which state it was made for."""
    return hashlib.sha256("\n".join(features).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Normalisation:
    """The map from units to the numbers that learners see: ln(0.1 + x) where skewed, then standardised.

    Attributes:
        mean: ``(44,)`` of the (logarithmic) values of the training split; 0.5 for binary features.
        std: ``(44,)``; 1 for binary features.
    """

    mean: Tensor
    std: Tensor

    @staticmethod
    def fit(raw: Tensor) -> Normalisation:
        """From the rows ``(N, 44)`` of the training split, in units; a constant feature keeps its spread as 1."""
        values = _skewed(raw.double())
        mean, std = values.mean(0), values.std(0)
        std = torch.where(std > 1e-8, std, 1.0)
        for name in CENTRED:
            mean[INDEX[name]], std[INDEX[name]] = 0.5, 1.0
        return Normalisation(mean.to(raw), std.to(raw))

    def apply(self, raw: Tensor) -> Tensor:
        """Units ``(..., 44)`` to normalised."""
        return (_skewed(raw) - self.mean.to(raw)) / self.std.to(raw)

    def invert(self, state: Tensor) -> Tensor:
        """Normalised ``(..., 44)`` to units."""
        values = state * self.std.to(state) + self.mean.to(state)
        return torch.where(_log_scaled(values), torch.exp(values) - 0.1, values)


def _log_scaled(like: Tensor) -> Tensor:
    return torch.tensor([name in LOG_SCALED for name in STATE], device=like.device)


def _skewed(raw: Tensor) -> Tensor:
    if raw.shape[-1] != len(STATE):
        raise InputError(f"state: {raw.shape[-1]} features; must be {len(STATE)}")
    # Values below 0 do not occur in these ten (counts, concentrations, volumes); readers refuse them.
    return torch.where(_log_scaled(raw), torch.log(0.1 + raw.clamp(min=0.0)), raw)

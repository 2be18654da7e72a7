"""Whether values are in units or normalised, and in which units."""

from __future__ import annotations

from typing import Literal

import numpy as np

from core.errors import InputError
from simulators.sepsis.features import CENTRED, INDEX, LOG_SCALED, STATE, UNITS
from simulators.sepsis.readers.tables import Numbers, Table

Values = Literal["raw", "normalised"]
DAYS_PER_YEAR = 365.25

MEDIANS: dict[str, tuple[float, float]] = {
    "age": (15, 110),
    "Weight_kg": (30, 200),
    "SOFA": (0, 24),
    "SIRS": (0, 4),
    "Shock_Index": (0.2, 3),
    "GCS": (3, 15),
    "HR": (40, 180),
    "SysBP": (60, 200),
    "MeanBP": (40, 140),
    "DiaBP": (20, 120),
    "RR": (6, 50),
    "Temp_C": (32, 42),
    "FiO2_1": (0.2, 1),
    "SpO2": (70, 100),
    "paO2": (35, 400),
    "paCO2": (15, 100),
    "PaO2_FiO2": (40, 700),
    "Potassium": (2, 8),
    "Sodium": (110, 170),
    "Chloride": (75, 135),
    "Glucose": (40, 500),
    "Magnesium": (0.8, 6),
    "Calcium": (5, 14),
    "Hb": (4, 20),
    "WBC_count": (0.5, 80),
    "Platelets_count": (20, 900),
    "PTT": (15, 150),
    "PT": (8, 80),
    "INR": (0.7, 8),
    "Arterial_pH": (6.9, 7.8),
    "Arterial_BE": (-20, 20),
    "HCO3": (8, 45),
    "Arterial_lactate": (0.3, 12),
    "BUN": (3, 150),
    "Creatinine": (0.2, 10),
    "SGOT": (5, 2000),
    "SGPT": (5, 2000),
    "Total_bili": (0.1, 25),
}
"""Where the median of a cohort in intensive care lies in these units; in usual other units it lies elsewhere."""


def check_values(table: Table, features: Numbers, expected: Values | Literal["auto"]) -> Values:
    """Whether a table is in units or normalised, by its heart rate.

    Args:
        table: it comes from, for messages.
        features: ``(N, 44)``.
        expected: what it must be; ``auto`` accepts either.

    Raises:
        InputError: it is the other one, or with ``auto`` neither.
    """
    rate = features[:, INDEX["HR"]]
    mean, spread = float(rate.mean()), float(rate.std())
    low, high = MEDIANS["HR"]
    seems: Values | None = None
    if low <= mean <= high:
        seems = "raw"
    elif abs(mean) < 0.1 and 0.8 < spread < 1.25:
        seems = "normalised"
    column = f"{table.file}: {table.columns['HR']} has mean {mean:.2f} and standard deviation {spread:.2f}"
    if expected == "raw" and seems != "raw":
        kind = "normalised values" if seems == "normalised" else "no heart rates"
        raise InputError(f"{column}: these are {kind}, must be in units ({low:g} to {high:g} per minute on average)")
    if expected == "normalised" and seems == "raw":
        raise InputError(f"{column}: these are values in units, must be normalised (mean 0, standard deviation 1)")
    if expected != "auto":
        return expected
    if seems is None:
        raise InputError(
            f"{column}: must be in units ({low:g} to {high:g} per minute on average) or normalised (mean 0, standard "
            "deviation 1); values = normalised reads a part of a normalised file"
        )
    return seems


def check_units(table: Table, features: Numbers) -> bool:
    """Check that values are in the units of ``UNITS``; ages in days become years in place.

    A wrong unit moves a whole column, so it is the median that is held against a range; a single outlier is the
    extraction's business.

    Args:
        table: they come from, for messages.
        features: ``(N, 44)``.

    Returns:
        Whether ages were in days.

    Raises:
        InputError: a median out of range, a binary feature that is not 0 or 1, or a negative count or volume.
    """
    for name in CENTRED:
        table.refuse(name, ~np.isin(features[:, INDEX[name]], (0.0, 1.0)), "0 or 1")
    for name in LOG_SCALED:
        table.refuse(name, features[:, INDEX[name]] < 0, f"at least 0 ({UNITS[name]})")
    medians = np.median(features, axis=0)
    days = bool(medians[INDEX["age"]] > DAYS_PER_YEAR)
    if days:
        features[:, INDEX["age"]] /= DAYS_PER_YEAR
        medians[INDEX["age"]] /= DAYS_PER_YEAR
    for i, name in enumerate(STATE):
        low, high = MEDIANS.get(name, (-np.inf, np.inf))
        if not low <= medians[i] <= high:
            unit = "" if UNITS[name] == "1" else f" {UNITS[name]}"
            raise InputError(
                f"{table.file}: {table.columns[name]} has median {medians[i]:.4g}, must be within {low:g} to {high:g}"
                f"{unit}: is it in another unit?"
            )
    return days

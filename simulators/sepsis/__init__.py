"""Sepsis in intensive care: simulated patients whose truth is known, and cohorts, simulated or read from records."""

from simulators.sepsis.cohort import SPLITS, Cohort, Split, Steps, check_cohort, split_patients
from simulators.sepsis.features import (
    ACTIONS,
    FLUID_ML,
    INDEX,
    LEVELS,
    STATE,
    UNITS,
    VASOPRESSOR,
    Normalisation,
    action_name,
    feature_hash,
    fluid_level,
    vasopressor_level,
)
from simulators.sepsis.gumbel import GumbelSepsis
from simulators.sepsis.icusepsis import ICUSepsis44
from simulators.sepsis.physician import Physician, physician_probabilities, sample_actions
from simulators.sepsis.scores import sirs, sofa
from simulators.sepsis.sepsis44 import Sepsis44, Sepsis44Noise, Sepsis44State
from simulators.sepsis.simulated_cohort import StochasticPolicy, simulate_cohort
from simulators.sepsis.survival import survival
from simulators.sepsis.truth import TruthDose, truth_dose, truth_levels, truth_scores

__all__ = [
    "ACTIONS",
    "FLUID_ML",
    "INDEX",
    "LEVELS",
    "SPLITS",
    "STATE",
    "UNITS",
    "VASOPRESSOR",
    "Cohort",
    "GumbelSepsis",
    "ICUSepsis44",
    "Normalisation",
    "Physician",
    "Sepsis44",
    "Sepsis44Noise",
    "Sepsis44State",
    "Split",
    "Steps",
    "StochasticPolicy",
    "TruthDose",
    "action_name",
    "check_cohort",
    "feature_hash",
    "fluid_level",
    "physician_probabilities",
    "sample_actions",
    "simulate_cohort",
    "sirs",
    "sofa",
    "split_patients",
    "survival",
    "truth_dose",
    "truth_levels",
    "truth_scores",
    "vasopressor_level",
]

"""Contextual bandits: exploration over dynamic action sets, and evaluation from logs."""

from core.bandits.coverage import Coverage, feature_coverage, log_coverage, policy_coverage
from core.bandits.exploration import (
    best_action,
    bootstrap_votes,
    epsilon_greedy,
    greedy,
    inverse_gap_weighting,
    softmax,
    surviving_actions,
    uniform,
    with_floor,
    with_minimum,
)
from core.bandits.gamma import ConstantGamma, FalconGamma, GammaSchedule, PowerGamma, SquareCBGamma
from core.bandits.grouping import (
    Grouping,
    agglomerate,
    choose_grouping,
    effect_vectors,
    group_probabilities,
    grouped_inverse_gap_weighting,
    within_group_spread,
)
from core.bandits.philox import philox4x32, philox_uniform
from core.bandits.sampling import Choice, SliceChoice, sample_actions, sample_epsilon_slice

__all__ = [
    "Choice",
    "ConstantGamma",
    "Coverage",
    "FalconGamma",
    "GammaSchedule",
    "Grouping",
    "PowerGamma",
    "SliceChoice",
    "SquareCBGamma",
    "agglomerate",
    "best_action",
    "bootstrap_votes",
    "choose_grouping",
    "effect_vectors",
    "epsilon_greedy",
    "feature_coverage",
    "greedy",
    "group_probabilities",
    "grouped_inverse_gap_weighting",
    "inverse_gap_weighting",
    "log_coverage",
    "philox4x32",
    "philox_uniform",
    "policy_coverage",
    "sample_actions",
    "sample_epsilon_slice",
    "softmax",
    "surviving_actions",
    "uniform",
    "with_floor",
    "with_minimum",
    "within_group_spread",
]

"""Contextual bandits: exploration over dynamic action sets, and evaluation from logs."""

from core.bandits.coverage import Coverage, feature_coverage, log_coverage, policy_coverage
from core.bandits.diagnostics import Diagnostics
from core.bandits.estimators import ESTIMATORS, Limits
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
from core.bandits.hashing import cross_fitted, folds_of, hashed
from core.bandits.off_policy import LOGGED, Sums, evaluate
from core.bandits.off_policy_intervals import Anytime, Bernstein, Evidence, IntervalMethod, Normal, Percentile
from core.bandits.philox import philox4x32, philox_uniform
from core.bandits.poisson_bootstrap import PoissonBootstrap
from core.bandits.rows import NET_VALUE, LoggedRows, logged_rows
from core.bandits.sampling import Choice, SliceChoice, sample_actions, sample_epsilon_slice
from core.bandits.weights import balance_heuristic, group_weights, marginal_weights, mrdr_weights

__all__ = [
    "ESTIMATORS",
    "LOGGED",
    "NET_VALUE",
    "Anytime",
    "Bernstein",
    "Choice",
    "ConstantGamma",
    "Coverage",
    "Diagnostics",
    "Evidence",
    "FalconGamma",
    "GammaSchedule",
    "Grouping",
    "IntervalMethod",
    "Limits",
    "LoggedRows",
    "Normal",
    "Percentile",
    "PoissonBootstrap",
    "PowerGamma",
    "SliceChoice",
    "SquareCBGamma",
    "Sums",
    "agglomerate",
    "balance_heuristic",
    "best_action",
    "bootstrap_votes",
    "choose_grouping",
    "cross_fitted",
    "effect_vectors",
    "epsilon_greedy",
    "evaluate",
    "feature_coverage",
    "folds_of",
    "greedy",
    "group_probabilities",
    "group_weights",
    "grouped_inverse_gap_weighting",
    "hashed",
    "inverse_gap_weighting",
    "log_coverage",
    "logged_rows",
    "marginal_weights",
    "mrdr_weights",
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

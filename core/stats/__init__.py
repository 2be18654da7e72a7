"""Intervals and tests: every number that is printed comes with one."""

from core.stats.bootstrap import (
    clustered_difference,
    mean_interval,
    nested_ratio,
    paired_difference,
    unpaired_difference,
)
from core.stats.comparison import (
    holm,
    paired_t_test,
    permutation_test,
    proportion_interval,
    t_interval,
    welch_test,
)
from core.stats.ensembles import (
    RankHistogram,
    SpreadSkill,
    coverage,
    crps,
    energy_score,
    rank_histogram,
    spread_skill,
)
from core.stats.interval import Interval
from core.stats.ranks import AverageRanks, SignedRank, average_ranks, rank_correlation, signed_rank_test
from core.stats.survival import kaplan_meier, kaplan_meier_median

__all__ = [
    "Interval",
    "clustered_difference",
    "holm",
    "mean_interval",
    "nested_ratio",
    "paired_difference",
    "paired_t_test",
    "permutation_test",
    "proportion_interval",
    "t_interval",
    "unpaired_difference",
    "welch_test",
]

__all__ += [
    "RankHistogram",
    "SpreadSkill",
    "coverage",
    "crps",
    "energy_score",
    "rank_histogram",
    "spread_skill",
]

__all__ += [
    "AverageRanks",
    "SignedRank",
    "average_ranks",
    "kaplan_meier",
    "kaplan_meier_median",
    "rank_correlation",
    "signed_rank_test",
]

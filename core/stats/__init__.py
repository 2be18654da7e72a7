"""Intervals and tests: every number that is printed comes with one."""

from core.stats.bootstrap import clustered_difference, mean_interval, paired_difference, unpaired_difference
from core.stats.comparison import (
    holm,
    paired_t_test,
    permutation_test,
    proportion_interval,
    t_interval,
    welch_test,
)
from core.stats.interval import Interval

__all__ = [
    "Interval",
    "clustered_difference",
    "holm",
    "mean_interval",
    "paired_difference",
    "paired_t_test",
    "permutation_test",
    "proportion_interval",
    "t_interval",
    "unpaired_difference",
    "welch_test",
]

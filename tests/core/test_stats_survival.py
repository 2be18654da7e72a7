import math

import numpy as np
import pytest
from scipy import stats as reference

from core import stats
from core.errors import InputError

# Remission times in weeks under 6-MP and placebo (Freireich et al. 1963, Blood 21, 699), as in Cox and Oakes (1984).
MERCAPTOPURINE = [6, 6, 6, 7, 10, 13, 16, 22, 23, 6, 9, 10, 11, 17, 19, 20, 25, 32, 32, 34, 35]
STILL_IN_REMISSION = [False] * 9 + [True] * 12
PLACEBO = [1, 1, 2, 2, 3, 4, 4, 5, 5, 8, 8, 8, 8, 11, 11, 12, 12, 15, 17, 22, 23]


def test_shares_of_a_hand_example():
    # Five at 1, 2+, 3, 3+, 4: 4/5, then 2/3 of it at 3 (three are there), then none.
    at, share = stats.kaplan_meier([1.0, 2.0, 3.0, 3.0, 4.0], [False, True, False, True, False])
    assert at.tolist() == [1.0, 3.0, 4.0]
    assert share.tolist() == pytest.approx([4 / 5, 8 / 15, 0.0])


def test_shares_of_the_remission_times_are_the_textbooks():
    at, share = stats.kaplan_meier(MERCAPTOPURINE, STILL_IN_REMISSION)
    assert at.tolist() == [6, 7, 10, 13, 16, 22, 23]
    assert share.tolist() == pytest.approx([0.857, 0.807, 0.753, 0.690, 0.627, 0.538, 0.448], abs=5e-4)


def test_medians_of_the_remission_times_are_the_textbooks():
    treated = stats.kaplan_meier_median(MERCAPTOPURINE, STILL_IN_REMISSION)
    assert (treated.mean, treated.low, treated.high, treated.n) == (23.0, 13.0, math.inf, 21)
    placebo = stats.kaplan_meier_median(PLACEBO, [False] * 21)
    assert (placebo.mean, placebo.low, placebo.high) == (8.0, 4.0, 11.0)


def test_without_censoring_the_shares_are_the_empirical_ones():
    times = np.random.default_rng(0).exponential(1.0, 51)
    at, share = stats.kaplan_meier(times, np.zeros(51, bool))
    assert share.tolist() == pytest.approx([(times > t).mean() for t in at])
    assert stats.kaplan_meier_median(times, np.zeros(51, bool)).mean == np.median(times)


@pytest.mark.filterwarnings("ignore:The confidence interval is undefined:RuntimeWarning")
@pytest.mark.parametrize("level", [0.8, 0.95])
def test_bands_agree_with_scipy(level):
    rng = np.random.default_rng(5)
    times, limit = np.round(rng.exponential(2.0, 60), 1), np.round(rng.exponential(3.0, 60), 1)
    censored = limit < times
    observed = np.minimum(times, limit)
    data = reference.CensoredData.right_censored(observed, censored)
    survival = reference.ecdf(data).sf
    at, share = stats.kaplan_meier(observed, censored)
    assert share.tolist() == pytest.approx(survival.evaluate(at).tolist())
    with np.errstate(all="ignore"):
        bands = survival.confidence_interval(level, method="log-log")
    ours = stats.kaplan_meier_median(observed, censored, level=level)
    for end, band in ((ours.low, bands.low), (ours.high, bands.high)):
        shares = band.evaluate(at)
        assert end == at[np.flatnonzero(shares <= 0.5)[0]]


def test_interval_covers_the_true_median_as_often_as_its_level_says():
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(400):
        times, limit = rng.exponential(1.0, 60), rng.uniform(0.5, 3.0, 60)
        found = stats.kaplan_meier_median(np.minimum(times, limit), limit < times, level=0.9)
        covered += found.low <= math.log(2) <= found.high
    assert 0.85 < covered / 400 < 0.95


def test_more_than_half_censored_has_no_finite_median():
    found = stats.kaplan_meier_median([1.0, 2.0, 5.0, 5.0, 5.0, 5.0], [False, False, True, True, True, True])
    assert found.mean == math.inf
    assert found.high == math.inf
    nothing_ended = stats.kaplan_meier_median([1.0, 2.0], [True, True])
    assert (nothing_ended.mean, nothing_ended.low, nothing_ended.high) == (math.inf, math.inf, math.inf)


def test_half_that_lasts_longer_is_the_median():
    assert stats.kaplan_meier_median([1.0, 2.0, 3.0, 4.0], [False] * 4).mean == 2.0
    # The product of these 12 shares is just above one half in floating point.
    assert stats.kaplan_meier_median(np.arange(1.0, 25.0), [False] * 24).mean == 12.0


@pytest.mark.parametrize(
    ("times", "censored", "message"),
    [
        ([1.0, -2.0], [False, False], r"times\[1\] is -2"),
        ([1.0, np.inf], [False, False], r"times\[1\] is inf"),
        ([1.0], [False], "1 replicate"),
        ([1.0, 2.0], [False], r"shape \(1,\)"),
    ],
)
def test_impossible_times_are_refused(times, censored, message):
    with pytest.raises(InputError, match=message):
        stats.kaplan_meier_median(times, censored)

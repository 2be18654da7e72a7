import math
from itertools import product

import numpy as np
import pytest
from scipy import stats as reference

from core import stats
from core.errors import InputError

DEMSAR_05 = {2: 1.960, 3: 2.343, 4: 2.569, 5: 2.728, 6: 2.850, 7: 2.949, 8: 3.031, 9: 3.102, 10: 3.164}
DEMSAR_10 = {2: 1.645, 3: 2.052, 4: 2.291, 5: 2.459, 6: 2.589, 7: 2.693, 8: 2.780, 9: 2.855, 10: 2.920}


def normal(*shape, seed=20, loc=0.0):
    return np.random.default_rng(seed).normal(loc, 1.0, shape)


def test_signed_rank_p_of_six_positive_differences_is_two_in_sixty_four():
    result = stats.signed_rank_test([1.0, 2.0, 3.0, 4.0, 5.0, 7.0], np.zeros(6))
    assert result.p == pytest.approx(2 / 2**6)
    assert result.mode == "exact"
    assert result.mean == 3.5
    assert result.n == 6


def test_the_p_of_ties_counts_all_choices_of_the_signs():
    differences = np.array([1.0, 1.0, -1.0, 2.0, 2.0, 3.0, -3.0, 3.0, 3.0, 5.0])
    ranks = reference.rankdata(np.abs(differences))
    signs = np.array(list(product([0, 1], repeat=10)))
    sums, middle = signs @ ranks, ranks.sum() / 2
    share = (np.abs(sums - middle) >= abs(ranks[differences > 0].sum() - middle)).mean()
    result = stats.signed_rank_test(differences, np.zeros(10))
    assert (result.p, result.mode) == (pytest.approx(share), "exact")


def test_signed_rank_agrees_with_scipy_in_both_modes():
    a, b = normal(40), normal(40, seed=1, loc=0.4)
    exact = stats.signed_rank_test(a, b)
    assert (exact.p, exact.mode) == (pytest.approx(reference.wilcoxon(a, b, method="exact").pvalue), "exact")
    tied = np.round(normal(90)), np.round(normal(90, seed=1, loc=0.4))
    many = stats.signed_rank_test(*tied)
    assert (many.p, many.mode) == (pytest.approx(reference.wilcoxon(*tied, method="asymptotic").pvalue), "normal")


def test_pairs_without_difference_do_not_count_in_the_test():
    a = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 7.0, 9.0, 9.0])
    result = stats.signed_rank_test(a, [0.0] * 6 + [9.0, 9.0])
    assert (result.p, result.mode, result.n) == (pytest.approx(2 / 2**6), "exact", 8)


def test_equal_samples_have_no_difference_and_p_one():
    result = stats.signed_rank_test([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])
    assert (result.mean, result.low, result.high, result.p, result.mode) == (0.0, 0.0, 0.0, 1.0, "none")


def test_signed_rank_exchanges_its_signs_with_its_samples():
    a, b = normal(15), normal(15, seed=3)
    forward, backward = stats.signed_rank_test(a, b), stats.signed_rank_test(b, a)
    assert forward.p == backward.p
    assert forward.mean == -backward.mean
    assert (forward.low, forward.high) == pytest.approx((-backward.high, -backward.low))


def test_median_interval_agrees_with_scipys_percentile_bootstrap():
    a = np.random.default_rng(4).exponential(1.0, 30)
    ours = stats.signed_rank_test(a, np.zeros(30))
    theirs = reference.bootstrap((a,), np.median, n_resamples=10_000, method="percentile", rng=1).confidence_interval
    # Medians of resamples lie on few values: neighbours among the sorted sample at most.
    gap = 2 * np.diff(np.sort(a))[5:25].max()
    assert ours.low == pytest.approx(theirs.low, abs=gap)
    assert ours.high == pytest.approx(theirs.high, abs=gap)


def test_median_interval_covers_as_often_as_its_level_says():
    rng = np.random.default_rng(3)
    covered = 0
    for i in range(300):
        found = stats.signed_rank_test(rng.normal(1.0, 2.0, 41), np.zeros(41), level=0.9, resamples=500, seed=i)
        covered += found.low <= 1.0 <= found.high
    assert 0.84 < covered / 300 < 0.96


def test_rank_correlation_agrees_with_scipy_and_fishers_formula():
    x = normal(30)
    y = x + normal(30, seed=2)
    result = stats.rank_correlation(x, y)
    theirs = reference.spearmanr(x, y)
    assert (result.mean, result.p) == (pytest.approx(theirs.statistic), pytest.approx(theirs.pvalue))
    assert math.atanh(result.high) - math.atanh(result.mean) == pytest.approx(1.959964 / math.sqrt(27), rel=1e-5)
    assert math.atanh(result.mean) - math.atanh(result.low) == pytest.approx(1.959964 / math.sqrt(27), rel=1e-5)


def test_half_of_the_mass_has_the_probable_error_as_half_width():
    x = normal(50)
    result = stats.rank_correlation(x, x + normal(50, seed=2), level=0.5)
    assert math.atanh(result.high) - math.atanh(result.mean) == pytest.approx(0.674 / math.sqrt(47), rel=1e-3)


def test_rank_correlation_knows_only_the_order():
    x = normal(20)
    result = stats.rank_correlation(x, np.exp(x))
    assert (result.mean, result.low, result.high) == (1.0, 1.0, 1.0)
    assert stats.rank_correlation(x, -(x**3)).mean == -1.0


@pytest.mark.parametrize("table", [(0.95, DEMSAR_05), (0.9, DEMSAR_10)])
def test_critical_differences_are_those_of_demsars_table(table):
    level, quantiles = table
    for methods, quantile in quantiles.items():
        found = stats.average_ranks(normal(methods, 12), level=level).critical_difference
        assert found / math.sqrt(methods * (methods + 1) / (6 * 12)) == pytest.approx(quantile, abs=1.1e-3)


def test_critical_difference_of_demsars_example():
    # Four classifiers on 14 data sets (section 3.2.2): 1.25 at 5 %, 1.12 at 10 %.
    assert stats.average_ranks(normal(4, 14)).critical_difference == pytest.approx(1.25, abs=0.005)
    assert stats.average_ranks(normal(4, 14), level=0.9).critical_difference == pytest.approx(1.12, abs=0.005)


@pytest.mark.parametrize("decimals", [6, 0])
def test_friedman_agrees_with_scipy_with_and_without_ties(decimals):
    scores = np.round(normal(5, 20) + 0.5 * np.arange(5)[:, None], decimals)
    found = stats.average_ranks(scores)
    theirs = reference.friedmanchisquare(*scores)
    assert (found.statistic, found.p) == (pytest.approx(theirs.statistic), pytest.approx(theirs.pvalue))


def test_mean_ranks_of_a_hand_example():
    scores = np.array([[1.0, 2.0, 5.0], [2.0, 2.0, 3.0], [3.0, 9.0, np.nan]])
    assert stats.average_ranks(scores).ranks.tolist() == pytest.approx([(1 + 1.5 + 2) / 3, (2 + 1.5 + 1) / 3, 3.0])
    assert stats.average_ranks(scores).systems == 3
    higher = stats.average_ranks(scores, higher_is_better=True).ranks
    assert higher.tolist() == pytest.approx([(3 + 2.5 + 1) / 3, (2 + 2.5 + 2) / 3, (1 + 1 + 3) / 3])


def test_methods_that_always_tie_are_alike():
    found = stats.average_ranks(np.ones((3, 5)))
    assert found.ranks.tolist() == [2.0, 2.0, 2.0]
    assert (found.statistic, found.p) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: stats.signed_rank_test([1.0, 2.0], [1.0, 2.0, 3.0]), "2 and 3 replicates"),
        (lambda: stats.signed_rank_test([1.0, np.nan], [1.0, 2.0]), r"a\[1\] is nan"),
        (lambda: stats.signed_rank_test([1.0, 3.0], [1.0, 2.0], resamples=0), "resamples: 0"),
        (lambda: stats.signed_rank_test([1.0, 3.0], [1.0, 2.0], level=1.0), "level: 1.0"),
        (lambda: stats.rank_correlation([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]), "3 pairs"),
        (lambda: stats.rank_correlation([1.0] * 5, normal(5)), "x: is constant"),
        (lambda: stats.average_ranks(np.ones(3)), r"shape \(3,\)"),
        (lambda: stats.average_ranks(np.ones((1, 4))), r"shape \(1, 4\)"),
    ],
)
def test_impossible_input_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()

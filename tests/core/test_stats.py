import tracemalloc

import numpy as np
import pytest
import torch
from scipy import stats as reference

from core import stats
from core.errors import InputError
from core.stats.bootstrap import resampled_means


def normal(*shape, seed=20, loc=0.0, scale=1.0):
    return np.random.default_rng(seed).normal(loc, scale, shape)


def test_mean_interval_agrees_with_scipys_percentile_bootstrap():
    x = np.random.default_rng(1).exponential(2.0, 60)
    ours = stats.mean_interval(x, resamples=100_000)
    theirs = reference.bootstrap((x,), np.mean, n_resamples=100_000, method="percentile", rng=1).confidence_interval
    assert ours.mean == pytest.approx(x.mean())
    # The Monte Carlo error of the difference of two such ends is about 1.5 % of the standard error.
    tolerance = 0.06 * x.std() / np.sqrt(60)
    assert ours.low == pytest.approx(theirs.low, abs=tolerance)
    assert ours.high == pytest.approx(theirs.high, abs=tolerance)
    assert ours.p is None
    assert ours.n == 60


def test_mean_interval_tends_to_the_t_interval_on_normal_data():
    x = normal(2000, loc=3.0)
    ours = stats.mean_interval(x, level=0.9)
    low, high = reference.t.interval(0.9, 1999, loc=x.mean(), scale=reference.sem(x))
    assert ours.low == pytest.approx(low, abs=0.03 * (high - low))
    assert ours.high == pytest.approx(high, abs=0.03 * (high - low))
    assert ours.level == 0.9


def test_two_values_resample_to_their_four_ordered_pairs():
    means = resampled_means(np.array([[0.0, 1.0]]), 40_000, 0)
    values, counts = np.unique(means, return_counts=True)
    assert values.tolist() == [0.0, 0.5, 1.0]
    assert counts / 40_000 == pytest.approx([0.25, 0.5, 0.25], abs=0.01)


def test_interval_covers_the_true_mean_as_often_as_its_level_says():
    rng = np.random.default_rng(3)
    covered = 0
    for i in range(400):
        interval = stats.mean_interval(rng.normal(1.0, 2.0, 50), level=0.9, resamples=500, seed=i)
        covered += interval.low <= 1.0 <= interval.high
    # The percentile bootstrap of 50 values covers 0.89; four binomial standard errors around it.
    assert 0.83 < covered / 400 < 0.95


def test_pairing_removes_the_common_noise():
    common = normal(400, scale=10.0)
    a, b = common + normal(400, seed=1, loc=0.5, scale=0.5), common
    paired, unpaired = stats.paired_difference(a, b), stats.unpaired_difference(a, b)
    assert paired.low > 0
    assert unpaired.low < 0 < unpaired.high
    assert paired.mean == pytest.approx(unpaired.mean)
    same = stats.mean_interval(a - b)
    assert (paired.low, paired.high) == (same.low, same.high)


def test_unpaired_difference_agrees_with_scipys_two_sample_bootstrap():
    a, b = normal(80, loc=1.0), normal(50, seed=1, scale=3.0)
    ours = stats.unpaired_difference(a, b, resamples=50_000)
    theirs = reference.bootstrap(
        (a, b), lambda x, y, axis: x.mean(axis) - y.mean(axis), n_resamples=50_000, method="percentile", rng=1
    ).confidence_interval
    assert ours.low == pytest.approx(theirs.low, abs=0.03)
    assert ours.high == pytest.approx(theirs.high, abs=0.03)
    assert ours.n == 50


def test_bootstrap_p_value_inverts_the_interval_and_is_never_zero():
    difference = normal(200, loc=0.15)
    at = [stats.paired_difference(difference, np.full(200, shift), resamples=4000) for shift in (0.0, 0.15, 5.0)]
    for interval in at:
        assert (interval.p <= 0.05) == (interval.low > 0 or interval.high < 0)
    assert at[2].p == pytest.approx(2 / 4001)
    t = reference.ttest_1samp(difference, 0.0).pvalue
    assert at[0].p == pytest.approx(t, abs=0.02)


def test_null_p_values_of_the_bootstrap_are_uniform():
    rng = np.random.default_rng(5)
    p = [stats.paired_difference(*rng.normal(size=(2, 60)), resamples=400, seed=i).p for i in range(300)]
    assert reference.kstest(p, "uniform").pvalue > 0.01


def test_clustered_difference_of_one_seed_is_the_paired_difference():
    a, b = normal(300, loc=0.1), normal(300, seed=1)
    assert stats.clustered_difference((a - b)[None], seed=7) == stats.paired_difference(a, b, seed=7)


def test_clustered_variance_is_that_of_crossed_factors():
    # Drawing S rows and n columns: Var = var(rows) / S + var(columns) / n + var(rest) / (S n), divisors S and n.
    d = normal(4, 50, scale=2.0) + np.array([[0.0], [1.0], [3.0], [-2.0]]) + 3 * normal(50, seed=9)
    means = resampled_means(d, 40_000, 0)
    rest = d - d.mean(1, keepdims=True) - d.mean(0) + d.mean()
    expected = d.mean(1).var() / 4 + d.mean(0).var() / 50 + rest.var() / 200
    assert means.var() == pytest.approx(expected, rel=0.03)
    interval = stats.clustered_difference(d)
    assert interval.n == 50
    assert interval.mean == pytest.approx(d.mean())


def test_resampling_depends_on_the_seed_and_not_on_the_pieces():
    d = normal(3, 101)
    whole = resampled_means(d, 500, 4)
    for draws_at_once in (1, 303, 1000):
        np.testing.assert_array_equal(resampled_means(d, 500, 4, draws_at_once=draws_at_once), whole)
    assert not np.array_equal(resampled_means(d, 500, 5), whole)


def test_ten_thousand_resamples_of_five_thousand_values_stay_small():
    x = normal(5000)
    tracemalloc.start()
    stats.mean_interval(x)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200e6


@pytest.mark.parametrize("value", [0.0, 0.1, -7.3e9])
def test_constant_data_give_an_interval_of_no_width(value):
    a, zero = np.full(777, value), np.zeros(777)
    for interval in (
        stats.mean_interval(a),
        stats.paired_difference(a, zero),
        stats.unpaired_difference(a, zero),
        stats.clustered_difference(np.full((3, 777), value)),
        stats.welch_test(a, zero),
        stats.permutation_test(a, zero, resamples=100),
        stats.permutation_test(a, zero, paired=False, resamples=100),
    ):
        assert interval.mean == interval.low == interval.high == value
        assert interval.p is None or (interval.p == 1.0) == (value == 0.0)


def test_welch_test_is_scipys():
    a, b = normal(30, loc=1.0), normal(12, seed=1, scale=4.0)
    ours, theirs = stats.welch_test(a, b, level=0.9), reference.ttest_ind(a, b, equal_var=False)
    assert ours.p == pytest.approx(theirs.pvalue)
    assert (ours.low, ours.high) == pytest.approx(tuple(theirs.confidence_interval(0.9)))
    assert ours.mean == pytest.approx(a.mean() - b.mean())


def test_permutation_test_is_exact_for_few_pairs():
    # Of the 2^5 sign patterns of five positive differences only the observed one and its mirror are as extreme.
    a = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    assert stats.permutation_test(a, np.zeros(5)).p == pytest.approx(2 / 32)
    # Of the 20 ways to label three of six values, two are as extreme.
    assert stats.permutation_test(a[:3] + 10, a[:3], paired=False).p == pytest.approx(2 / 20)


def test_permutation_test_at_random_agrees_with_the_t_test():
    a, b = normal(100, loc=0.25), normal(100, seed=1)
    paired = stats.permutation_test(a, b, resamples=5000)
    assert paired.p == pytest.approx(reference.ttest_rel(a, b).pvalue, abs=0.02)
    independent = stats.permutation_test(a, b, paired=False, resamples=5000)
    assert independent.p == pytest.approx(reference.ttest_ind(a, b).pvalue, abs=0.02)
    assert stats.permutation_test(a, b, resamples=5000) == paired


def test_proportion_interval_is_wilsons():
    k, n, z = 93, 100, reference.norm.ppf(0.975)
    centre = (k / n + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(k / n * (1 - k / n) / n + z**2 / (4 * n**2))
    interval = stats.proportion_interval(k, n)
    assert (interval.mean, interval.low, interval.high) == pytest.approx((0.93, centre - half, centre + half))
    assert stats.proportion_interval(0, 20).low == 0.0
    assert stats.proportion_interval(20, 20).high == 1.0


def test_holm_adjusts_step_down_in_the_order_given():
    # Worked by hand: sorted .01 .02 .03 .04 times 4 3 2 1 is .04 .06 .06 .04, made monotone .04 .06 .06 .06.
    assert stats.holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert stats.holm([0.6, 0.9]) == pytest.approx([1.0, 1.0])
    assert stats.holm([]).shape == (0,)


def test_holm_keeps_the_family_wise_error():
    rng = np.random.default_rng(8)
    rejected = [(stats.holm(rng.uniform(size=6)) <= 0.1).any() for _ in range(2000)]
    assert np.mean(rejected) == pytest.approx(0.1, abs=0.03)


def test_tensors_are_accepted():
    a, b = torch.randn(50, generator=torch.Generator().manual_seed(0), requires_grad=True), torch.zeros(50)
    assert stats.paired_difference(a, b) == stats.paired_difference(a.detach().numpy(), b.numpy())
    assert stats.mean_interval(a > 0).mean == pytest.approx(float((a > 0).double().mean()))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: stats.mean_interval([1.0, 2.0, np.nan]), r"x\[2\] is nan"),
        (lambda: stats.paired_difference([1.0, 2.0], [np.inf, 2.0]), r"b\[0\] is inf"),
        (lambda: stats.clustered_difference([[1.0, 2.0], [1.0, np.nan]]), r"differences\[1, 1\] is nan"),
        (lambda: stats.mean_interval([1.0]), "at least 2"),
        (lambda: stats.clustered_difference([[1.0], [2.0]]), "at least 2"),
        (lambda: stats.welch_test([1.0, 2.0], []), "b: has 0"),
        (lambda: stats.clustered_difference(np.zeros((0, 4))), "non-empty"),
        (lambda: stats.clustered_difference([1.0, 2.0]), r"expected 2"),
        (lambda: stats.mean_interval(["a", "b"]), "expected numbers"),
        (lambda: stats.paired_difference([1.0, 2.0], [1.0, 2.0, 3.0]), "2 and 3"),
        (lambda: stats.permutation_test([1.0, 2.0], [1.0, 2.0, 3.0]), "2 and 3"),
        (lambda: stats.mean_interval([1.0, 2.0], level=1.0), r"\(0, 1\)"),
        (lambda: stats.welch_test([1.0, 2.0], [1.0, 2.0], level=95), r"\(0, 1\)"),
        (lambda: stats.mean_interval([1.0, 2.0], resamples=0), "resamples: 0"),
        (lambda: stats.proportion_interval(5, 4), r"\[0, 4\]"),
        (lambda: stats.proportion_interval(0, 0), "at least 1"),
        (lambda: stats.holm([0.5, np.nan]), r"p_values\[1\]"),
    ],
)
def test_refusals_name_what_is_wrong_in_one_line(call, message):
    with pytest.raises(InputError, match=message) as refusal:
        call()
    assert "\n" not in str(refusal.value)


def test_nested_ratio_of_one_group_without_weights_is_the_mean_interval():
    x = np.random.default_rng(0).normal(1.0, 2.0, 80)
    nested, plain = stats.nested_ratio([x]), stats.mean_interval(x)
    assert nested.mean == pytest.approx(plain.mean)
    assert [nested.low, nested.high] == pytest.approx([plain.low, plain.high], abs=0.03)


def test_nested_ratio_counts_units_by_their_weight_and_groups_alike():
    numerators, weights = [np.array([3.0, 0.0, 1.0]), np.array([1.0, 1.0])], [np.array([4.0, 0.0, 4.0]), np.ones(2)]
    found = stats.nested_ratio(numerators, weights)
    assert found.mean == pytest.approx((0.5 + 1.0) / 2)
    assert found.n == 5
    assert 0.25 <= found.low <= found.mean <= found.high <= 1.0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (([],), "numerators: no group"),
        (([[1.0, 2.0]], [[1.0, 1.0], [1.0, 1.0]]), "denominators: 2 groups; must be 1"),
        (([[1.0, 2.0]], [[1.0, -1.0]]), r"denominators\[0\]: must not be negative"),
        (([[1.0, 2.0]], None, 0.95, 0), "resamples: 0 is below 1"),
    ],
)
def test_nested_ratio_refuses(arguments, says):
    with pytest.raises(InputError, match=says):
        stats.nested_ratio(*arguments[:2], **dict(zip(("level", "resamples"), arguments[2:], strict=False)))


def test_nested_ratio_has_the_variance_between_and_within_groups():
    rng = np.random.default_rng(3)
    groups = [rng.normal(mean, 1.0, 400) for mean in rng.normal(0.0, 0.5, 30)]
    means = np.array([g.mean() for g in groups])
    within = np.mean([g.var() / len(g) for g in groups])
    found = stats.nested_ratio(groups)
    expected = np.sqrt((means.var() + within) / len(groups))
    assert (found.high - found.low) / (2 * 1.96) == pytest.approx(expected, rel=0.05)

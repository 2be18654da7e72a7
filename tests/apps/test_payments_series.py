"""What a series of generations shows: by hand, of period two, and the permutation test's own calibration."""

import numpy as np
import pytest
from scipy import stats

from apps.payments.series import lag_one_autocorrelation, order_test, swing, zig_zags

ALTERNATING = np.tile([1.0, -1.0], 6)


def test_the_autocorrelation_of_a_few_values_by_hand():
    # About the mean 2: -1, 1, 0, with squares 2 and neighbours' products -1 + 0.
    assert lag_one_autocorrelation([1.0, 3.0, 2.0]) == pytest.approx(-0.5, abs=1e-15)
    assert lag_one_autocorrelation([0.0, 0.0, 1.0, 1.0]) == pytest.approx(0.25, abs=1e-15)
    assert lag_one_autocorrelation([4.0, -1.0]) == pytest.approx(-0.5, abs=1e-15)


@pytest.mark.parametrize("n", [4, 12, 100])
def test_a_series_of_period_two_has_all_but_one(n):
    found = lag_one_autocorrelation(5 + 0.01 * np.tile([1.0, -1.0], n // 2))
    assert found == pytest.approx(-(n - 1) / n, rel=1e-9)


def test_of_independent_values_it_is_about_minus_one_over_n():
    n = 10
    found = lag_one_autocorrelation(np.random.default_rng(0).normal(size=(100_000, n)))
    assert found.mean() == pytest.approx(-1 / n, abs=5 * found.std() / np.sqrt(len(found)))


def test_neither_a_shift_nor_a_factor_changes_it_and_a_constant_has_none():
    x = np.random.default_rng(1).normal(size=(3, 11))
    np.testing.assert_allclose(lag_one_autocorrelation(7 - 3 * x), lag_one_autocorrelation(x), rtol=1e-12)
    assert lag_one_autocorrelation(x).shape == (3,)
    assert np.isnan(lag_one_autocorrelation([0.1] * 7)).all()
    assert lag_one_autocorrelation(np.arange(20.0)) > 0.8


def test_the_swing_is_the_mean_change():
    assert swing([1.0, 3.0, 2.5, 2.5]) == pytest.approx((2 + 0.5) / 3)
    np.testing.assert_allclose(swing([[0.0, 1.0, 0.0], [0.0, 1.0, 2.0]]), [1.0, 1.0])


def test_reversals_are_counted_of_all_that_could_be():
    assert zig_zags(ALTERNATING) == (10, 10)
    assert zig_zags(np.arange(12.0)) == (0, 10)
    assert zig_zags([1.0, 2.0, 1.0, 1.0, 0.0]) == (1, 3)  # to stand still reverses nothing
    counts, possible = zig_zags([[1.0, 2.0, 1.0], [1.0, 2.0, 3.0]])
    assert counts.tolist() == [1, 0]
    assert possible == 1


def test_a_shuffled_order_is_as_probable_as_it_says():
    series = np.random.default_rng(2).normal(size=(400, 2, 8)) + np.array([[0.0], [5.0]])  # worlds of different levels
    p = [order_test(x, draws=199, seed=i) for i, x in enumerate(series)]
    assert stats.kstest(p, "uniform").pvalue > 0.01
    assert 0.03 < np.mean(np.array(p) <= 0.05) < 0.08


def test_alternation_has_the_least_p_and_its_opposite_the_largest():
    alternating = np.stack([ALTERNATING, 3 - 2 * ALTERNATING]) + np.random.default_rng(3).normal(0, 0.05, (2, 12))
    assert order_test(alternating, draws=999) == 1 / 1000
    assert order_test(np.stack([np.arange(12.0), np.arange(12.0) ** 2]), draws=999) == pytest.approx(1.0, abs=0.01)
    # Equal values are permuted too: of period two there are 2 of C(4, 2) orders, and none is lower.
    assert order_test([[1.0, 0.0, 1.0, 0.0]], draws=9999) == pytest.approx(1 / 3, abs=0.02)


def test_worlds_are_permuted_each_by_itself_and_draws_in_parts_are_the_same_draws(monkeypatch):
    # Exchanged between worlds, levels as different as these would look like a trend within one.
    levels = np.array([[0.0, 0.1, 0.05, 0.2, 0.1, 0.15], [100.0, 100.1, 100.05, 100.2, 100.1, 100.15]])
    assert order_test(levels, draws=999) == pytest.approx(order_test(levels - levels[:, :1], draws=999), abs=0.05)
    x = np.random.default_rng(4).normal(size=(3, 9))
    at_once = order_test(x, draws=500, seed=5)
    monkeypatch.setattr("apps.payments.series._PERMUTED_AT_ONCE", 100)
    assert order_test(x, draws=500, seed=5) == at_once
    assert order_test(x, draws=500, seed=6) != at_once


def test_a_series_without_an_order_is_no_evidence():
    assert order_test([[0.5] * 6, [1.0, 0.0, 1.0, 0.0, 1.0, 0.0]]) == 1.0

import math

import numpy as np
import pytest
import torch
from scipy import stats as reference

from core import stats
from core.errors import InputError


def normal(*shape, seed=3, loc=0.0, scale=1.0):
    return np.random.default_rng(seed).normal(loc, scale, shape)


def gaussian_crps(mean, deviation, truth):
    z = (truth - mean) / deviation
    density, cumulative = reference.norm.pdf(z), reference.norm.cdf(z)
    return deviation * (z * (2 * cumulative - 1) + 2 * density - 1 / math.sqrt(math.pi))  # Gneiting et al. 2005, eq. 5


@pytest.mark.parametrize("truth", [-1.0, 0.3, 4.0])
def test_crps_of_a_large_gaussian_ensemble_is_the_closed_form(truth):
    members = reference.norm.ppf((np.arange(20_000) + 0.5) / 20_000, 1.0, 2.0)
    for fair in (True, False):
        assert stats.crps(members, truth, fair=fair) == pytest.approx(gaussian_crps(1.0, 2.0, truth), abs=1e-3)


def test_crps_is_the_sum_over_all_pairs():
    x, y = normal(5, 2, 7), normal(5, 2, seed=4)
    pairs = np.abs(x[..., :, None] - x[..., None, :]).sum((-1, -2))
    first = np.abs(x - y[..., None]).mean(-1)
    np.testing.assert_allclose(stats.crps(x, y, fair=False), first - pairs / (2 * 49), rtol=1e-12)
    np.testing.assert_allclose(stats.crps(x, y), first - pairs / (2 * 42), rtol=1e-12)


def test_fair_crps_has_the_same_mean_for_every_number_of_members_and_the_plain_one_has_not():
    truth = normal(200_000, seed=5)
    exact = gaussian_crps(0.0, 1.0, truth).mean()
    two, ten = normal(200_000, 2, seed=6), normal(200_000, 10, seed=7)
    assert stats.crps(two, truth).mean() == pytest.approx(exact, abs=0.01)
    assert stats.crps(ten, truth).mean() == pytest.approx(exact, abs=0.01)
    assert stats.crps(two, truth, fair=False).mean() > exact + 0.2


def test_crps_of_one_member_is_the_absolute_error():
    x, y = normal(6, 1), normal(6, seed=8)
    np.testing.assert_allclose(stats.crps(x, y, fair=False), np.abs(x[:, 0] - y))


def test_energy_score_in_one_dimension_is_the_crps():
    x, y = normal(4, 9), normal(4, seed=9)
    for fair in (True, False):
        np.testing.assert_allclose(
            stats.energy_score(x[..., None], y[..., None], fair=fair), stats.crps(x, y, fair=fair)
        )


def test_energy_score_is_proper_and_sees_the_correlation():
    # Truths with correlation .8: members of the same law score best, also against ones with equal margins.
    root = np.linalg.cholesky(np.array([[1.0, 0.8], [0.8, 1.0]]))
    truth = normal(20_000, 2, seed=10) @ root.T
    drawn = normal(20_000, 8, 2, seed=11)
    best = stats.energy_score(drawn @ root.T, truth).mean()
    rivals = [drawn, drawn @ root.T * [1, -1], 0.5 * drawn @ root.T, 2 * drawn @ root.T, 0.5 + drawn @ root.T]
    assert all(stats.energy_score(rival, truth).mean() > best + 0.005 for rival in rivals)


def test_a_calibrated_ensemble_has_ratio_one_a_flat_histogram_and_the_nominal_coverage():
    centre = normal(20_000, scale=3.0)
    truth = centre + normal(20_000, seed=12)
    members = centre[:, None] + normal(20_000, 9, seed=13)
    assert stats.spread_skill(members, truth).ratio == pytest.approx(1, abs=0.02)
    histogram = stats.rank_histogram(members, truth)
    assert histogram.counts.shape == (10,)
    assert histogram.n == 20_000
    assert histogram.p > 0.01
    for level in (0.4, 0.6, 0.8):  # between members, the interpolation costs a little
        assert stats.coverage(members, truth, level=level) == pytest.approx(level, abs=0.015)


def test_an_ensemble_too_narrow_has_a_small_ratio_a_u_shape_and_covers_too_little():
    truth, members = normal(5_000, seed=14), 0.5 * normal(5_000, 9, seed=15)
    found = stats.spread_skill(members, truth)
    assert found.ratio == pytest.approx(math.sqrt(10 / 9) * 0.5 / math.sqrt(1 + 0.25 / 9), rel=0.03)
    histogram = stats.rank_histogram(members, truth)
    assert histogram.p < 1e-6
    assert min(histogram.counts[[0, -1]]) > 2 * max(histogram.counts[1:-1])
    assert stats.coverage(members, truth, level=0.8) < 0.6


def test_chi_square_is_pearsons_of_the_counts():
    members = np.tile([0.0, 1.0], (6, 1))
    histogram = stats.rank_histogram(members, [-1.0, -1.0, -1.0, 0.5, 0.5, 2.0])
    assert histogram.counts.tolist() == [3, 2, 1]
    assert histogram.chi_square == pytest.approx(1.0)
    assert histogram.p == pytest.approx(math.exp(-0.5))


def test_ties_are_spread_over_the_ranks_that_they_share():
    histogram = stats.rank_histogram(np.zeros((30_000, 4)), np.zeros(30_000))
    assert histogram.p > 0.01


def test_scores_keep_the_axes_of_the_cases():
    x, y = normal(3, 5, 8), normal(3, 5, seed=16)
    by_lead = stats.spread_skill(x, y, axis=0)
    assert by_lead.ratio.shape == (5,)
    assert by_lead.spread[2] == pytest.approx(math.sqrt(x[:, 2].var(-1, ddof=1).mean()))
    assert stats.coverage(x, y, level=0.5, axis=(0,)).shape == (5,)
    np.testing.assert_array_equal(stats.crps(torch.tensor(x), torch.tensor(y)), stats.crps(x, y))


def test_a_case_that_is_not_finite_spoils_no_other():
    x, y = normal(4, 6), normal(4, seed=17)
    clean = stats.crps(x, y)
    x[1, 2], x[2, 0] = math.inf, math.nan
    np.testing.assert_array_equal(np.isnan(stats.crps(x, y)), [False, True, True, False])
    np.testing.assert_array_equal(stats.crps(x, y)[[0, 3]], clean[[0, 3]])
    np.testing.assert_array_equal(np.isnan(stats.energy_score(x[..., None], y[:, None])), [False, True, True, False])
    np.testing.assert_array_equal(np.isnan(stats.spread_skill(x, y, axis=()).ratio), [False, True, True, False])
    assert stats.rank_histogram(x, y).n == 3
    x = np.tile(np.arange(6.0), (4, 1))
    x[2, 0] = math.nan
    assert stats.coverage(x, np.full(4, 2.5), level=0.5) == 0.75


def test_what_does_not_belong_together_is_refused_in_one_line():
    with pytest.raises(InputError, match=r"shapes \(3, 4\) and \(4,\)"):
        stats.crps(np.zeros((3, 4)), np.zeros(4))
    with pytest.raises(InputError, match=r"\(\.\.\., M, D\)"):
        stats.energy_score(np.zeros((3, 4, 2)), np.zeros((3, 1)))
    with pytest.raises(InputError, match="1 member"):
        stats.crps(np.zeros((3, 1)), np.zeros(3))
    with pytest.raises(InputError, match="1 member"):
        stats.spread_skill(np.zeros((3, 1)), np.zeros(3))
    with pytest.raises(InputError, match="0 member"):
        stats.rank_histogram(np.zeros((3, 0)), np.zeros(3))
    with pytest.raises(InputError, match=r"10 members .* \(0, 0.8182\]"):
        stats.coverage(np.zeros((3, 10)), np.zeros(3), level=0.9)
    with pytest.raises(InputError, match="every case has a NaN"):
        stats.rank_histogram(np.full((3, 2), np.nan), np.zeros(3))

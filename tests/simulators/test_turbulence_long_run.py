"""Drift, memory, jets, extremes and sample sizes against processes whose answers are known."""

import math

import numpy as np
import pytest
import torch
from scipy.signal import lfilter
from scipy.stats import genextreme, norm

from core.errors import InputError
from simulators.turbulence.diagnostics import (
    ExtremeValues,
    block_maxima,
    fit_extremes,
    gap_closed,
    integral_time,
    jet_summary,
    long_run_summary,
    return_levels,
    slope,
    snapshots_needed,
    spacing,
    zonal_wind,
)
from simulators.turbulence.flow import Flow
from simulators.turbulence.grid import Grid


def autoregression(phi, shape, seed=0):
    """Stationary AR(1) of unit variance along the last axis."""
    noise = np.random.default_rng(seed).standard_normal((*shape[:-1], shape[-1] + 500))
    return lfilter([math.sqrt(1 - phi**2)], [1, -phi], noise)[..., 500:]


@pytest.mark.parametrize("phi", [0.0, 0.9])
def test_the_slopes_error_is_calibrated_on_an_autoregression(phi):
    n, planted = 2000, 3e-3
    time = 0.5 * np.arange(n)
    slopes, errors = slope(autoregression(phi, (400, n)) + planted * time, time)
    assert slopes.std() == pytest.approx(errors.mean(), rel=0.12)
    covered = np.mean(np.abs(slopes - planted) < norm.ppf(0.975) * errors)
    assert 0.90 <= covered <= 0.98


@pytest.mark.parametrize("phi", [0.0, 0.5, 0.9])
def test_the_integral_time_of_an_autoregression(phi):
    """1/2 + phi/(1 - phi) steps."""
    times = integral_time(autoregression(phi, (50, 5000)), 0.2 * np.arange(5000))
    assert times.mean() == pytest.approx(0.2 * (0.5 + phi / (1 - phi)), rel=0.06)


def test_an_exact_line_has_its_slope_and_no_error():
    time = np.arange(50.0)
    found, error = slope(2 - 0.25 * time, time)
    assert float(found) == pytest.approx(-0.25, rel=1e-12)
    assert float(error) < 1e-12


def test_each_way_to_fail_a_long_run():
    time = np.arange(0, 200.0, 0.5)
    noise = 1 + 0.01 * autoregression(0.5, (5, len(time)))
    energy, enstrophy = noise.copy(), 10 * noise
    energy[1, 390:] = math.nan
    enstrophy[2] *= 3
    energy[3] += 0.002 * time
    enstrophy[4, 10] = math.inf
    summary = long_run_summary(energy, torch.from_numpy(enstrophy), time, 10.0)
    assert summary["finite"].values.tolist() == [True, False, True, True, False]
    assert summary["passed"].values.tolist() == [True, False, False, True, False]
    # A third of the finite runs drifts by 0.2 in 100 time units, which their mean energy is measured against.
    assert float(summary["ensemble_drift"]) == pytest.approx(0.2 / 3 / 1.1, rel=0.1)
    assert float(summary["ensemble_drift_error"]) < 0.01
    assert float(summary["finite_share"]) == 0.6
    assert float(summary["enstrophy_ratio"][2]) == pytest.approx(3, rel=0.01)
    assert np.isnan(summary["energy_slope"][[1, 4]]).all()
    assert float(summary["energy_slope"][3]) == pytest.approx(0.002, rel=0.1)
    assert all({"units", "long_name"} <= set(v.attrs) for v in summary.variables.values())
    lost = long_run_summary(energy[1:2], enstrophy[1:2], time, 10.0)
    assert not lost["passed"].any()


def test_the_zonal_wind_is_the_mean_of_u_over_x():
    grid = Grid(16)
    field = torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    spectrum = grid.to_spectral(field) * grid.resolved
    expected = Flow(grid, spectrum).velocity[0].mean(-2)
    torch.testing.assert_close(zonal_wind(grid, spectrum), expected, rtol=1e-10, atol=1e-12)
    jet = grid.to_spectral(3 * torch.sin(3 * grid.x).expand(16, 16))
    torch.testing.assert_close(zonal_wind(grid, jet), torch.cos(3 * grid.x), rtol=1e-10, atol=1e-12)


def test_planted_jets_are_found_with_their_share_of_the_variance():
    y = 2 * np.pi * np.arange(32) / 32
    rng = np.random.default_rng(0)
    first, second = 3 * rng.standard_normal((2, 2, 400, 1))
    wind = 5 * np.sin(2 * y) + first * np.cos(3 * y) + second / 2 * np.sin(4 * y)
    jets = jet_summary(wind, np.arange(400.0))
    np.testing.assert_allclose(jets["wind"].mean("start"), 5 * np.sin(2 * y), atol=0.5)
    shares = np.array([np.var(first), np.var(second / 2)])
    np.testing.assert_allclose(jets["explained_variance"], shares / shares.sum(), atol=0.01)
    assert float(jets["explained_variance"].sum()) == pytest.approx(1, rel=1e-12)
    assert abs(np.corrcoef(jets["eof"][0], np.cos(3 * y))[0, 1]) > 0.99
    assert float(np.abs(jets["eof"][0]).max()) == pytest.approx(first.std(), rel=0.02)
    assert float(jets["amplitude"].std()) == pytest.approx(1, rel=1e-3)
    rebuilt = wind.mean((0, 1)) + jets["amplitude"].values @ jets["eof"].values
    np.testing.assert_allclose(rebuilt, wind, atol=1e-10)


def test_block_maxima_leave_the_incomplete_block_out():
    peak = np.array([[1, 5, 2, 3, 9, 4, 7.0]])
    assert block_maxima(peak, 0.5 * np.arange(7), 1.0).tolist() == [[5, 3, 9]]
    assert block_maxima(peak, 0.5 * np.arange(7), 3.5).tolist() == [[9]]


@pytest.mark.parametrize("shape", [-0.2, 0.0, 0.15])
def test_the_fit_recovers_a_known_distribution(shape):
    maxima = genextreme.rvs(-shape, 5.0, 0.5, size=5000, random_state=np.random.default_rng(1))
    found = fit_extremes(maxima)
    assert found.shape == pytest.approx(shape, abs=0.04)
    assert found.location == pytest.approx(5.0, abs=0.03)
    assert found.scale == pytest.approx(0.5, abs=0.02)
    likelihood = genextreme.logpdf(maxima, -found.shape, found.location, found.scale).sum()
    assert likelihood >= genextreme.logpdf(maxima, -shape, 5.0, 0.5).sum()


def test_levels_and_periods_are_inverse_and_monotone():
    model = ExtremeValues(0.1, 5.0, 0.5)
    levels = model.quantile(np.array([0.5, 0.9, 0.99]))
    assert (np.diff(levels) > 0).all()
    np.testing.assert_allclose(model.exceedance(levels), [0.5, 0.1, 0.01], rtol=1e-10)


@pytest.fixture(scope="module")
def closures():
    """Return levels of 5 runs of 60 independent blocks each, in units of sigma 2, with locations 5.2, 6 and 5."""
    time = np.arange(300.0)

    def levels(location, seed):
        peak = genextreme.rvs(0.1, location, 0.5, size=(5, 60), random_state=np.random.default_rng(seed))
        return return_levels(
            2 * peak.repeat(5, 1), time, 2.0, periods=(20, 100, 500), thresholds=(5.5, 99.0), resamples=100, level=0.99
        )

    return levels(5.2, 0), levels(6.0, 1), levels(5.0, 2)


def test_return_levels_hold_the_truth_and_rise_with_the_period(closures):
    for found, location in zip(closures, (5.2, 6.0, 5.0), strict=True):
        truth = genextreme.ppf(1 - 5 / np.array([20, 100, 500]), 0.1, location, 0.5)
        assert ((found["level_low"] <= truth) & (truth <= found["level_high"])).all()
        assert (np.diff(found["level"]) > 0).all()
        assert (np.diff(found["level_draws"], axis=1) > 0).all()
        assert (np.diff(found["level_high"] - found["level_low"]) > 0).all()
        wait = 5 / genextreme.sf(5.5, 0.1, location, 0.5)
        assert float(found["return_period_low"][0]) <= wait <= float(found["return_period_high"][0])
        parameters = np.array([-0.1, location, 0.5])
        assert ((found["gev_low"] <= parameters) & (parameters <= found["gev_high"])).all()
        assert found["return_period"][1] > 1e6
        assert found.attrs["maxima"] == 300


def test_the_share_of_the_gap_that_a_closure_closes(closures):
    closure, none, reference = closures
    share = gap_closed(closure, none, reference)
    assert ((share["share_low"] <= 0.8) & (share["share_high"] >= 0.8)).all()
    assert gap_closed(reference, none, reference)["share"].values.tolist() == [1, 1, 1]
    assert gap_closed(none, none, reference)["share"].values.tolist() == [0, 0, 0]


def test_snapshots_needed_agree_with_the_spread_of_means_over_snapshots():
    rng = np.random.default_rng(0)
    scale = np.logspace(0, -3, 12)
    draws = scale * rng.gamma(4.0, 0.25, size=(4000, 12))
    advice = snapshots_needed(draws[:500], target=0.05, counts=(10, 40))
    direct = np.log10(draws.reshape(100, 40, 12).mean(1)).std(0)
    np.testing.assert_allclose(advice["error"].sel(snapshots=40), direct, rtol=0.3)
    # sd/mean of a gamma of shape 4 is 1/2.
    assert float(advice["rms_error"].sel(snapshots=10)) == pytest.approx(0.5 / math.sqrt(10) / math.log(10), rel=0.1)
    assert int(advice["needed"]) == pytest.approx((0.5 / math.log(10) / 0.05) ** 2, abs=3)


def test_refusals():
    time, peak = np.arange(100.0), np.random.default_rng(0).gumbel(size=(2, 100))
    lost = peak.copy()
    lost[1, 3] = math.nan
    wind = np.random.default_rng(0).standard_normal((1, 100, 8))
    for call, match in (
        (lambda: spacing([0.0]), "at least 2"),
        (lambda: spacing([0.0, 1.0, 3.0]), "must be equal"),
        (lambda: slope(peak, time[::-1]), "above 0"),
        (lambda: long_run_summary(peak[:, :0], peak[:, :0], [], 1.0), "at least 8"),
        (lambda: long_run_summary(peak, peak[:1], time, 1.0), "shapes"),
        (lambda: long_run_summary(peak, peak, time, 0.0), "reference_enstrophy = 0.0"),
        (lambda: jet_summary(wind, time, start=100.0), "time window"),
        (lambda: jet_summary(wind, time[:9]), "wind: has shape"),
        (lambda: jet_summary(0 * wind, time), "never changes"),
        (lambda: jet_summary(wind, time, modes=9), "modes = 9"),
        (lambda: jet_summary(wind * math.nan, time), "not finite"),
        (lambda: block_maxima(lost, time, 5.0), r"peak\[1\]"),
        (lambda: block_maxima(peak, time, 101.0), "block = 101"),
        (lambda: fit_extremes(np.arange(9)), "at least 10"),
        (lambda: fit_extremes(np.ones(20)), "all the same"),
        (lambda: return_levels(peak, time, 1.0, periods=(5.0,)), "above the block"),
        (lambda: return_levels(peak, time, 0.0), "sigma = 0.0"),
        (lambda: snapshots_needed(np.ones((1, 8))), "at least 2"),
        (lambda: snapshots_needed(np.zeros((3, 8))), "above 0"),
        (lambda: snapshots_needed(np.ones((3, 8)), target=0.0), "target = 0.0"),
    ):
        with pytest.raises(InputError, match=match) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_the_gap_needs_levels_of_the_same_kind(closures):
    closure, none, reference = closures
    with pytest.raises(InputError, match="none: must have"):
        gap_closed(closure, none.isel(period=[0, 1]), reference)

"""Forecasts of users' series: exact where the law is linear, and with intervals that hold what they promise."""

import numpy as np
import pytest
import torch
import xarray as xr
from scipy.integrate import solve_ivp

from apps.chaos import forecast as module
from apps.chaos.conformal import conformal_half_width, coverage, fewest_errors
from apps.chaos.fitting import fit_scaled
from apps.chaos.forecast import forecast_series
from apps.chaos.forecast_table import summary_rows
from apps.chaos.forecasters.forecaster import Ensemble, Forecaster, Trivial
from apps.chaos.forecasters.linear import Linear
from apps.chaos.forecasters.naive import NaiveMean
from apps.chaos.forecasters.nvar import NGRC
from apps.chaos.rolling import origins_of, rolled
from apps.chaos.series import Series
from apps.chaos.series_figures import forecast_figure
from core.errors import InputError


def series_of(values, dt=1.0, channels=None):
    values = np.asarray(values, dtype=np.float64)
    values = values[:, None] if values.ndim == 1 else values
    names = channels or tuple(f"x{i}" for i in range(values.shape[1]))
    return Series(values, dt * np.arange(len(values)), dt, names, ("",) * len(names), "made.csv", "s")


def autoregression(n, phi, seed, sigma=1.0):
    noise = sigma * np.random.default_rng(seed).normal(size=n + 200)
    x = np.zeros(n + 200)
    for t in range(1, n + 200):
        x[t] = phi * x[t - 1] + noise[t]
    return x[200:]


class Guess(Ensemble):
    """Futures of an AR(1) whose coefficient is known."""

    def __init__(self, train, phi):
        self.notes = {}
        self.last, self.phi = train[:, -1], phi

    def forecast(self, horizon):
        powers = self.phi ** torch.arange(1, horizon + 1, dtype=torch.float64)
        return self.last[:, None] * powers[:, None]

    def sample(self, horizon, members, generator):
        powers = self.phi ** torch.arange(1, horizon + 1, dtype=torch.float64)
        spread = ((1 - powers**2) / (1 - self.phi**2)).sqrt()[:, None]
        noise = torch.randn(len(self.last), members, horizon, 1, generator=generator, dtype=torch.float64)
        return self.forecast(horizon)[:, None] + spread * noise


class Known(Forecaster):
    kind: str = "known"
    phi: float = 0.8

    def fit(self, train, fitting):
        return Guess(train, self.phi)


class Broken(Forecaster):
    kind: str = "broken"

    def fit(self, train, fitting):
        return Trivial(
            lambda horizon: torch.full((len(train), horizon, train.shape[2]), torch.nan, dtype=torch.float64)
        )


# ---- conformal intervals


@pytest.mark.parametrize("n", [19, 40])
def test_conformal_intervals_hold_at_least_their_level_and_at_most_one_rank_more(n):
    generator = torch.Generator().manual_seed(0)
    errors = torch.randn(n + 1, 20_000, 1, generator=generator, dtype=torch.float64).abs()
    width = conformal_half_width(errors[:-1], 0.9)
    share = float((errors[-1] <= width).double().mean())
    assert 0.9 - 0.007 <= share <= 0.9 + 1 / (n + 1) + 0.007


def test_too_few_errors_make_no_interval_and_unknown_ones_do_not_count():
    errors = torch.arange(1.0, 10.0, dtype=torch.float64)[:, None, None]
    assert float(conformal_half_width(errors, 0.9)) == 9.0
    assert float(conformal_half_width(errors[:8], 0.9)) == np.inf
    padded = torch.cat([errors, torch.full((5, 1, 1), torch.nan)])
    assert float(conformal_half_width(padded, 0.9)) == 9.0
    assert float(conformal_half_width(torch.cat([errors, torch.tensor([[[torch.inf]]])]), 0.5)) == 6.0
    assert (fewest_errors(0.9), fewest_errors(0.95), fewest_errors(0.5)) == (9, 19, 1)
    with pytest.raises(InputError, match="level = 1: must be above 0 and below 1"):
        conformal_half_width(errors, 1.0)


def test_coverage_is_that_of_rows_that_were_not_used():
    errors = torch.ones(30, 4, 2, dtype=torch.float64)
    errors[15:] = 2.0
    assert coverage(errors, 0.9).tolist() == [0.0] * 15
    errors[15:] = 0.5
    assert coverage(errors, 0.9).tolist() == [1.0] * 15
    assert coverage(errors[:10], 0.9).isnan().all()


# ---- rolling origins


def test_origins_lie_in_the_last_third_and_all_are_fitted_alike():
    places = origins_of(300, 20, 10, 12)
    assert places.length == 200
    assert (places.at[0], places.at[-1]) == (200, 280)
    assert (places.scored, places.longest) == (20, 20)
    short = origins_of(300, 500, 10, 12)
    assert (short.scored, short.longest) == (50, 100)
    with pytest.raises(InputError, match="14 samples: forecasts from several origins need at least 16"):
        origins_of(14, 5, 10, 12)


def test_a_rolling_forecast_is_that_of_the_series_cut_there():
    values = torch.from_numpy(autoregression(200, 0.9, 0))[:, None]
    places = origins_of(200, 10, 7, 12)
    past = rolled(Linear(lags=3), values, places, dt=1.0)
    for k, at in enumerate(places.at):
        cut = values[None, at - places.length : at]
        alone = fit_scaled(Linear(lags=3), cut, seeds=(0,)).forecast(10)[0][0]
        torch.testing.assert_close(past.forecast[k], alone, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(past.truth[k], values[at : at + 10])
        torch.testing.assert_close(past.spread[k], cut[0].std(0))


def test_valid_time_is_censored_where_the_truth_ends():
    values = torch.from_numpy(np.sin(0.2 * np.arange(150.0)))[:, None]
    past = rolled(Linear(lags=4), values, origins_of(150, 100, 5, 15), dt=1.0)
    valid = past.valid_time()
    known = (~past.truth.isnan().any(-1)).sum(-1).numpy()
    np.testing.assert_array_equal(valid.samples, known)
    assert valid.censored.all()


# ---- forecasts


def test_a_sinusoid_is_forecast_exactly_with_narrow_intervals_and_is_not_chaotic():
    x = np.sin(2 * np.pi * np.arange(400) / 25.3)
    found = forecast_series(series_of(x[:300], dt=0.1), Linear(lags=4), 100)
    np.testing.assert_allclose(found["forecast"].values[:, 0], x[300:], atol=1e-6)
    width = (found["high"] - found["low"]).values[:50]
    assert np.isfinite(width).all()
    assert width.max() < 1e-4
    assert "not chaotic" in found.attrs["warnings"]
    assert found.attrs["period"] == pytest.approx(2.53, rel=0.02)
    assert np.isnan(found.attrs["samples_per_lyapunov_time"])
    assert "periods" in found.coords
    assert "lyapunov_times" not in found.coords
    assert found["time"].values[0] == pytest.approx(30.0)
    units = [row.unit for row in summary_rows(found) if row.metric == "valid time"]
    assert units == ["samples", "periods"]


def test_intervals_cover_an_autoregression_near_their_level():
    held, known = 0, 0
    for seed in range(12):
        x = autoregression(430, 0.8, seed)
        found = forecast_series(series_of(x[:400]), Linear(lags=2), 30, origins=60, lyapunov=1.0)
        inside = (found["low"].values[:, 0] <= x[400:]) & (x[400:] <= found["high"].values[:, 0])
        held, known = held + inside.sum(), known + len(inside)
    assert 0.82 <= held / known <= 0.97
    assert 0.75 <= float(found["coverage"].mean()) <= 1


def test_an_ensemble_stands_beside_and_its_coverage_is_known():
    x = autoregression(600, 0.8, 3)
    found = forecast_series(series_of(x), Known(), 10, normalize="none", lyapunov=1.0)
    np.testing.assert_allclose(found["ensemble_median"].values[:, 0], found["forecast"].values[:, 0], atol=0.7)
    assert (found["ensemble_low"] < found["ensemble_median"]).all()
    assert 0.8 <= float(found["ensemble_coverage"].mean()) <= 0.97
    assert any("ensemble" in row.metric for row in summary_rows(found))


def test_lyapunov_times_of_chaos():
    solution = solve_ivp(
        lambda t, y: [10 * (y[1] - y[0]), y[0] * (28 - y[2]) - y[1], y[0] * y[1] - 8 / 3 * y[2]],
        (0, 31),
        [1.0, 2.0, 20.0],
        t_eval=0.02 * np.arange(1500),
        rtol=1e-9,
        atol=1e-9,
    )
    series = series_of(solution.y.T[200:], 0.02, ("x", "y", "z"))
    found = forecast_series(series, NGRC(order=3, delay=1, ridge=1e-8), 150, lyapunov=0.9056)
    assert found.attrs["lyapunov_source"] == "given"
    lyapunov = next(row for row in summary_rows(found) if row.unit == "Lyapunov times")
    assert lyapunov.mean > 1.5
    assert lyapunov.mean == pytest.approx(float(found["valid_samples"].mean()) * 0.02 * 0.9056)
    np.testing.assert_allclose(found["lyapunov_times"].values[[0, -1]], [0.02 * 0.9056, 150 * 0.02 * 0.9056])
    estimated = forecast_series(series, NaiveMean(), 50)
    assert estimated.attrs["lyapunov_source"] == "estimated"
    assert 0.45 < estimated.attrs["lyapunov"] < 1.8


def test_what_cannot_be_forecast_is_a_result_and_not_an_error():
    found = forecast_series(series_of(autoregression(120, 0.5, 0)), Broken(), 10, lyapunov=1.0)
    assert np.isnan(found["forecast"].values).all()
    assert np.isnan(found["low"].values).all()
    assert (found["valid_samples"].values == 0).all()
    assert "diverged" in found.attrs["warnings"]
    assert all(row.mean is None or np.isfinite(row.mean) for row in summary_rows(found))


def test_lead_times_that_no_origin_has_seen_have_no_interval_and_the_user_is_told():
    found = forecast_series(series_of(autoregression(120, 0.5, 0)), NaiveMean(), 80, lyapunov=1.0)
    known = np.isfinite(found["low"].values[:, 0])
    assert known[:20].all()
    assert not known[40:].any()
    assert f"intervals end at lead time {known.argmin()} of 80 samples" in found.attrs["warnings"]


def test_twice_is_the_same_and_stored_forecasts_are_taken_up(tmp_path, monkeypatch):
    series = series_of(autoregression(150, 0.7, 1))
    first = forecast_series(series, Known(), 10, seed=4)
    again = forecast_series(series, Known(), 10, seed=4, checkpoint=tmp_path)
    # With everything stored, nothing is fitted.
    monkeypatch.setattr(module, "fit_scaled", None)
    monkeypatch.setattr("apps.chaos.rolling.fit_scaled", None)
    resumed = forecast_series(series, Known(), 10, seed=4, checkpoint=tmp_path)
    for other in (again, resumed):
        xr.testing.assert_identical(other.drop_attrs(), first.drop_attrs())


def test_progress_goes_from_nothing_to_all():
    shares = []
    forecast_series(
        series_of(autoregression(150, 0.7, 1)), Linear(), 10, progress=lambda share, text: shares.append((share, text))
    )
    assert shares == sorted(shares, key=lambda pair: pair[0])
    assert shares[0][0] == 0
    assert all(0 <= share <= 1 and text for share, text in shares)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"horizon": 0}, "horizon = 0: must be at least 1 sample"),
        ({"origins": 1}, "origins = 1: must be at least 2"),
        ({"level": 1.0}, "level = 1: must be above 0 and below 1"),
        ({"lyapunov": -0.1}, "lyapunov = -0.1: must be a positive number, 1 / s"),
        ({"forecaster": Linear(lags=200)}, "linear: 150 training samples: needs at least 211"),
        ({"forecaster": Linear(lags=138)}, "150 samples: forecasts from several origins need at least 153"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    given = {"forecaster": Linear(lags=3), "horizon": 10} | options
    with pytest.raises(InputError) as refusal:
        forecast_series(series_of(autoregression(150, 0.7, 1)), given.pop("forecaster"), given.pop("horizon"), **given)
    assert message in str(refusal.value)


def test_the_picture_has_a_panel_a_channel_with_labels_and_the_truth():
    x = np.stack([np.sin(0.3 * np.arange(200)), np.cos(0.3 * np.arange(200))], 1)
    series = Series(x[:180], np.arange(180.0), 1.0, ("u", "v"), ("m/s", ""), "made.csv", "hours")
    found = forecast_series(series, Known(), 30)
    drawing = forecast_figure(series, found, x[180:])
    drawing.canvas.draw()
    u, v, growth = drawing.axes[:3]
    assert (u.get_ylabel(), v.get_ylabel(), v.get_xlabel()) == ("u (m/s)", "v", "time (hours)")
    assert growth.get_xlabel() == "lead time (samples)"
    assert [text.get_text() for text in drawing.legends[0].get_texts()] == [
        "series",
        "truth",
        "90 % interval",
        "90 % of the ensemble",
        "forecast",
    ]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_forecast_on_a_gpu_is_that_on_the_cpu():
    series = series_of(autoregression(200, 0.8, 1))
    there, here = (forecast_series(series, Linear(lags=3), 10, device=d, lyapunov=1.0) for d in ("cuda", "cpu"))
    np.testing.assert_allclose(there["forecast"], here["forecast"], rtol=1e-8)
    np.testing.assert_allclose(there["high"], here["high"], rtol=1e-8)

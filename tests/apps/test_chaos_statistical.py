import numpy as np
import pytest
import torch

pytest.importorskip("statsmodels", reason="the extra chaos is not installed")

from statsmodels.tsa.arima.model import ARIMA
from statsmodels.tsa.forecasting.theta import ThetaModel

from apps.chaos.forecasters.forecaster import Fitting
from apps.chaos.forecasters.statistical import (
    Arima,
    AutoArima,
    ExponentialSmoothing,
    FourTheta,
    Theta,
    season_length,
)
from core.errors import InputError, MissingExtra

FITTING = Fitting(seeds=(0,))
ALL = [Arima(order=3), ExponentialSmoothing(seasonal="none"), Theta(), FourTheta(), AutoArima()]


def autoregressive(coefficients, samples, seed, noise=0.1):
    generator = np.random.default_rng(seed)
    changes = list(np.zeros(len(coefficients)))
    for shock in noise * generator.normal(size=samples):
        changes.append(float(np.dot(coefficients, changes[: -len(coefficients) - 1 : -1])) + shock)
    return np.cumsum(changes)


def group(*channels):
    return torch.tensor(np.stack(channels, axis=1))[None]


def seasonal(samples=240, period=20):
    time = np.arange(samples)
    return 3 + 0.05 * time + np.sin(2 * np.pi * time / period) + 0.3 * np.cos(4 * np.pi * time / period)


def test_arima_finds_the_coefficients_of_a_long_series():
    true = [0.6, -0.3, 0.1]
    found = Arima(order=3).coefficients(autoregressive(true, 20_000, seed=1))
    np.testing.assert_allclose(found, true, atol=0.03)


def test_arima_agrees_with_the_exact_likelihood_of_statsmodels():
    values = autoregressive([0.6, -0.3, 0.1], 2_000, seed=2)
    peer = ARIMA(values, order=(3, 1, 0)).fit()
    np.testing.assert_allclose(Arima(order=3).coefficients(values), peer.params[:3], atol=2e-3)
    forecast = Arima(order=3).fit(group(values), FITTING).forecast(50)
    np.testing.assert_allclose(forecast[0, :, 0], peer.forecast(50), atol=2e-3 * np.abs(np.diff(values)).max())


def test_arima_forecast_is_that_of_statsmodels_with_the_same_estimate():
    values = autoregressive([0.5, 0.2, -0.4, 0.1, 0.2], 500, seed=3)
    peer = ARIMA(values, order=(5, 1, 0)).fit(method="hannan_rissanen")
    forecast = Arima(order=5).fit(group(values), FITTING).forecast(200)
    np.testing.assert_allclose(forecast[0, :, 0], peer.forecast(200), rtol=1e-6)


def test_arima_stays_stationary_where_least_squares_would_explode():
    values = np.cumsum(1.02 ** np.arange(200) * np.sin(np.arange(200)))
    coefficients = Arima(order=3).coefficients(values)
    assert np.abs(np.roots([1, *-coefficients])).max() < 1
    assert Arima(order=3).fit(group(values), FITTING).forecast(5000).isfinite().all()


def test_holt_winters_continues_a_noiseless_trend_and_season():
    values = seasonal(samples=340)
    forecast = ExponentialSmoothing().fit(group(values[:240]), FITTING).forecast(100)
    np.testing.assert_allclose(forecast[0, :, 0], values[240:], atol=1e-3)


def test_holt_without_a_season_continues_a_line():
    line = 0.5 * np.arange(160.0) - 3
    forecast = ExponentialSmoothing(seasonal="none").fit(group(line[:100]), FITTING).forecast(60)
    np.testing.assert_allclose(forecast[0, :, 0], line[100:], atol=1e-5)


@pytest.mark.parametrize("season", ["additive", "none"])
def test_theta_is_that_of_statsmodels(season):
    values = seasonal() + 0.2 * np.random.default_rng(4).normal(size=240)
    peer = ThetaModel(values, period=20, deseasonalize=season == "additive", use_test=False, method="additive").fit()
    forecast = Theta(season=season).fit(group(values), FITTING).forecast(70)
    np.testing.assert_array_equal(forecast[0, :, 0], peer.forecast(70).to_numpy())


def test_four_theta_without_a_season_is_that_of_darts():
    darts = pytest.importorskip("darts", reason="the extra forecasting is not installed")
    from darts.models.forecasting.theta import FourTheta as Peer
    from darts.utils.utils import ModelMode, SeasonalityMode, TrendMode

    generator = np.random.default_rng(5)
    grown = np.exp(0.02 * np.arange(150) + 0.1 * generator.normal(size=150).cumsum())
    for values in (grown, grown - grown.mean()):
        tried = []
        for model in ModelMode.ADDITIVE, ModelMode.MULTIPLICATIVE:
            for trend in TrendMode.LINEAR, TrendMode.EXPONENTIAL:
                peer = Peer(2, None, SeasonalityMode.NONE, model, trend, normalization=False)
                peer.fit(darts.TimeSeries.from_values(values[:, None]))
                tried.append((np.abs(peer.fitted_values - values).mean(), peer.predict(30).values()[:, 0]))
        forecast = FourTheta(season="none").fit(group(values), FITTING).forecast(30)
        np.testing.assert_allclose(forecast[0, :, 0], min(tried, key=lambda one: one[0])[1], rtol=1e-9)


def test_four_theta_repeats_its_season():
    values = 3 + np.sin(2 * np.pi * np.arange(300) / 20)
    with_season = FourTheta().fit(group(values[:240]), FITTING).forecast(60)[0, :, 0].numpy()
    without = FourTheta(season="none").fit(group(values[:240]), FITTING).forecast(60)[0, :, 0].numpy()
    assert np.abs(with_season - values[240:]).max() < 0.02
    assert np.abs(without - values[240:]).max() > 0.5


def test_automatic_arima_sees_a_random_walk_with_correlated_changes():
    pytest.importorskip("statsforecast", reason="the extra forecasting is not installed")
    values = autoregressive([0.8], 400, seed=6)
    forecast = AutoArima().fit(group(values), FITTING).forecast(20)[0, :, 0].numpy()
    exact = values[-1] + np.diff(values)[-1] * np.cumsum(0.8 ** np.arange(1, 21))
    np.testing.assert_allclose(forecast, exact, atol=0.3)


@pytest.mark.parametrize("forecaster", ALL, ids=lambda forecaster: forecaster.kind)
def test_a_broken_or_odd_series_leaves_the_others_alone(forecaster):
    pytest.importorskip(forecaster.packages[0][0])
    generator = np.random.default_rng(7)
    good = np.stack([seasonal() + 0.1 * generator.normal(size=240), generator.normal(size=240)], axis=1)
    broken = good.copy()
    broken[5, 1] = np.nan
    # Constant after differencing.
    line = np.stack([np.arange(240.0), good[:, 1]], axis=1)
    alone = forecaster.fit(torch.tensor(good)[None], FITTING)
    messages = []
    fitting = Fitting(seeds=(0, 1, 2), progress=lambda share, text: messages.append((share, text)))
    together = forecaster.fit(torch.tensor(np.stack([broken, good, line])), fitting)
    forecast = together.forecast(30)
    assert forecast.shape == (3, 30, 2)
    assert forecast.dtype == torch.float64
    assert forecast[0].isnan().all()
    assert torch.equal(forecast[1], alone.forecast(30)[0])
    assert forecast[1].isfinite().all()
    # The Theta methods halve the slope of a trend, by construction.
    slope = 0.5 if "theta" in forecaster.kind else 1.0
    np.testing.assert_allclose(forecast[2, :, 0], 240 + slope * np.arange(30), atol=1)
    assert together.notes["failed"].tolist() == [1, 0, 0]
    assert [share for share, _ in messages] == pytest.approx([1 / 3, 2 / 3, 1])
    assert "not finite" in messages[0][1]


def test_a_channel_without_a_significant_period_has_no_season():
    assert season_length(np.sin(2 * np.pi * np.arange(400) / 20)) == 20
    noise = np.random.default_rng(8).normal(size=200)
    assert season_length(noise) is None
    with_season = Theta(season="additive").fit(group(noise), FITTING).forecast(20)
    assert torch.equal(with_season, Theta(season="none").fit(group(noise), FITTING).forecast(20))


@pytest.mark.parametrize("forecaster", ALL, ids=lambda forecaster: forecaster.kind)
def test_an_absent_package_is_named_with_its_extra(forecaster, monkeypatch):
    package, extra = forecaster.packages[0]

    def absent(module):
        raise ModuleNotFoundError(f"No module named {package}", name=package)

    monkeypatch.setattr("core.errors.importlib.import_module", absent)
    with pytest.raises(MissingExtra, match=rf'{package} is not installed: pip install "szilard\[{extra}\]"'):
        forecaster.fit(torch.randn(1, 100, 1, dtype=torch.float64), FITTING)


def test_a_series_shorter_than_the_order_needs_is_refused():
    with pytest.raises(InputError, match="arima: 59 training samples: needs at least 60"):
        Arima(order=25).fit(torch.randn(1, 59, 1, dtype=torch.float64), FITTING)

import numpy as np
import pytest
import torch

from apps.chaos.forecasters.forecaster import Fitting
from apps.chaos.forecasters.forest import Forest
from apps.chaos.forecasters.trees import HistGradientBoosting, RandomForest, XGBoost
from core.errors import InputError, MissingExtra

ensemble = pytest.importorskip("sklearn.ensemble", reason="the extra chaos is not installed")

SEEDS = (3, 4, 5)
FITTING = Fitting(seeds=SEEDS)


def waves(series=3, samples=160, channels=2):
    generator = torch.Generator().manual_seed(1)
    phase = 6.3 * torch.rand(series, 1, channels, generator=generator, dtype=torch.float64)
    time = torch.arange(samples, dtype=torch.float64)[None, :, None]
    noise = 0.05 * torch.randn(series, samples, channels, generator=generator, dtype=torch.float64)
    return (0.3 * time + phase).sin() + noise


def lagged(values, lags):
    rows = np.stack([values[start : start + lags].ravel() for start in range(len(values) - lags)])
    return rows, values[lags:]


def roll_out(predict, values, lags, horizon):
    history = list(values)
    for _ in range(horizon):
        history.append(predict(np.concatenate(history[-lags:])[None])[0])
    return np.stack(history[len(values) :])


@pytest.mark.parametrize("channels", [1, 2])
def test_the_random_forest_is_scikit_learns_step_by_step(channels):
    series, lags = waves(channels=channels), 4
    forecast = RandomForest(lags=lags).fit(series, FITTING).forecast(60)
    for values, seed, found in zip(series.numpy(), SEEDS, forecast, strict=True):
        rows, targets = lagged(values, lags)
        peer = ensemble.RandomForestRegressor(100, random_state=seed)
        peer.fit(rows, targets if channels > 1 else targets[:, 0])
        expected = roll_out(lambda row, peer=peer: peer.predict(row).reshape(1, -1), values, lags, 60)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)


def test_histogram_boosting_is_scikit_learns_step_by_step():
    series, lags = waves(series=1), 4
    forecast = HistGradientBoosting(lags=lags).fit(series, FITTING).forecast(60)
    rows, targets = lagged(series[0].numpy(), lags)
    peers = [
        ensemble.HistGradientBoostingRegressor(random_state=SEEDS[0], early_stopping=False).fit(rows, target)
        for target in targets.T
    ]
    expected = roll_out(
        lambda row: np.stack([peer.predict(row) for peer in peers], axis=1), series[0].numpy(), lags, 60
    )
    np.testing.assert_allclose(forecast[0], expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("channels", [1, 2])
def test_xgboost_is_the_librarys_in_its_single_precision(channels):
    xgboost = pytest.importorskip("xgboost", reason="the extra gbdt is not installed")
    series, lags = waves(series=1, channels=channels), 4
    forecast = XGBoost(lags=lags).fit(series, FITTING).forecast(60)
    rows, targets = lagged(series[0].numpy(), lags)
    peer = xgboost.XGBRegressor(random_state=SEEDS[0], n_jobs=1).fit(rows, targets)
    expected = roll_out(lambda row: peer.predict(row).reshape(1, -1).astype(float), series[0].numpy(), lags, 60)
    np.testing.assert_allclose(forecast[0], expected, rtol=0, atol=1e-5)


def test_a_value_at_the_threshold_goes_left_and_one_above_right():
    stump = {
        "feature": torch.tensor([1, 0, 0], dtype=torch.int16),
        "threshold": torch.tensor([0.5, torch.inf, torch.inf]),
        "children": torch.tensor([[1, 2], [1, 1], [2, 2]], dtype=torch.int32),
        "value": torch.tensor([[0.0], [-1.0], [1.0]], dtype=torch.float64),
        "roots": torch.tensor([[0]], dtype=torch.int32),
        "offset": torch.tensor([10.0], dtype=torch.float64),
    }
    forest = Forest.join([stump] * 3, torch.device("cpu"))
    above = np.nextafter(np.float32(0.5), np.float32(1))
    features = torch.tensor([[9.0, 0.5], [9.0, float(above)], [9.0, -3.0]], dtype=torch.float64)
    assert forest.predict(features).flatten().tolist() == [9.0, 11.0, 9.0]
    assert forest.depth == 1


def test_a_series_is_forecast_alike_in_every_group_and_a_broken_one_alone_is_lost():
    series = waves()
    alone = RandomForest(lags=3).fit(series[1:2], Fitting(seeds=SEEDS[1:2])).forecast(20)
    series[0, 10, 1] = torch.nan
    forecast = RandomForest(lags=3).fit(series, FITTING).forecast(20)
    assert forecast.shape == (3, 20, 2)
    assert forecast[0].isnan().all()
    assert torch.equal(forecast[1:2], alone)
    assert forecast[2].isfinite().all()
    assert RandomForest(lags=3).fit(series[:1], FITTING).forecast(20).isnan().all()


def test_an_interrupted_fit_goes_on_after_the_series_that_were_done(tmp_path, monkeypatch):
    series = waves()
    forecaster = RandomForest(lags=3)
    whole = forecaster.fit(series, FITTING).forecast(20)

    def stop(share, text):
        if share > 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        forecaster.fit(series, Fitting(seeds=SEEDS, checkpoint=tmp_path, progress=stop))
    grown = []
    grow = RandomForest.grow
    monkeypatch.setattr(RandomForest, "grow", lambda *given: grown.append(given[3]) or grow(*given))
    resumed = forecaster.fit(series, Fitting(seeds=SEEDS, checkpoint=tmp_path)).forecast(20)
    assert grown == [SEEDS[2]]
    assert torch.equal(resumed, whole)


def test_more_lags_see_a_longer_pattern():
    pattern = torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0], dtype=torch.float64).repeat(40)[None, :, None]
    long = RandomForest(lags=5).fit(pattern, FITTING).forecast(25)
    short = RandomForest(lags=2).fit(pattern, FITTING).forecast(25)
    assert torch.equal(long.round(), pattern[:, :25])
    assert not torch.equal(short.round(), pattern[:, :25])


@pytest.mark.parametrize(
    ("forecaster", "package", "extra"),
    [
        (RandomForest(), "sklearn", "chaos"),
        (HistGradientBoosting(), "sklearn", "chaos"),
        (XGBoost(), "xgboost", "gbdt"),
    ],
)
def test_an_absent_package_is_named_with_its_extra(forecaster, package, extra, monkeypatch):
    def absent(module):
        raise ModuleNotFoundError(f"No module named {package}", name=package)

    monkeypatch.setattr("core.errors.importlib.import_module", absent)
    with pytest.raises(MissingExtra, match=rf'{package} is not installed: pip install "szilard\[{extra}\]"'):
        forecaster.fit(waves(), FITTING)


def test_a_series_shorter_than_the_lags_and_ten_is_refused():
    with pytest.raises(InputError, match="random_forest: 34 training samples: needs at least 35"):
        RandomForest(lags=25).fit(waves(samples=34), FITTING)


@pytest.mark.gpu
def test_the_roll_out_on_a_gpu_is_that_on_the_cpu():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    series = waves()
    forecast = RandomForest(lags=3).fit(series.cuda(), FITTING).forecast(30)
    torch.testing.assert_close(
        forecast.cpu(), RandomForest(lags=3).fit(series, FITTING).forecast(30), rtol=0, atol=1e-9
    )

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from apps.chaos.forecasters.chronos import Chronos
from apps.chaos.forecasters.darts_models import Darts
from apps.chaos.forecasters.forecaster import Ensemble, Fitting
from core.errors import InputError, MissingExtra
from core.torchvision_guard import shield

SEEDS = (5, 6, 7)
FITTING = Fitting(seeds=SEEDS)


def waves(series=3, samples=80, channels=2):
    generator = torch.Generator().manual_seed(1)
    phase = 6.3 * torch.rand(series, 1, channels, generator=generator, dtype=torch.float64)
    time = torch.arange(samples, dtype=torch.float64)[None, :, None]
    return (0.3 * time + phase).sin()


def darts_networks():
    pytest.importorskip("darts", reason="the extra forecasting is not installed")
    shield()
    try:
        import darts.models.forecasting.nbeats  # noqa: F401
    except Exception as error:
        pytest.skip(f"darts' networks cannot be imported: {error}")


def absent(monkeypatch, package):
    def raise_absent(module):
        raise ModuleNotFoundError(f"No module named {package}", name=package)

    monkeypatch.setattr("core.errors.importlib.import_module", raise_absent)


def test_the_linear_regression_of_darts_continues_waves():
    pytest.importorskip("darts", reason="the extra forecasting is not installed")
    series = waves(samples=130)
    fitted = Darts(model="LinearRegressionModel", look_back=4, dtype="float64").fit(series[:, :80], FITTING)
    torch.testing.assert_close(fitted.forecast(50), series[:, 80:], rtol=0, atol=1e-6)


def test_a_broken_series_of_darts_is_lost_alone():
    pytest.importorskip("darts", reason="the extra forecasting is not installed")
    series = waves()
    forecaster = Darts(model="LinearRegressionModel", look_back=4)
    alone = forecaster.fit(series[1:2], Fitting(seeds=SEEDS[1:2])).forecast(9)
    series[0, 3, 0] = torch.nan
    forecast = forecaster.fit(series, FITTING).forecast(9)
    assert forecast[0].isnan().all()
    assert torch.equal(forecast[1:2], alone)


@pytest.mark.parametrize("model", ["NBEATSModel", "RNNModel", "DLinearModel"])
def test_a_network_of_darts_trains_alike_twice_and_leaves_nothing_behind(model, tmp_path, monkeypatch, capfd):
    darts_networks()
    monkeypatch.chdir(tmp_path)
    arguments = {"NBEATSModel": {"num_stacks": 2, "layer_widths": 16}, "RNNModel": {"model": "LSTM"}}.get(model, {})
    forecaster = Darts(model=model, look_back=6, epochs=1, arguments=arguments)
    series = waves(series=2)
    state = torch.get_rng_state()
    capfd.readouterr()
    first, second = (forecaster.fit(series, FITTING).forecast(7) for _ in range(2))
    assert first.shape == (2, 7, 2)
    assert first.dtype == torch.float64
    assert first.isfinite().all()
    assert torch.equal(first, second)
    other = forecaster.fit(series, Fitting(seeds=(8, 9))).forecast(7)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_an_interrupted_fit_of_darts_goes_on_with_the_weights_of_the_series_that_were_done(tmp_path, monkeypatch):
    darts_networks()
    monkeypatch.chdir(tmp_path)
    forecaster = Darts(model="NBEATSModel", look_back=6, epochs=1, arguments={"num_stacks": 2, "layer_widths": 16})
    series = waves(series=2)
    whole = forecaster.fit(series, FITTING).forecast(7)

    def stop(share, text):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        forecaster.fit(series, Fitting(seeds=SEEDS, checkpoint=tmp_path / "kept", progress=stop))
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["darts_0.safetensors"]
    # Seeds that are not used again where the weights were kept.
    resumed = forecaster.fit(series, Fitting(seeds=(99, SEEDS[1]), checkpoint=tmp_path / "kept")).forecast(7)
    assert torch.equal(resumed, whole)


def test_arguments_that_darts_refuses_are_named():
    pytest.importorskip("darts", reason="the extra forecasting is not installed")
    with pytest.raises(InputError, match=r"darts: LinearRegressionModel refuses its arguments .*nonsense"):
        Darts(model="LinearRegressionModel", arguments={"nonsense": 1}).fit(waves(), FITTING)


def test_arguments_that_the_forecaster_sets_and_unknown_models_are_refused():
    with pytest.raises(ValidationError, match="random_state is not passed on"):
        Darts(model="NBEATSModel", arguments={"random_state": 1})
    with pytest.raises(ValidationError, match="NBEATSModel"):
        Darts(model="os.system")


@pytest.mark.parametrize(("model", "shortest"), [("NBEATSModel", 20), ("RNNModel", 34)])
def test_a_series_shorter_than_the_windows_is_refused(model, shortest):
    with pytest.raises(InputError, match=f"needs at least {shortest}"):
        Darts(model=model, look_back=10).fit(waves(samples=shortest - 1), FITTING)


def test_absent_darts_is_named_with_its_extra(monkeypatch):
    absent(monkeypatch, "darts")
    with pytest.raises(MissingExtra, match=r'darts is not installed: pip install "szilard\[forecasting\]"'):
        Darts(model="NBEATSModel").fit(waves(), FITTING)


class Pipeline:
    """Repeats the last value; a sampling one adds noise from torch's own generator."""

    def __init__(self, kind):
        self.forecast_type = SimpleNamespace(value=kind)
        self.contexts = []

    def predict(self, inputs, prediction_length, num_samples):
        self.contexts.append(inputs)
        last = torch.stack([channel[-1] for channel in inputs])[:, None, None]
        return last + torch.randn(len(inputs), num_samples, prediction_length)

    def predict_quantiles(self, inputs, prediction_length, quantile_levels, num_samples=None):
        assert quantile_levels == [0.5]
        if num_samples is not None:
            medians = self.predict(inputs, prediction_length, num_samples).median(dim=1).values
            return medians[..., None], medians
        self.contexts.append(inputs)
        medians = [channel[-1].expand(1, prediction_length) for channel in inputs]
        return [median[..., None] for median in medians], medians


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def stub(monkeypatch, kind):
    module, loaded = ModuleType("chronos"), []

    class BaseChronosPipeline:
        @classmethod
        def from_pretrained(cls, path, **settings):
            loaded.append((path, settings))
            return Pipeline(kind)

    module.BaseChronosPipeline = BaseChronosPipeline
    monkeypatch.setitem(sys.modules, "chronos", module)
    return loaded


def test_chronos_sees_the_last_samples_of_each_channel_and_never_downloads(monkeypatch, folder):
    loaded = stub(monkeypatch, "quantiles")
    series = waves()
    series[1, 70, 0] = torch.nan
    fitted = Chronos(weights=folder, context=30).fit(series, FITTING)
    assert loaded == [(folder, {"device_map": "cpu", "local_files_only": True})]
    forecast = fitted.forecast(5)
    assert forecast.dtype == torch.float64
    torch.testing.assert_close(forecast[0], series[0, -1].float().double().expand(5, 2), rtol=0, atol=0)
    assert forecast[1].isnan().all()
    seen = fitted.pipeline.contexts
    assert len(seen) == 2
    for channels, values in zip(seen, series[[0, 2]], strict=True):
        assert torch.equal(torch.stack(channels, dim=1), values[-30:].float())
    assert not isinstance(fitted, Ensemble)


def test_a_chronos_that_samples_is_an_ensemble_with_the_seeds_of_the_series(monkeypatch, folder):
    stub(monkeypatch, "samples")
    series = waves()
    state = torch.get_rng_state()
    fitted = Chronos(weights=folder, members=9).fit(series, FITTING)
    assert isinstance(fitted, Ensemble)
    forecast = fitted.forecast(6)
    assert torch.equal(forecast, fitted.forecast(6))
    alone = Chronos(weights=folder, members=9).fit(series[1:2], Fitting(seeds=SEEDS[1:2])).forecast(6)
    assert torch.equal(forecast[1:2], alone)
    draws = [fitted.sample(6, 4000, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert draws[0].shape == (3, 4000, 6, 2)
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    np.testing.assert_allclose(draws[0].mean(1), series[:, -1:].expand(3, 6, 2), atol=0.1)
    np.testing.assert_allclose(draws[0].std(1), 1, atol=0.1)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_folder_without_a_model_is_refused_in_one_line(monkeypatch, tmp_path):
    stub(monkeypatch, "samples")
    with pytest.raises(InputError) as refusal:
        Chronos(weights=tmp_path / "absent").fit(waves(), FITTING)
    assert str(refusal.value) == (
        f"chronos: weights {tmp_path / 'absent'}: must be a local folder with config.json and the weights"
    )


def test_absent_chronos_is_named_with_its_extra(monkeypatch, folder):
    absent(monkeypatch, "chronos")
    with pytest.raises(MissingExtra, match=r'chronos is not installed: pip install "szilard\[forecasting\]"'):
        Chronos(weights=folder).fit(waves(), FITTING)

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from apps.chaos.forecasters.esn import ESN, reservoir
from apps.chaos.forecasters.forecaster import Fitting

SMALL = ESN(neurons=40, leak=0.4, connectivity=0.3)


def oscillations(series=3, samples=200):
    time = 0.15 * torch.arange(samples, dtype=torch.float64)
    phase = torch.arange(series, dtype=torch.float64)[:, None]
    return torch.stack(
        [(time + phase).sin(), (1.3 * time - phase).cos(), ((time + phase).sin() + 0.3 * phase).tanh()], 2
    )


def forecast(settings, train, horizon, seed=0):
    return settings.fit(train, Fitting(seeds=tuple(range(len(train))), seed=seed)).forecast(horizon)


def plain_loop(settings, series, horizon, seed=0):
    """The equations of one series, neuron states as vectors, the readout by its normal equations."""
    parts = reservoir(settings, series.shape[1], seed)
    w, w_in, b = parts.recurrent.numpy(), parts.input.numpy(), parts.bias.numpy()[:, 0]
    a, h, states = settings.leak, np.zeros(settings.neurons), []

    def following(h, u):
        return (1 - a) * h + a * np.tanh(w @ h + w_in @ u + b)

    for u in series.numpy():
        h = following(h, u)
        states.append(h)
    warm_up = min(100, len(series) // 10)
    x, y = np.array(states[warm_up:-1]), series.numpy()[warm_up + 1 :]
    centre = x.mean(0)
    normal = (x - centre).T @ (x - centre) + settings.ridge * np.eye(settings.neurons)
    weights = np.linalg.solve(normal, (x - centre).T @ (y - y.mean(0)))
    found = []
    for _ in range(horizon):
        found.append((h - centre) @ weights + y.mean(0))
        h = following(h, found[-1])
    return np.array(found)


@pytest.mark.parametrize("samples", [200, 1200])
def test_the_batch_follows_the_state_equation_of_a_plain_loop(samples):
    settings = SMALL.model_copy(update={"ridge": 1e-3})
    train = oscillations(samples=samples)
    found = forecast(settings, train, 25)
    for g in range(3):
        assert np.allclose(found[g], plain_loop(settings, train[g], 25), atol=1e-7)


def test_the_reservoir_has_the_scale_and_the_zeros_that_are_asked_for():
    parts = reservoir(ESN(), 3, 0)
    assert np.abs(np.linalg.eigvals(parts.recurrent.numpy())).max() == pytest.approx(0.99, rel=1e-9)
    assert float((parts.recurrent != 0).double().mean()) == pytest.approx(0.1, abs=0.002)
    for matrix, shape in [(parts.input, (500, 3)), (parts.bias, (500, 1))]:
        assert matrix.shape == shape
        assert set(matrix.unique().tolist()) == {-1.0, 0.0, 1.0}
        assert float((matrix != 0).double().mean()) == pytest.approx(0.2, abs=0.06)
    assert reservoir(ESN(input_scaling=0.5), 3, 0).input.abs().max() == 0.5
    assert reservoir(ESN(connectivity=1.0), 3, 0).recurrent.count_nonzero() == 500 * 500


def test_reservoirpy_finds_the_same_spectral_radius_and_the_same_states():
    observables = pytest.importorskip("reservoirpy.observables")
    nodes = pytest.importorskip("reservoirpy.nodes")
    parts = reservoir(SMALL, 3, 0)
    w, w_in, b = parts.recurrent.numpy(), parts.input.numpy(), parts.bias.numpy()[:, 0]
    assert observables.spectral_radius(w) == pytest.approx(0.99, rel=1e-6)
    train = oscillations(1, 200)
    series = train[0].numpy()
    states = nodes.Reservoir(W=w, Win=w_in, bias=b, lr=SMALL.leak).run(series)
    readout = nodes.Ridge(ridge=1e-3).fit(states[20:-1], series[21:])
    settings = SMALL.model_copy(update={"ridge": 1e-3})
    assert np.allclose(forecast(settings, train, 1)[0, 0], readout(states[-1]), atol=1e-8)


def test_oscillations_are_continued():
    path = oscillations(samples=700)
    assert (forecast(ESN(neurons=200), path[:, :600], 100) - path[:, 600:]).abs().max() < 0.05


def test_one_reservoir_serves_all_series_and_leaks_of_a_seed():
    assert reservoir(ESN(leak=0.3), 3, 7) is reservoir(ESN(leak=0.9, ridge=1.0), 3, 7)
    assert not torch.equal(reservoir(ESN(), 3, 7).recurrent, reservoir(ESN(), 3, 8).recurrent)
    train = oscillations(1).expand(2, -1, -1)
    found = forecast(SMALL, train, 20)
    assert torch.allclose(found[0], found[1])
    assert not torch.allclose(found, forecast(SMALL, train, 20, seed=1))


def test_a_series_is_forecast_alike_alone_and_in_a_group_and_twice():
    train = oscillations()
    together = forecast(SMALL, train, 30)
    assert together.shape == (3, 30, 3)
    assert together.dtype == torch.float64
    assert torch.equal(together, forecast(SMALL, train, 30))
    for g in range(3):
        assert torch.allclose(forecast(SMALL, train[g : g + 1], 30)[0], together[g], atol=1e-7)


def test_series_that_are_fitted_in_parts_are_fitted_alike(monkeypatch):
    train = oscillations(5)
    whole = forecast(SMALL, train, 20)
    monkeypatch.setattr("apps.chaos.forecasters.esn.ELEMENTS", 200 * 40 * 2)
    assert torch.allclose(forecast(SMALL, train, 20), whole, atol=1e-7)


def test_a_longer_forecast_begins_with_the_shorter_one():
    fitted = SMALL.fit(oscillations(), Fitting(seeds=(0, 1, 2)))
    assert torch.equal(fitted.forecast(5), fitted.forecast(40)[:, :5])


def test_a_series_with_nan_spoils_itself_alone():
    train = oscillations()
    clean = forecast(SMALL, train, 20)
    train[1, 150, 0] = torch.nan
    spoiled = forecast(SMALL, train, 20)
    assert torch.allclose(spoiled[[0, 2]], clean[[0, 2]], atol=1e-9)
    assert spoiled[1].isnan().all()


def test_a_leak_of_the_papers_grid_beyond_1_is_refused_with_the_reason():
    for leak in (0.0, -0.1, 1.1):
        with pytest.raises(ValidationError, match=r"must be in \(0, 1\]; the 1.1 of the paper's grid"):
            ESN(leak=leak)
    for leak in ESN.grid["leak"]:
        assert ESN(leak=leak).leak == leak
    with pytest.raises(ValidationError, match="ridge"):
        ESN(ridge=-1.0)


def test_the_shortest_series_can_be_forecast():
    train = oscillations(samples=SMALL.shortest)
    assert forecast(SMALL, train, 5).isfinite().all()


@pytest.mark.gpu
def test_a_device_forecasts_as_the_cpu():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    train = oscillations()
    found = forecast(SMALL, train.cuda(), 20)
    assert found.is_cuda
    assert torch.allclose(found.cpu(), forecast(SMALL, train, 20), atol=1e-6)

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from apps.chaos.forecasters.forecaster import Fitting
from apps.chaos.forecasters.hopfield import Hopfield


def forecast(settings, train, horizon):
    return settings.fit(train, Fitting(seeds=tuple(range(len(train))))).forecast(horizon)


def noisy(series=3, samples=150, channels=2):
    noise = torch.randn(series, samples, channels, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (0.2 * torch.arange(samples, dtype=torch.float64)[:, None] + torch.arange(channels)).sin() + 0.2 * noise


def plain_step(settings, train, seen):
    """Locally weighted regression of the increment at the end of ``seen``, written out."""
    k = settings.delay
    patterns = np.array([train[i : i + k].ravel() for i in range(len(train) - k)])
    increments = train[k:] - train[k - 1 : -1]
    query = seen[-k:].ravel()
    weights = np.exp(-settings.beta * ((query - patterns) ** 2).sum(1))
    weights /= weights.sum()
    x, v = patterns - weights @ patterns, increments - weights @ increments
    slope = np.linalg.solve(
        x.T @ (weights[:, None] * x) + settings.ridge * np.eye(x.shape[1]), x.T @ (weights[:, None] * v)
    )
    return seen[-1] + weights @ increments + (query - weights @ patterns) @ slope


@pytest.mark.parametrize("settings", [Hopfield(beta=3.0, delay=1), Hopfield(beta=10.0), Hopfield(beta=30.0, delay=5)])
def test_a_step_is_the_locally_weighted_regression(settings):
    train = noisy()
    found = forecast(settings, train, 5).numpy()
    for g, series in enumerate(train.numpy()):
        seen = series
        for h in range(5):
            assert np.allclose(plain_step(settings, series, seen), found[g, h], atol=1e-7)
            seen = np.concatenate([seen, found[g, h][None]])


def test_a_linear_map_is_recovered_at_any_temperature():
    angle = torch.tensor(0.7, dtype=torch.float64)
    matrix = torch.stack([torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])])
    path = [torch.tensor([1.0, 0.2], dtype=torch.float64)]
    for i in range(159):
        path.append((0.999 if i < 130 else 1.0) * matrix @ path[-1])
    path = torch.stack(path)[None]
    linear = 0.999 * matrix
    for beta in (0.1, 1.0, 10.0):
        found = forecast(Hopfield(beta=beta, delay=1, ridge=1e-12), path[:, :120], 5)[0]
        expected = path[0, 119]
        for h in range(5):
            expected = linear @ expected
            assert torch.allclose(found[h], expected, atol=1e-6)


def test_a_cold_memory_continues_an_orbit_that_it_has_seen():
    orbit = torch.tensor([[0.0, 1.0], [1.0, -1.0], [-1.5, 0.5], [2.0, 0.3], [-0.4, -2.0]], dtype=torch.float64)
    train = orbit.repeat(8, 1)[None]
    found = forecast(Hopfield(beta=1000.0, delay=2), train, 20)
    assert torch.allclose(found[0], orbit.repeat(4, 1), atol=1e-6)


def test_a_chaotic_flow_is_followed_for_longer_than_the_last_sample_holds():
    from scipy.integrate import solve_ivp

    def rossler(_, y):
        return [-y[1] - y[2], y[0] + 0.2 * y[1], 0.2 + y[2] * (y[0] - 5.7)]

    times = 20 + 0.06 * np.arange(1300)
    path = torch.tensor(solve_ivp(rossler, (0, 100), [1.0, 1.0, 0.0], t_eval=times, rtol=1e-9, atol=1e-9).y.T)[None]
    path = (path - path[:, :1000].mean(1)) / path[:, :1000].std(1)
    found, truth = forecast(Hopfield(), path[:, :1000], 300), path[:, 1000:]
    error = (found - truth).square().mean(2).sqrt()[0]
    still = (path[:, 999:1000] - truth).square().mean(2).sqrt()[0]
    assert int((error > 0.4).int().argmax() if (error > 0.4).any() else 300) > 10 * int((still > 0.4).int().argmax())


def test_a_series_is_forecast_alike_alone_and_in_a_group_and_twice():
    train = noisy()
    together = forecast(Hopfield(beta=10.0), train, 30)
    assert together.shape == (3, 30, 2)
    assert together.dtype == torch.float64
    assert torch.equal(together, forecast(Hopfield(beta=10.0), train, 30))
    for g in range(3):
        assert torch.allclose(forecast(Hopfield(beta=10.0), train[g : g + 1], 30)[0], together[g], atol=1e-7)


def test_a_longer_forecast_begins_with_the_shorter_one():
    fitted = Hopfield().fit(noisy(), Fitting(seeds=(0, 1, 2)))
    assert torch.equal(fitted.forecast(5), fitted.forecast(40)[:, :5])


def test_a_series_with_nan_spoils_itself_alone():
    train = noisy()
    clean = forecast(Hopfield(), train, 20)
    train[1, 10, 0] = torch.nan
    spoiled = forecast(Hopfield(), train, 20)
    assert torch.allclose(spoiled[[0, 2]], clean[[0, 2]], atol=1e-9)
    assert spoiled[1].isnan().all()


def test_settings_out_of_range_are_refused_and_those_of_the_grid_are_not():
    for bad in ({"beta": 0.0}, {"delay": 0}, {"ridge": 0.0}):
        with pytest.raises(ValidationError, match=next(iter(bad))):
            Hopfield(**bad)
    for name, values in Hopfield.grid.items():
        for value in values:
            assert getattr(Hopfield(**{name: value}), name) == value


def test_the_shortest_series_can_be_forecast():
    settings = Hopfield(delay=5)
    assert settings.shortest == 16
    assert forecast(settings, noisy(samples=16), 5).isfinite().all()


@pytest.mark.gpu
def test_a_device_forecasts_as_the_cpu():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    found = forecast(Hopfield(beta=10.0), noisy().cuda(), 20)
    assert found.is_cuda
    assert torch.allclose(found.cpu(), forecast(Hopfield(beta=10.0), noisy(), 20), atol=1e-6)

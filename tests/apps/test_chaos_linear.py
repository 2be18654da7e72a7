import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from apps.chaos.forecasters.delay_regression import monomials
from apps.chaos.forecasters.fft import FFT
from apps.chaos.forecasters.forecaster import Fitting
from apps.chaos.forecasters.linear import Linear
from apps.chaos.forecasters.naive import NaiveDrift, NaiveMean, NaiveSeasonal
from apps.chaos.forecasters.nvar import NGRC, NVAR
from apps.chaos.forecasters.ridge import ridge
from core.errors import InputError

KINDS = [
    Linear(lags=4),
    NVAR(delay=4),
    NVAR(order=2, delay=2),
    NGRC(),
    NGRC(order=3, delay=1),
    FFT(),
    NaiveDrift(),
    NaiveMean(),
    NaiveSeasonal(season=3),
]
SMALL_GAP = 1e-9


def forecast(settings, train, horizon):
    return settings.fit(train, Fitting(seeds=tuple(range(len(train))))).forecast(horizon)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def linear_maps(series, samples, seed=0):
    """Rotations that are a little damped, with an offset."""
    angle = torch.linspace(0.3, 1.0, series, dtype=torch.float64)
    rows = [torch.stack([angle.cos(), -angle.sin()], -1), torch.stack([angle.sin(), angle.cos()], -1)]
    matrix = 0.995 * torch.stack(rows, 1)
    path = [normal(series, 2, seed=seed)]
    for _ in range(samples - 1):
        path.append((matrix @ path[-1][:, :, None])[:, :, 0] + 0.1)
    return torch.stack(path, 1)


def henon(series, samples):
    x, y = 0.1 + 0.01 * torch.arange(series, dtype=torch.float64), torch.zeros(series, dtype=torch.float64)
    path = []
    for _ in range(samples):
        path.append(torch.stack([x, y], 1))
        x, y = 1 - 1.4 * x**2 + y, 0.3 * x
    return torch.stack(path, 1)


def rough(series=3, samples=150, channels=2):
    """Noisy oscillations, on which no regression is ill-conditioned."""
    time = torch.arange(samples, dtype=torch.float64)
    return (0.3 * time[None, :, None] + torch.arange(series)[:, None, None]).sin() + normal(series, samples, channels)


# ridge


def test_ridge_agrees_with_scikit_learn():
    linear_model = pytest.importorskip("sklearn.linear_model")
    x, y = normal(3, 80, 10) + 5, normal(3, 80, 2, seed=1) - 2
    for penalty in (1e-4, 1.0, 100.0):
        found = ridge(x.clone(), y, penalty)
        for g in range(3):
            expected = linear_model.Ridge(alpha=penalty).fit(x[g].numpy(), y[g].numpy())
            assert np.allclose(found.weights[g].T, expected.coef_, atol=1e-9)
            assert np.allclose(found.intercept[g, 0], expected.intercept_, atol=1e-9)


def test_ridge_meets_its_normal_equations_with_more_features_than_samples():
    x, y = normal(2, 30, 80), normal(2, 30, 3, seed=1)
    for penalty in (1e-3, 1e-14):  # by Cholesky, and by singular values
        found = ridge(x.clone(), y, penalty)
        residual = y - found.intercept - x @ found.weights
        assert torch.allclose(residual.sum(1), torch.zeros(2, 3, dtype=torch.float64), atol=1e-9)
        assert torch.allclose(x.mT @ residual, penalty * found.weights, atol=1e-8)


def test_without_a_penalty_it_is_numpys_least_squares():
    x, y = normal(2, 60, 5), normal(2, 60, 2, seed=1)
    found = ridge(x.clone(), y, 0.0)
    for g in range(2):
        expected = np.linalg.lstsq(np.c_[np.ones(60), x[g]], y[g], rcond=None)[0]
        assert np.allclose(torch.cat([found.intercept[g], found.weights[g]]), expected, atol=1e-12)


def test_collinear_features_share_the_weight_evenly():
    x = normal(1, 50, 1)
    found = ridge(x.repeat(1, 1, 3), 6 * x, 0.0)
    assert torch.allclose(found.weights, torch.full((1, 3, 1), 2.0, dtype=torch.float64))


def test_an_ill_conditioned_ridge_is_solved_by_its_singular_values():
    # Singular values 1 and 1e-9: squared they are lost in float64.
    direction = torch.linalg.qr(normal(100, 2) - normal(100, 2).mean(0))[0]
    x = direction[None] * torch.tensor([1.0, 1e-9], dtype=torch.float64)
    y = direction.sum(1)[None, :, None]
    found = ridge(x.clone(), y, 1e-20)
    centred = x - x.mean(1, keepdim=True)
    assert (y - found.intercept - x @ found.weights).abs().max() < 0.02
    assert float(found.condition) == pytest.approx(np.linalg.cond(centred[0]), rel=0.02)


def test_the_condition_number_is_right_to_a_factor_of_ten():
    scales = torch.logspace(0, -4, 20, dtype=torch.float64)
    x = normal(4, 200, 20) * scales
    for penalty in (1e-6, 1e-2):
        design = np.concatenate(
            [x - x.mean(1, keepdim=True), np.broadcast_to(penalty**0.5 * np.eye(20), (4, 20, 20))], 1
        )
        share = ridge(x.clone(), normal(4, 200, 1), penalty).condition.numpy() / np.linalg.cond(design)
        assert (share < 10).all()
        assert (share > 0.1).all()


@pytest.mark.parametrize("penalty", [0.0, 1e-14, 1.0])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_numbers_that_are_not_finite_spoil_their_own_regression_alone(penalty, bad):
    x, y = normal(3, 30, 5), normal(3, 30, 2, seed=1)
    clean = ridge(x.clone(), y, penalty)
    x[1, 4, 2] = bad
    spoiled = ridge(x.clone(), y, penalty)
    assert spoiled.weights[1].isnan().all()
    assert spoiled.condition[1].isnan()
    for name in ("weights", "intercept", "condition"):
        assert torch.allclose(getattr(spoiled, name)[[0, 2]], getattr(clean, name)[[0, 2]])


# regressions on delays


def test_monomials_come_by_degree_then_with_the_oldest_state_first():
    # Two states of two channels: a b 1 c d 1.
    values = torch.tensor([2.0, 3.0, 1.0, 5.0, 7.0, 1.0])
    found = values[monomials(2, 2, 2)].prod(0).tolist()
    assert found == [2, 3, 5, 7, 4, 6, 10, 14, 9, 15, 21, 25, 35, 49, 1]
    for delay, channels, order in [(1, 3, 3), (2, 3, 2), (3, 1, 4)]:
        assert monomials(delay, channels, order).shape == (order, math.comb(delay * channels + order, order))


@pytest.mark.parametrize("settings", [Linear(lags=1), Linear(lags=3), NVAR(delay=1, ridge=1e-13)])
def test_a_linear_map_is_recovered(settings):
    path = linear_maps(4, 200)
    assert torch.allclose(forecast(settings, path[:, :100], 100), path[:, 100:], atol=1e-8)


def test_least_squares_on_lags_agrees_with_numpy():
    train = rough(samples=60)
    fitted = Linear(lags=3).fit(train, Fitting(seeds=(0, 1, 2)))
    for g, series in enumerate(train.numpy()):
        rows = np.stack([np.r_[series[t - 3 : t].ravel(), 1.0] for t in range(3, 60)])
        weights = np.linalg.lstsq(rows, series[3:], rcond=None)[0]
        assert np.allclose(fitted.weights[g], weights, atol=1e-10)
        seen = list(series[-3:])
        for expected in fitted.forecast(10)[g].numpy():
            seen.append(np.r_[np.concatenate(seen[-3:]), 1.0] @ weights)
            assert np.allclose(seen[-1], expected, atol=1e-10)


@pytest.mark.parametrize(
    "settings",
    [NGRC(order=2, delay=1, ridge=0.0), NGRC(order=3, delay=1, ridge=0.0), NVAR(order=2, delay=1, ridge=0.0)],
)
def test_the_henon_map_is_recovered(settings):
    path = henon(3, 180)
    # The map doubles an error in less than two steps.
    assert torch.allclose(forecast(settings, path[:, :150], 25), path[:, 150:175], atol=1e-6)
    fitted = settings.fit(path[:, :150], Fitting(seeds=(0, 1, 2)))
    x, y, xx, one = fitted.weights[:, 0], fitted.weights[:, 1], fitted.weights[:, 2], fitted.weights[:, -1]
    identity = 1.0 if settings.increments else 0.0
    for found, expected in [
        (x, (-identity, 0.3)),
        (y, (1, -identity)),
        (xx, (-1.4, 0)),
        (one, (1, 0)),
    ]:
        assert torch.allclose(found, torch.tensor(expected, dtype=torch.float64).expand(3, 2), atol=1e-9)


def test_the_logistic_map_is_recovered_from_its_increments():
    x = [0.3]
    for _ in range(119):
        x.append(3.9 * x[-1] * (1 - x[-1]))
    path = torch.tensor(x, dtype=torch.float64)[None, :, None]
    assert torch.allclose(forecast(NGRC(order=2, delay=1, ridge=0.0), path[:, :100], 20), path[:, 100:], atol=1e-6)


def test_too_many_monomials_are_refused():
    with pytest.raises(InputError, match=r"order = 5, delay = 10: 324,632 monomials of 3 channels, at most 20,000"):
        forecast(NVAR(order=5, delay=10), normal(1, 100, 3), 1)


def test_series_that_are_fitted_in_parts_are_fitted_alike(monkeypatch):
    train = rough(series=5)
    whole = forecast(NGRC(), train, 20)
    monkeypatch.setattr("apps.chaos.forecasters.delay_regression.ELEMENTS", 150 * 15 * 2 * 2)
    assert torch.allclose(forecast(NGRC(), train, 20), whole, rtol=1e-9)


# fft and naive


def test_sinusoids_whose_periods_divide_the_series_are_continued():
    time = torch.arange(260, dtype=torch.float64)
    channels = [
        sum((i + 1) * torch.sin(2 * torch.pi * k * time / 200 + i) for i, k in enumerate(waves))
        for waves in [(1, 4, 7, 20, 50), (2, 3, 8, 10), (5,)]
    ]
    path = torch.stack(channels, 1)[None] + torch.tensor([0.0, 3.0, -1.0])
    assert torch.allclose(forecast(FFT(), path[:, :200], 60), path[:, 200:], atol=1e-9)


@pytest.mark.parametrize("samples", [64, 65])
def test_fft_keeps_the_largest_of_the_two_sided_spectrum_and_repeats(samples):
    train = normal(2, samples, 3)
    spectrum = np.fft.fft(train.numpy(), axis=1)
    size = np.sort(np.abs(spectrum), 1)[:, ::-1]
    # A conjugate pair is kept whole: the tenth may bring an eleventh.
    kept = np.abs(spectrum) >= size[:, 9:10] * (1 - SMALL_GAP)
    expected = np.fft.ifft(np.where(kept, spectrum, 0), axis=1).real
    found = forecast(FFT(), train, 2 * samples)
    assert np.allclose(found[:, :samples], expected)
    assert torch.equal(found[:, :samples], found[:, samples:])


def test_naive_forecasts_are_their_definitions():
    train = normal(2, 40, 3)
    slope = (train[:, -1] - train[:, 0]) / 39
    drift = forecast(NaiveDrift(), train, 7)
    for h in range(7):
        assert torch.allclose(drift[:, h], train[:, -1] + (h + 1) * slope)
    assert torch.allclose(forecast(NaiveMean(), train, 5), train.mean(1)[:, None].expand(2, 5, 3))
    assert torch.equal(forecast(NaiveSeasonal(), train, 5), train[:, -1:].expand(2, 5, 3))
    assert torch.equal(forecast(NaiveSeasonal(season=4), train, 6), train[:, [36, 37, 38, 39, 36, 37]])


# what holds for all


@pytest.mark.parametrize("settings", KINDS, ids=str)
def test_a_series_is_forecast_alike_alone_and_in_a_group_and_twice(settings):
    train = rough()
    together = forecast(settings, train, 30)
    assert together.shape == (3, 30, 2)
    assert together.dtype == torch.float64
    assert torch.equal(together, forecast(settings, train, 30))
    for g in range(3):
        assert torch.allclose(forecast(settings, train[g : g + 1], 30)[0], together[g], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("settings", KINDS, ids=str)
def test_a_longer_forecast_begins_with_the_shorter_one(settings):
    fitted = settings.fit(rough(), Fitting(seeds=(0, 1, 2)))
    assert torch.equal(fitted.forecast(5), fitted.forecast(40)[:, :5])


@pytest.mark.parametrize("settings", KINDS, ids=str)
def test_a_series_with_nan_spoils_itself_alone(settings):
    train = rough()
    clean = forecast(settings, train, 20)
    train[1, 0, 0] = torch.nan
    spoiled = forecast(settings, train, 20)
    assert torch.allclose(spoiled[[0, 2]], clean[[0, 2]], rtol=1e-8, atol=1e-10)
    if not isinstance(settings, NaiveSeasonal):
        assert spoiled[1, :, 0].isnan().all()


def test_a_forecast_that_overflows_overflows_alone():
    time = torch.arange(100, dtype=torch.float64)
    growing = torch.stack([1.5**time * 1e-10, 1.5**time], 1)
    train = torch.stack([growing, rough(1, 100)[0]])
    for settings in (Linear(lags=1), NGRC(order=2, delay=1, ridge=0.0)):
        found = forecast(settings, train, 3000)
        assert not found[0, -1].isfinite().any()
        assert found[1].isfinite().all()


@pytest.mark.parametrize(
    ("settings", "shortest"),
    [(Linear(lags=25), 36), (NVAR(delay=30), 41), (NGRC(), 13), (NaiveSeasonal(season=5), 16), (FFT(), 12)],
)
def test_series_of_look_back_and_10_samples_are_too_short(settings, shortest):
    assert settings.shortest == shortest
    settings.check(shortest)
    with pytest.raises(InputError, match=f"{settings.kind}: {shortest - 1} training samples: needs at least"):
        settings.check(shortest - 1)
    assert forecast(settings, rough(samples=shortest), 3).shape == (3, 3, 2)


@pytest.mark.parametrize(
    ("kind", "bad"),
    [
        (NVAR, {"ridge": -1e-4}),
        (NGRC, {"ridge": -1e-4}),
        (NVAR, {"order": 0}),
        (NGRC, {"delay": 0}),
        (Linear, {"lags": 0}),
        (FFT, {"frequencies": 0}),
        (NaiveSeasonal, {"season": 0}),
    ],
)
def test_settings_out_of_range_are_refused(kind, bad):
    with pytest.raises(ValidationError, match=next(iter(bad))):
        kind(**bad)


@pytest.mark.parametrize("kind", [Linear, NVAR, NGRC])
def test_the_values_of_the_grid_are_settings(kind):
    for name, values in kind.grid.items():
        for value in values:
            assert getattr(kind(**{name: value}), name) == value


@pytest.mark.gpu
@pytest.mark.parametrize("settings", KINDS, ids=str)
def test_a_device_forecasts_as_the_cpu(settings):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    train = rough()
    found = forecast(settings, train.cuda(), 20)
    assert found.is_cuda
    assert torch.allclose(found.cpu(), forecast(settings, train, 20), rtol=1e-6, atol=1e-8)

"""A forecast begins with the sample after the last that was fitted: a delay turns a turning vector."""

import math

import pytest
import torch

from apps.chaos.fitting import fit_scaled
from apps.chaos.protocol import Method
from core.errors import MissingExtra

SAMPLES, HORIZON, TURN = 240, 3, 24
QUICK = {"look_back": 8, "epochs": 20, "batch": 64, "learning_rate": 1e-2}
KINDS = {
    "nbeats": {"stacks": 2, "width": 32, **QUICK},
    "nhits": {"width": 32, "dropout": 0.0, **QUICK},
    "transformer": {"width": 16, "heads": 2, "layers": 1, "feed_forward": 32, "dropout": 0.0, **QUICK},
    "lstm": {**QUICK, "look_back": 24},
    "rnn": QUICK,
    "tcn": {"filters": 8, "dropout": 0.0, **QUICK},
    "dlinear": QUICK,
    "nlinear": QUICK,
    "linear": {"lags": 5},
    "random_forest": {"lags": 5},
    "xgboost": {"lags": 5},
    "hist_gradient_boosting": {"lags": 5},
    "kalman": {"states": 2},
    "node": {"segment": 5, "iterations": 150},
    "esn": {"neurons": 100},
    "nvar": {"delay": 5},
    "ngrc": {},
    "hopfield": {},
    "arima": {"order": 3},
    "exp_smoothing": {},
    "theta": {},
    "four_theta": {},
    "fft": {"frequencies": 2},
    "naive_seasonal": {"season": TURN},
    "diffusion": {"iterations": 300, "width": 64, "blocks": 1, "levels": 100},
}


def turning() -> torch.Tensor:
    """Two series of a vector that turns once in 24 samples, ``(2, SAMPLES + HORIZON, 2)``."""
    time = 2 * math.pi * torch.arange(SAMPLES + HORIZON, dtype=torch.float64) / TURN
    return torch.stack([torch.stack([(time + p).cos(), (time + p).sin()], -1) for p in (0.3, 1.1)])


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_forecast_is_of_the_sample_after_the_last_that_was_fitted(kind):
    series = turning()
    forecaster = Method(name=kind, forecaster={"kind": kind, **KINDS[kind]}, grid={}).forecaster
    try:
        fitted = fit_scaled(forecaster, series[:, :SAMPLES], seeds=(1, 2))
    except MissingExtra as error:
        pytest.skip(str(error))
    forecast, _ = fitted.forecast(HORIZON)
    assert forecast.shape == (2, HORIZON, 2)
    ahead = torch.atan2(*forecast.unbind(-1)[::-1]) - torch.atan2(*series[:, SAMPLES:].unbind(-1)[::-1])
    samples = (torch.remainder(ahead + math.pi, 2 * math.pi) - math.pi) * TURN / (2 * math.pi)
    assert samples[:, 0].abs().max() < 0.4


def test_a_line_goes_on_and_a_mean_stays():
    ramp = torch.arange(40, dtype=torch.float64)[None, :, None]
    drift, _ = fit_scaled(Method(name="d", forecaster={"kind": "naive_drift"}).forecaster, ramp, seeds=(0,)).forecast(3)
    assert drift.flatten().tolist() == pytest.approx([40, 41, 42])
    mean, _ = fit_scaled(Method(name="m", forecaster={"kind": "naive_mean"}).forecaster, ramp, seeds=(0,)).forecast(2)
    assert mean.flatten().tolist() == pytest.approx([19.5, 19.5])

import os
import warnings
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from apps.chaos.metrics import cumulative
from apps.chaos.valid_time import ValidTime, lyapunov_axis, mean_curve, on_lyapunov_axis, valid_time
from core.errors import InputError

STORED_LYAPUNOV, STORED_PERIOD = 0.8917098035724058, 1.5008
SPACING = 12 * STORED_PERIOD / 1199


@pytest.fixture(scope="module")
def lorenz():
    folder = Path(os.environ.get("SZILARD_DATA") or Path(__file__).parents[2].parent / "shared" / "data") / "chaos"
    path = folder / "published_lorenz_500step.npz"
    if not path.is_file():
        pytest.skip(f"no {path}: set SZILARD_DATA")
    with np.load(path, allow_pickle=False) as data:
        return {name: data[name] for name in data.files}


@pytest.mark.parametrize(("definition", "samples", "times"), [("V1", 107, 1.43), ("V2", 353, 4.7), ("V3", 392, 5.25)])
def test_published_lstm_on_lorenz_is_valid_as_long_as_known(lorenz, definition, samples, times):
    truth = lorenz["true"]
    found = valid_time(truth, lorenz["lstm_or_rnn"], truth.std(0), definition=definition)
    assert found.samples == samples
    assert not found.censored
    assert found.lyapunov_times(STORED_LYAPUNOV, SPACING) == pytest.approx(times, abs=0.03)


def ramp(horizon=10, slope=0.1):
    truth = np.ones((horizon, 2))
    return truth, truth + slope * np.arange(1, horizon + 1)[:, None]


def test_the_first_excess_ends_v1():
    truth, forecast = ramp()
    # Errors 0.1, 0.2, ...: in units of 0.5 they pass 0.7 at the fourth sample.
    assert valid_time(truth, forecast, np.full(2, 0.5), threshold=0.7).samples == 3
    forecast[4:] = truth[4:]
    assert valid_time(truth, forecast, np.full(2, 0.5), threshold=0.7).samples == 3


def test_v1_weighs_channels_by_their_standard_deviations():
    truth = np.zeros((3, 2))
    forecast = np.array([[0.0, 0.0], [3.0, 40.0], [9.0, 0.0]])
    # sqrt((3/3)^2 + (40/40)^2) / 2) = 1, then sqrt(9 / 2).
    found = [valid_time(truth, forecast, [3.0, 40.0], threshold=t).samples for t in (0.99, 1.01, 2.2)]
    assert found == [1, 2, 3]


def test_v2_ends_at_the_first_and_v3_at_the_last_crossing_of_the_running_error():
    truth = np.ones((6, 1))
    forecast = np.array([1.0, -1.0, 1.0, 1.0, 1.0, -1.0])[:, None]
    running = cumulative("smape", truth, forecast)
    assert running.tolist() == pytest.approx([0, 100, 200 / 3, 50, 40, 200 / 3])
    assert valid_time(truth, forecast, [1.0], definition="V2", threshold=60.0).samples == 1
    assert valid_time(truth, forecast, [1.0], definition="V3", threshold=60.0).samples == 5
    # The thresholds themselves are valid for V2 (> ends) and not for V3 (< counts).
    assert valid_time(truth, forecast, [1.0], definition="V2", threshold=100.0).samples == 6
    assert valid_time(truth, forecast, [1.0], definition="V3", threshold=40.0).samples == 1


@pytest.mark.parametrize("definition", ["V1", "V2", "V3"])
def test_a_forecast_that_never_fails_is_censored_at_the_horizon(definition):
    truth = np.random.default_rng(0).normal(size=(20, 2))
    found = valid_time(truth, truth, truth.std(0), definition=definition)
    assert found.samples == 20
    assert found.censored


@pytest.mark.parametrize("definition", ["V1", "V2", "V3"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_sample_that_is_not_finite_ends_a_forecast_and_no_other(definition, bad):
    truth = np.random.default_rng(0).normal(size=(3, 20, 2))
    forecast = truth.copy()
    forecast[1, 7, 0] = bad
    found = valid_time(truth, forecast, truth.std(1), definition=definition)
    assert found.samples.tolist() == [20, 7, 20]
    assert found.censored.tolist() == [True, False, True]


@pytest.mark.parametrize("definition", ["V1", "V2", "V3"])
def test_a_batch_is_its_series_in_tensors_and_arrays(definition):
    rng = np.random.default_rng(1)
    truth = rng.normal(size=(2, 5, 30, 3)) + 2.0
    forecast = truth + np.cumsum(rng.normal(size=truth.shape), -2) * rng.uniform(0, 0.8, (2, 5, 1, 1))
    std = truth.std(-2)
    whole = valid_time(truth, forecast, std, definition=definition)
    tensors = valid_time(*(torch.from_numpy(x) for x in (truth, forecast, std)), definition=definition)
    assert isinstance(tensors.samples, torch.Tensor)
    assert len(np.unique(whole.samples)) > 3
    for i in np.ndindex(2, 5):
        alone = valid_time(truth[i], forecast[i], std[i], definition=definition)
        assert whole.samples[i] == alone.samples == int(tensors.samples[i])
        assert whole.censored[i] == alone.censored == bool(tensors.censored[i])


def test_a_larger_threshold_is_never_shorter():
    rng = np.random.default_rng(2)
    truth = rng.normal(size=(50, 40, 3))
    forecast = truth + 0.05 * np.cumsum(rng.normal(size=truth.shape), -2)
    for definition, thresholds in (("V1", (0.1, 0.4, 1.0)), ("V2", (10, 30, 60)), ("V3", (10, 40, 60))):
        found = [valid_time(truth, forecast, np.ones(3), definition=definition, threshold=t) for t in thresholds]
        assert all((a.samples <= b.samples).all() for a, b in pairwise(found))


def test_a_failed_copy_has_no_valid_sample():
    truth = np.ones((2, 5, 1))
    found = valid_time(truth, truth, np.array([[np.nan], [1.0]]))
    assert found.samples.tolist() == [0, 5]


def test_lyapunov_times_scale_samples_and_keep_unknown_exponents_unknown():
    found = ValidTime(np.array([10, 20, 5]), np.zeros(3, bool)).lyapunov_times([0.5, 1.0, np.nan], 0.1)
    assert found[:2].tolist() == pytest.approx([0.5, 2.0])
    assert np.isnan(found[2])


def test_a_line_stays_a_line_on_the_lyapunov_axis():
    rate = np.array([0.01, 0.05])
    errors = 2.0 * rate[:, None] * np.arange(1, 101) + 1.0
    axis = lyapunov_axis(200)
    found = on_lyapunov_axis(errors, rate / 0.5, 0.5, axis)
    for curve, r in zip(found, rate, strict=True):
        inside = (axis >= r) & (axis <= 100 * r)
        assert inside.sum() > 50
        assert curve[inside] == pytest.approx(2.0 * axis[inside] + 1.0)
        assert np.isnan(curve[~inside]).all()


def test_interpolation_agrees_with_numpy_between_the_ends():
    errors = np.random.default_rng(3).normal(size=(3, 50))
    exponent, dt = np.array([0.5, 1.0, 7.0]), np.array([0.1, 0.02, 0.03])
    axis = lyapunov_axis(300)
    found = on_lyapunov_axis(torch.from_numpy(errors), exponent, dt, axis).numpy()
    for i in range(3):
        x = exponent[i] * dt[i] * np.arange(1, 51)
        expected = np.interp(axis, x, errors[i], left=np.nan, right=np.nan)
        assert found[i] == pytest.approx(expected, nan_ok=True)


def test_samples_keep_their_errors_on_an_axis_of_samples():
    errors = np.random.default_rng(4).normal(size=40)
    x = 0.9056 * 0.0150205 * np.arange(1, 41)
    assert on_lyapunov_axis(errors, 0.9056, 0.0150205, x).tolist() == errors.tolist()


def test_a_nan_on_a_curve_touches_its_neighbourhood_alone():
    errors = np.array([1.0, 2.0, np.nan, 4.0, 5.0])
    found = on_lyapunov_axis(errors, 1.0, 1.0, [1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5])
    assert found.tolist() == pytest.approx([1.0, 1.5, 2.0, np.nan, np.nan, np.nan, 4.0, 4.5], nan_ok=True)
    unknown = on_lyapunov_axis(np.ones((2, 5)), np.array([np.nan, 1.0]), 1.0, [2.0])
    assert unknown[:, 0].tolist() == pytest.approx([np.nan, 1.0], nan_ok=True)


def test_the_mean_over_systems_counts_those_that_reach_the_horizon():
    curves = np.array([[1.0, 2.0, np.nan], [3.0, np.nan, np.nan], [5.0, 6.0, 7.0], [7.0, np.inf, np.nan]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = mean_curve(curves, [0.1, 1.0, 10.0])
        empty = mean_curve(np.full((2, 1), np.nan), [1.0])
    assert found["systems"].values.tolist() == [4, 2, 1]
    assert found["mean"].values.tolist() == [4.0, 4.0, 7.0]
    expected = [np.std([1, 3, 5, 7], ddof=1) / 2, np.std([2, 6], ddof=1) / np.sqrt(2), np.nan]
    assert found["standard_error"].values.tolist() == pytest.approx(expected, nan_ok=True)
    assert found["lyapunov_time"].values.tolist() == [0.1, 1.0, 10.0]
    assert np.isnan(empty["mean"].values).all()


def test_the_axis_is_the_papers():
    axis = lyapunov_axis()
    assert (len(axis), axis[0], axis[-1]) == (3000, pytest.approx(1e-3), pytest.approx(1e3))
    assert np.ptp(np.diff(np.log(axis))) < 1e-10


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda y: valid_time(y, y, [1.0, 1.0], definition="V4"), "definition 'V4'"),
        (lambda y: valid_time(y, y, [1.0, 1.0], threshold=0.0), "threshold: 0.0"),
        (lambda y: valid_time(y, y, [1.0, 0.0]), "std"),
        (lambda y: valid_time(y, y[:3], [1.0, 1.0]), r"forecast \(3, 2\)"),
        (lambda y: valid_time(y, y, [1.0, 1.0]).lyapunov_times(-0.1, 1.0), "exponent: -0.1 is not positive"),
        (lambda y: on_lyapunov_axis(y, 0.0, 1.0), "exponent: 0 is not positive"),
        (lambda y: on_lyapunov_axis(y, 1.0, 0.0), "dt: 0 is not positive"),
        (lambda y: mean_curve(y, [1.0]), r"curves: has shape \(10, 2\)"),
    ],
)
def test_impossible_input_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call(np.ones((10, 2)))

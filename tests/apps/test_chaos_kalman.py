import numpy as np
import pytest
import torch

from apps.chaos.forecasters.forecaster import Fitting
from apps.chaos.forecasters.kalman import Kalman, identify, kalman_filter
from core.errors import InputError

FITTING = Fitting(seeds=(0,))
OUTPUT = torch.tensor([[1.0], [-0.5]], dtype=torch.float64)


def first_order(pole, samples, noise, measured, seed, series=1):
    """States and outputs of x' = pole x + w, y = OUTPUT x + v."""
    generator = torch.Generator().manual_seed(seed)
    shocks = noise * torch.randn(series, samples, 1, generator=generator, dtype=torch.float64)
    state, states = torch.ones(series, 1, dtype=torch.float64), []
    for shock in shocks.unbind(1):
        states.append(state)
        state = pole * state + shock
    outputs = torch.stack(states, 1) @ OUTPUT.T
    return outputs + measured * torch.randn(outputs.shape, generator=generator, dtype=torch.float64)


def rotation(samples, angle=0.3, decay=0.995):
    time = torch.arange(samples, dtype=torch.float64)
    return torch.stack([decay**time * (angle * time).cos(), 2 * decay**time * (angle * time + 1).sin()], 1)[None]


def test_the_pole_and_the_forecast_of_a_first_order_decay_are_exact():
    series = first_order(0.99, 400, noise=0.0, measured=0.0, seed=1)
    fitted = Kalman().fit(series[:, :300], FITTING)
    assert fitted.notes["pole"].item() == pytest.approx(0.99, abs=1e-10)
    torch.testing.assert_close(fitted.forecast(100), series[:, 300:], rtol=1e-8, atol=1e-10)


def test_the_poles_and_the_forecast_of_a_damped_rotation_are_exact():
    series = rotation(260)
    transition, _, _ = identify(series[:, :200], states=2, rows=10)
    poles = torch.linalg.eigvals(transition)[0]
    expected = 0.995 * torch.exp(torch.tensor([0.3j, -0.3j], dtype=torch.complex128))
    torch.testing.assert_close(poles[poles.imag.argsort(descending=True)], expected, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(
        Kalman(states=2).fit(series[:, :200], FITTING).forecast(60), series[:, 200:], rtol=1e-7, atol=1e-7
    )


def test_the_impulse_response_of_a_noisy_first_order_system_is_that_of_its_steady_filter():
    pole, noise, measured = 0.9, 1.0, 0.5
    series = first_order(pole, 40_000, noise, measured, seed=2)
    # Steady Kalman gain by the scalar Riccati equation, in information form.
    information = float((OUTPUT**2).sum()) / measured**2
    spread = 1.0
    for _ in range(200):
        spread = pole**2 / (1 / spread + information) + noise**2
    gain = pole * (1 / (1 / spread + information)) * OUTPUT.T / measured**2
    transition, output, covariance = identify(series, states=1, rows=10)
    _, found = kalman_filter(transition, output, covariance, series[:, :2000])
    for lag in range(6):
        response = output[0] @ torch.linalg.matrix_power(transition[0], lag) @ found[0]
        torch.testing.assert_close(response, OUTPUT * pole**lag @ gain, rtol=0, atol=0.03)


def test_the_forecast_is_the_closed_form_from_the_filtered_state():
    series = first_order(0.95, 500, 0.3, 0.2, seed=3, series=2)
    transition, output, covariance = identify(series, states=1, rows=10)
    state, _ = kalman_filter(transition, output, covariance, series)
    steps = torch.arange(30, dtype=torch.float64)[None, :, None]
    closed = transition**steps * state[:, :, None] * output.mT
    torch.testing.assert_close(Kalman().fit(series, FITTING).forecast(30), closed)


@pytest.mark.parametrize("states", [1, 3])
def test_model_and_forecast_are_those_of_nfoursid(states):
    pandas = pytest.importorskip("pandas")
    nfoursid = pytest.importorskip("nfoursid.nfoursid", reason="the extra forecasting is not installed")
    peers = pytest.importorskip("nfoursid.kalman")
    generator = torch.Generator().manual_seed(4)
    series = torch.randn(1, 400, 3, generator=generator, dtype=torch.float64).cumsum(1)
    series = 0.1 * series + torch.randn(1, 400, 3, generator=generator, dtype=torch.float64)
    peer = nfoursid.NFourSID(pandas.DataFrame(series[0].numpy()), output_columns=[0, 1, 2], num_block_rows=10)
    peer.subspace_identification()
    model = peers.Kalman(*peer.system_identification(rank=states))
    for sample in series[0].numpy():
        model.step(sample[:, None], np.zeros((0, 1)))
    state, expected = model.x_predicteds[-1], []
    for _ in range(50):
        expected.append((model.state_space.c @ state)[:, 0])
        state = model.state_space.a @ state
    fitted = Kalman(states=states).fit(series, FITTING)
    np.testing.assert_allclose(fitted.forecast(50)[0], expected, rtol=1e-6, atol=1e-8)


def test_a_series_is_forecast_alike_in_every_group_and_a_broken_one_alone_is_lost():
    series = first_order(0.9, 200, 0.5, 0.1, seed=5, series=3)
    alone = Kalman().fit(series[2:], FITTING).forecast(20)
    series[0, 7, 1] = torch.nan
    series[1] = 0.0
    fitted = Kalman().fit(series, FITTING)
    forecast = fitted.forecast(20)
    assert forecast[0].isnan().all()
    assert torch.equal(forecast[1], torch.zeros(20, 2, dtype=torch.float64))
    torch.testing.assert_close(forecast[2:], alone)
    assert fitted.notes["pole"].isnan().tolist() == [True, False, False]


def test_too_few_samples_are_refused():
    with pytest.raises(InputError, match="kalman: 39 training samples: needs at least 40"):
        Kalman().fit(torch.randn(1, 39, 2, dtype=torch.float64), FITTING)


@pytest.mark.gpu
def test_the_forecast_on_a_gpu_is_that_on_the_cpu():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    series = first_order(0.95, 300, 0.3, 0.2, seed=6, series=4)
    forecast = Kalman().fit(series.cuda(), FITTING).forecast(50)
    assert forecast.is_cuda
    torch.testing.assert_close(forecast.cpu(), Kalman().fit(series, FITTING).forecast(50), rtol=1e-8, atol=1e-8)

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from apps.chaos.forecasters.forecaster import Fitting
from apps.chaos.forecasters.node import Node, NodeNetwork, integrate
from core.checkpoint import Checkpoint
from core.errors import InputError

SMALL = Node(segment=5, batch=16, iterations=20, hidden=8)
ROTATION = torch.tensor([[-0.02, -0.3], [0.3, -0.02]], dtype=torch.float64)


def damped_rotations(samples, series=3):
    flow = torch.linalg.matrix_exp(torch.arange(samples, dtype=torch.float64)[:, None, None] * ROTATION)
    start = torch.tensor([[2.0, 0.0], [0.6, 2.4], [-2.0, 1.0]], dtype=torch.float64)[:series]
    return torch.einsum("tij,gj->gti", flow, start)


def fitting(series, **more):
    return Fitting(seeds=tuple(range(10, 10 + series)), seed=4, **more)


def forecast(settings, train, horizon=12, **more):
    return settings.fit(train, fitting(len(train), **more)).forecast(horizon)


def test_a_damped_rotation_is_learned_and_extrapolated():
    series = damped_rotations(80)
    settings = Node(segment=6, batch=32, iterations=200, samples_per_step=1)
    error = (forecast(settings, series[:, :60], 20) - series[:, 60:]).square().mean((1, 2)).sqrt()
    held = (series[:, 59:60] - series[:, 60:]).square().mean((1, 2)).sqrt()
    assert bool((error < 0.1 * held).all()), error / held


def network(dimension=3, series=2):
    return NodeNetwork(tuple(range(series)), dimension, 30, torch.float64).requires_grad_(False)


def test_the_derivative_is_that_of_the_paper():
    found, y = network(), torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for layer in (found.first, found.inner, found.outer, found.last):
        assert float(layer.weight.std()) == pytest.approx(0.1, rel=0.2)
        assert not layer.bias.any()
        layer.bias.uniform_(-1, 1, generator=torch.Generator().manual_seed(1))

    def linear(layer, x):
        return layer.weight[1].numpy() @ x + layer.bias[1].numpy()

    def silu(x):
        return x / (1 + np.exp(-x))

    h = np.tanh(linear(found.first, y[1].numpy()))
    h = h + silu(linear(found.outer, silu(linear(found.inner, h))))
    np.testing.assert_allclose(found(y)[1], linear(found.last, h), rtol=1e-12)


def rotating(y):
    return torch.stack([-0.3 * y[:, 1] * y[:, 0].square(), 0.3 * y[:, 0] + 0.1 * y[:, 1].sin()], 1)


def reference(y, samples):
    found = solve_ivp(
        lambda t, x: rotating(torch.tensor(x)[None, :, None]).flatten().numpy(),
        (0, samples), y, method="DOP853", t_eval=range(1, samples + 1), rtol=1e-12, atol=1e-12,
    )  # fmt: skip
    return torch.tensor(found.y.T)


def test_states_between_steps_and_after_a_short_last_step_are_those_of_the_flow():
    start = torch.tensor([1.0, 0.5], dtype=torch.float64)
    exact = reference(start.numpy(), 11)
    errors = [
        float((integrate(rotating, start[None, :, None], 11, span)[:, 0, :, 0] - exact).abs().max())
        for span in (4, 2, 1)
    ]
    # The interpolant is of order 4, the method of order 5.
    assert errors[0] > 12 * errors[1] > 12**2 * errors[2]
    assert errors[2] < 1e-5


def test_the_integrator_and_its_gradients_agree_with_torchdiffeq():
    odeint = pytest.importorskip("torchdiffeq", reason="torchdiffeq is not installed").odeint
    found, y = network(), torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    weight = found.outer.weight.mul_(10).requires_grad_()
    ours = integrate(found, y, 9, 2)
    theirs = odeint(lambda t, x: found(x), y, torch.arange(10.0, dtype=torch.float64), rtol=1e-10, atol=1e-12)[1:]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    gradients = [torch.autograd.grad(x.square().sum(), weight)[0] for x in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


def test_legacy_offset_begins_with_the_last_training_sample():
    train = damped_rotations(40)
    right = forecast(SMALL, train)
    late = forecast(SMALL.model_copy(update={"legacy_offset": True}), train)
    torch.testing.assert_close(late[:, 0], train[:, -1], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(late[:, 1:], right[:, :-1], rtol=0, atol=0)


def test_a_fit_is_bitwise_repeatable_and_resumes_bit_for_bit(tmp_path, monkeypatch):
    train = damped_rotations(40)
    whole = forecast(SMALL, train)
    assert torch.equal(whole, forecast(SMALL, train))
    monkeypatch.setattr(Checkpoint, "due", property(lambda self: self.path is not None))

    def stop(share, text):
        if share >= 0.6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        forecast(SMALL, train, checkpoint=tmp_path, progress=stop)
    shares = []
    resumed = forecast(SMALL, train, checkpoint=tmp_path, progress=lambda share, text: shares.append(share))
    assert min(shares) > 0.6
    assert torch.equal(whole, resumed)


def test_a_series_is_fitted_alike_in_every_group_and_one_that_is_not_finite_spoils_no_other():
    settings, train = SMALL.model_copy(update={"dtype": "float64"}), damped_rotations(40)
    group = forecast(settings, train)
    alone = settings.fit(train[1:2], Fitting(seeds=(11,), seed=4)).forecast(12)
    torch.testing.assert_close(group[1:2], alone, rtol=1e-8, atol=1e-8)
    spoiled = train.clone()
    spoiled[0, 20] = torch.nan
    found = forecast(settings, spoiled)
    assert not bool(found[0].isfinite().all())
    torch.testing.assert_close(found[1:], group[1:], rtol=1e-8, atol=1e-8)


@pytest.mark.gpu
def test_a_gpu_gives_the_forecasts_of_the_cpu():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    settings, train = SMALL.model_copy(update={"dtype": "float64"}), damped_rotations(40)
    torch.testing.assert_close(forecast(settings, train.cuda()).cpu(), forecast(settings, train), rtol=1e-6, atol=1e-6)


def test_the_note_tells_when_a_step_of_the_integrator_is_too_long():
    train = damped_rotations(40)
    fitted = SMALL.fit(train, fitting(3))
    assert fitted.notes["stepping_error"].shape == (3,)
    with torch.no_grad():
        fitted.network.last.weight.mul_(50)
    assert bool((fitted._stepping_error(train.float().mT) > 10 * fitted.notes["stepping_error"]).all())


def test_a_series_without_ten_segments_is_refused():
    SMALL.check(15)
    with pytest.raises(InputError, match=r"node: 14 training samples: needs at least 15"):
        forecast(SMALL, damped_rotations(14))

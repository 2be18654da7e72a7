"""Tableaux against scipy, orders of convergence, known solutions, rows by themselves, failures, stiffness, refusals."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.integrate._ivp import dop853_coefficients
from scipy.integrate._ivp.rk import RK45

from core.errors import InputError
from simulators.chaos import explicit, serial
from simulators.chaos.flow import Flow
from simulators.chaos.integrate import integrate
from simulators.chaos.steppers import tableau

EXACT = torch.float64
METHODS = ("rk4", "dopri5", "tsit5", "dop853")
ADAPTIVE = METHODS[1:]


def lorenz_rhs(t, y):
    x, y, z = y.unbind(1)
    return torch.stack([10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z], 1)


LORENZ = Flow("lorenz", 3, lorenz_rhs, torch.tensor([-9.8, -15.0, 20.5], dtype=EXACT), 1.5)
OSCILLATOR = Flow(
    "oscillator",
    2,
    lambda t, y: torch.stack([y[:, 1], -y[:, 0]], 1),
    torch.tensor([1.0, 0.0], dtype=EXACT),
    2 * math.pi,
)
PENDULUM = Flow(
    "pendulum", 2, lambda t, y: torch.stack([y[:, 1], -y[:, 0].sin()], 1), torch.tensor([2.0, 0.0], dtype=EXACT), 8.0
)
DRIVEN = Flow(
    "driven", 1, lambda t, y: torch.cos(t)[:, None] + 0 * y, torch.zeros(1, dtype=EXACT), 2 * math.pi, autonomous=False
)
EXPLOSION = Flow("explosion", 1, lambda t, y: y**2, torch.ones(1, dtype=EXACT), 1.0)
STIFF = Flow(
    "stiff", 1, lambda t, y: -1e6 * (y - torch.cos(t)[:, None]), torch.zeros(1, dtype=EXACT), 6.28, autonomous=False
)


def starts(rows, seed=0):
    noise = torch.randn(rows, 3, generator=torch.Generator().manual_seed(seed), dtype=EXACT)
    return LORENZ.initial + noise


def by_scipy(start, times):
    def rhs(t, y):
        return 10 * (y[1] - y[0]), y[0] * (28 - y[2]) - y[1], y[0] * y[1] - 8 / 3 * y[2]

    found = solve_ivp(rhs, (0, times[-1]), start, method="DOP853", t_eval=times, rtol=1e-13, atol=1e-13)
    return torch.from_numpy(found.y.T.copy())


def test_dop853_is_that_of_scipy():
    found = tableau("dop853")
    np.testing.assert_array_equal(found.stages, dop853_coefficients.A)
    np.testing.assert_array_equal(found.nodes, dop853_coefficients.C)
    np.testing.assert_array_equal(found.weights, dop853_coefficients.B)
    np.testing.assert_array_equal(found.errors, [dop853_coefficients.E5, dop853_coefficients.E3])


def test_dopri5_is_that_of_scipy():
    found = tableau("dopri5")
    np.testing.assert_allclose(found.stages[:6, :5], RK45.A, rtol=1e-15)
    np.testing.assert_allclose(found.weights, RK45.B, rtol=1e-15)
    np.testing.assert_allclose(found.errors[0], RK45.E, rtol=1e-15)
    np.testing.assert_allclose(found.dense, RK45.P, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("method", METHODS)
def test_a_tableau_is_consistent_and_ends_with_the_next_first_stage(method):
    found = tableau(method)
    s = len(found.weights)
    np.testing.assert_allclose(found.stages.sum(1), found.nodes, atol=2e-15)
    np.testing.assert_array_equal(found.stages[s, :s], found.weights)
    np.testing.assert_allclose(found.dense.sum(1), np.pad(found.weights, (0, len(found.nodes) - s)), atol=1e-13)
    for power in range(found.order):
        assert found.weights @ found.nodes[:s] ** power == pytest.approx(1 / (power + 1), rel=1e-13)
    if found.errors is not None:
        np.testing.assert_allclose(found.errors.sum(1), 0, atol=1e-15)


@pytest.mark.parametrize(("method", "few"), [("rk4", 40), ("dopri5", 40), ("tsit5", 40), ("dop853", 8)])
def test_fixed_steps_converge_with_the_order_of_the_method(method, few):
    times = torch.tensor([0.0, 4.0], dtype=EXACT)
    start = torch.tensor([[2.0, 0.0]], dtype=EXACT)
    reference = integrate(PENDULUM, start, times, steps=400).states[0, -1]
    errors = [
        float((integrate(PENDULUM, start, times, method=method, steps=n).states[0, -1] - reference).norm())
        for n in (few, 2 * few)
    ]
    order = tableau(method).order
    assert order - 0.2 < math.log2(errors[0] / errors[1]) < order + 0.95


@pytest.mark.parametrize("method", ADAPTIVE)
def test_the_oscillator_turns_in_a_circle_at_uneven_times(method):
    times = torch.cat([torch.zeros(1), torch.rand(60, generator=torch.Generator().manual_seed(0)).cumsum(0)]).double()
    found = integrate(OSCILLATOR, torch.eye(2, dtype=EXACT).repeat(3, 1), times, method=method, engine="torch")
    expected = torch.stack([times.cos(), -times.sin()], 1), torch.stack([times.sin(), times.cos()], 1)
    torch.testing.assert_close(found.states, torch.stack(expected).repeat(3, 1, 1), rtol=0, atol=2e-8)
    assert found.engine == f"torch {method}"


@pytest.mark.parametrize("method", METHODS)
def test_time_reaches_the_right_hand_side(method):
    times = torch.linspace(1.0, 5.0, 9, dtype=EXACT)
    found = integrate(
        DRIVEN, torch.zeros(5, 1, dtype=EXACT), times, method=method, steps=50 if method == "rk4" else None
    )
    expected = (times.sin() - math.sin(1.0))[None, :, None].expand(5, -1, -1)
    torch.testing.assert_close(found.states, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("method", ADAPTIVE)
def test_adaptive_steps_agree_with_scipy_over_four_lyapunov_times(method):
    times = torch.arange(300, dtype=EXACT) * 0.015
    found = integrate(LORENZ, starts(70), times, method=method, rtol=1e-12, atol=1e-12)
    for row in (0, 69):
        torch.testing.assert_close(
            found.states[row], by_scipy(starts(70)[row].numpy(), times.numpy()), rtol=0, atol=1e-5
        )
    assert not found.failed.any()


def test_the_error_falls_with_the_tolerance():
    times = torch.arange(200, dtype=EXACT) * 0.015
    reference = by_scipy(LORENZ.initial.numpy(), times.numpy())
    errors = [
        float(
            (integrate(LORENZ, LORENZ.initial[None], times, rtol=tol, atol=tol, engine="torch").states[0] - reference)
            .abs()
            .max()
        )
        for tol in (1e-6, 1e-8, 1e-10)
    ]
    assert errors[0] > 10 * errors[1] > 100 * errors[2]


@pytest.mark.parametrize("steps", [None, 3])
def test_a_row_does_not_depend_on_its_batch(steps):
    times = torch.arange(100, dtype=EXACT) * 0.015
    together = integrate(LORENZ, starts(9), times, steps=steps, engine="torch").states
    for row in (0, 8):
        alone = integrate(LORENZ, starts(9)[row : row + 1], times, steps=steps, engine="torch").states[0]
        torch.testing.assert_close(together[row], alone, rtol=0, atol=1e-10)


@pytest.mark.parametrize("options", [{"engine": "torch"}, {"engine": "odeint"}, {"steps": 3}])
def test_a_row_that_is_not_finite_fails_alone(options):
    times = torch.arange(100, dtype=EXACT) * 0.015
    start = starts(5)
    healthy = integrate(LORENZ, start, times, **options).states
    start[2] = torch.nan
    found = integrate(LORENZ, start, times, **options)
    assert found.failed.tolist() == [False, False, True, False, False]
    assert bool(found.states[2].isnan().all())
    others = [0, 1, 3, 4]
    assert torch.equal(found.states[others], healthy[others])


@pytest.mark.parametrize("options", [{"engine": "torch"}, {"engine": "odeint"}, {"steps": 200}])
def test_a_row_that_explodes_is_kept_until_then(options):
    start = torch.tensor([[0.1], [2.0], [-1.0]], dtype=EXACT)
    times = torch.linspace(0, 1, 11, dtype=EXACT)
    found = integrate(EXPLOSION, start, times, **options)
    assert found.failed.tolist() == [False, True, False]
    expected = start[:, :, None] / (1 - start[:, :, None] * times[None, :, None].mT)
    before = times < 0.5 - 1e-9
    torch.testing.assert_close(found.states[:, before, 0], expected[:, 0, before], rtol=1e-6, atol=1e-8)
    assert bool(found.states[1, ~before][1:].isnan().all())
    assert bool(found.states[[0, 2]].isfinite().all())


@pytest.mark.parametrize("options", [{"engine": "torch"}, {"engine": "odeint"}])
def test_a_row_that_blows_up_below_the_resolution_of_time_ends_soon(options):
    def rhs(t, y):
        nonlocal calls
        calls += 1
        return y**3 + 1e4

    calls = 0
    flow = Flow("cubic", 1, rhs, torch.ones(1, dtype=EXACT), 1.0)
    found = integrate(flow, torch.ones(2, 1, dtype=EXACT), torch.linspace(0, 1, 1001, dtype=EXACT), **options)
    assert found.failed.all()
    # y reaches infinity at 0.0025, between the third and the fourth output time.
    assert found.states[:, :3].isfinite().all()
    assert found.states[:, 3:].isnan().all()
    torch.testing.assert_close(found.states[0, 1], found.states[1, 1])
    assert found.evaluations <= calls < 20_000


def test_rows_that_escape_in_lsoda_keep_every_sample_before():
    times = torch.linspace(0, 2, 400, dtype=EXACT)
    found = integrate(EXPLOSION, torch.ones(1, 1, dtype=EXACT), times, engine="odeint", rtol=1e-8)
    before = times < 1 - 1e-2
    expected = 1 / (1 - times[before])
    torch.testing.assert_close(found.states[0, before, 0], expected, rtol=1e-4, atol=0)
    assert bool(found.failed)
    assert found.evaluations < 10_000


def test_a_stiff_row_goes_through_lsoda_with_a_warning(monkeypatch):
    monkeypatch.setattr(explicit, "FEWEST_ATTEMPTS", 300)
    monkeypatch.setattr(explicit, "ATTEMPTS_PER_SAMPLE", 1)
    times = torch.linspace(0, 10, 41, dtype=EXACT)
    with pytest.warns(UserWarning, match="stiff: 3 of 3 trajectories are stiff; LSODA integrates them"):
        found = integrate(STIFF, torch.zeros(3, 1, dtype=EXACT), times, engine="torch", rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(found.states[:, 1:, 0], times[1:].cos().expand(3, -1), rtol=0, atol=2e-6)
    assert found.engine == "torch dop853, odeint for 3 stiff rows"
    assert not found.failed.any()


def test_a_slow_pace_is_found_before_the_attempts_run_out(monkeypatch):
    monkeypatch.setattr(explicit, "FEWEST_ATTEMPTS", 100_000)
    monkeypatch.setattr(explicit, "JUDGED_AFTER", 100)
    with pytest.warns(UserWarning, match="stiff"):
        found = integrate(STIFF, torch.ones(1, 1, dtype=EXACT), torch.tensor([0.0, 10.0]), engine="torch")
    assert found.states[0, 1, 0] == pytest.approx(math.cos(10), abs=2e-6)


def test_what_lsoda_gives_up_goes_through_radau(monkeypatch):
    monkeypatch.setattr(serial, "MOST_STEPS", 5)
    times = torch.linspace(0, 1, 3, dtype=EXACT)
    found = integrate(STIFF, torch.ones(1, 1, dtype=EXACT), times, engine="odeint", rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(found.states[0, 1:, 0], times[1:].cos(), rtol=0, atol=2e-6)
    assert not found.failed.any()


def test_small_batches_go_through_odeint_and_say_so():
    pytest.importorskip("dysts.flows", reason="the catalogue needs dysts")
    from simulators.chaos.catalogue import load

    flow, times = load("Rossler"), torch.arange(50, dtype=EXACT) * 0.06
    few, many = (integrate(flow, flow.initial.repeat(rows, 1), times) for rows in (2, 64))
    assert (few.engine, many.engine) == ("odeint", "torch dop853")
    torch.testing.assert_close(few.states[0], many.states[0], rtol=0, atol=1e-6)
    assert integrate(LORENZ, starts(5), times).engine == "torch dop853"
    assert integrate(LORENZ, starts(3), times).engine == "odeint"


def test_an_ensemble_equals_single_parameters_whatever_the_engine():
    pytest.importorskip("dysts.flows", reason="the catalogue needs dysts")
    from simulators.chaos.catalogue import load

    rho, times = torch.tensor([20.0, 24.0, 28.0], dtype=EXACT), torch.arange(60, dtype=EXACT) * 0.02
    ensemble = load("Lorenz", {"rho": rho})
    start = ensemble.initial.repeat(3, 1)
    by_torch, by_odeint = (integrate(ensemble, start, times, engine=engine).states for engine in ("torch", "odeint"))
    torch.testing.assert_close(by_torch, by_odeint, rtol=0, atol=1e-6)
    for i in range(3):
        single = integrate(load("Lorenz", {"rho": float(rho[i])}), start[:1], times, engine="odeint").states[0]
        assert torch.equal(by_odeint[i], single)


def test_the_same_call_gives_the_same_bits():
    times = torch.arange(200, dtype=EXACT) * 0.015
    first, second = (integrate(LORENZ, starts(100), times).states for _ in range(2))
    assert torch.equal(first, second)


def test_parts_of_a_large_batch_join(monkeypatch):
    times = torch.arange(30, dtype=EXACT) * 0.015
    whole = integrate(LORENZ, starts(10), times)
    monkeypatch.setitem(integrate.__globals__["ROWS_AT_ONCE"], "cpu", 4)
    torch.testing.assert_close(integrate(LORENZ, starts(10), times).states, whole.states, rtol=0, atol=1e-10)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("steps", [None, 2])
def test_a_gpu_agrees_with_the_cpu(steps):
    times = torch.arange(200, dtype=EXACT) * 0.015
    on_cpu = integrate(LORENZ, starts(100), times, steps=steps).states
    on_gpu = integrate(LORENZ, starts(100).cuda(), times, steps=steps)
    assert on_gpu.states.is_cuda
    torch.testing.assert_close(on_gpu.states.cpu(), on_cpu, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("initial", "times", "options", "message"),
    [
        ((3, 2), [0, 1], {}, r"initial has shape \(3, 2\); allowed is \(B, 3\)"),
        ((0, 3), [0, 1], {}, r"initial has shape \(0, 3\)"),
        ((1, 3), [0, 0], {}, "at least 2 finite ones that increase"),
        ((1, 3), [0], {}, "at least 2 finite ones that increase"),
        ((1, 3), [0, math.inf], {}, "at least 2 finite ones that increase"),
        ((1, 3), [0, 1], {"rtol": 0.0}, "both must be > 0"),
        ((1, 3), [0, 1], {"steps": 0}, "steps = 0"),
        ((1, 3), [0, 1], {"method": "rk4"}, "'rk4' has no error estimate"),
        ((1, 3), [0, 1], {"method": "euler"}, "method = 'euler'; allowed are rk4, dopri5, tsit5, dop853"),
        ((1, 3), [0, 1], {"engine": "jax"}, "engine = 'jax'"),
        ((1, 3), [0, 1], {"engine": "odeint", "steps": 2}, "which chooses its own"),
    ],
)
def test_what_does_not_fit_is_refused(initial, times, options, message):
    with pytest.raises(InputError, match=message):
        integrate(LORENZ, torch.ones(initial, dtype=EXACT), torch.tensor(times, dtype=EXACT), **options)

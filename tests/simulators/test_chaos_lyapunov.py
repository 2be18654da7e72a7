import math

import pytest
import torch

from core.errors import InputError
from simulators.chaos.flow import DelayFlow, Flow
from simulators.chaos.lyapunov import kaplan_yorke_dimension, lyapunov_spectrum, near_the_attractor
from simulators.chaos.tangent import orthonormalised, packed, tangent_field, unpacked

SIGMA, RHO, BETA = 10.0, 28.0, 8 / 3


def lorenz(t, y):
    x, v, z = y.unbind(-1)
    return torch.stack([SIGMA * (v - x), x * (RHO - z) - v, x * v - BETA * z], -1)


def rossler(t, y):
    x, v, z = y.unbind(-1)
    return torch.stack([-v - z, x + 0.2 * v, 0.2 + z * (x - 5.7)], -1)


def linear(matrix):
    return lambda t, y: y @ matrix.mT.to(y.dtype)


LORENZ = Flow("Lorenz63", 3, lorenz, torch.tensor([-9.8, -15.0, 20.5], dtype=torch.float64), 0.75)
ROSSLER = Flow("Rossler", 3, rossler, torch.tensor([6.5, 0.5, 0.3], dtype=torch.float64), 5.9)


@pytest.fixture(scope="module")
def of_lorenz():
    return lyapunov_spectrum(LORENZ, trajectories=100, periods=30, transient=15)


@pytest.fixture(scope="module")
def of_rossler():
    return lyapunov_spectrum(ROSSLER, trajectories=200, periods=15, transient=10)


def test_a_linear_flow_has_the_real_parts_of_its_eigenvalues():
    matrix = torch.tensor([[-0.03, 1.0, 0.0, 0.2], [0.0, -0.1, 0.4, 0.0], [0.0, 0.0, -0.5, 1.0], [0.0, 0.0, 0.0, -2.0]])
    flow = Flow("linear", 4, linear(matrix.double()), torch.ones(4, dtype=torch.float64), 1.0)
    found = lyapunov_spectrum(
        flow, periods=100, transient=300, steps_per_period=20, initial=torch.eye(4, dtype=torch.float64)[:3]
    )
    assert torch.allclose(found.values, torch.tensor([-0.03, -0.1, -0.5, -2.0]).double(), atol=1e-6)
    assert float(found.standard_errors.max()) < 1e-6


def test_a_rotation_neither_grows_nor_shrinks():
    flow = Flow("circle", 2, linear(torch.tensor([[0.0, -1.0], [1.0, 0.0]]).double()), torch.ones(2).double(), 6.28)
    found = lyapunov_spectrum(flow, trajectories=3, periods=20, transient=0)
    assert float(found.values.abs().max()) < 1e-6
    assert found.steps_per_period % 10 == 0


def test_lorenz_has_the_exponents_of_the_literature(of_lorenz):
    errors = (of_lorenz.values - torch.tensor([0.9056, 0.0, -14.5721]).double()).abs()
    assert bool((errors < 3 * of_lorenz.standard_errors + 1e-3).all())
    assert float(of_lorenz.standard_errors[0]) < 0.01
    dimension = of_lorenz.kaplan_yorke(level=0.997)
    assert dimension.low < 2.0622 < dimension.high
    assert of_lorenz.entropy().low < 0.9056 < of_lorenz.entropy(level=0.997).high


def test_rossler_has_the_exponents_of_the_literature(of_rossler):
    errors = (of_rossler.values - torch.tensor([0.0714, 0.0, -5.394]).double()).abs()
    assert bool((errors < 3 * of_rossler.standard_errors + 1e-4).all())
    assert of_rossler.kaplan_yorke().mean == pytest.approx(2.013, abs=0.002)
    interval = of_rossler.interval(level=0.997)
    assert interval.low < 0.0714 < interval.high


def test_the_exponents_of_lorenz_add_up_to_the_constant_trace_of_its_jacobian(of_lorenz):
    trace = -(SIGMA + 1 + BETA)
    assert torch.allclose(of_lorenz.each.sum(1), torch.tensor(trace).double(), atol=1e-3)
    assert torch.allclose(of_lorenz.divergence, torch.tensor(trace).double())


def test_the_exponents_of_rossler_add_up_to_its_mean_divergence(of_rossler):
    difference = of_rossler.sum_error(level=0.997)
    assert difference.low < 0 < difference.high
    assert difference.high - difference.low < 0.02


def test_scaled_and_permuted_coordinates_leave_the_spectrum(of_lorenz):
    order, scale = torch.tensor([2, 0, 1]), torch.tensor([100.0, 0.01, 3.0]).double()
    back = order.argsort()

    def changed(t, y):
        return (lorenz(t, (y / scale)[:, back]))[:, order] * scale

    flow = Flow("changed", 3, changed, LORENZ.initial[order] * scale, 0.75)
    start = near_the_attractor(LORENZ, 50, torch.Generator().manual_seed(7))[:, order] * scale
    found = lyapunov_spectrum(flow, initial=start, steps_per_period=20, periods=20)
    error = (found.standard_errors.square() + of_lorenz.standard_errors.square()).sqrt()
    assert bool(((found.values - of_lorenz.values).abs() < 3 * error).all())
    assert torch.allclose(found.divergence, of_lorenz.divergence[0])


def test_a_trajectory_that_escapes_is_left_out_and_counted():
    def bounded_or_not(t, y):
        return torch.stack([y[:, 0] * (y[:, 0] - 1), -2 * y[:, 1]], -1)

    flow = Flow("escape", 2, bounded_or_not, torch.zeros(2, dtype=torch.float64), 1.0)
    start = torch.tensor([[0.5, 1.0], [0.2, 1.0], [1.5, 1.0], [math.nan, 0.0]], dtype=torch.float64)
    found = lyapunov_spectrum(flow, initial=start, periods=10, transient=20, steps_per_period=40)
    assert (found.trajectories, found.failed) == (2, 2)
    assert torch.allclose(found.values, torch.tensor([-1.0, -2.0]).double(), atol=1e-4)


def test_a_failed_trajectory_leaves_the_others_as_they_are():
    start = near_the_attractor(LORENZ, 4, torch.Generator().manual_seed(0))
    broken = torch.cat([start, torch.full((1, 3), math.nan).double()])
    settings = {"periods": 3, "transient": 1, "steps_per_period": 30}
    assert torch.allclose(
        lyapunov_spectrum(LORENZ, initial=broken, **settings).each,
        lyapunov_spectrum(LORENZ, initial=start, **settings).each,
        atol=1e-9,
    )


def test_the_same_generator_gives_the_same_spectrum():
    settings = {"trajectories": 4, "periods": 2, "transient": 1, "steps_per_period": 20}
    first, second, other = (
        lyapunov_spectrum(LORENZ, generator=torch.Generator().manual_seed(seed), **settings).each for seed in (1, 1, 2)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_the_complex_step_and_forward_differentiation_agree():
    states = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rows = packed(states, torch.eye(3, dtype=torch.float64).expand(5, 3, 3))
    field = tangent_field(lorenz, torch.zeros(5), states)
    assert field is lorenz
    value, slopes = unpacked(field(torch.zeros(15), rows), 3)
    exact = torch.func.vmap(torch.func.jacfwd(lambda y: lorenz(0.0, y)))(states)
    assert torch.allclose(value, lorenz(0.0, states), rtol=0, atol=1e-14)
    assert torch.allclose(slopes.mT, exact, rtol=0, atol=1e-14)


@pytest.mark.parametrize("kink", [torch.abs, lambda x: torch.where(x > 0, x, -x), lambda x: torch.maximum(x, -x)])
def test_what_is_not_analytic_is_differentiated_forward(kink):
    states = torch.tensor([[0.5], [-2.0]], dtype=torch.float64)
    field = tangent_field(lambda t, y: kink(y), torch.zeros(2), states)
    value, slopes = unpacked(field(torch.zeros(2), packed(states, torch.ones(2, 1, 1))), 1)
    assert torch.equal(value, states.abs())
    assert torch.equal(slopes[:, 0], states.sign())


def test_orthonormalising_is_a_qr_factorisation():
    vectors = torch.randn(6, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    basis, logarithms = orthonormalised(vectors)
    assert torch.allclose(basis @ basis.mT, torch.eye(4, dtype=torch.float64).expand(6, 4, 4), atol=1e-12)
    assert torch.allclose(logarithms, torch.linalg.qr(vectors.mT).R.diagonal(dim1=1, dim2=2).abs().log())


def test_the_kaplan_yorke_dimension_by_hand():
    spectra = torch.tensor([[0.9056, 0.0, -14.572], [-1.0, -2.0, -3.0], [1.0, 1.0, -1.0], [0.5, -1.0, -9.0]])
    expected = torch.tensor([2 + 0.9056 / 14.572, 0.0, 3.0, 1.5])
    assert torch.allclose(kaplan_yorke_dimension(spectra), expected)
    assert torch.allclose(kaplan_yorke_dimension(spectra.flip(1)), expected)
    assert kaplan_yorke_dimension(torch.tensor([0.9, torch.nan, -14.0])).isnan()


def test_stiff_and_jumping_flows_are_refused():
    start = torch.randn(30, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    stiff = Flow("stiff", 2, linear(torch.tensor([[-1e6, 0.0], [0.0, -1.0]]).double()), torch.ones(2).double(), 1.0)
    with pytest.raises(InputError, match="stiff is too stiff"):
        lyapunov_spectrum(stiff, initial=start)

    def switched(t, y):
        return torch.stack([y[:, 1], -torch.where(y[:, 0] > 0, 1.0, -1.0)], -1)

    jumping = Flow("switched", 2, switched, torch.ones(2).double(), 5.7)
    with pytest.raises(InputError, match="switched jumps"):
        lyapunov_spectrum(jumping, initial=start, steps_per_period=100)


def test_impossible_requests_are_refused():
    delayed = DelayFlow("late", 2, lambda t, x, past: past - x, torch.ones(1), 1.0, 1.0)
    with pytest.raises(InputError, match="late"):
        lyapunov_spectrum(delayed)
    with pytest.raises(InputError, match="trajectories: 1"):
        lyapunov_spectrum(LORENZ, trajectories=1)
    with pytest.raises(InputError, match="periods: 0"):
        lyapunov_spectrum(LORENZ, periods=0)
    with pytest.raises(InputError, match="transient: -1"):
        lyapunov_spectrum(LORENZ, transient=-1)
    with pytest.raises(InputError, match="initial"):
        lyapunov_spectrum(LORENZ, initial=torch.zeros(4, 2))
    sweep = Flow("sweep", 3, lorenz, LORENZ.initial, 0.75, {"rho": torch.tensor([28.0, 30.0])})
    with pytest.raises(InputError, match="differ from row to row"):
        lyapunov_spectrum(sweep)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_finds_the_same_exponents():
    start = near_the_attractor(LORENZ, 16, torch.Generator().manual_seed(0))
    settings = {"periods": 2, "transient": 1, "steps_per_period": 40}
    here, there = (lyapunov_spectrum(LORENZ, initial=start.to(d), **settings).each for d in ("cpu", "cuda"))
    assert torch.allclose(here, there.cpu(), atol=1e-6)

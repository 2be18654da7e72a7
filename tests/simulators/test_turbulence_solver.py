"""The solver against analytic solutions, conservation laws and itself."""

import itertools
import math

import pytest
import torch

from core.errors import InputError
from simulators.turbulence.advection import advection
from simulators.turbulence.cases import Case, case
from simulators.turbulence.closures.closure import Term
from simulators.turbulence.flow import Flow, stress_curl
from simulators.turbulence.grid import Grid, resample
from simulators.turbulence.solver import FlowState, Solver

FREE = Case("free", reynolds=1e300, fkx=0, fky=0, drag=0.0)


def random_vorticity(n, batch=1, seed=0, peak=5.0, dtype=torch.float64, std=4.0):
    grid = Grid(n, dtype)
    noise = torch.randn(batch, n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
    spectrum = grid.to_spectral(noise) * torch.exp(-grid.k2 / peak**2) * grid.resolved
    spectrum[:, 0, 0] = 0
    field = grid.to_physical(spectrum)
    return std * field / field.std((-2, -1), keepdim=True)


@pytest.mark.parametrize("integrator", ["ab2cn", "rk3cn", "rk4cn"])
@pytest.mark.parametrize("dealias", ["padded", "two_thirds", "skew_none"])
def test_a_taylor_green_vortex_decays_analytically(integrator, dealias):
    nu, k, t = 0.01, 3, 1.0
    flow = Case("decay", reynolds=1 / nu, fkx=0, fky=0, drag=0.0)
    solver = Solver(flow, 32, 1e-3, integrator=integrator, dealias=dealias, dtype=torch.float64)
    x = solver.grid.x
    omega = 2 * torch.cos(k * x)[:, None] * torch.cos(k * x)[None]
    end = solver.advance(solver.start(omega[None]), 1000)
    expected = omega * math.exp(-2 * k**2 * nu * t)
    torch.testing.assert_close(solver.flow(end).vorticity[0], expected, rtol=0, atol=1e-6)


def drift(integrator, dt, quantity):
    solver = Solver(FREE, 32, dt, integrator=integrator, dtype=torch.float64)
    state = solver.start(random_vorticity(32, std=1.0))
    before = getattr(solver.flow(state), quantity)
    after = getattr(solver.flow(solver.advance(state, round(1 / dt))), quantity)
    return float((after / before - 1).abs())


@pytest.mark.parametrize("quantity", ["energy", "enstrophy"])
def test_inviscid_flow_conserves_energy_and_enstrophy(quantity):
    coarse, fine = drift("ab2cn", 4e-3, quantity), drift("ab2cn", 2e-3, quantity)
    assert fine < 1e-4
    assert coarse / fine > 3.5  # at least second order in dt
    assert drift("rk4cn", 4e-3, quantity) < 1e-8


@pytest.mark.parametrize(("kx", "ky"), [(1, 0), (2, 3), (0, 2), (-3, 1)])
@pytest.mark.parametrize("scheme", ["crank_nicolson", "euler"])
def test_a_rossby_wave_drifts_westward_at_its_phase_speed(kx, ky, scheme):
    beta, dt, steps = 20.0, 1e-4, 2000
    flow = Case("wave", reynolds=1e300, fkx=0, fky=0, beta=beta, drag=0.0)
    solver = Solver(flow, 16, dt, beta_scheme=scheme, dtype=torch.float64)
    x = solver.grid.x

    def wave(t):
        speed = -beta / (kx**2 + ky**2)
        return torch.cos(kx * (x[:, None] - speed * t) + ky * x[None])

    end = solver.flow(solver.advance(solver.start(wave(0.0)[None]), steps)).vorticity[0]
    growth = math.exp(beta**2 * kx**2 / (2 * (kx**2 + ky**2) ** 2) * dt * dt * steps) if scheme == "euler" else 1.0
    torch.testing.assert_close(end, growth * wave(dt * steps), rtol=0, atol=2e-5)


@pytest.mark.parametrize("integrator", ["ab2cn", "rk3cn", "rk4cn"])
def test_order_of_convergence(integrator):
    """At least second, which is what Crank-Nicolson gives the linear terms."""
    flow = case("kolmogorov4", reynolds=50, drag=0.5, beta=3.0)
    ends = []
    for steps in (50, 100, 200):
        solver = Solver(flow, 32, 0.5 / steps, integrator=integrator, dtype=torch.float64)
        ends.append(solver.advance(solver.start(random_vorticity(32)), steps).vorticity_hat)
    ratio = float((ends[0] - ends[1]).abs().pow(2).sum().sqrt() / (ends[1] - ends[2]).abs().pow(2).sum().sqrt())
    assert math.log2(ratio) > 1.8


def test_runge_kutta_is_of_third_and_fourth_order_in_the_advection():
    for integrator, order in (("rk3cn", 3), ("rk4cn", 4)):
        ends = []
        for steps in (20, 40, 80):
            solver = Solver(FREE, 32, 0.4 / steps, integrator=integrator, dtype=torch.float64)
            ends.append(solver.advance(solver.start(random_vorticity(32, std=2.0)), steps).vorticity_hat)
        ratio = float((ends[0] - ends[1]).abs().max() / (ends[1] - ends[2]).abs().max())
        assert math.log2(ratio) == pytest.approx(order, abs=0.4)


@pytest.mark.parametrize(("fkx", "fky"), [(4, 0), (0, 2)])
def test_the_forced_flow_tends_to_its_laminar_balance(fkx, fky):
    """At low Re: 0 = -(nu k^2 + alpha) omega - f."""
    flow = case("kolmogorov4", reynolds=1.0, fkx=fkx, fky=fky)
    solver = Solver(flow, 16, 1e-2, dtype=torch.float64)
    end = solver.flow(solver.advance(solver.start(torch.zeros(1, 16, 16, dtype=torch.float64)), 3000)).vorticity[0]
    x = solver.grid.x
    part_x, part_y = (-k * torch.cos(k * x) / (k**2 + 0.1) for k in (fkx, fky))
    torch.testing.assert_close(end, part_x[:, None] + part_y[None], rtol=0, atol=1e-9)


def test_two_products_equal_the_advective_form_without_aliases():
    n, fine = 32, 64
    grid = Grid(n)
    for dealias in ("padded", "two_thirds"):
        apply, mask = advection(grid, dealias)
        omega = grid.to_spectral(random_vorticity(n, batch=2, peak=12.0)) * mask
        exact = resample(Grid(fine).to_spectral(Flow(Grid(fine), resample(omega, fine)).advection), n)
        torch.testing.assert_close(apply(omega), exact * mask, rtol=0, atol=1e-9)


def test_resampling_keeps_the_field():
    grid, fine = Grid(16), Grid(40)
    field = random_vorticity(16, peak=3.0)
    up = resample(grid.to_spectral(field), 40)
    torch.testing.assert_close(resample(up, 16), grid.to_spectral(field) * grid.resolved)
    x = fine.x
    wave = torch.cos(3 * x)[:, None] * torch.sin(2 * x)[None]
    coarse = resample(fine.to_spectral(wave), 16)
    expected = torch.cos(3 * grid.x)[:, None] * torch.sin(2 * grid.x)[None]
    torch.testing.assert_close(grid.to_physical(coarse), expected)


def test_fields_of_a_flow_agree_with_calculus():
    grid = Grid(16)
    x, y = grid.x[:, None], grid.x[None]
    psi = torch.sin(2 * x) * torch.cos(y)
    flow = Flow(grid, grid.to_spectral(5 * psi))
    u, v = -torch.sin(2 * x) * torch.sin(y), -2 * torch.cos(2 * x) * torch.cos(y)
    for found, expected in zip(flow.velocity, (u, v), strict=True):
        torch.testing.assert_close(found, expected)
    torch.testing.assert_close(flow.psi, psi)
    torch.testing.assert_close(flow.energy, (u**2 + v**2).mean() / 2)
    torch.testing.assert_close(flow.enstrophy, ((5 * psi) ** 2).mean() / 2)
    u_x, u_y, v_x, v_y = flow.velocity_gradient
    torch.testing.assert_close(v_x - u_y, flow.vorticity)
    torch.testing.assert_close(u_x, -2 * torch.cos(2 * x) * torch.sin(y))
    s11, s12 = flow.strain
    torch.testing.assert_close(s11, u_x)
    torch.testing.assert_close(s12, (u_y + v_x) / 2)
    torch.testing.assert_close(flow.strain_norm, torch.sqrt(2 * (2 * s11**2 + 2 * s12**2)))
    torch.testing.assert_close(flow.laplacian, -25 * psi)
    torch.testing.assert_close(v_y, -u_x)


def test_a_constant_eddy_viscosity_is_a_viscosity():
    grid, nu = Grid(32), 0.03
    flow = Flow(grid, grid.to_spectral(random_vorticity(32)))
    s11, s12 = flow.strain
    expected = nu * grid.k2 * flow.vorticity_hat
    torch.testing.assert_close(stress_curl(grid, -2 * nu * s11, -2 * nu * s12), expected)
    torch.testing.assert_close(stress_curl(grid, -2 * nu * s11, -2 * nu * s12, 2 * nu * s11), expected)


@pytest.mark.parametrize("integrator", ["ab2cn", "rk3cn", "rk4cn"])
def test_the_implicit_viscosity_equals_a_smaller_reynolds_number(integrator):
    omega = random_vorticity(32)
    nu = 1e-3
    less = Solver(case("kolmogorov4"), 32, 5e-3, integrator=integrator, dtype=torch.float64)
    more = Solver(case("kolmogorov4", reynolds=1 / (nu + 5e-5)), 32, 5e-3, integrator=integrator, dtype=torch.float64)
    state = less.start(omega)
    for _ in range(20):
        state = less.step(state, Term(viscosity=torch.full((1, 1, 1), nu, dtype=torch.float64)))
    torch.testing.assert_close(state.vorticity_hat, more.advance(more.start(omega), 20).vorticity_hat)


@pytest.mark.parametrize("dealias", ["padded", "two_thirds", "skew_none"])
def test_a_copy_in_a_batch_is_the_copy_alone_also_beside_one_that_blows_up(dealias):
    omega = random_vorticity(32, batch=3, dtype=torch.float32)
    omega[1] *= 1e6
    solver = Solver(case("case2"), 32, 5e-3, dealias=dealias)
    together = solver.advance(solver.start(omega), 100)
    assert not bool(torch.isfinite(together.vorticity_hat[1]).all())
    for b in (0, 2):
        alone = solver.advance(solver.start(omega[b : b + 1]), 100)
        found, expected = solver.flow(together).vorticity[b], solver.flow(alone).vorticity[0]
        assert float((found - expected).abs().max() / expected.abs().max()) < 2e-6


def test_the_solution_shifts_with_its_start():
    """By whole periods of the forcing along x, and by anything along y."""
    solver = Solver(case("kolmogorov4"), 32, 5e-3, dtype=torch.float64)
    omega = random_vorticity(32)
    moved = solver.advance(solver.start(omega.roll((8, 5), (1, 2))), 50)
    still = solver.advance(solver.start(omega), 50)
    torch.testing.assert_close(solver.flow(moved).vorticity, solver.flow(still).vorticity.roll((8, 5), (1, 2)))


def test_gradients_pass_through_the_steps():
    solver = Solver(case("kolmogorov4"), 16, 5e-3, dtype=torch.float64)
    state = solver.start(random_vorticity(16, peak=2.0))
    nu = torch.tensor(0.01, dtype=torch.float64, requires_grad=True)

    def enstrophy(value):
        s = state
        for _ in range(20):
            s = solver.step(s, Term(viscosity=value.reshape(1, 1, 1)))
        return solver.flow(s).enstrophy.sum()

    (slope,) = torch.autograd.grad(enstrophy(nu), nu)
    with torch.no_grad():
        numeric = (enstrophy(nu + 1e-6) - enstrophy(nu - 1e-6)) / 2e-6
    assert float(slope) == pytest.approx(float(numeric), rel=1e-6)


def test_the_step_goes_on_bit_for_bit_from_its_state():
    solver = Solver(case("kolmogorov4"), 32, 5e-3)
    middle = solver.advance(solver.start(random_vorticity(32, dtype=torch.float32)), 7)
    copy = FlowState(middle.vorticity_hat.clone(), middle.advection.clone())
    assert torch.equal(solver.advance(middle, 9).vorticity_hat, solver.advance(copy, 9).vorticity_hat)


def test_cfl_is_measured_warned_of_and_refused():
    solver = Solver(case("kolmogorov4"), 32, 5e-3, dtype=torch.float64)
    x = solver.grid.x
    uniform = solver.start((torch.cos(x)[:, None] + 0 * x)[None])
    assert solver.check_cfl(uniform) == pytest.approx(5e-3 * 16)  # v = sin x
    fast = solver.start(15 * (torch.cos(x)[:, None] + 0 * x)[None])
    with pytest.warns(UserWarning, match=r"CFL number 1\.20"):
        solver.check_cfl(fast)
    with pytest.raises(InputError, match=r"CFL number 4\.00"):
        solver.check_cfl(solver.start(50 * (torch.cos(x)[:, None] + 0 * x)[None]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": 31}, "n = 31"),
        ({"n": 6}, "n = 6"),
        ({"dt": 0.0}, "dt = 0.0"),
        ({"dt": math.nan}, "dt = nan"),
        ({"integrator": "rk9"}, "integrator = 'rk9'"),
        ({"dealias": "none"}, "dealias = 'none'"),
        ({"drag": "explicit"}, "drag = 'explicit'"),
        ({"closure_every": 0}, "closure_every = 0"),
        ({"case": case("case4")}, "fkx = 25"),
        ({"case": case("case4"), "n": 64, "dealias": "two_thirds"}, "fkx = 25"),
    ],
)
def test_refusals(change, message):
    arguments = {"case": case("kolmogorov4"), "n": 32, "dt": 1e-3} | change
    with pytest.raises(InputError, match=message):
        Solver(**arguments)


def test_impossible_cases_and_starts_are_refused():
    for change in ({"reynolds": 0}, {"drag": -1}, {"beta": math.inf}, {"fkx": 1.5}, {"fky": -1}):
        with pytest.raises(InputError, match=next(iter(change))):
            case("case1", **change)
    with pytest.raises(InputError, match="case1, case2, case4, kolmogorov4"):
        case("case3")
    solver = Solver(case("case1"), 32, 1e-3)
    for field in (torch.zeros(32, 32), torch.zeros(1, 16, 16), torch.full((1, 32, 32), math.nan)):
        with pytest.raises(InputError, match="vorticity"):
            solver.start(field)
    with pytest.warns(UserWarning, match="float32"):
        Solver(case("case1"), 514, 1e-4)


def test_forcing_needs_the_band_that_the_grid_keeps():
    assert {n: Solver(case("case4"), n, 1e-3).grid.n for n in (64, 128)} == {64: 64, 128: 128}
    for n, dealias in itertools.product((32, 48), ("padded", "skew_none")):
        with pytest.raises(InputError, match="forcing up to"):
            Solver(case("case4"), n, 1e-3, dealias=dealias)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_gpu_agrees_with_the_cpu():
    omega = random_vorticity(32, batch=4, dtype=torch.float64)
    ends = [
        solver.flow(solver.advance(solver.start(omega.to(device)), 100)).vorticity.cpu()
        for device in ("cpu", "cuda")
        for solver in [Solver(case("case2"), 32, 5e-3, dtype=torch.float64, device=device)]
    ]
    torch.testing.assert_close(*ends, rtol=0, atol=1e-5)

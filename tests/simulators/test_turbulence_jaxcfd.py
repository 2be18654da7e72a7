"""jax-cfd as an independent reference: it and the solver must agree on the same flow with the same modes."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from core.errors import InputError
from simulators.turbulence import jaxcfd_backend
from simulators.turbulence.cases import Case, case
from simulators.turbulence.grid import Grid
from simulators.turbulence.solver import Solver

jax = pytest.importorskip("jax", reason="jax is not installed")
pytest.importorskip("jax_cfd", reason="jax-cfd is not installed")


def start(n, batch=1, seed=0, peak=5.0, dtype=torch.float64, std=4.0):
    """Spectrum of a random vorticity of standard deviation ``std``."""
    grid = Grid(n, dtype)
    noise = torch.randn(batch, n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
    spectrum = grid.to_spectral(noise) * torch.exp(-grid.k2 / peak**2) * grid.resolved
    spectrum[:, 0, 0] = 0
    return spectrum * std / grid.to_physical(spectrum).std((-2, -1), keepdim=True)


def distance(a, b):
    return float((a - b).norm() / b.norm())


def agreement(flow, integrator, dt, n=64, stepper="crank_nicolson_rk4"):
    """Relative distance of the solver from jax-cfd after t = 1, with jax-cfd's mask in both."""
    mask, steps = jaxcfd_backend.two_thirds_mask(n), round(1 / dt)
    solver = Solver(flow, n, dt, integrator=integrator, dealias=mask, dtype=torch.float64)
    omega = start(n) * solver.modes
    ours = solver.advance(solver.start_spectral(omega), steps).vorticity_hat
    return distance(ours, jaxcfd_backend.advance(omega, flow, dt, steps, stepper=stepper))


def test_with_the_same_scheme_it_agrees_to_round_off():
    for name in ("case1", "kolmogorov4"):
        assert agreement(case(name, reynolds=50), "rk4cn", 4e-3) < 1e-12
        assert agreement(case(name, reynolds=50), "rk3cn", 4e-3, stepper="crank_nicolson_rk3") < 1e-12


def test_adams_bashforth_approaches_it_at_second_order():
    # Measured 1.09e-3 and 2.73e-4 after t = 1.
    coarse, fine = (agreement(case("case1", reynolds=50), "ab2cn", dt) for dt in (4e-3, 2e-3))
    assert fine < 9e-4
    assert coarse / fine == pytest.approx(4, rel=0.1)


def test_beta_agrees_though_it_is_explicit_here_and_implicit_there():
    # Measured 3.4e-4 and 8.5e-5: the solver's Crank-Nicolson is of second order in beta dt.
    coarse, fine = (agreement(case("case2", reynolds=50), "rk4cn", dt) for dt in (4e-3, 2e-3))
    assert fine < 2.6e-4
    assert coarse / fine == pytest.approx(4, rel=0.1)


@pytest.mark.parametrize("stepper", ["crank_nicolson_rk2", "crank_nicolson_rk3", "crank_nicolson_rk4", "imex_rk_sil3"])
def test_every_scheme_drifts_a_rossby_wave_and_damps_it(stepper):
    beta, drag, nu, kx, ky, dt, steps = 20.0, 0.3, 0.02, 2, 3, 1e-3, 500
    flow = Case("wave", reynolds=1 / nu, fkx=0, fky=0, beta=beta, drag=drag)
    grid = Grid(16)

    def wave(t):
        k2 = kx**2 + ky**2
        phase = kx * (grid.x[:, None] + beta / k2 * t) + ky * grid.x[None]
        return grid.to_spectral(math.exp(-(nu * k2 + drag) * t) * torch.cos(phase)[None])

    end = jaxcfd_backend.advance(wave(0.0), flow, dt, steps, stepper=stepper)
    assert distance(end, wave(dt * steps)) < 1e-5


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_copies_of_a_batch_in_either_precision_leave_the_start_and_jax_as_they_were(dtype, tolerance):
    flow, omega = case("kolmogorov4"), start(32, batch=3, dtype=dtype)
    before = omega.clone()
    together = jaxcfd_backend.advance(omega, flow, 5e-3, 20)
    assert together.dtype == omega.dtype
    assert torch.equal(omega, before)
    assert not jax.config.jax_enable_x64
    for b in range(3):
        assert distance(together[b : b + 1], jaxcfd_backend.advance(omega[b : b + 1], flow, 5e-3, 20)) < tolerance
    twice = jaxcfd_backend.advance(jaxcfd_backend.advance(omega, flow, 5e-3, 12), flow, 5e-3, 8)
    assert distance(twice, together) < tolerance
    still = jaxcfd_backend.advance(omega, flow, 5e-3, 0, mask=None)
    assert torch.equal(still, before)
    still.zero_()
    assert torch.equal(omega, before)


def test_without_a_mask_it_is_the_advective_form_with_aliases():
    grid = Grid(16)
    omega, flow = start(16, peak=6.0), Case("free", reynolds=1e300, fkx=0, fky=0, drag=0.0)
    dt = 1e-6
    change = (jaxcfd_backend.advance(omega, flow, dt, 1, mask=None) - omega) / dt
    u, v = (grid.to_physical(part) for part in (grid.dy * grid.inverse_k2 * omega, -grid.dx * grid.inverse_k2 * omega))
    w_x, w_y = grid.to_physical(grid.dx * omega), grid.to_physical(grid.dy * omega)
    assert distance(change, -grid.to_spectral(u * w_x + v * w_y) * grid.resolved) < 1e-4


def test_the_mask_is_that_of_the_package_and_not_symmetric():
    mask = jaxcfd_backend.two_thirds_mask(64)
    assert mask.shape == (64, 33)
    assert sorted(np.flatnonzero(mask[:, 0])) == [*range(21), *range(43, 64)]
    assert np.flatnonzero(mask[0]).tolist() == list(range(22))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vorticity_hat": torch.zeros(1, 16, 16)}, r"vorticity_hat: torch.float32 of shape \(1, 16, 16\)"),
        ({"vorticity_hat": torch.zeros(1, 15, 8, dtype=torch.complex64)}, "n = 15"),
        ({"vorticity_hat": start(16).to("meta")}, "device = meta: the installed jax has only"),
        ({"dt": 0.0}, "dt = 0.0"),
        ({"steps": -1}, "steps = -1"),
        ({"stepper": "rk9"}, "stepper = 'rk9': must be one of crank_nicolson_rk2"),
        ({"mask": "3/2"}, "mask = '3/2'"),
        ({"mask": torch.ones(16, 16)}, r"mask of shape \(16, 16\): must be \(16, 9\)"),
        ({"case": case("case4")}, "forcing at k = 25: a grid of 16 points represents it up to 7"),
    ],
)
def test_refusals(change, message):
    arguments = {"vorticity_hat": start(16), "case": case("case1"), "dt": 1e-3, "steps": 1} | change
    with pytest.raises(InputError, match=message):
        jaxcfd_backend.advance(**arguments)


def test_nothing_is_imported_before_it_is_used_and_never_the_parts_that_need_more():
    code = (
        "import sys, torch\n"
        "from simulators.turbulence import jaxcfd_backend, cases\n"
        "assert 'jax' not in sys.modules\n"
        "omega = torch.zeros(1, 16, 9, dtype=torch.complex64)\n"
        "jaxcfd_backend.advance(omega, cases.case('case1'), 1e-3, 1)\n"
        "print(*{'jax_cfd.data', 'jax_cfd.ml'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""

"""The agents that set a closure: interpolation, states, rewards, the world, and the environments made of it."""

import doctest
import itertools
import math
import subprocess
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from scipy.interpolate import RectBivariateSpline

import simulators.turbulence
from core.errors import InputError
from core.rl import PPO
from core.simulation import GymEnv, SB3VecEnv, rollout, tree
from core.simulation.episodes import Episodes
from simulators.turbulence import case
from simulators.turbulence.agents import BOUND, ClosureAgents, PolicyClosure, interpolation_matrix
from simulators.turbulence.agents.rewards import OFFSET, REWARD_KINDS, spectral_reward
from simulators.turbulence.agents.states import STATE_KINDS, names, observed
from simulators.turbulence.agents.world import FAILURE_REWARD, SEEN
from simulators.turbulence.closures import FunctionClosure, Leith, Smagorinsky, eddy_viscosity_term
from simulators.turbulence.diagnostics import energy_spectrum, enstrophy_spectrum, reference_spectrum, z1
from simulators.turbulence.flow import Flow
from simulators.turbulence.grid import Grid, resample
from simulators.turbulence.snapshots import initial_fields
from simulators.turbulence.solver import Solver

EXACT = torch.float64
INTERPOLATIONS = ("bilinear", "biquadratic", "fourier")
STARTS = torch.from_numpy(initial_fields(range(11, 16), 32))
RESOLVED = torch.from_numpy(initial_fields(range(1, 11), 128))
REFERENCE, ENERGY = (reference_spectrum(RESOLVED, 32, kind=kind) for kind in ("enstrophy", "energy"))


def world(*, flow=None, n=32, dt=5e-3, dtype=EXACT, solver=None, **options):
    made = Solver(flow or case("kolmogorov4"), n, dt, dtype=dtype, **(solver or {}))
    given = {"reference": REFERENCE[..., : n // 2], "starts": torch.from_numpy(initial_fields(range(11, 16), n))}
    return ClosureAgents(made, **(given | options))


def random_values(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=EXACT)


def actions(copies, agents=16, seed=0, scale=0.02):
    return scale * random_values(copies, agents, 1, seed=seed)


def constant(copies, value, agents=16):
    return torch.full((copies, agents, 1), value, dtype=EXACT)


def assert_close(a, b, tolerance):
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


# ---- interpolation


@pytest.mark.parametrize("kind", INTERPOLATIONS)
@pytest.mark.parametrize(("n", "agents"), [(8, 1), (32, 1), (32, 2), (32, 4), (64, 8), (32, 32), (30, 3), (30, 5)])
def test_the_field_of_the_agents(kind, n, agents):
    """It keeps constants and the agents' values, is periodic, and moves with the agents."""
    matrix = interpolation_matrix(n, agents, kind)
    c = random_values(agents, agents)
    stride = n // agents

    def field(values):
        return matrix @ values @ matrix.T

    assert matrix.shape == (n, agents)
    assert_close(field(torch.full_like(c, 0.3)), torch.full((n, n), 0.3, dtype=EXACT), 1e-15)
    assert_close(field(c)[::stride, ::stride], c, 1e-13)
    for shift in itertools.product(range(agents), repeat=2):
        moved = field(c.roll(shift, (0, 1)))
        assert_close(moved, field(c).roll([stride * s for s in shift], (0, 1)), 1e-13)
    assert_close(field(c.T), field(c).T, 1e-13)


@pytest.mark.parametrize("agents", [2, 4, 8])
def test_bilinear_is_linear_between_agents(agents):
    matrix = interpolation_matrix(32, agents, "bilinear")
    c = random_values(agents, agents)
    stride = 32 // agents
    padded = torch.nn.functional.pad(c[None, None], (0, 1, 0, 1), mode="circular")[0, 0]
    t = torch.arange(stride, dtype=EXACT) / stride
    rows = (padded[:-1, None] * (1 - t[:, None]) + padded[1:, None] * t[:, None]).reshape(32, agents + 1)
    field = (rows[:, :-1, None] * (1 - t) + rows[:, 1:, None] * t).reshape(32, 32)
    assert_close(matrix @ c @ matrix.T, field, 1e-14)


@pytest.mark.parametrize("agents", [2, 4, 8, 3])
def test_biquadratic_is_the_spline_of_scipy(agents):
    """On values wrapped around so often that the ends, where the library's spline is another, are not felt."""
    n, copies = 24, 41 // agents | 1
    c = random_values(agents, agents).numpy()
    x = np.arange(copies * agents) / agents
    spline = RectBivariateSpline(x, x, np.tile(c, (copies, copies)), kx=2, ky=2)
    inside = copies // 2 + np.arange(n) / n
    matrix = interpolation_matrix(n, agents, "biquadratic").numpy()
    np.testing.assert_allclose(matrix @ c @ matrix.T, spline(inside, inside), atol=1e-11)


def test_fourier_is_exact_for_what_the_agents_resolve():
    x = 2 * math.pi * torch.arange(32, dtype=EXACT) / 32
    wave = torch.cos(3 * x)[:, None] * torch.sin(2 * x + 0.4) + 0.2
    matrix = interpolation_matrix(32, 8, "fourier")
    assert_close(matrix @ wave[::4, ::4] @ matrix.T, wave, 1e-14)


# ---- states


def flow_of(omega):
    grid = Grid(omega.shape[-1], omega.dtype)
    return Flow(grid, grid.to_spectral(omega))


def quarter_turn(field):
    """The field turned about the origin: what was at (x, y) is at (-y, x)."""
    back = (-torch.arange(field.shape[-1])) % field.shape[-1]
    return field.transpose(-1, -2)[..., back, :]


@pytest.mark.parametrize(("n", "agents"), [(32, 2), (32, 4), (24, 3)])
@pytest.mark.parametrize("kind", STATE_KINDS)
def test_states_move_with_the_flow(kind, n, agents):
    omega = torch.from_numpy(initial_fields([11, 12], n))
    stride = n // agents
    for compat, stacked, shift in itertools.product((False, True), (False, True), [(1, 0), (0, 1), (1, 1)]):
        options = {"kind": kind, "agents": agents, "compat": compat, "stacked": stacked}
        before = observed(flow_of(omega), **options).unflatten(1, (agents, agents))
        after = observed(flow_of(omega.roll([s * stride for s in shift], (1, 2))), **options)
        assert_close(after.unflatten(1, (agents, agents)), before.roll(shift, (1, 2)), 1e-9)


def turned(kind, *, stacked=False):
    """States (B, n_a, n_a, S) of the turned flow, and of the flow at the places that the agents come from."""
    before, after = (
        observed(flow_of(omega), kind, 4, stacked=stacked).unflatten(1, (4, 4))
        for omega in (STARTS, quarter_turn(STARTS))
    )
    return after, quarter_turn(before.movedim(-1, 1)).movedim(1, -1)


@pytest.mark.parametrize("kind", ["invariant", "invariants", "enstrophy", "energy", "psiomega"])
def test_invariant_states_turn_with_the_flow(kind):
    assert_close(*turned(kind), 1e-9)


@pytest.mark.parametrize("kind", ["invariantlocalandglobalgradgrad", "invariantlocal"])
def test_second_derivatives_of_the_velocity_are_not_invariant(kind):
    after, before = turned(kind)
    local = names(kind, 32).index("tr H_y")
    assert_close(after[..., :local], before[..., :local], 1e-9)
    spectrum = slice(local + 3, None)
    assert_close(after[..., spectrum], before[..., spectrum], 1e-9)
    for slot in range(local, local + 3):
        assert float((after - before)[..., slot].abs().max()) > 0.1 * float(before[..., slot].std())


def test_a_turn_swaps_the_spectra_along_x_and_y():
    after, before = turned("invariant", stacked=True)
    local, half = len(names("invariants", 32)), 16
    swapped = torch.cat((before[..., :local], before[..., local + half :], before[..., local : local + half]), -1)
    assert_close(after, swapped, 1e-9)
    assert float((after - before).abs().max()) > 0.1


def analytic(n=16):
    """omega = sin(x + 0.3) cos(2y + 0.5) and all that the states are made of, by hand: psi = omega/5."""
    x = 2 * math.pi * torch.arange(n, dtype=EXACT) / n
    along_x, along_y = (x + 0.3)[:, None], 2 * x + 0.5
    sx, cx, s2, c2 = along_x.sin(), along_x.cos(), along_y.sin(), along_y.cos()
    omega = sx * c2
    u_x, u_y, v_x = -0.4 * cx * s2, -0.8 * sx * c2, 0.2 * sx * c2  # u = psi_y = -2/5 sx s2, v = -psi_x = -1/5 cx c2
    return {
        "omega": omega,
        "psi": omega / 5,
        "tr S^2": 2 * (u_x**2 + (0.5 * (u_y + v_x)) ** 2),
        "tr W^2": -0.5 * omega**2,
        "grad": (cx * c2) ** 2 + (2 * sx * s2) ** 2,
        "hessian": (-sx * c2, -2 * cx * s2, -4 * sx * c2),  # xx, xy, yy
        "u": (0.4 * sx * s2, -0.8 * cx * c2, 1.6 * sx * s2),
        "v": (0.2 * cx * c2, -0.4 * sx * s2, 0.8 * cx * c2),
    }


def of_matrix(a, b, c, d):
    """Tr S, tr S^2 and tr W^2 of [[a, b], [c, d]] with symmetric part S and antisymmetric part W."""
    matrix = torch.stack((torch.stack((a, b), -1), torch.stack((c, d), -1)), -2)
    s, w = (0.5 * (matrix + sign * matrix.mT) for sign in (1, -1))
    return [torch.einsum("...ii->...", m) for m in (s, s @ s, w @ w)]


@pytest.mark.parametrize("agents", [2, 4])
@pytest.mark.parametrize("kind", STATE_KINDS)
def test_the_states_of_an_analytic_flow(kind, agents):
    by_hand = analytic()
    stride = 16 // agents
    if kind.startswith("invariantlocal"):
        (u_xx, u_xy, u_yy), (v_xx, v_xy, v_yy) = by_hand["u"], by_hand["v"]
        second = of_matrix(u_xx, v_xx, u_yy, v_yy) if "gradgrad" in kind else of_matrix(u_xx, u_xy, v_xy, v_yy)
        expected = [by_hand["tr S^2"], by_hand["tr W^2"], *second]
    elif kind in ("invariant", "invariants"):
        w_xx, w_xy, w_yy = by_hand["hessian"]
        square = w_xx**2 + 2 * w_xy**2 + w_yy**2
        squares = (by_hand["tr S^2"], by_hand["tr W^2"], by_hand["grad"], square, w_xx * w_yy - w_xy**2)
        expected = [x.sign() * x.abs().sqrt() for x in squares]
    elif kind == "psiomega":
        expected = [by_hand["psi"], by_hand["omega"]]
    else:
        expected = []
    flow = flow_of(by_hand["omega"][None])
    seen = observed(flow, kind, agents)[0]
    if kind == "psiomegablock":
        for i, j in itertools.product(range(agents), repeat=2):
            block = [by_hand[f][i * stride :, j * stride :][:stride, :stride] for f in ("psi", "omega")]
            assert_close(seen[i * agents + j], torch.stack(block, -1).flatten(), 1e-12)
        return
    local = len(expected)
    if expected:
        at_agents = torch.stack(expected, -1)[::stride, ::stride].flatten(0, 1)
        assert_close(seen[:, :local], at_agents, 1e-7)  # a square root of round-off is 1e-8
    if kind in ("psiomega", "invariants", "invariantlocal"):
        assert seen.shape[1] == local
    else:
        spectrum = (energy_spectrum if kind == "energy" else enstrophy_spectrum)(flow.vorticity_hat)[0]
        resolved = spectrum > 1e-20
        assert resolved.any()
        assert_close(seen[:, local:][:, resolved], spectrum.log()[resolved].expand(agents**2, -1), 1e-12)
        # Z_x(1) = Z_y(2) = <omega^2>/4 = 1/16, twice each and halved by the mean of the axes.
        if kind != "energy":
            assert_close(seen[:, local + 1].exp(), torch.full((agents**2,), 1 / 32, dtype=EXACT), 1e-14)


@pytest.mark.parametrize("kind", STATE_KINDS)
def test_every_number_of_a_state_has_a_name(kind):
    for n, agents, stacked, compat in itertools.product((16, 32), (2, 4), (False, True), (False, True)):
        omega = torch.from_numpy(initial_fields([1], n))
        seen = observed(flow_of(omega), kind, agents, stacked=stacked, compat=compat)
        found = names(kind, n, stacked=stacked, compat=compat, agents=agents)
        assert seen.shape == (1, agents**2, len(found))
        assert len(set(found)) == len(found)
        if "tr S" in found:
            assert compat
            assert not seen[..., found.index("tr S")].any()


def test_a_state_without_motion_is_finite():
    for kind in STATE_KINDS:
        assert torch.isfinite(observed(flow_of(torch.zeros(1, 16, 16)), kind, 4)).all()


# ---- rewards


def spectra(stacked, dtype=EXACT, copies=3):
    shape = (2, 16) if stacked else (16,)
    reference = torch.exp(random_values(*shape, seed=1)).to(dtype)
    return (reference * torch.exp(0.3 * random_values(copies, *shape, seed=2)).to(dtype)), reference


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("kind", REWARD_KINDS)
def test_rewards_are_their_formulas(kind, stacked):
    spectrum, reference = spectra(stacked)
    z, z_ref, k = spectrum.numpy(), reference.numpy(), np.arange(16)
    steep = sum((k[i] * (z - z_ref)[..., i]) ** 2 for i in k).reshape(3, -1).sum(1)
    expected = {
        "1": 1 / steep,
        "c": -((z - z_ref) ** 2).reshape(3, -1).sum(1),
        "e": -np.linalg.norm(np.exp((np.log(z) - np.log(z_ref)) ** 2).reshape(3, -1), axis=1),
        "log": -np.log10(steep),
        "rms": -np.sqrt((np.log10(z / z_ref)[..., 1:] ** 2).reshape(3, -1).mean(1)),
    }[kind[1:]]
    np.testing.assert_allclose(spectral_reward(spectrum, reference, kind), expected, rtol=1e-12)


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("kind", REWARD_KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, EXACT])
def test_rewards_are_finite_and_fall_with_the_error(kind, stacked, dtype):
    spectrum, reference = spectra(stacked, dtype)
    steps = torch.tensor([0.0, 0.01, 0.1, 0.5, 1.0, 3.0], dtype=dtype)
    sequence = reference + steps.reshape(-1, *[1] * reference.dim()) * (spectrum[0] - reference)
    sequence[-1] = reference * 20
    paid = spectral_reward(sequence, reference, kind)
    assert torch.isfinite(paid).all()
    assert (paid.diff() < 0).all()
    assert torch.isfinite(spectral_reward(torch.zeros_like(spectrum), reference, kind)).all()
    if kind in OFFSET:
        assert float(paid[0]) + OFFSET[kind] > 0


def test_z1_is_the_metric_of_the_same_name():
    spectrum, reference = spectra(False)
    assert torch.equal(spectral_reward(spectrum, reference, "z1"), z1(spectrum, reference))
    with pytest.raises(InputError, match="reward = 'z9'"):
        spectral_reward(spectrum, reference, "z9")


# ---- the world


def after(agents, action, starts=STARTS, steps=1):
    state = agents.reset_to(starts.to(agents.solver.grid.dtype))
    for _ in range(steps):
        step = agents.step(state, action)
        state = step.state
    return step


def test_a_step_is_ten_steps_of_the_solver():
    agents, action = world(renew_every=1), actions(5)
    step = after(agents, action)
    # What the coefficients multiply is a mean over the box, which hardly changes in five steps.
    renewed = after(world(renew_every=5), action).info["spectrum"]
    torch.testing.assert_close(renewed, step.info["spectrum"], rtol=1e-2, atol=0)
    assert not torch.equal(renewed, step.info["spectrum"])
    field = agents.coefficient_field(action)
    assert_close(field[:, ::8, ::8], action.clamp(-BOUND, BOUND).reshape(5, 4, 4), 1e-15)

    def closure(flow):
        scale = flow.grid.spacing**3 * flow.gradient_norm.mean((-2, -1), keepdim=True)
        return eddy_viscosity_term(flow, field * scale)

    solver = Solver(case("kolmogorov4"), 32, 5e-3, closure=closure, dtype=EXACT)
    flow = solver.flow(solver.advance(solver.start(STARTS), 10))
    assert_close(agents.solver.flow(step.state.flow).vorticity, flow.vorticity, 1e-12)
    for name, value in {"energy": flow.energy, "enstrophy": flow.enstrophy}.items():
        assert_close(step.info[name], value, 1e-12)
    assert_close(step.info["spectrum"], enstrophy_spectrum(flow.vorticity_hat), 1e-12)
    assert_close(step.info["score"], spectral_reward(step.info["spectrum"], REFERENCE, "zlog"), 1e-12)
    assert_close(step.reward, step.info["score"] + OFFSET["zlog"], 1e-12)
    assert not step.terminated.any()
    assert torch.equal(step.state.clock, torch.ones(5, dtype=EXACT))


@pytest.mark.parametrize(("action", "closure", "c"), [("leith", Leith, 0.3**3), ("smagorinsky", Smagorinsky, 0.15**2)])
def test_equal_coefficients_are_a_closure_with_that_constant(action, closure, c):
    """The solver treats it implicitly, the agents explicitly: the difference falls with dt."""
    model = closure(0.3 if action == "leith" else 0.15)
    explicit = FunctionClosure(lambda flow: model.viscosity(flow).expand_as(flow.vorticity), returns="viscosity")
    gaps = []
    for steps in (10, 20):
        agents = world(action=action, dt=0.05 / steps, steps_per_action=steps, renew_every=1)
        ends = [agents.solver.flow(after(agents, constant(5, c)).state.flow).vorticity]
        for other in (explicit, model):
            solver = Solver(case("kolmogorov4"), 32, 0.05 / steps, closure=other, dtype=EXACT)
            ends.append(solver.flow(solver.advance(solver.start(STARTS), steps)).vorticity)
        assert_close(ends[0], ends[1], 1e-10)
        gaps.append(float((ends[0] - ends[2]).abs().max()))
    assert 0 < gaps[1] < 0.6 * gaps[0] < 0.1


def test_backscatter_raises_enstrophy():
    ends = [after(world(), constant(5, c)).info["enstrophy"] for c in (-0.03, 0.0, 0.03)]
    assert (ends[0] > ends[1]).all()
    assert (ends[1] > ends[2]).all()


def test_backscatter_can_be_excluded():
    action = torch.linspace(-0.2, 0.2, 16, dtype=EXACT).reshape(1, 16, 1)
    c = {
        kind: world(positivity=kind, interpolation="bilinear").coefficient_field(action)
        for kind in ("none", "clip", "softplus")
    }
    assert (float(c["none"].min()), float(c["none"].max())) == pytest.approx((-BOUND, BOUND))
    assert float(c["clip"].min()) == 0
    assert_close(c["clip"][0, ::8, ::8], c["none"][0, ::8, ::8].clamp(min=0), 1e-15)
    assert 0 < float(c["softplus"].min()) < 1e-4
    assert float(c["softplus"].max()) == pytest.approx(BOUND, rel=1e-4)
    assert (c["softplus"].flatten().diff()[:8] >= -1e-15).all()


@pytest.mark.parametrize("flow", ["kolmogorov4", "case2"])
def test_shifted_starts_keep_their_phase_with_the_forcing(flow):
    flow = case(flow, fkx=4, fky=6)  # on 32 points 4 shifts along x and 2 along y
    agents = world(flow=flow, starts=STARTS[:2])
    state = agents.reset(64, torch.Generator().manual_seed(0))
    omega = agents.solver.flow(state.flow).vorticity
    places = {
        (i, x, y): start.roll((8 * x, 16 * y), (0, 1))
        for (i, start), x, y in itertools.product(enumerate(STARTS[:2]), range(4), range(2))
    }
    distance = torch.stack([(omega - p).abs().amax((1, 2)) for p in places.values()], 1)
    which = distance.argmin(1)
    assert float(distance.min(1).values.max()) < 1e-10
    assert set(which.tolist()) == set(range(16))
    original = agents.solver.flow(after(agents, constant(2, 0.01), STARTS[:2]).state.flow).vorticity
    shifted = agents.solver.flow(agents.step(state, constant(64, 0.01)).state.flow).vorticity
    keys = list(places)
    for b in range(64):
        i, x, y = keys[which[b]]
        assert_close(shifted[b], original[i].roll((8 * x, 16 * y), (0, 1)), 1e-9)


def test_starts_stay_where_they_are_without_shift():
    agents = world(shift=False)
    omega = agents.solver.flow(agents.reset(20, torch.Generator().manual_seed(0)).flow).vorticity
    distance = (omega[:, None] - STARTS).abs().amax((2, 3)).min(1)
    assert float(distance.values.max()) < 1e-12
    assert set(distance.indices.tolist()) == set(range(5))


def test_spin_up_is_the_solver_without_closure():
    solver = Solver(case("kolmogorov4"), 32, 5e-3, dtype=EXACT)
    expected = solver.advance(solver.start(STARTS), 30)
    state = world(spin_up=30).reset_to(STARTS)
    assert torch.equal(state.flow.vorticity_hat, expected.vorticity_hat)
    assert torch.equal(state.flow.advection, expected.advection)
    assert not state.clock.any()


def test_a_batch_is_its_single_copies():
    agents = world(dtype=torch.float32, state="invariant", stacked_state=True)
    action = [actions(5, seed=i).float() for i in range(10)]
    state = agents.reset_to(STARTS.float())
    singles = [agents.reset_to(STARTS[b : b + 1].float()) for b in range(5)]
    for a in action:
        step = agents.step(state, a)
        state, own = step.state, [agents.step(s, a[b : b + 1]) for b, s in enumerate(singles)]
        singles = [s.state for s in own]
        assert_close(torch.cat([s.reward for s in own]), step.reward, 1e-4)
    together = agents.solver.flow(state.flow).vorticity
    alone = torch.cat([agents.solver.flow(s.flow).vorticity for s in singles])
    assert float((together - alone).norm() / together.norm()) < 1e-6


# ---- failure


def finite(*trees):
    """Whether every number of the trees is finite."""
    tensors = [x for t in trees for _, x in tree.named_tensors(t)]
    return all(bool(torch.isfinite(torch.view_as_real(x) if x.is_complex() else x).all()) for x in tensors)


def spoiled(kind, dtype):
    """Starts of which the third blows up: a huge one, or one near the limit that the agents push."""
    starts = STARTS.to(dtype).clone()
    limit = 20 * flow_of(STARTS).enstrophy.mean()
    starts[2] *= 1e8 if kind == "huge" else float((0.95 * limit / flow_of(STARTS).enstrophy[2]).sqrt())
    action = constant(5, 0.01).to(dtype)
    action[2] = -BOUND
    return starts, action


@pytest.mark.parametrize("dtype", [torch.float32, EXACT])
@pytest.mark.parametrize("kind", ["huge", "anti-diffusive"])
def test_a_copy_that_blows_up_ends_alone(kind, dtype):
    agents = world(dtype=dtype)
    starts, action = spoiled(kind, dtype)
    states = [agents.reset_to(s) for s in (starts, STARTS.to(dtype))]
    others = torch.tensor([0, 1, 3, 4])
    seen_failing = False
    for _ in range(10):
        steps = [agents.step(s, a) for s, a in zip(states, (action, constant(5, 0.01).to(dtype)), strict=True)]
        states = [s.state for s in steps]
        spoilt, sound = steps
        seen = agents.observe(spoilt.state)
        assert finite(spoilt.state, spoilt.info, {"reward": spoilt.reward, "seen": seen})
        assert not spoilt.terminated[others].any()
        for a, b in ((spoilt.state, sound.state), (spoilt.info, sound.info), (spoilt.reward, sound.reward)):
            for (_, x), (_, y) in zip(tree.named_tensors(a), tree.named_tensors(b), strict=True):
                assert torch.equal(x[others], y[others])
        assert torch.equal(seen[others], agents.observe(sound.state)[others])
        seen_failing = seen_failing or bool(spoilt.terminated[2])
        if seen_failing:
            assert float(spoilt.reward[2]) == 0
    assert seen_failing


@pytest.mark.parametrize("reward", REWARD_KINDS)
def test_no_path_is_worse_than_failing(reward):
    """Whatever is done, a step pays at least what a failure pays, unless the paper's own rules are asked for."""
    agents = world(reward=reward, reference=ENERGY if reward.startswith("k") else REFERENCE)
    starts, action = spoiled("anti-diffusive", EXACT)
    failed = agents.step(agents.reset_to(starts), action)
    assert failed.terminated.tolist() == [False, False, True, False, False]
    assert float(failed.reward[2]) == 0
    assert float(failed.info["score"][2]) == -OFFSET.get(reward, 0.0)
    for c in (-BOUND, -0.02, 0.0, 0.02, BOUND):
        state = agents.reset_to(STARTS)
        for _ in range(10):
            step = agents.step(state, constant(5, c))
            state = step.state
            assert (step.reward >= 0).all()
            assert (step.reward[step.terminated] == 0).all()
    assert float(after(agents, constant(5, 0.007)).reward.min()) > 0


@pytest.mark.parametrize("reward", REWARD_KINDS)
@pytest.mark.parametrize("value", [1e30, math.inf, math.nan])
def test_a_flow_that_is_no_number_pays_none(reward, value):
    agents = world(reward=reward, n=16, dtype=torch.float32)
    state = agents.reset_to(STARTS[:2, ::2, ::2].float())
    flow = replace(state.flow, vorticity_hat=state.flow.vorticity_hat.index_fill(0, torch.tensor([1]), value))
    step = agents.step(replace(state, flow=flow), constant(2, 0.01))
    assert step.terminated.tolist() == [False, True]
    assert float(step.reward[1]) == 0
    assert finite(step.info, {"reward": step.reward})


def test_episodes_and_learners_never_meet_a_number_that_is_none():
    agents = world(dtype=torch.float32, failure=1.2, n=16, agents_per_side=2)
    episodes = Episodes(agents, 16, horizon=5, seed=0)
    episodes.reset()
    ended = 0
    for i in range(20):
        step = episodes.step(-torch.rand(16, 4, 1, generator=torch.Generator().manual_seed(i)))
        assert finite({f: getattr(step, f) for f in ("obs", "final_obs", "reward", "episode_return")}, step.info)
        assert not (step.terminated & step.truncated).any()
        ended += int(step.terminated.sum())
    assert ended > 0
    assert episodes.n_nonfinite == 0
    env = SB3VecEnv(agents, 4, horizon=5, seed=0)
    model = PPO("MlpPolicy", env, n_steps=10, batch_size=40, n_epochs=1, seed=0, device="cpu")
    model.learn(320)
    assert all(bool(torch.isfinite(p).all()) for p in model.policy.parameters())
    assert all(math.isfinite(info["r"]) for info in model.ep_info_buffer)


def test_the_rules_of_the_paper():
    """A slot of zeros, the mean of the rewards on the last step, and a fixed penalty."""
    agents = world(compat=True, horizon=3, reward="z1", state="invariantlocalandglobalgradgrad")
    assert agents.state_names[0] == "tr S"
    assert len(agents.state_names) == 6 + 16
    state = agents.reset_to(STARTS)
    assert not agents.observe(state)[..., 0].any()
    scores = []
    for _ in range(3):
        step = agents.step(state, constant(5, 0.005))
        state = step.state
        scores.append(step.info["score"])
        assert_close(step.reward, scores[-1] if len(scores) < 3 else torch.stack(scores).mean(0), 1e-12)
    starts, action = spoiled("anti-diffusive", EXACT)
    assert float(agents.step(agents.reset_to(starts), action).reward[2]) == FAILURE_REWARD
    assert (after(replace(agents, reward="zlog"), constant(5, 0.3)).reward < 0).all()  # no offset


# ---- observations


def test_observations_are_standardised_by_the_starts():
    agents = world(agents_per_side=32)  # an agent at every point of every start
    seen = agents.observe(agents.reset_to(STARTS)).flatten(0, 1)
    local = len(names("invariants", 32))
    assert_close(seen[:, :local].mean(0), torch.zeros(local, dtype=EXACT), 0.02)  # a few are cut at ten
    assert_close(seen[:, :local].std(0), torch.ones(local, dtype=EXACT), 0.05)
    assert float(seen[:, local:].std(0).max()) < 1  # a logarithm of a spectrum has at least 0.5 as its unit


def test_what_never_varies_is_seen_as_zero():
    x = torch.arange(16) * (2 * math.pi / 16)
    omega = (torch.cos(4 * x)[:, None] + 0 * x)[None]  # the same whatever the file
    agents = world(n=16, starts=omega.repeat(3, 1, 1), state="enstrophy", shift=False)
    assert finite({"seen": agents.observe(agents.reset(4, torch.Generator().manual_seed(0)))})
    agents = world(compat=True, horizon=2, state="invariantlocal")
    seen = agents.observe(agents.reset_to(STARTS))
    assert finite({"seen": seen})
    assert not seen[..., 0].any()


def test_given_standards_replace_those_of_the_starts():
    agents = world(state="psiomega")
    mean, std = torch.tensor([1.0, 2.0]), torch.tensor([0.5, 1e-3])
    state = agents.reset_to(STARTS)
    seen = replace(agents, mean=mean, std=std).observe(state)
    raw = observed(flow_of(STARTS), "psiomega", 4)
    assert_close(seen, ((raw - mean) / std).clamp(-SEEN, SEEN), 1e-12)
    assert float(seen.abs().max()) == SEEN == float(agents.observation_space.high[0])


# ---- refusals


REFUSALS = [
    ({"action": "gradient"}, "action = 'gradient': must be one of leith, smagorinsky"),
    ({"state": "all"}, "state = 'all': must be one of invariant, "),
    ({"reward": "z2"}, "reward = 'z2': must be one of z1, "),
    ({"positivity": "abs"}, "positivity = 'abs': must be one of none, clip, softplus"),
    ({"interpolation": "cubic"}, "interpolation = 'cubic': must be one of bilinear, biquadratic, fourier"),
    ({"agents_per_side": 5}, "agents_per_side = 5: must divide the 32 points of a side"),
    ({"agents_per_side": 0, "state": "psiomegablock"}, "agents_per_side = 0: must divide"),
    ({"reference": torch.ones(15)}, "reference of shape (15,): must be (16,) or (2, 16)"),
    ({"reference": torch.ones(3, 16)}, "reference of shape (3, 16): must be"),
    ({"reference": torch.zeros(16)}, "reference: must be finite and above 0"),
    ({"reference": torch.full((16,), math.nan)}, "reference: must be finite and above 0"),
    ({"starts": torch.zeros(2, 16, 16)}, "starts of shape (2, 16, 16): must be (F, 32, 32)"),
    ({"starts": torch.zeros(0, 32, 32)}, "starts of shape (0, 32, 32)"),
    ({"starts": torch.zeros(2, 32, 32)}, "starts: must be finite and not all at rest"),
    ({"starts": torch.full((2, 32, 32), math.nan)}, "starts: must be finite and not all at rest"),
    ({"steps_per_action": 0}, "steps_per_action = 0, spin_up = 0: must be at least 1 and 0"),
    ({"spin_up": -1}, "spin_up = -1: must be at least 1 and 0"),
    ({"failure": 0.0}, "failure = 0.0: must be above 0 and finite"),
    ({"failure": math.nan}, "failure = nan: must be above 0"),
    ({"horizon": 0}, "horizon = 0: must be at least 1, or None"),
    ({"compat": True}, "compat: the mean paid at the end needs a horizon"),
    ({"mean": torch.zeros(21)}, "mean, std of shapes [(21,), None]: must both be (21,), or both None"),
    ({"mean": torch.zeros(3), "std": torch.ones(3)}, "must both be (21,)"),
    ({"mean": torch.zeros(21), "std": torch.zeros(21)}, "std: must be above 0 everywhere"),
    ({"dt": 0.2}, "dt = 0.2: nu_e k^2 dt reaches"),
]


@pytest.mark.parametrize(("change", "message"), REFUSALS, ids=[message for _, message in REFUSALS])
def test_impossible_worlds_are_refused(change, message):
    with pytest.raises(InputError) as refusal:
        world(**change)
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_what_the_agents_cannot_take_is_refused():
    agents = world()
    with pytest.raises(InputError, match="solver: has a closure"):
        replace(agents, solver=Solver(case("kolmogorov4"), 32, 5e-3, closure=Leith()))
    with pytest.raises(InputError, match=r"action of shape \(5, 15, 1\): must be \(5, 16, 1\)"):
        agents.step(agents.reset_to(STARTS), actions(5, agents=15))
    for kind, count in (("all", 4), ("invariant", 5)):
        with pytest.raises(InputError, match="must"):
            observed(flow_of(STARTS), kind, count)
    with pytest.raises(InputError, match="GymEnv: the world has 16 agents"):
        GymEnv(agents)


# ---- the policy as a closure


def policy(seen, state=None):
    return (0.01 + 0.02 * torch.tanh(seen[..., :1] - 0.3 * seen[..., 2:3])).to(seen)


def test_a_policy_as_a_closure_is_the_world_with_that_policy():
    agents = world()
    closure = PolicyClosure(agents, policy)
    state = agents.reset_to(STARTS)
    flow = state.flow
    for _ in range(4):
        state = agents.step(state, policy(agents.observe(state))).state
    assert torch.equal(closure.advance(flow, 40).vorticity_hat, state.flow.vorticity_hat)
    with pytest.raises(InputError, match="steps = 15: must be a multiple of the 10 steps"):
        closure.advance(flow, 15)


def test_a_policy_as_a_closure_decides_anew_at_every_step():
    agents = world(steps_per_action=1)
    closure = PolicyClosure(agents, policy)
    solver = Solver(case("kolmogorov4"), 32, 5e-3, closure=closure, dtype=EXACT)
    start = solver.start(STARTS)
    assert_close(solver.advance(start, 5).vorticity_hat, closure.advance(start, 5).vorticity_hat, 1e-9)
    flow = solver.flow(start)
    nu = closure.viscosity(flow)
    scale = flow.grid.spacing**3 * flow.gradient_norm.mean((-2, -1), keepdim=True)
    assert_close(nu, closure.coefficient_field(start) * scale, 1e-12)
    s11, s12 = flow.strain
    for mine, expected in zip(closure.stress(flow), (-2 * nu * s11, -2 * nu * s12, 2 * nu * s11), strict=True):
        assert_close(mine, expected, 1e-12)


def test_agents_move_to_another_flow_with_their_own_standards():
    agents = world()
    other = Solver(case("case1"), 32, 2.5e-3, dtype=EXACT)
    moved = agents.moved(other)
    state = agents.reset_to(2 * STARTS)
    assert torch.equal(moved.observe(state), agents.observe(state))
    assert moved.solver is other
    with pytest.raises(InputError, match=r"sees what depends on the grid of 32; .* move to 64"):
        agents.moved(Solver(case("case1"), 64, 2.5e-3))


@pytest.mark.parametrize("state", ["invariants", "invariantlocal", "psiomega"])
def test_agents_that_see_no_spectrum_move_to_another_grid(state):
    """A flow that both grids resolve looks the same from the agents' places."""
    agents = world(n=16, state=state)
    moved = agents.moved(Solver(case("kolmogorov4"), 32, 5e-3, dtype=EXACT))
    omega = torch.from_numpy(initial_fields([3, 4], 16))
    on_fine = torch.fft.irfft2(resample(torch.fft.rfft2(omega), 32), s=(32, 32))
    here, there = agents.observe(agents.reset_to(omega)), moved.observe(moved.reset_to(on_fine))
    assert_close(there, here, 1e-6)


# ---- views


def test_a_batch_as_rows_of_agents():
    agents = world(dtype=torch.float32)
    env = SB3VecEnv(agents, 2, horizon=3, seed=0)
    first = env.reset()
    assert env.num_envs == 32
    assert first.shape == (32, 21)
    state = env.episodes._state
    np.testing.assert_allclose(first, agents.observe(state).flatten(0, 1) / SEEN, atol=1e-6)
    coefficients = actions(2).float()
    seen, reward, done, _ = env.step((coefficients / BOUND).flatten(0, 1).numpy())
    step = agents.step(state, coefficients)
    np.testing.assert_allclose(reward.reshape(2, 16), step.reward[:, None].expand(2, 16), atol=1e-5)
    np.testing.assert_allclose(seen, agents.observe(step.state).flatten(0, 1) / SEEN, atol=1e-4)
    assert not done.any()
    for _ in range(2):
        *_, done, infos = env.step(np.zeros((32, 1), np.float32))
    assert done.all()
    assert all(info["TimeLimit.truncated"] for info in infos)


def test_a_roll_out_is_recorded():
    agents = world(reference=REFERENCE.expand(2, 16), dtype=torch.float32)
    data = rollout(agents, policy, 4, 3, seed=0)
    assert data["spectrum"].dims == ("rep", "time", "axis", "k")
    assert data["action"].shape == (3, 4, 16, 1)
    assert data["k"].values.tolist() == list(range(16))
    np.testing.assert_allclose(data["reward"], data["score"] + OFFSET["zlog"], atol=1e-5)
    assert all(np.isfinite(data[name]).all() for name in ("spectrum", "energy", "enstrophy", "reward"))
    assert not data["terminated"].any()


def test_an_interrupted_batch_goes_on_exactly_where_it_was():
    agents = world(dtype=torch.float32, failure=1.3)
    action = [2 * torch.rand(4, 16, 1, generator=torch.Generator().manual_seed(i)) - 1.4 for i in range(24)]
    episodes = Episodes(agents, 4, horizon=9, seed=0)
    episodes.reset()
    for a in action[:12]:
        episodes.step(a)
    stored = save({name: x.clone().contiguous() for name, x in episodes.state_tensors().items()})
    expected = [episodes.step(a) for a in action[12:]]
    assert any(s.ended for s in expected)
    other = Episodes(world(dtype=torch.float32, failure=1.3), 4, horizon=9, seed=5)
    other.load_state_tensors(load(stored))
    for a, old in zip(action[12:], expected, strict=True):
        new = other.step(a)
        for name in ("obs", "reward", "terminated", "truncated", "final_obs", "episode_return", "episode_length"):
            assert torch.equal(getattr(old, name), getattr(new, name)), name


def test_the_library_of_multi_agent_environments_is_content():
    check = pytest.importorskip("pettingzoo.test", reason="pettingzoo is not installed")
    from simulators.turbulence.environment import parallel_env

    def make():
        return parallel_env(n=16, agents_per_side=2, horizon=7)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check.parallel_api_test(make(), num_cycles=20)
        check.parallel_seed_test(make, num_cycles=10)


def test_the_environment_of_the_shipped_snapshots():
    pytest.importorskip("pettingzoo", reason="pettingzoo is not installed")
    from simulators.turbulence import environment

    result = doctest.testmod(environment)
    assert (result.failed, result.attempted > 0) == (0, True)
    made = environment.parallel_env(dt=2.5e-3, horizon=None, reward="k1", case="case1", scaled=False)
    agents = made.simulator
    assert (agents.solver.case, agents.solver.dt) == (case("case1"), 2.5e-3)
    assert_close(agents.reference, ENERGY, 1e-12)
    assert_close(agents.starts, STARTS, 1e-12)
    assert made.action_space("agent_0").high == pytest.approx(BOUND)
    with pytest.raises(InputError, match="case = 'case9'"):
        environment.parallel_env(case="case9")


def test_the_package_says_how_it_is_used_and_loads_no_extra():
    result = doctest.testmod(simulators.turbulence)
    assert (result.failed, result.attempted > 0) == (0, True)
    assert all(hasattr(simulators.turbulence, name) for name in simulators.turbulence.__all__)
    code = "import sys, simulators.turbulence; print({'jax', 'jax_cfd', 'pettingzoo', 'zarr'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_device_does_not_change_the_world():
    ends = []
    for device in ("cpu", "cuda"):
        agents = world(solver={"device": device})
        state = agents.reset_to(STARTS.to(device))
        for i in range(10):
            step = agents.step(state, actions(5, seed=i).to(device))
            state = step.state
        flow = agents.solver.flow(state.flow)
        ends.append([x.cpu() for x in (flow.vorticity, agents.observe(state), step.reward)])
    for here, there in zip(*ends, strict=True):
        assert_close(here, there, 1e-5)

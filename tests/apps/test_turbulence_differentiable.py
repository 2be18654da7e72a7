"""Training through the solver: its gradient against finite differences, what it learns, failures and resuming."""

import json

import pytest
import torch

from apps.turbulence.differentiable import (
    GradientSettings,
    spectrum_loss,
    train_through_the_solver,
    unrolled,
)
from core.errors import InputError
from core.rl import PPO, LearnedPolicy, TrainingDiverged
from simulators.turbulence.agents import ClosureAgents
from simulators.turbulence.agents.world import SEEN
from simulators.turbulence.cases import case
from simulators.turbulence.diagnostics import enstrophy_spectrum
from simulators.turbulence.grid import Grid
from simulators.turbulence.solver import Solver

N = 16


def starts(number=3, seed=0):
    grid = Grid(N)
    noise = torch.randn(number, N, N, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    spectrum = grid.to_spectral(noise) * grid.resolved * (grid.k2 > 0) / (1 + grid.k2 / 9)
    omega = grid.to_physical(spectrum)
    return 4 * omega / omega.std()


def world(dtype=torch.float64, **changes):
    """A small flow, which should have the spectrum of its starts, a little steeper."""
    solver = Solver(case("kolmogorov4"), N, 0.01, dtype=dtype)
    omega = starts()
    k = torch.arange(N // 2)
    reference = enstrophy_spectrum(torch.fft.rfft2(omega)).mean(0) * torch.exp(-k / 4)
    options = {"agents_per_side": 2, "steps_per_action": 5, "horizon": 4} | changes
    return ClosureAgents(solver, reference.to(dtype), omega.to(dtype), **options)


def one_number(theta):
    """Coefficients that depend on one parameter, and on what the agents see."""
    return lambda seen: theta * (1 + 0.1 * torch.tanh(seen[..., :1]))


def test_the_gradient_of_a_window_is_that_of_finite_differences():
    agents = world()
    state = agents.reset_to(starts())

    def loss(theta):
        return unrolled(agents, one_number(theta), state, 3).loss

    theta = torch.tensor(0.02, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(loss(theta), theta)
    step = 1e-5
    with torch.no_grad():
        difference = (loss(theta + step) - loss(theta - step)) / (2 * step)
    assert float(gradient) == pytest.approx(float(difference), rel=1e-6)
    assert abs(float(gradient)) > 1e-2


def test_recomputing_changes_neither_loss_nor_state():
    agents = world()
    state, policy = agents.reset_to(starts()), one_number(torch.tensor(0.02, dtype=torch.float64))
    window = unrolled(agents, policy, state, 2)
    losses = []
    for _ in range(2):
        step = agents.step(state, policy(agents.observe(state)))
        state = step.state
        losses.append(spectrum_loss(step.info["spectrum"], agents.reference))
    assert window.loss.item() == pytest.approx(sum(losses).item() / 2, rel=1e-12)
    assert torch.allclose(window.state.flow.vorticity_hat, state.flow.vorticity_hat, rtol=1e-12)


def test_the_loss_is_of_the_mean_spectrum_in_decades():
    reference = torch.tensor([1.0, 2.0, 4.0])
    spectrum = torch.stack((0.5 * reference, 1.5 * reference)) * torch.tensor([1.0, 10.0, 0.01])
    assert float(spectrum_loss(spectrum, reference)) == pytest.approx(5.0, rel=1e-5)


@pytest.mark.parametrize("bad", [1e3, float("nan")])
def test_a_copy_that_fails_leaves_the_loss_and_the_gradient(bad):
    agents = world()
    sound = agents.reset_to(starts())
    broken = agents.reset_to(starts())
    broken.flow.vorticity_hat[1] *= bad
    theta = torch.tensor(0.02, dtype=torch.float64, requires_grad=True)
    window = unrolled(agents, one_number(theta), broken, 2)
    kept = type(sound)(
        type(sound.flow)(sound.flow.vorticity_hat[[0, 2]], sound.flow.advection[[0, 2]]),
        sound.clock[[0, 2]],
        sound.earned[[0, 2]],
    )
    alone = unrolled(agents, one_number(theta), kept, 2)
    assert window.alive.tolist() == [0, 2]
    assert window.loss.item() == pytest.approx(alone.loss.item(), rel=1e-10)
    gradients = [float(torch.autograd.grad(w.loss, theta)[0]) for w in (window, alone)]
    assert gradients[0] == pytest.approx(gradients[1], rel=1e-8)


def test_without_a_copy_that_lives_there_is_no_loss():
    agents = world()
    state = agents.reset_to(starts())
    state.flow.vorticity_hat[:] *= 1e3
    window = unrolled(agents, one_number(torch.tensor(0.02)), state, 2)
    assert window.loss is None
    assert not len(window.alive)


SETTINGS = GradientSettings(solver_steps=2 * 2 * 5 * 3 * 30, window=2, n_envs=3, net=(8,), learning_rate=0.01)
"""30 updates."""


def test_training_lowers_the_loss_and_gives_a_model_like_ppos(tmp_path):
    agents = world(torch.float32, shift=False)
    curve = tmp_path / "curve.jsonl"
    model = train_through_the_solver(agents, SETTINGS, seed=1, curve=curve)
    lines = [json.loads(line) for line in curve.read_text().splitlines()]
    assert [line["timesteps"] for line in lines] == [60 * (i + 1) for i in range(30)]
    # An episode has two windows, so that equal phases are compared.
    assert sum(x["return"] for x in lines[-4:]) > 0.8 * sum(x["return"] for x in lines[:4])
    model.save(tmp_path / "policy")
    policies = [
        LearnedPolicy(m, agents, observation_range=(-SEEN, SEEN)) for m in (model, PPO.load(tmp_path / "policy"))
    ]
    seen = agents.observe(agents.reset_to(starts()))
    ours, loaded = (policy(seen) for policy in policies)
    assert torch.equal(ours, loaded)
    assert float(ours.mean()) > 0.01  # the reference asks for dissipation


def test_a_resumed_training_is_the_uninterrupted_one_bit_for_bit(tmp_path):
    agents = world(spin_up=2)
    whole, parts = tmp_path / "whole.jsonl", tmp_path / "parts.jsonl"
    short = SETTINGS.model_copy(update={"solver_steps": 60 * 3})
    full = SETTINGS.model_copy(update={"solver_steps": 60 * 7})
    uninterrupted = train_through_the_solver(agents, full, seed=2, curve=whole)
    state = tmp_path / "state.safetensors"
    train_through_the_solver(agents, short, seed=2, checkpoint=state, curve=parts)
    # What a kill after the last checkpoint leaves: lines of updates that are done again.
    with parts.open("a") as lines:
        lines.write('{"timesteps": 240, "return": -9}\n{"times')
    torch.manual_seed(99)
    resumed = train_through_the_solver(agents, full, seed=2, checkpoint=state, curve=parts)
    assert parts.read_text() == whole.read_text()
    for a, b in zip(uninterrupted.policy.parameters(), resumed.policy.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_gradient_that_is_not_finite_keeps_the_last_good_parameters(monkeypatch):
    agents = world(torch.float32)
    kept = []
    original = PPO.__init__

    def remembered(self, *args, **kwargs):
        original(self, *args, **kwargs)
        kept.append(self)
        self.policy.action_net.weight.register_hook(lambda gradient: gradient * float("nan"))
        kept.append([x.detach().clone() for x in self.policy.parameters()])

    monkeypatch.setattr(PPO, "__init__", remembered)
    with pytest.raises(TrainingDiverged, match="not finite after 0 solver steps"):
        train_through_the_solver(agents, SETTINGS, seed=0)
    model, before = kept
    assert all(torch.equal(a, b) for a, b in zip(model.policy.parameters(), before, strict=True))


def test_training_survives_flows_that_fail(tmp_path):
    short = SETTINGS.model_copy(update={"solver_steps": 60 * 6})
    curve = tmp_path / "curve.jsonl"
    # Of the three starts some have more than the mean enstrophy and fail at once, again and again.
    train_through_the_solver(world(failure=1.0, horizon=None), short, curve=curve)
    assert all(torch.isfinite(torch.tensor(json.loads(line)["return"])) for line in curve.read_text().splitlines())
    seen = []
    model = train_through_the_solver(world(failure=0.01), short, progress=lambda share, text: seen.append(text))
    assert seen == ["every flow failed"] * 6
    assert model.num_timesteps == 360


def test_a_budget_below_one_window_is_refused():
    with pytest.raises(InputError, match="solver_steps = 59: one window costs 60"):
        train_through_the_solver(world(), SETTINGS.model_copy(update={"solver_steps": 59}))

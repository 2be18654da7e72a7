"""The exported closure: what the NumPy module computes is what the policy does, for every kind of state."""

import importlib.util
import sys

import numpy as np
import pytest
import torch

from apps.turbulence.export import export_policy, network_of
from core.errors import InputError
from core.rl import PPO, VRACER, LearnedPolicy
from core.simulation import SB3VecEnv
from simulators.turbulence.agents import ClosureAgents, PolicyClosure
from simulators.turbulence.agents.states import STATE_KINDS
from simulators.turbulence.agents.world import SEEN
from simulators.turbulence.cases import case
from simulators.turbulence.grid import Grid
from simulators.turbulence.solver import Solver

N = 16


def flows(number=3, seed=0):
    """Vorticities of float32, which hold the wavenumber N/2 too."""
    noise = torch.randn(number, N, N, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    grid = Grid(N)
    omega = grid.to_physical(grid.to_spectral(noise) * (grid.k2 > 0) / (1 + grid.k2 / 9))
    return (4 * omega / omega.std()).float()


def world(**changes):
    solver = Solver(case("kolmogorov4"), N, 0.01, dtype=torch.float32)
    options = {"agents_per_side": 4, "reward": "zlog"} | changes
    return ClosureAgents(solver, torch.ones(N // 2), flows(), **options)


def closure(agents, **policy):
    """An untrained policy whose coefficients vary as much as those of a trained one, some beyond their bounds."""
    env = SB3VecEnv(agents, 1, observation_range=(-SEEN, SEEN), seed=0)
    options = {"n_steps": 2, "batch_size": 2 * agents.agents, "seed": 3, "device": "cpu"}
    model = PPO("MlpPolicy", env, policy_kwargs={"net_arch": [16, 16]} | policy, **options)
    with torch.no_grad():
        model.policy.action_net.weight.mul_(60)
    return PolicyClosure(agents, LearnedPolicy(model, agents, observation_range=(-SEEN, SEEN)))


def vracer(agents):
    """As ``closure``, from an untrained VRACER that has standardised its observations."""
    env = SB3VecEnv(agents, 1, horizon=5, observation_range=(-SEEN, SEEN), seed=0)
    model = VRACER("MlpPolicy", env, policy_kwargs={"net_arch": [16, 16]}, seed=3, device="cpu")
    with torch.no_grad():
        model.policy.net[-1].weight.mul_(3e3)
        model.policy.standardise(0.5 + 2 * env.reset_tensor())
    return PolicyClosure(agents, LearnedPolicy(model, agents, observation_range=(-SEEN, SEEN)))


def module(path):
    spec = importlib.util.spec_from_file_location("exported_closure", path)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def both(policy, folder):
    """Our field and the exported module's, of the same flows."""
    omega = flows(seed=5)
    written = export_policy(policy, folder)
    exported = module(written.module)
    weights = exported.load(written.weights)
    theirs = np.stack([exported.coefficient(x, weights) for x in omega.numpy()])
    return policy.coefficient_field(policy.world.solver.start(omega)).numpy(), theirs


@pytest.mark.parametrize("state", STATE_KINDS)
def test_the_exported_module_is_the_closure(state, tmp_path):
    ours, theirs = both(closure(world(state=state)), tmp_path)
    assert ours.std() > 0.01
    assert np.abs(ours - theirs).max() < 1e-5


@pytest.mark.parametrize(
    "changes",
    [
        {"stacked_state": True},
        {"state": "energy", "stacked_state": True},
        {"state": "invariantlocal", "compat": True, "horizon": 5},
        {"action": "smagorinsky", "interpolation": "fourier"},
        {"positivity": "clip", "interpolation": "bilinear"},
        {"positivity": "softplus", "agents_per_side": 2},
    ],
)
def test_options_of_the_world_are_exported(changes, tmp_path):
    ours, theirs = both(closure(world(**changes)), tmp_path)
    assert ours.std() > 1e-3
    assert np.abs(ours - theirs).max() < 1e-5


def test_a_policy_of_vracer_is_exported(tmp_path):
    ours, theirs = both(vracer(world()), tmp_path)
    assert ours.std() > 0.01
    assert np.abs(ours - theirs).max() < 1e-5


def test_the_module_needs_numpy_alone_and_the_weights_no_pickle(tmp_path):
    written = export_policy(closure(world()), tmp_path / "new" / "folder")
    source = written.module.read_text()
    assert [line for line in source.splitlines() if line.startswith(("import", "from"))] == ["import numpy as np"]
    assert len(source.splitlines()) < 80
    with np.load(written.weights, allow_pickle=False) as file:
        assert file["mean"].shape == (5 + N // 2,)


def test_the_module_refuses_other_weights_and_other_grids(tmp_path):
    written = export_policy(closure(world()), tmp_path / "a")
    other = export_policy(closure(world(state="psiomega")), tmp_path / "b")
    exported = module(written.module)
    with pytest.raises(ValueError, match="of the state psiomega"):
        exported.load(other.weights)
    with pytest.raises(ValueError, match=r"omega of shape \(8, 8\): must be \(16, 16\)"):
        exported.coefficient(np.zeros((8, 8)), exported.load(written.weights))


def test_what_is_no_network_of_tanh_is_refused():
    agents = world()
    with pytest.raises(InputError, match="only a LearnedPolicy"):
        network_of(PolicyClosure(agents, lambda seen, state=None: 0.01 * seen[..., :1]))
    with pytest.raises(InputError, match="layers ReLU"):
        network_of(closure(agents, activation_fn=torch.nn.ReLU))


def test_without_onnx_it_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    written = export_policy(closure(world()), tmp_path)
    assert written.network is None
    assert written.note == "closure.onnx was not written: pip install onnx"
    assert not (tmp_path / "closure.onnx").exists()


@pytest.mark.parametrize("made", [closure, vracer])
def test_the_onnx_network_gives_the_agents_coefficients(made, tmp_path):
    onnx = pytest.importorskip("onnx")
    from onnx.reference import ReferenceEvaluator

    policy = made(world())
    written = export_policy(policy, tmp_path)
    seen = policy.world.observe(policy.world.reset_to(flows()))
    (found,) = ReferenceEvaluator(onnx.load(written.network)).run(None, {"observation": seen[0].numpy()})
    assert np.abs(found - policy.policy(seen)[0].numpy()).max() < 1e-6

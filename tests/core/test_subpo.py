"""SubPO: credits by hand, masks that hold, known optima, and the published coverage of a grid."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecMonitor
from torch import Tensor

from core.errors import InputError
from core.rl import ResumeCallback, SubPO
from core.rl.submodular import Coverage, SetFunction, greedy
from core.rl.subpo import WholeEpisodes
from core.simulation import SB3VecEnv, Step
from tests.core.worlds import Corridor


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@dataclass(frozen=True)
class Nothing:
    empty: Tensor


@dataclass(frozen=True)
class PickState:
    taken: Tensor
    value: Any


@dataclass(frozen=True)
class Picks:
    """Choose ``picks`` different items; each pays its marginal gain. The agent sees what it has taken."""

    function: SetFunction
    picks: int
    masked: bool = True
    agents: int = 1
    variables: dict = field(default_factory=dict)

    @property
    def observation_space(self):
        return spaces.Box(0.0, 1.0, (self.function.items,), np.float32)

    @property
    def action_space(self):
        return spaces.Discrete(self.function.items)

    def reset(self, batch, generator):
        taken = torch.zeros(batch, self.function.items, dtype=torch.bool, device=generator.device)
        return PickState(taken, self.function.start(batch))

    def noise(self, batch, generator):
        return Nothing(torch.empty(batch, 0, device=generator.device))

    def step(self, state, action, noise):
        if self.masked:
            assert not state.taken.gather(1, action.unsqueeze(1)).any(), "a masked action was taken"
        gain, value = self.function.gain(state.value, action)
        taken = state.taken.scatter(1, action.unsqueeze(1), True)
        return Step(PickState(taken, value), gain, taken.sum(1) >= self.picks)

    def observe(self, state, noise):
        return state.taken.float()

    def action_mask(self, state):
        return ~state.taken if self.masked else None


@dataclass(frozen=True)
class GridState:
    cell: Tensor
    time: Tensor
    covered: Tensor


@dataclass(frozen=True)
class Grid:
    """A walk of H steps on n x n cells from the centre, which covers a plus-shaped footprint at each of them.

    The reward is the number of newly covered cells, or with ``modular`` of all cells in the footprint. The agent sees
    where it is and the time.
    """

    n: int = 10
    horizon: int = 30
    modular: bool = False
    agents: int = 1
    variables: dict = field(default_factory=dict)
    action_space: spaces.Discrete = field(default_factory=lambda: spaces.Discrete(5))

    @property
    def observation_space(self):
        return spaces.Box(0.0, 1.0, (self.n**2 + 1,), np.float32)

    @property
    def footprints(self):
        row, column = torch.arange(self.n**2) // self.n, torch.arange(self.n**2) % self.n
        return Coverage(((row[:, None] - row).abs() + (column[:, None] - column).abs()) <= 1)

    def reset(self, batch, generator):
        cell = torch.full((batch,), self.n // 2 * self.n + self.n // 2)
        _, covered = self.footprints.gain(self.footprints.start(batch), cell)
        return GridState(cell, torch.zeros(batch), covered)

    def noise(self, batch, generator):
        return Nothing(torch.empty(batch, 0))

    def step(self, state, action, noise):
        row = (state.cell // self.n + torch.tensor([0, -1, 1, 0, 0])[action]).clamp(0, self.n - 1)
        column = (state.cell % self.n + torch.tensor([0, 0, 0, -1, 1])[action]).clamp(0, self.n - 1)
        cell = row * self.n + column
        gain, covered = self.footprints.gain(state.covered, cell)
        reward = self.footprints.sets[cell].sum(1).float() if self.modular else gain
        time = state.time + 1
        return Step(GridState(cell, time, covered), reward, time >= self.horizon, {"count": covered.sum(1)})

    def observe(self, state, noise):
        place = torch.nn.functional.one_hot(state.cell, self.n**2).float()
        return torch.cat([place, state.time[:, None] / self.horizon], 1)

    def action_mask(self, state):
        return None


def build(world, n_envs=64, n_steps=4, horizon=None, **options):
    env = SB3VecEnv(world, n_envs, horizon=horizon, seed=0)
    return SubPO("MlpPolicy", env, n_steps=n_steps, **({"seed": 0, "device": "cpu"} | options))


def parameters(learner):
    return torch.nn.utils.parameters_to_vector(learner.policy.parameters())


def traps():
    """A set cover where greedy is not optimal: the best pair covers all 12 elements, greedy's 7 + 3."""
    sets = torch.zeros(6, 12, dtype=torch.bool)
    sets[0, :6] = True
    sets[1, 6:] = True
    sets[2, [0, 1, 2, 3, 6, 7, 8]] = True  # the largest, in the way of both
    sets[3, [9, 10]] = True
    sets[4, [4, 5]] = True
    sets[5, [4]] = True
    return Coverage(sets)


# ---- credits


def buffer(rewards, starts, gamma=1.0):
    box = spaces.Box(-1, 1, (1,))
    filled = WholeEpisodes(len(rewards), box, box, device="cpu", gae_lambda=1.0, gamma=gamma, n_envs=len(rewards[0]))
    zero = np.zeros((len(rewards[0]), 1), np.float32)
    for reward, start in zip(rewards, starts, strict=True):
        none = torch.zeros(len(reward))
        filled.add(zero, zero, np.array(reward, np.float32), np.array(start), none, none)
    return filled


REWARDS = [[1.0, 4.0], [2.0, 0.0], [3.0, 8.0], [5.0, 1.0]]
STARTS = [[True, True], [False, False], [True, False], [False, True]]


def test_credits_of_whole_episodes_by_hand():
    one = buffer(REWARDS, STARTS)
    one.compute_returns_and_advantage(torch.zeros(2), np.array([True, False]))
    # The first copy plays (1, 2) and (3, 5), the second (4, 0, 8) and a step whose episode is cut.
    first, second, third = (3 + 8 + 12) / 3, (2 + 5 + 8) / 3, 8.0
    expected = [[3 - first, 12 - first], [2 - second, 8 - second], [8 - first, 8 - third], [5 - second, 0.0]]
    np.testing.assert_allclose(one.data["advantages"], expected, rtol=1e-6)


def test_one_step_credits_by_hand():
    one = buffer(REWARDS, STARTS, gamma=0.0)
    one.compute_returns_and_advantage(torch.zeros(2), np.array([True, True]))
    first, second = (1 + 4 + 3 + 1) / 4, (2 + 0 + 5) / 3
    expected = [[1 - first, 4 - first], [2 - second, 0 - second], [3 - first, 0.0], [5 - second, 1 - first]]
    np.testing.assert_allclose(one.data["advantages"], expected, rtol=1e-6)


def test_credits_sum_to_nothing_at_every_time_step():
    learner = build(Picks(traps(), 4), n_steps=8, n_envs=32)
    _, callback = learner._setup_learn(1)
    learner.collect_rollouts(learner.env, callback, learner.rollout_buffer, 8)
    data = learner.rollout_buffer.data
    assert data["advantages"].std() > 0.1
    torch.testing.assert_close(data["advantages"].view(2, 4, 32).sum((0, 2)), torch.zeros(4), atol=1e-4, rtol=0)
    assert torch.equal(data["returns"][0], data["rewards"][:4].sum(0))  # gains telescope to F of the trajectory


def test_the_step_is_the_gradient_of_reinforce():
    learner = build(Picks(traps(), 3, masked=False), n_steps=3, learning_rate=0.1, ent_coef=0.0)
    learner.policy.optimizer = torch.optim.SGD(learner.policy.parameters(), 0.1)
    learner.normalize_advantage, learner.max_grad_norm = False, math.inf
    _, callback = learner._setup_learn(1)
    learner.collect_rollouts(learner.env, callback, learner.rollout_buffer, 3)
    data = learner.rollout_buffer.data
    logits = learner.policy.get_distribution(data["observations"].flatten(0, 1)).distribution.logits
    chosen = logits.gather(1, data["actions"].flatten(0, 1).long()).view(3, 64)
    loss = -(data["advantages"] * chosen).mean()
    names = [name for name, _ in learner.policy.named_parameters() if "action" in name or "policy" in name]
    before = [learner.policy.get_parameter(name).detach().clone() for name in names]
    expected = torch.autograd.grad(loss, [learner.policy.get_parameter(name) for name in names])
    learner.train()
    for name, old, gradient in zip(names, before, expected, strict=True):
        torch.testing.assert_close(learner.policy.get_parameter(name), old - 0.1 * gradient, atol=1e-6, rtol=1e-5)


def test_there_is_no_critic():
    learner = build(Picks(traps(), 4)).learn(4 * 64 * 5)
    assert not any(parameter.any() for parameter in learner.policy.value_net.parameters())
    assert not learner.rollout_buffer.values.any()


def test_what_the_roll_outs_end_cuts_is_thrown_away():
    learner = build(Picks(traps(), 3), n_steps=4)
    for _ in range(2):
        learner.learn(4 * 64, reset_num_timesteps=False)
        starts = learner.rollout_buffer.data["episode_starts"]
        assert starts[[0, 3]].all()
        assert not starts[[1, 2]].any()
        assert not learner.rollout_buffer.data["advantages"][3].any()


# ---- masks


@pytest.mark.parametrize("wrap", [lambda env: env, VecMonitor], ids=["tensors", "arrays"])
def test_masked_actions_are_never_taken(wrap):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        env = wrap(SB3VecEnv(Picks(traps(), 6), 32, seed=0))
    SubPO("MlpPolicy", env, n_steps=6, seed=0, device="cpu").learn(6 * 32 * 5)  # the world would raise


def test_training_sees_the_masks_of_the_roll_out():
    learner = build(Picks(traps(), 4), n_envs=16)
    learner.learn(4 * 16)  # the first gradient step was taken after these log-probabilities
    fresh = build(Picks(traps(), 4), n_envs=16)
    _, callback = fresh._setup_learn(1)
    fresh.collect_rollouts(fresh.env, callback, fresh.rollout_buffer, 4)
    for samples in fresh.rollout_buffer.get(7):
        batch = fresh._evaluate(samples)
        torch.testing.assert_close(batch.log_prob, samples.old_log_prob)
        allowed = (samples.observations < 0).sum(1)  # the view shows an item that is not taken as -1
        assert (batch.entropy <= allowed.log() + 1e-5).all()
    assert learner.logger.name_to_value["train/approx_kl"] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("tensor", [True, False])
def test_predict_respects_masks(tensor):
    learner = build(Picks(traps(), 4))
    observation = torch.zeros(200, 6)
    masks = torch.zeros(200, 6, dtype=torch.bool)
    masks[:, [1, 4]] = True
    action, _ = learner.predict(observation if tensor else observation.numpy(), action_masks=masks)
    assert set(np.asarray(action).tolist()) == {1, 4}
    free, _ = learner.predict(observation if tensor else observation.numpy())
    assert len(set(np.asarray(free).tolist())) > 2


# ---- it learns


def test_finds_the_cover_that_greedy_misses():
    world = Picks(traps(), 2)
    assert greedy(world.function, 2).gains.sum() == 10  # 7, then 3 of the others
    learner = build(world, n_steps=2, n_envs=128, learning_rate=1e-2)
    learner.learn(2 * 128 * 80)
    assert np.mean([episode["r"] for episode in learner.ep_info_buffer]) > 11.5


def test_learns_the_corridor():
    learner = build(Corridor(n=6), n_steps=24, horizon=12, learning_rate=1e-2).learn(24 * 64 * 30)
    action, _ = learner.predict(torch.arange(1, 5), deterministic=True)
    assert action.tolist() == [1, 1, 1, 1]


def covered(credit: str = "return", modular: bool = False, seed: int = 0) -> float:
    """Mean number of cells that the trained policy covers."""
    env = SB3VecEnv(Grid(modular=modular), 256, observation_range=(0.0, 1.0), seed=seed)
    learner = SubPO(
        "MlpPolicy",
        env,
        n_steps=30,
        credit=credit,
        learning_rate=1e-2,
        ent_coef=0.0,
        policy_kwargs={"net_arch": [64]},
        seed=seed,
        device="cpu",
    )
    learner.learn(120 * 256 * 30)
    obs = env.reset_tensor()
    for _ in range(30):
        step = env.step_tensor(learner.predict(obs)[0])
        obs = step.obs
    return float(step.info["count"].float().mean())


@pytest.mark.slow
def test_covers_the_grid_as_published():
    """10 x 10 cells, H = 30: about 82 covered with returns, 58 with one-step gains, 11 with a modular reward."""
    returns = [covered(seed=seed) for seed in range(3)]
    one_step = [covered("one_step", seed=seed) for seed in range(3)]
    modular = [covered(modular=True, seed=seed) for seed in range(3)]
    assert np.mean(returns) > 78
    assert 45 < np.mean(one_step) < 72
    assert np.mean(modular) < 20
    assert min(returns) > max(one_step)
    assert min(one_step) > max(modular)


# ---- files and refusals


def test_save_and_load_round_trip(tmp_path):
    learner = build(Picks(traps(), 4), credit="one_step").learn(4 * 64 * 2)
    learner.save(tmp_path / "model")
    loaded = SubPO.load(tmp_path / "model", learner.env, device="cpu")
    assert loaded.credit == "one_step"
    assert loaded.gamma == 0.0
    assert loaded.n_steps == 4
    assert torch.equal(parameters(loaded), parameters(learner))


def test_a_resumed_training_equals_an_uninterrupted_one(tmp_path):
    path, total = tmp_path / "state", 3 * 5 * 64
    world = Picks(traps(), 3)
    whole = build(world, n_steps=5).learn(2 * total)
    stopped = build(world, n_steps=5)
    stopped.learn(total)
    stopped.learn(5 * 64, callback=ResumeCallback(path, 0.0), reset_num_timesteps=False)  # saved before this
    resumed = build(world, n_steps=5, seed=1)
    resumed.restore_state(path)
    assert resumed.num_timesteps == total
    resumed.learn(total, reset_num_timesteps=False)
    assert torch.equal(parameters(resumed), parameters(whole))


def test_refusals():
    with pytest.raises(InputError, match="credit: 'both'; allowed: return, one_step"):
        build(Picks(traps(), 4), credit="both")
    box = spaces.Box(-1, 1, (1,))
    with pytest.raises(InputError, match="observation_space: Dict"):
        WholeEpisodes(3, spaces.Dict({"x": box}), box, device="cpu")
    with pytest.raises(InputError, match="n_steps: 3, no episode ended"):
        build(Picks(traps(), 4), n_steps=3).learn(1)

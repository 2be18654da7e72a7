"""The dual clip bounds the loss of bad actions; normalised returns have unit spread whatever the reward's unit."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from stable_baselines3.common.vec_env import VecMonitor

from core.errors import InputError
from core.rl import PPO, DualClipPPO, Minibatch, ResumeCallback
from core.rl.dual_clip import _pooled
from core.simulation import SB3VecEnv
from tests.core.test_ppo import build, one_thread, parameters, roll_out  # noqa: F401 (one_thread is a fixture)
from tests.core.worlds import Drift

STEPS = 32 * 64


@dataclass(frozen=True)
class Paid(Drift):
    """The drift, paid in another unit."""

    unit: float = 1.0

    def step(self, state, action, noise):
        step = super().step(state, action, noise)
        return replace(step, reward=step.reward * self.unit)


def minibatch(ratio, advantages):
    ratio = torch.tensor(ratio, requires_grad=True)
    none = torch.zeros(0)
    return Minibatch(SimpleNamespace(), torch.tensor(advantages), none, none, None, ratio)


def test_without_clip_and_scale_it_is_ppo():
    plain = build(PPO).learn(2 * STEPS)
    assert torch.equal(
        parameters(plain), parameters(build(DualClipPPO, dual_clip=None, normalize_returns=False).learn(2 * STEPS))
    )
    # Ratios near 1 never meet the bound.
    assert torch.equal(
        parameters(plain), parameters(build(DualClipPPO, dual_clip=1e6, normalize_returns=False).learn(2 * STEPS))
    )


def test_the_objective_by_hand():
    learner = build(DualClipPPO, dual_clip=5.0, clip_range=0.2)
    batch = minibatch([9.0, 3.0, 0.5, 9.0, 1.1], [-1.0, -2.0, -1.0, 2.0, 1.0])
    loss = learner.policy_loss(batch)
    # Bounded at 5 A; min(3 A, 1.2 A); min(.5 A, .8 A); clipped at 1.2 A; untouched.
    assert loss.item() == pytest.approx(-np.mean([-5.0, -6.0, -0.8, 2.4, 1.1]), rel=1e-6)
    (gradient,) = torch.autograd.grad(loss, batch.ratio)
    torch.testing.assert_close(gradient, -torch.tensor([0.0, -2.0, 0.0, 0.0, 1.0]) / 5)


def test_running_moments_equal_those_of_all_returns():
    parts = [np.random.default_rng(i).normal(i, 1 + i, 7 + i) for i in range(4)]
    moments = [0.0, 0.0, 1.0]
    for part in parts:
        moments = _pooled(moments, len(part), part.mean(), part.var())
    everything = np.concatenate(parts)
    np.testing.assert_allclose(moments, [len(everything), everything.mean(), everything.var()])


def test_the_unit_of_the_reward_cancels():
    """After the first roll-out, which sets the scale, the critic's targets do not depend on the unit."""
    options = {"n_epochs": 1, "batch_size": STEPS, "learning_rate": 0.0, "horizon": 20}
    learners = [build(DualClipPPO, Paid(unit=unit), **options).learn(2 * STEPS) for unit in (1.0, 1000.0)]
    one, thousand = (learner.rollout_buffer.data["returns"] for learner in learners)
    assert learners[1].return_moments[2] == pytest.approx(1e6 * learners[0].return_moments[2], rel=0.05)
    # The critic's own values, which bootstrap the time-outs, had another unit in the first roll-out.
    assert one.std() == pytest.approx(thousand.std().item(), rel=0.1)
    assert 0.5 < thousand.std() < 2


def test_rewards_are_divided_by_the_spread_of_earlier_returns():
    a = roll_out(build(PPO, Drift(), horizon=None))
    learner = build(DualClipPPO, Drift(), horizon=None)
    learner.return_moments = [10.0, 3.0, 16.0]
    b = roll_out(learner)
    np.testing.assert_allclose(a["rewards"] / 4, b["rewards"], rtol=1e-6)
    assert np.array_equal(a["values"], b["values"])


@pytest.mark.filterwarnings("ignore:The environment is already wrapped")
def test_sb3s_loop_scales_rewards_but_not_the_values_after_a_time_limit():
    options = {"n_steps": 32, "batch_size": 256, "seed": 0, "device": "cpu"}
    learners = []
    for wrap in (lambda env: env, VecMonitor):
        learner = DualClipPPO("MlpPolicy", wrap(SB3VecEnv(Paid(), 64, horizon=5)), **options)
        learner.return_moments = [10.0, 3.0, 400.0]
        learners.append((learner, roll_out(learner)))
    (ours, a), (theirs, b) = learners
    assert [e["l"] for e in theirs.ep_info_buffer].count(5) > 10
    for name in ("rewards", "values", "returns"):
        np.testing.assert_allclose(a[name], b[name], atol=1e-5)
    for learner in (ours, theirs):
        learner.train()
    assert theirs.return_moments == pytest.approx(ours.return_moments, rel=1e-4)


def test_it_is_saved_loaded_and_resumed_with_its_moments(tmp_path):
    whole = build(DualClipPPO, dual_clip=3.0).learn(4 * STEPS)
    whole.save(tmp_path / "model")
    loaded = PPO.load(tmp_path / "model", device="cpu")
    assert (type(loaded), loaded.dual_clip, loaded.normalize_returns) == (DualClipPPO, 3.0, True)
    assert loaded.return_moments == whole.return_moments
    assert whole.return_moments[0] == 4 * STEPS
    stopped = build(DualClipPPO, dual_clip=3.0).learn(2 * STEPS)
    stopped.learn(STEPS, callback=ResumeCallback(tmp_path / "state", 0.0), reset_num_timesteps=False)
    resumed = build(DualClipPPO, dual_clip=3.0, seed=1)
    resumed.restore_state(tmp_path / "state")
    resumed.learn(2 * STEPS, reset_num_timesteps=False)
    assert torch.equal(parameters(resumed), parameters(whole))


@pytest.mark.parametrize("factor", [1.0, 0.0, float("nan")])
def test_impossible_bounds_are_refused(factor):
    with pytest.raises(InputError, match="dual_clip"):
        build(DualClipPPO, dual_clip=factor)

"""Masks: forbidden actions have probability 0 where the policy takes masks, and change nothing where it does not."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import EventCallback
from stable_baselines3.common.vec_env import VecMonitor

from core.errors import InputError
from core.rl import PPO, KLPenaltyPPO, LearnedPolicy, SubPO
from core.simulation import SB3VecEnv, Step
from tests.core.test_ppo import build, one_thread, parameters  # noqa: F401 (one_thread is a fixture)
from tests.core.test_subpo import Picks, traps
from tests.core.worlds import Cell, Corridor


def masked(world=None, algorithm=PPO, n_envs=32, wrap=lambda env: env, **options):
    env = wrap(SB3VecEnv(world or Picks(traps(), 6), n_envs, seed=0))
    options = {"n_steps": 6, "batch_size": 64, "n_epochs": 2, "seed": 0, "device": "cpu"} | options
    return algorithm("MaskedMlpPolicy", env, **options)


@pytest.mark.parametrize("wrap", [lambda env: env, VecMonitor], ids=["tensors", "arrays"])
@pytest.mark.parametrize("algorithm", [PPO, KLPenaltyPPO])
def test_masked_actions_are_never_taken(wrap, algorithm):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        masked(wrap=wrap, algorithm=algorithm).learn(6 * 32 * 3)  # the world would raise


@dataclass(frozen=True)
class Pair(Corridor):
    """Two agents in a corridor each, which do not meet."""

    agents: int = 2

    def reset(self, batch, generator):
        return Cell(torch.ones(batch, 2, dtype=torch.int64, device=generator.device))

    def step(self, state, action, noise):
        step = super().step(Cell(state.cell.flatten()), action.flatten(), noise)
        reward, over = step.reward.view_as(state.cell), step.terminated.view_as(state.cell)
        return Step(Cell(step.state.cell.view_as(state.cell).clamp(max=self.n - 1)), reward, over.all(1), {})

    def action_mask(self, state):
        return super().action_mask(Cell(state.cell.flatten())).view(-1, 2, 3)


def test_each_agent_has_a_mask_of_its_own():
    options = {"n_steps": 16, "batch_size": 64, "n_epochs": 1, "seed": 0, "device": "cpu"}
    learner = PPO("MaskedMlpPolicy", SB3VecEnv(Pair(n=9), 8, horizon=40), **options).learn(16 * 16 * 3)
    data = learner.rollout_buffer.data
    at_the_left, left = data["observations"][..., 0] == 0, data["actions"][..., 0] == 0
    assert at_the_left.any()
    assert left.any()
    assert not (at_the_left & left).any()


def test_plain_policies_ignore_the_mask():
    with pytest.raises(AssertionError, match="a masked action was taken"):
        build(PPO, Picks(traps(), 6), n_steps=6, batch_size=48).learn(6 * 64)


@dataclass(frozen=True)
class Free(Corridor):
    """The corridor, with a mask that forbids nothing."""

    def action_mask(self, state):
        return torch.ones(len(state.cell), 3, dtype=torch.bool, device=state.cell.device)


def test_a_mask_that_forbids_nothing_changes_nothing():
    plain = build(PPO, Free()).learn(32 * 64)
    free = PPO("MaskedMlpPolicy", SB3VecEnv(Free(), 64, horizon=200), n_steps=32, batch_size=256, n_epochs=3, seed=0)
    assert torch.equal(parameters(plain), parameters(free.learn(32 * 64)))


def test_training_sees_the_masks_of_the_roll_out():
    learner = masked(Picks(traps(), 4), n_steps=4)
    _, callback = learner._setup_learn(1)
    learner.collect_rollouts(learner.env, callback, learner.rollout_buffer, 4)
    for samples in learner.rollout_buffer.get(7):
        batch = learner._evaluate(samples)
        free = samples.observations < 0  # the view shows an item that is not taken as -1
        assert torch.equal(batch.mask, free)
        torch.testing.assert_close(batch.log_prob, samples.old_log_prob)
        assert (batch.entropy <= free.sum(1).log() + 1e-5).all()


def test_the_divergence_is_that_of_the_masked_policies():
    learner = masked(algorithm=KLPenaltyPPO, kl_coef=1.0)
    _, callback = learner._setup_learn(1)
    learner.collect_rollouts(learner.env, callback, learner.rollout_buffer, 6)
    learner._old_policy, learner._divergences = copy.deepcopy(learner.policy), []
    for samples in learner.rollout_buffer.get(64):
        learner.policy_loss(learner._evaluate(samples))
    assert torch.stack(learner._divergences).abs().max() < 1e-6  # of a policy to itself


class Ask(EventCallback):
    """Predicts without masks in the middle of a roll-out, as an evaluation does."""

    def _on_step(self):
        action, _ = self.model.predict(torch.zeros(300, 6))
        self.seen = getattr(self, "seen", set()) | set(action.tolist())
        return True


def test_predicting_within_a_roll_out_disturbs_nothing():
    callback = Ask()
    learner = masked(n_envs=32).learn(6 * 32, callback=callback)
    assert callback.seen == set(range(6))
    assert learner.policy.mask is None


def test_predict_respects_masks_and_policies_without_them_refuse():
    learner = masked()
    masks = torch.zeros(200, 6, dtype=torch.bool)
    masks[:, [1, 4]] = True
    for observation in (torch.zeros(200, 6), np.zeros((200, 6), np.float32)):
        action, _ = learner.predict(observation, action_masks=masks)
        assert set(np.asarray(action).tolist()) == {1, 4}
    with pytest.raises(InputError, match="policy: ActorCriticPolicy takes no masks; allowed: one derived from Masked"):
        build(PPO, Corridor()).predict(torch.zeros(3, dtype=torch.long), action_masks=torch.ones(3, 3))


def test_a_learned_policy_hands_over_the_worlds_mask():
    world = Picks(traps(), 6)
    policy = LearnedPolicy(masked(world), world)
    state = world.reset(16, torch.Generator())
    for _ in range(6):
        state = world.step(state, policy(world.observe(state, None), state), None).state  # the world would raise
    assert state.taken.all()


def test_a_masked_model_is_loaded_as_such(tmp_path):
    learner = masked().learn(6 * 32)
    learner.save(tmp_path / "model")
    loaded = PPO.load(tmp_path / "model", device="cpu")
    assert loaded.takes_masks
    assert torch.equal(parameters(loaded), parameters(learner))
    assert not build(PPO, Corridor()).takes_masks
    assert SubPO("MlpPolicy", learner.env, n_steps=6, device="cpu").takes_masks

"""``learn`` calls further callbacks before it keeps the state, and heeds one that ends the training."""

import torch
from stable_baselines3.common.callbacks import BaseCallback

from core.rl.training import learn
from tests.core.test_dqn import ROWS, build
from tests.core.test_ppo import one_thread, parameters  # noqa: F401 (one_thread is a fixture)

ROLLOUT = 2 * ROWS
TOTAL = 10 * ROLLOUT


class Noted(BaseCallback):
    """Notes at the beginning of each roll-out the steps done and whether the state was kept; may end the training."""

    def __init__(self, checkpoint, last=TOTAL):
        super().__init__()
        self.checkpoint, self.last, self.calls = checkpoint, last, []

    def _on_rollout_start(self):
        self.calls.append((self.model.num_timesteps, self.checkpoint.exists()))

    def _on_step(self):
        return self.model.num_timesteps < self.last


def test_further_callbacks_come_before_the_state_is_kept(tmp_path):
    checkpoint = tmp_path / "state.safetensors"
    noted = Noted(checkpoint, last=2 * TOTAL)
    learn(build(), TOTAL, checkpoint=checkpoint, callbacks=[noted])
    assert [steps for steps, _ in noted.calls] == list(range(0, TOTAL, ROLLOUT))
    assert [kept for _, kept in noted.calls] == [False] + [True] * 9


def test_a_callback_may_end_the_training_whose_state_is_kept(tmp_path):
    checkpoint = tmp_path / "state.safetensors"
    ended, again = build(), build(seed=5)
    learn(ended, TOTAL, checkpoint=checkpoint, callbacks=[Noted(checkpoint, last=4 * ROLLOUT)])
    assert ended.num_timesteps == 4 * ROLLOUT
    again.restore_state(checkpoint)
    assert again.num_timesteps == 4 * ROLLOUT
    assert torch.equal(parameters(again), parameters(ended))

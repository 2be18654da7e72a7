"""PPO with a bound on what a bad action can cost, and returns of unit spread."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from torch import Tensor

from core.errors import InputError
from core.rl.buffers import Array, TensorRolloutBuffer
from core.rl.ppo import PPO, Minibatch
from core.simulation.sb3_vec_env import SB3VecEnv

_EPSILON = 1e-8  # keeps the scale finite where all returns are equal


class ScaledRewards(TensorRolloutBuffer):
    """A roll-out in which every reward is stored times ``scale``, and with it all that follows from rewards."""

    scale: float = 1.0

    def add(
        self, obs: Array, action: Array, reward: Array, episode_start: Array, value: Tensor, log_prob: Tensor
    ) -> None:
        """Store one step of all environments."""
        super().add(obs, action, torch.as_tensor(reward) * self.scale, episode_start, value, log_prob)


class _Scaled(VecEnvWrapper):
    """The same for SB3's loop, which adds the critic's value after a time limit to a reward before it stores it."""

    def __init__(self, venv: VecEnv, scale: float) -> None:
        super().__init__(venv)
        self.scale = scale

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        obs, rewards, dones, infos = self.venv.step_wait()
        return obs, rewards * self.scale, dones, infos


class DualClipPPO(PPO):
    """PPO whose surrogate objective is bounded below where the advantage is negative (Ye et al. 2020, eq. 3).

    With advantage A, ratio r and clip range e the objective of a sample is min(r A, clip(r, 1 - e, 1 + e) A), and
    where A < 0 at least ``dual_clip * A``: an action that has become far more probable pulls with a finite weight.

    With ``normalize_returns`` the critic learns returns divided by their running standard deviation over all earlier
    roll-outs. Rewards are divided by it as they are stored, which by linearity does the same to returns and advantages.

    Args:
        policy: as for ``PPO``, like all that is not named here.
        env: as for ``PPO``.
        dual_clip: the bound's factor; None is PPO.
        normalize_returns: see above.
        **options: as for ``PPO``.

    Attributes:
        return_moments: number, mean and variance of the returns seen so far, in the units of the reward.

    Raises:
        InputError: a factor that is not above 1.
    """

    saved_arguments: ClassVar[tuple[str, ...]] = (*PPO.saved_arguments, "dual_clip", "normalize_returns")
    resumed_attributes: ClassVar[tuple[str, ...]] = (*PPO.resumed_attributes, "return_moments")
    rollout_buffer: ScaledRewards

    def __init__(
        self,
        policy: Any,
        env: Any,
        *,
        dual_clip: float | None = 5.0,
        normalize_returns: bool = True,
        **options: Any,
    ) -> None:
        if dual_clip is not None and not dual_clip > 1:
            raise InputError(f"dual_clip: {dual_clip}; allowed: greater than 1, or None")
        self.dual_clip, self.normalize_returns = dual_clip, normalize_returns
        self.return_moments: list[float] = [0.0, 0.0, 1.0]
        self._scale = 1.0
        super().__init__(policy, env, rollout_buffer_class=ScaledRewards, **options)

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """Fill the buffer with rewards in units of the returns' spread."""
        if self.normalize_returns:
            self._scale = 1 / math.sqrt(self.return_moments[2] + _EPSILON)
            on_device = isinstance(env, SB3VecEnv)
            self.rollout_buffer.scale = self._scale if on_device else 1.0
            env = env if on_device else _Scaled(env, self._scale)
        return super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)

    def policy_loss(self, batch: Minibatch) -> Tensor:
        """The doubly clipped surrogate objective, negated."""
        if self.dual_clip is None:
            return super().policy_loss(batch)
        clip, advantages = self._clip_range(), batch.advantages
        clipped = torch.clamp(batch.ratio, 1 - clip, 1 + clip)
        objective = torch.min(advantages * batch.ratio, advantages * clipped)
        bounded = torch.max(objective, self.dual_clip * advantages)
        return -torch.where(advantages < 0, bounded, objective).mean()

    def train(self) -> None:
        """``PPO.train``; the returns of this roll-out count for the scale of the next."""
        super().train()
        if self.normalize_returns:
            returns = self.rollout_buffer.data["returns"].double() / self._scale
            variance, mean = torch.var_mean(returns, correction=0)
            self.return_moments = _pooled(self.return_moments, returns.numel(), float(mean), float(variance))


def _pooled(moments: list[float], number: int, mean: float, variance: float) -> list[float]:
    """Number, mean and variance of two samples together (Chan et al. 1983)."""
    before, old_mean, old_variance = moments
    total = before + number
    shift = mean - old_mean
    spread = (before * old_variance + number * variance + shift**2 * before * number / total) / total
    return [total, old_mean + shift * number / total, spread]

"""Proximal policy optimisation on the device of a batched simulator."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import stable_baselines3
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import RolloutBufferSamples
from stable_baselines3.common.utils import explained_variance
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor
from torch.nn import functional

from core.rl.algorithm import DeviceAlgorithm, TrainingDiverged
from core.rl.buffers import TensorRolloutBuffer
from core.rl.masks import MaskedCnnPolicy, MaskedPolicy, masked_rollout, masking
from core.rl.rollout import collect
from core.rl.unvalidated import unvalidated
from core.simulation.sb3_vec_env import SB3VecEnv


@dataclass(frozen=True)
class Minibatch:
    """What the loss hooks read; N samples.

    Attributes:
        samples: the stored observations, actions, old values, old log-probabilities, advantages and returns.
        advantages: ``(N,)``, normalised within the minibatch if the algorithm does so.
        values: ``(N,)`` of the present critic.
        log_prob: ``(N,)`` of the stored actions under the present policy.
        entropy: ``(N,)`` of the present policy, None where it has no closed form.
        ratio: ``(N,)``, present over old probability of the stored actions.
        mask: ``(N, actions)`` bool, the actions that were allowed; None without masks.
    """

    samples: RolloutBufferSamples
    advantages: Tensor
    values: Tensor
    log_prob: Tensor
    entropy: Tensor | None
    ratio: Tensor
    mask: Tensor | None = None


class PPO(DeviceAlgorithm, stable_baselines3.PPO):
    """Stable-Baselines3's PPO (Schulman et al. 2017) with roll-outs and buffer on the device.

    Constructor, ``learn``, ``predict``, callbacks and results are SB3's: with an ``SB3VecEnv`` the same numbers come
    out as SB3's own loop gives, with any other environment that loop runs. A variant replaces ``policy_loss`` or
    ``value_loss``.

    The policies ``MaskedMlpPolicy`` and ``MaskedCnnPolicy`` (and what derives from ``MaskedPolicy``) give the actions
    that the environment masks probability 0, in roll-outs and in training; SB3's own policies ignore masks.

    Raises:
        InputError: VecNormalize, Dict observations from an ``SB3VecEnv``, or masks that the buffer cannot keep.
    """

    policy_aliases: ClassVar[dict[str, type[Any]]] = {
        **stable_baselines3.PPO.policy_aliases,
        "MaskedMlpPolicy": MaskedPolicy,
        "MaskedCnnPolicy": MaskedCnnPolicy,
    }

    saved_arguments: ClassVar[tuple[str, ...]] = (
        *("learning_rate", "n_steps", "batch_size", "n_epochs", "gamma", "gae_lambda", "clip_range", "clip_range_vf"),
        *("normalize_advantage", "ent_coef", "vf_coef", "max_grad_norm", "use_sde", "sde_sample_freq", "target_kl"),
        *("stats_window_size", "tensorboard_log", "policy_kwargs", "verbose", "seed"),
    )

    def _setup_model(self) -> None:
        on_device = isinstance(self.env, SB3VecEnv)
        if self.rollout_buffer_class is None and (on_device or not isinstance(self.observation_space, spaces.Dict)):
            self.rollout_buffer_class = TensorRolloutBuffer
        super()._setup_model()

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """Fill the buffer: on the device for an ``SB3VecEnv``, else by SB3's loop."""
        with masked_rollout(self.policy, env, rollout_buffer):
            if isinstance(env, SB3VecEnv) and isinstance(rollout_buffer, TensorRolloutBuffer):
                return collect(self, env, callback, rollout_buffer, n_rollout_steps)
            return super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)

    @property
    def takes_masks(self) -> bool:
        """Whether the policy heeds masks."""
        return isinstance(self.policy, MaskedPolicy)

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = False,
        action_masks: Tensor | np.ndarray | None = None,
    ) -> tuple[Any, Any]:
        """SB3's ``predict``, also from tensors to tensors.

        ``action_masks`` ``(n, actions)`` says what is allowed, as in sb3-contrib.

        Raises:
            InputError: masks for a policy that takes none.
        """
        if action_masks is not None:
            action_masks = torch.as_tensor(action_masks, device=self.device)
            action_masks = action_masks.reshape(-1, action_masks.shape[-1]).bool()
        with masking(self.policy, action_masks):
            return super().predict(observation, state, episode_start, deterministic)

    def policy_loss(self, batch: Minibatch) -> Tensor:
        """The clipped surrogate objective, negated (Schulman et al. 2017, eq. 7)."""
        clip = self._clip_range()
        clipped = torch.clamp(batch.ratio, 1 - clip, 1 + clip)
        return -torch.min(batch.advantages * batch.ratio, batch.advantages * clipped).mean()

    def value_loss(self, batch: Minibatch) -> Tensor:
        """Mean squared error against the TD(lambda) returns, its step clipped if ``clip_range_vf`` is set."""
        values, old = batch.values, batch.samples.old_values
        if self.clip_range_vf is not None:
            clip = self.clip_range_vf(self._current_progress_remaining)  # type: ignore[operator]
            values = old + torch.clamp(values - old, -clip, clip)
        return functional.mse_loss(batch.samples.returns, values)

    @unvalidated()
    def train(self) -> None:
        """Several epochs of minibatch gradient steps on the roll-out, as SB3's ``PPO.train``.

        Raises:
            TrainingDiverged: a loss or a parameter is no longer finite; the parameters and the optimiser are those
                from before this call.
        """
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        good = copy.deepcopy((self.policy.state_dict(), self.policy.optimizer.state_dict()))
        log: list[dict[str, Tensor]] = []
        epoch_start = 0
        for _ in range(self.n_epochs):
            epoch_start = len(log)
            in_trust_region = all(self._update(samples, log) for samples in self.rollout_buffer.get(self.batch_size))
            self._n_updates += 1
            if not in_trust_region:
                break
        parameters = torch.nn.utils.parameters_to_vector(self.policy.parameters())
        if not bool(torch.isfinite(log[-1]["loss"] + parameters.sum())):
            self.policy.load_state_dict(good[0])
            self.policy.optimizer.load_state_dict(good[1])
            raise TrainingDiverged(
                f"a loss or parameter is not finite after {self.num_timesteps} steps; last good parameters restored"
            )
        self._record(log, epoch_start)

    def _update(self, samples: RolloutBufferSamples, log: list[dict[str, Tensor]]) -> bool:
        """One gradient step; False, and no step, if the policy has moved beyond ``target_kl``."""
        batch = self._evaluate(samples)
        policy_loss, value_loss = self.policy_loss(batch), self.value_loss(batch)
        entropy_loss = torch.mean(batch.log_prob) if batch.entropy is None else -torch.mean(batch.entropy)
        loss = policy_loss + self.ent_coef * entropy_loss + self.vf_coef * value_loss
        with torch.no_grad():
            log_ratio = batch.log_prob - samples.old_log_prob
            approx_kl = torch.mean(batch.ratio - 1 - log_ratio)
            clip_fraction = torch.mean((torch.abs(batch.ratio - 1) > self._clip_range()).float())
        log.append(
            {
                "policy_gradient_loss": policy_loss.detach(),
                "value_loss": value_loss.detach(),
                "entropy_loss": entropy_loss.detach(),
                "approx_kl": approx_kl,
                "clip_fraction": clip_fraction,
                "loss": loss.detach(),
            }
        )
        if self.target_kl is not None and approx_kl > 1.5 * self.target_kl:
            return False
        self.policy.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
        self.policy.optimizer.step()
        return True

    def _evaluate(self, samples: RolloutBufferSamples) -> Minibatch:
        actions = samples.actions
        if isinstance(self.action_space, spaces.Discrete):
            actions = actions.long().flatten()
        # An environment of SB3's with Dict observations has SB3's own buffer, which knows no masks.
        mask = getattr(self.rollout_buffer, "minibatch_masks", None)
        with masking(self.policy, mask):
            values, log_prob, entropy = self.policy.evaluate_actions(samples.observations, actions)
        advantages = samples.advantages
        if self.normalize_advantage and len(advantages) > 1:
            advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        ratio = torch.exp(log_prob - samples.old_log_prob)
        return Minibatch(samples, advantages, values.flatten(), log_prob, entropy, ratio, mask)

    def _clip_range(self) -> float:
        return self.clip_range(self._current_progress_remaining)  # type: ignore[operator]

    def _record(self, log: list[dict[str, Tensor]], epoch_start: int) -> None:
        """Log what SB3 logs, under its names, waiting for the device once."""
        for name in ("policy_gradient_loss", "value_loss", "entropy_loss", "clip_fraction"):
            self.logger.record(f"train/{name}", float(torch.stack([entry[name] for entry in log]).mean()))
        last_epoch = torch.stack([entry["approx_kl"] for entry in log[epoch_start:]])
        self.logger.record("train/approx_kl", float(last_epoch.mean()))
        self.logger.record("train/loss", float(log[-1]["loss"]))
        buffer: Any = self.rollout_buffer
        variance = explained_variance(np.ravel(buffer.values), np.ravel(buffer.returns))
        self.logger.record("train/explained_variance", variance)
        if hasattr(self.policy, "log_std"):
            self.logger.record("train/std", float(torch.exp(self.policy.log_std.detach()).mean()))
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("train/clip_range", self._clip_range())
        if self.clip_range_vf is not None:
            clip_range_vf = self.clip_range_vf(self._current_progress_remaining)  # type: ignore[operator]
            self.logger.record("train/clip_range_vf", clip_range_vf)

"""The roll-out of an on-policy learner in a batched simulator, without a copy to the host."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, overload

import torch
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, ConvertCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from torch import Tensor

from core.rl.buffers import TensorRolloutBuffer
from core.rl.unvalidated import unvalidated
from core.simulation import tree
from core.simulation.episodes import VecStep
from core.simulation.sb3_vec_env import SB3VecEnv


class LazyInfos(Sequence[dict[str, Any]]):
    """SB3's infos of one step, each dict made when it is asked for."""

    def __init__(self, env: SB3VecEnv, step: VecStep) -> None:
        self._env, self._step = env, step
        self._made: dict[int, dict[str, Any]] = {}

    def __len__(self) -> int:
        return self._env.num_envs

    @overload
    def __getitem__(self, row: int) -> dict[str, Any]: ...

    @overload
    def __getitem__(self, row: slice) -> list[dict[str, Any]]: ...

    def __getitem__(self, row: int | slice) -> Any:
        """The info of one row (or of several); the same dict every time."""
        if isinstance(row, slice):
            return [self[i] for i in range(*row.indices(len(self)))]
        row = range(len(self))[row]
        if row not in self._made:
            self._made[row] = self._env.row_info(self._step, row)
        return self._made[row]


class EndedEpisodes:
    """The episodes that ended in a roll-out, kept on the device until it is over."""

    def __init__(self, env: SB3VecEnv) -> None:
        self._agents = env.simulator.agents
        self._steps: list[tuple[Tensor, ...]] = []

    def add(self, step: VecStep) -> None:
        """Note the episodes that end in this step."""
        done = (step.terminated | step.truncated)[:: self._agents]
        success = (step.info["is_success"],) if "is_success" in step.info else ()
        self._steps.append((done, step.episode_return, step.episode_length, *success))

    def push(self, model: OnPolicyAlgorithm) -> None:
        """Append them, oldest first, to the learner's windows of statistics."""
        if not self._steps or model.ep_info_buffer is None or model.ep_success_buffer is None:
            return
        done, *columns = (torch.cat(column) for column in zip(*self._steps, strict=True))
        last = done.nonzero().flatten()[-model._stats_window_size :]
        returns, lengths, *success = (column[last].tolist() for column in columns)
        elapsed = round((time.time_ns() - model.start_time) / 1e9, 6)
        for total, length in zip(returns, lengths, strict=True):
            model.ep_info_buffer.append({"r": total, "l": length, "t": elapsed})
        model.ep_success_buffer.extend(success[0] if success else ())


class TimeOuts:
    """The episodes cut short in a roll-out, whose rest is worth what the critic says of their last observations.

    The critic does not change during a roll-out, so that one call at its end serves all of them.
    """

    def __init__(self) -> None:
        self._steps: list[tuple[Tensor, Tensor, Any]] = []

    def add(self, t: int, step: VecStep) -> None:
        """Note the rows truncated in step ``t``."""
        rows = step.truncated.nonzero().flatten()
        self._steps.append((torch.full_like(rows, t), rows, tree.take(step.final_obs, rows)))

    @torch.no_grad()
    def bootstrap(self, model: OnPolicyAlgorithm, buffer: TensorRolloutBuffer) -> None:
        """Add gamma V(last observation) to the last rewards."""
        if self._steps:
            steps, rows, observations = (torch.cat(column) for column in zip(*self._steps, strict=True))
            values = model.policy.predict_values(observations).flatten()
            buffer.data["rewards"][steps, rows] += model.gamma * values


@unvalidated()
def collect(
    model: OnPolicyAlgorithm, env: SB3VecEnv, callback: BaseCallback, buffer: TensorRolloutBuffer, n_rollout_steps: int
) -> bool:
    """Fill ``buffer`` with ``n_rollout_steps`` steps of every row of ``env``.

    The counterpart of SB3's ``OnPolicyAlgorithm.collect_rollouts`` (2.9.2), in its order. Callbacks find ``dones`` and
    ``rewards`` as arrays and ``infos`` as a sequence that makes a dict on access; everything else is a tensor.

    Returns:
        False if the callback stopped the training.
    """
    model.policy.set_training_mode(False)
    buffer.reset()
    device = model.device
    obs: Any = torch.as_tensor(model._last_obs, device=device)
    starts: Any = torch.as_tensor(model._last_episode_starts, device=device)
    model._last_obs, model._last_episode_starts = obs, starts
    # Before the exploration noise is drawn, so that a state saved by the callback replays that draw.
    callback.on_rollout_start()
    if model.use_sde:
        model.policy.reset_noise(env.num_envs)
    watched = not (isinstance(callback, ConvertCallback) and callback.callback is None)
    ended, time_outs = EndedEpisodes(env), TimeOuts()

    for t in range(n_rollout_steps):
        if model.use_sde and model.sde_sample_freq > 0 and t % model.sde_sample_freq == 0:
            model.policy.reset_noise(env.num_envs)
        with torch.no_grad():
            actions, values, log_probs = model.policy(obs)
        # An unsquashed action may leave the bounds; the view clips it.
        step = env.step_tensor(env_action(model, actions) if model.policy.squash_output else actions)
        if env.device != device:
            step = tree.map_tensors(lambda x: x.to(device), step)
        dones = step.terminated | step.truncated
        model.num_timesteps += env.num_envs
        if watched:
            policy_output = {"obs_tensor": obs, "actions": actions, "values": values, "log_probs": log_probs}
            callback.update_locals({**policy_output, "n_steps": t, **shown(env, step, dones)})
        if not callback.on_step():
            ended.push(model)
            return False
        ended.add(step)
        if step.timed_out:
            time_outs.add(t, step)
        buffer.add(obs, actions, step.reward, starts, values, log_probs)
        obs, starts = step.obs, dones
        model._last_obs, model._last_episode_starts = obs, starts

    ended.push(model)
    time_outs.bootstrap(model, buffer)
    with torch.no_grad():
        values = model.policy.predict_values(obs)
    buffer.compute_returns_and_advantage(last_values=values, dones=starts)
    callback.update_locals({"values": values, "rollout_buffer": buffer})
    callback.on_rollout_end()
    return True


def shown(env: SB3VecEnv, step: VecStep, dones: Tensor) -> dict[str, Any]:
    """What callbacks of SB3 read of a step; on the CPU the arrays share the tensors' memory."""
    return {
        "new_obs": step.obs,
        "rewards": step.reward.cpu().numpy(),
        "dones": dones.cpu().numpy(),
        "infos": LazyInfos(env, step),
    }


def env_action(model: BaseAlgorithm, actions: Tensor) -> Tensor:
    """What the environment receives for the policy's ``actions``: within the bounds of a Box, itself otherwise."""
    space = model.action_space
    if not isinstance(space, spaces.Box):
        return actions
    low, high = (torch.as_tensor(bound, device=actions.device) for bound in (space.low, space.high))
    if model.policy.squash_output:
        return low + 0.5 * (actions + 1.0) * (high - low)
    return torch.clamp(actions, low, high)

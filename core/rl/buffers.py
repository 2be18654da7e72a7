"""Roll-outs kept as tensors on the device, with the interface of Stable-Baselines3's buffer."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.type_aliases import RolloutBufferSamples
from stable_baselines3.common.vec_env import VecNormalize
from torch import Tensor

from core.errors import InputError
from core.simulation.spaces import torch_dtype

Array = Tensor | np.ndarray


class TensorRolloutBuffer(RolloutBuffer):
    """T steps of n environments, in tensors allocated once.

    ``add`` takes tensors and arrays alike, so that Stable-Baselines3's own loop can fill it too. Minibatches are drawn
    by ``torch.randperm`` from the samples ordered environment by environment, the order of SB3's buffer.

    Attributes:
        data: ``(T, n, ...)`` tensors ``observations, actions, rewards, episode_starts, values, log_probs, advantages,
            returns``; ``values`` and ``returns`` as arrays are attributes, for SB3's logging.
        masks: the allowed actions ``(n, actions)`` of each step so far; empty where the learner takes no masks.
        minibatch_masks: those of the minibatch drawn last, ``(N, actions)``; None without masks.

    Raises:
        InputError: a Dict observation space, or a buffer that the device has no memory for.
    """

    data: dict[str, Tensor]
    masks: list[Tensor]
    minibatch_masks: Tensor | None = None

    def reset(self) -> None:
        """Forget the stored steps; the memory stays."""
        if "data" not in self.__dict__:
            self.data = self._allocate()
            self._rows = [{name: tensor[t] for name, tensor in self.data.items()} for t in range(self.buffer_size)]
        self._flat: dict[str, Tensor] = {}
        self.masks, self.minibatch_masks = [], None
        self.pos, self.full = 0, False

    def _allocate(self) -> dict[str, Tensor]:
        if isinstance(self.observation_space, spaces.Dict):
            raise InputError("observation_space: Dict; allowed: one tensor an observation (Box, Discrete, ...)")
        kinds: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
            "observations": (self.obs_shape, torch_dtype(self.observation_space)),
            "actions": ((self.action_dim,), torch_dtype(self.action_space)),
        }
        scalars = ("rewards", "episode_starts", "values", "log_probs", "advantages", "returns")
        kinds |= dict.fromkeys(scalars, ((), torch.float32))
        steps, copies = self.buffer_size, self.n_envs
        try:
            return {
                name: torch.zeros((steps, copies, *shape), dtype=dtype, device=self.device)
                for name, (shape, dtype) in kinds.items()
            }
        except torch.OutOfMemoryError as error:
            step_bytes = copies * sum(int(np.prod(shape)) * dtype.itemsize for shape, dtype in kinds.values())
            free, _ = torch.cuda.mem_get_info(self.device)
            raise InputError(
                f"n_steps: {steps} steps of {copies} environments need {steps * step_bytes} bytes of {self.device}; "
                f"allowed: at most {free // step_bytes} steps, for which there is room"
            ) from error

    @property
    def values(self) -> np.ndarray:  # type: ignore[override]
        """Value estimates ``(T, n)``."""
        return self.data["values"].cpu().numpy()

    @property
    def returns(self) -> np.ndarray:  # type: ignore[override]
        """Returns to go ``(T, n)``."""
        return self.data["returns"].cpu().numpy()

    def add(
        self, obs: Array, action: Array, reward: Array, episode_start: Array, value: Tensor, log_prob: Tensor
    ) -> None:
        """Store one step of all environments."""
        step: dict[str, Array] = {
            "observations": obs,
            "actions": action,
            "rewards": reward,
            "episode_starts": episode_start,
            "values": value,
            "log_probs": log_prob,
        }
        rows = self._rows[self.pos]
        for name, item in step.items():
            row = rows[name]
            row.copy_(torch.as_tensor(item).view_as(row))
        self.pos += 1
        self.full = self.pos == self.buffer_size

    @torch.no_grad()
    def compute_returns_and_advantage(self, last_values: Tensor, dones: Array) -> None:
        """Generalised advantage estimation (Schulman et al. 2016, eq. 16) and the returns TD(lambda).

        Args:
            last_values: ``(n,)`` or ``(n, 1)`` values of the observations after the last step.
            dones: ``(n,)`` whether the last step ended the episode.
        """
        values, last = self.data["values"], last_values.to(self.device).reshape(1, -1)
        starts = torch.cat([self.data["episode_starts"][1:], torch.as_tensor(dones).to(last).reshape(1, -1)])
        alive = 1.0 - starts
        delta = self.data["rewards"] + self.gamma * torch.cat([values[1:], last]) * alive - values
        carry = self.gamma * self.gae_lambda * alive
        advantage = torch.zeros_like(delta[0])
        for row, step_delta, step_carry in zip(
            reversed(self.data["advantages"].unbind()), reversed(delta.unbind()), reversed(carry.unbind()), strict=True
        ):
            advantage = step_delta + step_carry * advantage
            row.copy_(advantage)
        torch.add(self.data["advantages"], values, out=self.data["returns"])

    def get(self, batch_size: int | None = None) -> Generator[RolloutBufferSamples, None, None]:
        """Yield the samples in random minibatches of ``batch_size`` (all at once if None)."""
        assert self.full, "the roll-out is not complete"
        names = ("observations", "actions", "values", "log_probs", "advantages", "returns")
        if not self._flat:
            self._flat = {name: self.data[name].transpose(0, 1).flatten(0, 1) for name in names}
            self._flat["actions"] = self._flat["actions"].float()
            if self.masks:
                self._flat["masks"] = torch.stack(self.masks).transpose(0, 1).flatten(0, 1)
        total = self.buffer_size * self.n_envs
        order = torch.randperm(total, device=self.device)
        for index in order.split(batch_size or total):
            yield self._get_samples(index)

    def _get_samples(self, batch_inds: Any, env: VecNormalize | None = None) -> RolloutBufferSamples:
        if self.masks:
            self.minibatch_masks = self._flat["masks"].index_select(0, batch_inds)
        names = ("observations", "actions", "values", "log_probs", "advantages", "returns")
        return RolloutBufferSamples(*(self._flat[name].index_select(0, batch_inds) for name in names))

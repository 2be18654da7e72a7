"""A batch of copies of a simulator as a Stable-Baselines3 vector environment, with a face made of tensors."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from core.errors import InputError
from core.seeds import stream
from core.simulation import tree
from core.simulation.episodes import Episodes, VecStep
from core.simulation.gym_env import from_numpy, to_numpy
from core.simulation.simulator import Observation, Simulator

Indices = None | int | Iterable[int]


class SB3VecEnv(VecEnv):
    """``num_envs`` copies of a simulator for Stable-Baselines3, on one state with two faces.

    ``reset_tensor`` and ``step_tensor`` stay on the device; ``reset`` and ``step`` are SB3's and are built from them.
    A world of A agents appears as B*A rows, copy by copy: the rows of a copy end together, a shared reward is
    repeated, noise is drawn per copy and episode statistics are a copy's. Episodes are counted here, hence
    ``env_is_wrapped(Monitor)`` holds.

    Args:
        simulator: the world.
        num_envs: number of copies B; the attribute of this name is the number of rows B*A.
        horizon: time limit in steps; None never truncates.
        scaled: observations and actions in [-1, 1] float32; otherwise in the domain's units (clipped to the spaces).
        observation_range: interval of the scaled observations instead of [-1, 1].
        device: where the world is computed.
        seed: of the world's generator; None draws one.
        assume_horizon: see ``Episodes``.

    Raises:
        InputError: see ``Episodes``.
    """

    def __init__(
        self,
        simulator: Simulator,
        num_envs: int,
        *,
        horizon: int | None = None,
        scaled: bool = True,
        observation_range: tuple[float, float] = (-1.0, 1.0),
        device: torch.device | str = "cpu",
        seed: int | None = None,
        assume_horizon: bool = False,
    ) -> None:
        self.simulator = simulator
        self.episodes = Episodes(
            simulator,
            num_envs,
            horizon=horizon,
            scaled=scaled,
            observation_range=observation_range,
            device=device,
            assume_horizon=assume_horizon,
        )
        self.device = self.episodes.device
        self.render_mode = None
        self._started = time.time()
        view = self.episodes.observation.view, self.episodes.action.view
        super().__init__(num_envs * simulator.agents, *view)
        self.seed(seed)

    def reset_tensor(self) -> Observation:
        """Start every copy; ``(rows, ...)``."""
        return self._rows(self.episodes.reset())

    def step_tensor(self, action: Tensor) -> VecStep:
        """Advance every copy by ``action`` ``(rows, ...)``; the copies that end start again."""
        agents = self.simulator.agents
        if agents == 1:
            step = self.episodes.step(action)
            return step if step.reward.dtype == torch.float32 else replace(step, reward=step.reward.float())
        step = self.episodes.step(action.reshape(-1, agents, *action.shape[1:]))
        reward = step.reward if step.reward.dim() == 2 else step.reward.unsqueeze(1).expand(-1, agents)
        return replace(
            step,
            obs=self._rows(step.obs),
            reward=reward.flatten().float(),
            terminated=step.terminated.repeat_interleave(agents),
            truncated=step.truncated.repeat_interleave(agents),
            final_obs=self._rows(step.final_obs),
        )

    def row_info(self, step: VecStep, row: int) -> dict[str, Any]:
        """SB3's info of one row; empty unless its episode ended."""
        if not (truncated := bool(step.truncated[row])) and not bool(step.terminated[row]):
            return {}
        copy = row // self.simulator.agents
        info: dict[str, Any] = {
            "terminal_observation": to_numpy(tree.take(step.final_obs, row)),
            "TimeLimit.truncated": truncated,
            "episode": {
                "r": float(step.episode_return[copy]),
                "l": int(step.episode_length[copy]),
                "t": round(time.time() - self._started, 6),
            },
        }
        if bool(step.nonfinite[copy]):
            info["nonfinite"] = True
        if "is_success" in step.info:
            info["is_success"] = bool(step.info["is_success"][copy])
        return info

    def reset(self) -> Any:
        """SB3's face of ``reset_tensor``."""
        return to_numpy(self.reset_tensor())

    def step_async(self, actions: np.ndarray) -> None:
        """Keep the actions for ``step_wait``."""
        self._actions = from_numpy(actions)

    def step_wait(self) -> tuple[Any, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """SB3's face of ``step_tensor``."""
        step = tree.map_tensors(Tensor.cpu, self.step_tensor(self._actions))
        done = to_numpy(step.terminated | step.truncated)
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for row in np.flatnonzero(done):
            infos[row] = self.row_info(step, int(row))
        return to_numpy(step.obs), to_numpy(step.reward), done, infos

    def close(self) -> None:
        """Nothing to release."""

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Reseed the world's generator, at once; None draws a seed.

        SB3 hands over the seed of its own generator: the world takes another stream, or its noise would repeat the
        noise of the actions.
        """
        drawn = self.episodes.seed(None if seed is None else stream(seed, "world"))
        return [drawn if seed is None else seed] * self.num_envs

    def action_masks(self) -> np.ndarray:
        """Bool masks ``(rows, n)`` of the actions allowed now.

        Raises:
            InputError: the world does not mask.
        """
        if not self.episodes.masked:
            raise InputError("action_masks: the world allows every action")
        masks: np.ndarray = to_numpy(self._rows(self.episodes.action_mask()))
        return masks

    def get_attr(self, attr_name: str, indices: Indices = None) -> list[Any]:
        """An attribute of the world (or ``render_mode``, or ``action_masks`` where it masks), once a row.

        Raises:
            AttributeError: there is no such attribute.
        """
        if attr_name == "render_mode":
            value: Any = None
        elif attr_name == "action_masks" and self.episodes.masked:
            value = self.action_masks
        else:
            value = getattr(self.simulator, attr_name)
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Indices = None) -> None:
        """Refused: the copies share one frozen world; build a view of another one.

        Raises:
            AttributeError: always.
        """
        raise AttributeError(f"{attr_name}: all copies share one frozen simulator; build a view of another one")

    def env_method(self, method_name: str, *args: Any, indices: Indices = None, **kwargs: Any) -> list[Any]:
        """Call a method of the world once and return its result once a row; ``action_masks`` gives each row its own.

        Raises:
            AttributeError: there is no such method.
        """
        rows = list(self._get_indices(indices))
        if method_name == "action_masks":
            masks = self.action_masks()
            return [masks[row] for row in rows]
        result = getattr(self.simulator, method_name)(*args, **kwargs)
        return [result for _ in rows]

    def env_is_wrapped(self, wrapper_class: type[Any], indices: Indices = None) -> list[bool]:
        """True for ``Monitor``, because ``info["episode"]`` is always given; no other wrapper exists here."""
        return [wrapper_class is Monitor for _ in self._get_indices(indices)]

    def _rows(self, value: Any) -> Any:
        """``(B, A, ...)`` as ``(B*A, ...)``; unchanged with one agent."""
        if self.simulator.agents == 1:
            return value
        return tree.map_tensors(lambda x: x.flatten(0, 1), value)

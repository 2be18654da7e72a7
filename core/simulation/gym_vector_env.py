"""A batch of copies of a simulator as a gymnasium vector environment."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space, iterate

from core.errors import InputError
from core.simulation.episodes import Episodes
from core.simulation.gym_env import from_numpy, single_agent, to_numpy
from core.simulation.simulator import Simulator


class GymVectorEnv(VectorEnv[Any, Any, np.ndarray]):
    """``num_envs`` copies of a simulator; a copy that ends starts again in the same step.

    ``infos`` is laid out as gymnasium's ``SyncVectorEnv`` does with ``AutoresetMode.SAME_STEP``: the last observation
    and info of the copies that ended are under ``final_obs`` and ``final_info``, masked by ``_final_obs`` and
    ``_final_info``. All copies share one generator, so ``reset(seed=...)`` takes one integer.

    Args:
        simulator: a world with one agent.
        num_envs: number of copies.
        horizon: time limit in steps; None never truncates.
        scaled: observations and actions in [-1, 1] float32; otherwise in the domain's units (clipped to the spaces).
        device: where the world is computed.

    Raises:
        InputError: see ``Episodes``; or a world with several agents.
    """

    metadata: dict[str, Any] = {"render_modes": [], "autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012

    def __init__(
        self,
        simulator: Simulator,
        num_envs: int,
        *,
        horizon: int | None = None,
        scaled: bool = True,
        device: torch.device | str = "cpu",
    ) -> None:
        single_agent(simulator, "GymVectorEnv")
        self.simulator = simulator
        self.num_envs = num_envs
        self.episodes = Episodes(simulator, num_envs, horizon=horizon, scaled=scaled, device=device)
        self.single_observation_space = self.episodes.observation.view
        self.single_action_space = self.episodes.action.view
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start every copy; a seed reseeds the generator that they share.

        Raises:
            InputError: a list of seeds.
        """
        if seed is not None:
            if not isinstance(seed, int | np.integer):
                raise InputError(f"seed: {type(seed).__name__}; allowed: one integer, the copies share a generator")
            self.episodes.seed(int(seed))
        super().reset(seed=seed)
        observation = to_numpy(self.episodes.reset())
        return observation, self._masked_info(np.ones(self.num_envs, dtype=np.bool_), self._reset_info())

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Advance every copy; arrays have the copies first."""
        step = self.episodes.step(from_numpy(actions))
        terminated, truncated = to_numpy(step.terminated), to_numpy(step.truncated)
        done = terminated | truncated
        info = to_numpy(step.info)
        infos = self._masked_info(~done, info)
        if done.any():
            nonfinite = to_numpy(step.nonfinite)
            final_info = self._masked_info(done, info)
            if nonfinite.any():
                final_info |= self._masked_info(nonfinite, {"nonfinite": nonfinite})
            infos |= {"final_obs": self._each_where(done, to_numpy(step.final_obs)), "_final_obs": done.copy()}
            infos |= {"final_info": final_info, "_final_info": done.copy()}
            infos |= self._masked_info(np.ones_like(done), self._reset_info())
        return to_numpy(step.obs), to_numpy(step.reward).astype(np.float64), terminated, truncated, infos

    def _reset_info(self) -> dict[str, np.ndarray]:
        found: dict[str, np.ndarray] = to_numpy(self.episodes.mask_info())
        return found

    @staticmethod
    def _masked_info(mask: np.ndarray, info: dict[str, np.ndarray]) -> dict[str, Any]:
        """The entries where ``mask``, zero elsewhere, each with its mask beside it; none if no copy has them."""
        if not mask.any():
            return {}
        entries: dict[str, Any] = {}
        for key, value in info.items():
            entries[key] = np.zeros_like(value)
            entries[key][mask] = value[mask]
            entries[f"_{key}"] = mask.copy()
        return entries

    def _each_where(self, mask: np.ndarray, observation: Any) -> np.ndarray:
        """An object array of single observations where ``mask``, None elsewhere."""
        items = np.full(self.num_envs, None, dtype=object)
        for copy, item in enumerate(iterate(self.observation_space, observation)):
            if mask[copy]:
                items[copy] = item
        return items

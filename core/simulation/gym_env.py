"""One copy of a simulator as a gymnasium environment."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor

from core.errors import InputError
from core.simulation import tree
from core.simulation.episodes import Episodes
from core.simulation.simulator import Simulator


def to_numpy(value: Any) -> Any:
    """Copies of the tensors, as arrays of the same structure that share no memory with them."""
    if isinstance(value, dict):
        return {key: to_numpy(item) for key, item in value.items()}
    return value.detach().cpu().numpy().copy() if isinstance(value, Tensor) else value


def from_numpy(action: Any) -> Tensor:
    """The action that a library's learner or a user handed over.

    Raises:
        InputError: it is not finite.
    """
    array = np.asarray(action)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InputError("action: holds a number that is not finite; allowed: finite numbers")
    return torch.as_tensor(array)


def single_agent(simulator: Simulator, view: str) -> None:
    """Refuse a multi-agent world, for which gymnasium has no place."""
    if simulator.agents != 1:
        raise InputError(f"{view}: the world has {simulator.agents} agents; allowed: 1 (SB3VecEnv takes more)")


class GymEnv(gymnasium.Env[Any, Any]):
    """One copy of a simulator, without automatic reset.

    ``info`` holds the world's own tensors as arrays, ``action_mask`` (int8, for ``action_space.sample``) where the
    world masks, and ``nonfinite`` in the step that a fault ended.

    Args:
        simulator: a world with one agent.
        horizon: time limit in steps; None never truncates.
        scaled: observations and actions in [-1, 1] float32; otherwise in the domain's units (clipped to the spaces).
        device: where the world is computed.

    Raises:
        InputError: see ``Episodes``; or a world with several agents.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012

    def __init__(
        self,
        simulator: Simulator,
        *,
        horizon: int | None = None,
        scaled: bool = True,
        device: torch.device | str = "cpu",
    ) -> None:
        single_agent(simulator, "GymEnv")
        self.simulator = simulator
        self.episodes = Episodes(simulator, 1, horizon=horizon, scaled=scaled, device=device)
        self.observation_space = self.episodes.observation.view
        self.action_space = self.episodes.action.view
        if self.episodes.masked:
            # Present only where the world masks: sb3-contrib recognises a masked environment by this attribute.
            self.action_masks = self._action_masks

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode; a seed reseeds the world's generator."""
        super().reset(seed=seed)
        if seed is not None:
            self.episodes.seed(seed)
        observation = self._observation(self.episodes.reset())
        return observation, self._first(self.episodes.mask_info())

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Advance by one step.

        Raises:
            InputError: an action that is not finite, or that is none of a ``Discrete`` space.
        """
        space = self.action_space
        if isinstance(space, gymnasium.spaces.Discrete) and not space.contains(np.asarray(action)):
            first, last = space.start, space.start + space.n - 1
            raise InputError(f"action: {action!r}; allowed: whole numbers from {first} to {last}")
        step = self.episodes.advance(from_numpy(action).unsqueeze(0))
        info = self._first(step.info)
        if bool(step.nonfinite):
            info["nonfinite"] = True
        return self._observation(step.obs), float(step.reward), bool(step.terminated), bool(step.truncated), info

    def _action_masks(self) -> np.ndarray:
        """Bool mask ``(n,)`` of the actions allowed now."""
        mask: np.ndarray = self._first(self.episodes.action_mask())
        return mask

    def _observation(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: self._observation(item) for key, item in value.items()}
        return self._first(value)[()]  # a Discrete observation is a NumPy integer, not an array without axes

    @staticmethod
    def _first(value: Any) -> Any:
        return to_numpy(tree.take(value, 0))

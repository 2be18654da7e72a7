"""One copy of a multi-agent simulator as a PettingZoo parallel environment."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector.utils import batch_space

from core.errors import InputError, require
from core.simulation import tree
from core.simulation.episodes import Episodes
from core.simulation.gym_env import from_numpy, to_numpy
from core.simulation.simulator import Simulator

require("pettingzoo", "turbulence")

from pettingzoo.utils.env import ParallelEnv as PettingZooEnv  # noqa: E402


class ParallelEnv(PettingZooEnv):
    """One copy of a simulator whose agents act at once, without automatic reset.

    Agents are named ``agent_0``, ``agent_1``, ... in the world's order; all end together. Each agent's ``info`` holds
    the world's own tensors of the copy as arrays, its own ``action_mask`` (int8) where the world masks, and
    ``nonfinite`` in the step that a fault ended.

    Args:
        simulator: a world with several agents; a reward that they share is given to each.
        horizon: time limit in steps; None never truncates.
        scaled: observations and actions in [-1, 1] float32; otherwise in the domain's units (clipped to the spaces).
        device: where the world is computed.

    Attributes:
        possible_agents: names of all agents.
        agents: those that act next: all of them within an episode, none before and after it.
        state_space: of ``state``.

    Raises:
        MissingExtra: PettingZoo is not installed.
        InputError: see ``Episodes``; or a world with one agent.
    """

    metadata: dict[str, Any] = {"name": "szilard", "render_modes": []}  # noqa: RUF012
    render_mode = None

    def __init__(
        self,
        simulator: Simulator,
        *,
        horizon: int | None = None,
        scaled: bool = True,
        device: torch.device | str = "cpu",
    ) -> None:
        if simulator.agents == 1:
            raise InputError("ParallelEnv: the world has 1 agent; allowed: several (GymEnv takes one)")
        self.simulator = simulator
        self.episodes = Episodes(simulator, 1, horizon=horizon, scaled=scaled, device=device)
        self.possible_agents = [f"agent_{i}" for i in range(simulator.agents)]
        self.agents: list[str] = []
        # Copies, because each agent's space draws from a generator of its own.
        self.observation_spaces, self.action_spaces = (
            {agent: copy.deepcopy(scaling.view) for agent in self.possible_agents}
            for scaling in (self.episodes.observation, self.episodes.action)
        )
        self.state_space = batch_space(self.episodes.observation.view, simulator.agents)

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        """What ``agent`` observes; all agents have the same."""
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> spaces.Space[Any]:
        """What ``agent`` does; all agents have the same."""
        return self.action_spaces[agent]

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        """Start an episode; a seed reseeds the world's generator."""
        if seed is not None:
            self.episodes.seed(seed)
        self._observation = tree.take(self.episodes.reset(), 0)
        self.agents = list(self.possible_agents)
        return self._per_agent(self._observation), self._infos(self.episodes.mask_info())

    def step(
        self, actions: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, float], dict[str, bool], dict[str, bool], dict[str, dict[str, Any]]]:
        """Advance by one step, every agent acting.

        Raises:
            InputError: no episode is going on, an agent does not act, or acts outside its space.
        """
        if not self.agents:
            raise InputError("step: no episode is going on; reset begins one")
        if set(actions) != set(self.agents):
            odd = sorted(set(actions) ^ set(self.agents))
            raise InputError(
                f"actions: {', '.join(map(str, odd))} absent or unknown; allowed: one each of {self.agents}"
            )
        joint = torch.stack([self._action(agent, actions[agent]) for agent in self.agents])
        step = self.episodes.advance(joint.unsqueeze(0))
        self._observation = tree.take(step.obs, 0)
        observations, infos = self._per_agent(self._observation), self._infos(step.info)
        rewards = step.reward.reshape(1, -1).expand(1, len(self.agents))[0].tolist()
        if bool(step.nonfinite):
            infos = {agent: info | {"nonfinite": True} for agent, info in infos.items()}
        terminations, truncations = (dict.fromkeys(self.agents, bool(end)) for end in (step.terminated, step.truncated))
        acted, self.agents = self.agents, [] if step.ended else self.agents
        return observations, dict(zip(acted, rewards, strict=True)), terminations, truncations, infos

    def state(self) -> Any:
        """The observations of all agents, ``(A, ...)``, for methods that train with a view of the whole."""
        return to_numpy(self._observation)

    def _action(self, agent: str, action: Any) -> torch.Tensor:
        space, value = self.action_spaces[agent], from_numpy(action)
        fits = value.shape == space.shape if isinstance(space, spaces.Box) else space.contains(np.asarray(action))
        if not fits:
            raise InputError(f"action of {agent}: {action!r}; allowed: {space}")
        return value

    def _per_agent(self, value: Any) -> dict[str, Any]:
        """The rows ``(A, ...)`` by the agents' names; a Discrete row is a NumPy integer, not an array without axes."""
        return {agent: _row(to_numpy(value), i) for i, agent in enumerate(self.possible_agents)}

    def _infos(self, info: dict[str, Any]) -> dict[str, dict[str, Any]]:
        masks = info.get("action_mask")
        infos: dict[str, dict[str, Any]] = {}
        for i, agent in enumerate(self.possible_agents):
            infos[agent] = {name: to_numpy(value[0]) for name, value in info.items() if name != "action_mask"}
            if masks is not None:
                infos[agent]["action_mask"] = to_numpy(masks[0, i])
        return infos


def _row(value: Any, row: int) -> Any:
    return {key: _row(item, row) for key, item in value.items()} if isinstance(value, dict) else value[row]

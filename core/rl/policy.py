"""A trained model as a policy of its simulator, in the domain's units."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from core.simulation import tree
from core.simulation.simulator import Observation, Simulator
from core.simulation.spaces import Scaling


class LearnedPolicy:
    """``policy(observation, state=None) -> action`` around a trained model: scale, predict, unscale.

    A sampling policy draws from a stream of its own, which starts again at each roll-out: its actions repeat, and the
    world's randomness stays common to all policies.

    Args:
        model: a trained algorithm of ``core.rl``.
        simulator: the world it was trained in.
        deterministic: the mean action (default), or one sampled from the policy.
        seed: of the sampled actions.
        observation_range: see ``Scaling``; the one used in training.
    """

    def __init__(
        self,
        model: Any,
        simulator: Simulator,
        *,
        deterministic: bool = True,
        seed: int = 0,
        observation_range: tuple[float, float] = (-1.0, 1.0),
    ) -> None:
        self.model, self.deterministic, self.seed = model, deterministic, seed
        self._observation = Scaling(simulator.observation_space, view_range=observation_range, device=model.device)
        self._action = Scaling(simulator.action_space, device=model.device)
        self._agents = simulator.agents
        self._mask = simulator.action_mask if getattr(model, "takes_masks", False) else None
        self.reset(0)

    def reset(self, batch: int) -> None:
        """Start the stream of sampled actions again."""
        self._calls = 0

    def __call__(self, observation: Observation, state: Any = None) -> Tensor:
        """Actions of the batch, on the device and in the precision of the observation."""
        seen = self._observation.to_view(tree.map_tensors(lambda x: x.to(self.model.device), observation))
        if self._agents > 1 and isinstance(seen, Tensor):
            seen = seen.flatten(0, 1)
        devices = [self.model.device] if self.model.device.type == "cuda" else []
        with torch.random.fork_rng(devices, enabled=not self.deterministic):
            if not self.deterministic:
                # SB3's distributions draw from the global generator: give each call a seed of its own.
                torch.manual_seed(self.seed * 1_000_003 + self._calls)
                self._calls += 1
            masks = {} if self._mask is None or state is None else {"action_masks": self._mask(state)}
            action, _ = self.model.predict(seen, deterministic=self.deterministic, **masks)
        if self._agents > 1:
            action = action.unflatten(0, (-1, self._agents))
        action = self._action.to_domain(action)
        if isinstance(observation, Tensor) and action.is_floating_point():
            return action.to(observation)
        return action

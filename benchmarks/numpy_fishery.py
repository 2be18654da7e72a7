"""The peer: Model 3 as an ordinary single-copy gymnasium environment in NumPy, the way one is usually written."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np


class NumpyFishery(gymnasium.Env[np.ndarray, np.ndarray]):
    """Two harvested prey and their predator; observations and actions in [-1, 1]."""

    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (3,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Start an episode."""
        super().reset(seed=seed)
        self.year = 0
        self.population = np.array([0.5, 0.5, 0.7]) + 0.02 * self.np_random.standard_normal(3)
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Harvest, grow, disturb."""
        mortality = np.clip((action + 1) / 2, 0, 1)
        harvest = mortality * self.population[:2]
        n = self.population.copy()
        n[:2] -= harvest
        x, y, z = n
        eaten_x = 0.3 * z * x**2 / (0.09 + x**2)
        eaten_y = 0.3 * z * y**2 / (0.09 + y**2)
        growth = np.array(
            [
                x * (1 - x) - eaten_x - 0.1 * x * y,
                y * (1 - y) - 1.1 * eaten_y - 0.1 * x * y,
                z * (0.1 * (x + 1.1 * y) - 0.1),
            ]
        )
        self.population = np.maximum(n + growth + 0.1 * n * self.np_random.standard_normal(3), 0)
        reward = float(harvest.sum())
        terminated = bool((self.population <= 0.05).any())
        if terminated:
            reward -= 100 / (self.year + 1)
        self.year += 1
        return self._observe(), reward, terminated, self.year >= 200, {}

    def _observe(self) -> np.ndarray:
        return np.clip(self.population - 1, -1, 1).astype(np.float32)

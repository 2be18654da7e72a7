"""The scalar linear-quadratic regulator and its optimum by the Riccati recursion."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from gymnasium.spaces import Box
from torch import Tensor

from core.errors import InputError
from core.simulation import Step, Variable


@dataclass(frozen=True)
class LQRState:
    """Where the system is.

    Attributes:
        x: ``(B,)``, or ``(B, A)`` with several agents.
    """

    x: Tensor


@dataclass(frozen=True)
class LQRNoise:
    """Disturbance of one step.

    Attributes:
        xi: of the shape of the state, standard normal.
    """

    xi: Tensor


@dataclass(frozen=True)
class ScalarLQR:
    """x' = x + ``control`` u + ``noise_std`` xi at the cost x^2 + ``action_cost`` u^2, from x uniform on [-1, 1].

    The reward is minus the cost of the step, x and u taken before it. Several agents are as many systems, which share
    nothing but their learner. All quantities are pure numbers.

    The optimal action at time t of a horizon T is u = -K_t x (Bertsekas, Dynamic Programming and Optimal Control,
    vol. 1, section 3.1), with K <= 2 for the default numbers: the action's bounds are out of its way.

    Attributes:
        control: effect of an action.
        noise_std: standard deviation of the disturbance.
        action_cost: weight of u^2.
        action_bound: largest action.
        observation_bound: largest state that a learner's view shows; it does not bound the state.
        agents: number of systems in a copy.
        dtype: of the state.

    Raises:
        InputError: a number out of its range.
    """

    control: float = 0.3
    noise_std: float = 0.05
    action_cost: float = 0.1
    action_bound: float = 3.0
    observation_bound: float = 2.0
    agents: int = 1
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        for name in ("action_cost", "action_bound", "observation_bound"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{name}: {getattr(self, name)}; allowed: greater than 0 and finite")
        if not 0 <= self.noise_std < math.inf:
            raise InputError(f"noise_std: {self.noise_std}; allowed: at least 0 and finite")
        if not math.isfinite(self.control):
            raise InputError(f"control: {self.control}; allowed: finite numbers")
        if self.agents < 1:
            raise InputError(f"agents: {self.agents}; allowed: at least 1")

    @cached_property
    def observation_space(self) -> Box:
        """The state."""
        return Box(-self.observation_bound, self.observation_bound, (1,), np.float32)

    @cached_property
    def action_space(self) -> Box:
        """The action."""
        return Box(-self.action_bound, self.action_bound, (1,), np.float32)

    @cached_property
    def variables(self) -> Mapping[str, Variable]:
        """What a roll-out records."""
        dims = () if self.agents == 1 else ("agent",)
        return {"x": Variable(dims, "1", "state"), "reward": Variable(dims, "1", "minus the cost")}

    def reset(self, batch: int, generator: torch.Generator) -> LQRState:
        """States uniform on [-1, 1]."""
        shape, device = self._shape(batch), generator.device
        return LQRState(2 * torch.rand(shape, generator=generator, dtype=self.dtype, device=device) - 1)

    def noise(self, batch: int, generator: torch.Generator) -> LQRNoise:
        """Standard normals."""
        shape, device = self._shape(batch), generator.device
        return LQRNoise(torch.randn(shape, generator=generator, dtype=self.dtype, device=device))

    def step(self, state: LQRState, action: Tensor, noise: LQRNoise) -> Step:
        """Pay, then move; ``action`` is ``(B, 1)``, or ``(B, A, 1)`` with several agents."""
        u = action.squeeze(-1).to(state.x.dtype)
        reward = -(state.x.square() + self.action_cost * u.square())
        x = state.x + self.control * u + self.noise_std * noise.xi
        return Step(LQRState(x), reward, torch.zeros(len(x), dtype=torch.bool, device=x.device))

    def observe(self, state: LQRState, noise: LQRNoise | None = None) -> Tensor:
        """The state ``(B, 1)``, or ``(B, A, 1)``."""
        return state.x.unsqueeze(-1)

    def action_mask(self, state: LQRState) -> None:
        """Every action is allowed."""
        return None

    def riccati(self, horizon: int) -> tuple[np.ndarray, np.ndarray]:
        """Optimal gains K_t ``(horizon,)`` and the weights P_t ``(horizon + 1,)`` of x^2 in the cost to go.

        P_T = 0, K_t = b P_{t+1} / (r + b^2 P_{t+1}), P_t = 1 + P_{t+1} (1 - b K_t) with b = ``control`` and
        r = ``action_cost``.
        """
        gains, weights = np.zeros(horizon), np.zeros(horizon + 1)
        for t in reversed(range(horizon)):
            gains[t] = self.control * weights[t + 1] / (self.action_cost + self.control**2 * weights[t + 1])
            weights[t] = 1 + weights[t + 1] * (1 - self.control * gains[t])
        return gains, weights

    def optimal_cost(self, horizon: int) -> float:
        """Least expected cost of an episode of one system: P_0 E x_0^2 + ``noise_std``^2 (P_1 + ... + P_T)."""
        _, weights = self.riccati(horizon)
        return float(weights[0] / 3 + self.noise_std**2 * weights[1:].sum())

    def _shape(self, batch: int) -> tuple[int, ...]:
        return (batch,) if self.agents == 1 else (batch, self.agents)

"""Small worlds with known behaviour, for the tests of the views and of the learners."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor

from core.simulation import Step


@dataclass(frozen=True)
class Position:
    x: Tensor


@dataclass(frozen=True)
class Shock:
    xi: Tensor


@dataclass(frozen=True)
class Drift:
    """x' = x + a + 0.1 xi in the plane; reward 1 - |x'|^2; ends beyond |x_i| = edge; NaN beyond x_0 = explode."""

    edge: float = 2.0
    explode: float = float("inf")
    sigma: float = 0.1
    dtype: torch.dtype = torch.float32
    agents: int = 1
    observation_space: Box = field(default_factory=lambda: Box(-4.0, 4.0, (2,), np.float32))
    action_space: Box = field(default_factory=lambda: Box(-0.5, 0.5, (2,), np.float32))
    variables: dict = field(default_factory=dict)

    def reset(self, batch, generator):
        return Position(0.3 * self.noise(batch, generator).xi)

    def noise(self, batch, generator):
        return Shock(torch.randn(batch, 2, generator=generator, dtype=self.dtype, device=generator.device))

    def step(self, state, action, noise):
        x = state.x + action + self.sigma * noise.xi
        x = torch.where((x[:, :1] > self.explode).expand_as(x), torch.nan, x)
        terminated = (x.abs() > self.edge).any(1)
        return Step(Position(x), 1 - x.square().sum(1), terminated, {"speed": action.square().sum(1), "push": action})

    def observe(self, state, noise):
        return state.x

    def action_mask(self, state):
        return None


@dataclass(frozen=True)
class Cell:
    cell: Tensor


@dataclass(frozen=True)
class Corridor:
    """Cells 0..n-1 from cell 1, action 0 left, 1 right, 2 stay; no luck; ends at the right end, whose step pays 1.

    Left is not allowed in cell 0.
    """

    n: int = 4
    agents: int = 1
    variables: dict = field(default_factory=dict)
    action_space: Discrete = field(default_factory=lambda: Discrete(3))

    @property
    def observation_space(self):
        return Discrete(self.n)

    def reset(self, batch, generator):
        return Cell(torch.ones(batch, dtype=torch.int64, device=generator.device))

    def noise(self, batch, generator):
        return Cell(torch.empty(batch, 0, device=generator.device))

    def step(self, state, action, noise):
        move = torch.tensor([-1, 1, 0], device=action.device)[action]
        cell = (state.cell + move).clamp(0)
        done = cell >= self.n - 1
        return Step(Cell(cell), done.double(), done, {"cell": cell, "is_success": done})

    def observe(self, state, noise):
        return state.cell

    def action_mask(self, state):
        mask = torch.ones(len(state.cell), 3, dtype=torch.bool, device=state.cell.device)
        mask[:, 0] = state.cell > 0
        return mask


@dataclass(frozen=True)
class Duo:
    """Two agents on a line, each sees (own x, other x) and earns -|x_own - 1|, or all the mean if ``shared``."""

    shared: bool = False
    agents: int = 2
    observation_space: Box = field(default_factory=lambda: Box(-2.0, 2.0, (2,), np.float32))
    action_space: Box = field(default_factory=lambda: Box(-0.5, 0.5, (1,), np.float32))
    variables: dict = field(default_factory=dict)

    def reset(self, batch, generator):
        return Position(torch.randn(batch, 2, generator=generator, device=generator.device))

    def noise(self, batch, generator):
        return Shock(torch.randn(batch, 1, generator=generator, device=generator.device))

    def step(self, state, action, noise):
        x = state.x + action.squeeze(-1) + 0.1 * noise.xi
        reward = -(x - 1).abs()
        return Step(Position(x), reward.mean(1) if self.shared else reward, (x.abs() > 3).any(1))

    def observe(self, state, noise):
        return torch.stack([state.x, state.x.flip(1)], dim=-1)

    def action_mask(self, state):
        return None

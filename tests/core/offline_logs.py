"""Logs of small worlds for the tests of core.offline."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from core.offline import OfflineDataset

STATES, CHOICES, HORIZON = 4, 3, 3


def ragged(lengths: list[int], seed: int = 0, *, choices: int = 3, width: int = 2) -> OfflineDataset:
    """Random episodes of these lengths; every other one is truncated."""
    generator = torch.Generator().manual_seed(seed)
    n, counts = sum(lengths), torch.tensor(lengths)
    last = torch.cumsum(counts, 0) - 1
    terminated, truncated = torch.zeros(2, n, dtype=torch.bool)
    terminated[last[::2]], truncated[last[1::2]] = True, True
    seen = torch.randn(n + len(lengths), width, generator=generator)
    # Of the chain of observations of each episode, which has one more than its steps, all but the last, or the first.
    before = torch.ones(len(seen), dtype=torch.bool)
    before[last + torch.arange(1, len(lengths) + 1)] = False
    logits = torch.randn(n, choices, generator=generator)
    probability = torch.softmax(logits, 1)
    return OfflineDataset(
        observations=seen[before],
        actions=torch.multinomial(probability, 1, generator=generator)[:, 0],
        rewards=torch.randn(n, generator=generator),
        next_observations=seen[before.nonzero()[:, 0] + 1],
        terminated=terminated,
        truncated=truncated,
        episode=torch.repeat_interleave(torch.arange(len(lengths)), counts),
        step=torch.cat([torch.arange(k) for k in lengths]),
        observation_space=spaces.Box(-np.inf, np.inf, (width,), np.float32),
        action_space=spaces.Discrete(choices),
        behaviour_probability=probability,
        extras={"order": torch.arange(n)},
    )


@dataclass(frozen=True)
class Tabular:
    """Random world of three steps: P (S, A, S), r (S, A), two policies (S, A); observations are one-hot codes."""

    transition: Tensor
    reward: Tensor
    behaviour: Tensor
    target: Tensor

    @staticmethod
    def of(seed: int, *, deterministic: bool = False) -> Tabular:
        generator = torch.Generator().manual_seed(seed)
        transition = torch.rand(STATES, CHOICES, STATES, generator=generator, dtype=torch.float64)
        if deterministic:
            transition = torch.nn.functional.one_hot(transition.argmax(-1), STATES).double()
        policies = torch.rand(2, STATES, CHOICES, generator=generator, dtype=torch.float64) + 0.3
        policies /= policies.sum(-1, keepdim=True)
        reward = torch.randn(STATES, CHOICES, generator=generator, dtype=torch.float64)
        return Tabular(transition / transition.sum(-1, keepdim=True), reward, *policies)

    def q(self, gamma: float = 1.0) -> Tensor:
        """Exact action values (H, S, A) of the target with so many steps left, first to last."""
        values, after = [], torch.zeros(STATES, dtype=torch.float64)
        for _ in range(HORIZON):
            values.append(self.reward + gamma * self.transition @ after)
            after = (self.target * values[-1]).sum(1)
        return torch.stack(values[::-1])

    def value(self, gamma: float = 1.0) -> float:
        """Exact value of the target from state 0."""
        return float((self.target[0] * self.q(gamma)[0, 0]).sum())

    def log(self, episodes: int, seed: int) -> OfflineDataset:
        """Episodes of the behaviour policy from state 0; extras hold the state."""
        generator = torch.Generator().manual_seed(seed)
        state = torch.zeros(episodes, dtype=torch.int64)
        states, actions = [state], []
        for _ in range(HORIZON):
            actions.append(torch.multinomial(self.behaviour[state], 1, generator=generator)[:, 0])
            state = torch.multinomial(self.transition[state, actions[-1]], 1, generator=generator)[:, 0]
            states.append(state)
        s, a = torch.stack(states, 1), torch.stack(actions, 1)
        code = torch.eye(STATES)
        step = torch.arange(HORIZON).repeat(episodes)
        return OfflineDataset(
            observations=code[s[:, :-1].flatten()],
            actions=a.flatten(),
            rewards=self.reward[s[:, :-1], a].flatten().float(),
            next_observations=code[s[:, 1:].flatten()],
            terminated=step == HORIZON - 1,
            truncated=torch.zeros(len(step), dtype=torch.bool),
            episode=torch.arange(episodes).repeat_interleave(HORIZON),
            step=step,
            observation_space=spaces.Box(0, 1, (STATES,)),
            action_space=spaces.Discrete(CHOICES),
            behaviour_probability=self.behaviour[s[:, :-1].flatten()],
            extras={"state": s[:, :-1].flatten()},
        )

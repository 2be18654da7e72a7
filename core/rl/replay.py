"""Replay memories as tensors on the device, uniform or prioritised, with returns over several steps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import BaseBuffer, ReplayBuffer
from stable_baselines3.common.vec_env import VecNormalize
from torch import Tensor

from core.errors import InputError
from core.simulation import tree
from core.simulation.simulator import Observation
from core.simulation.spaces import torch_dtype

_BRANCHES = 64
_BELOW = 1 - 1e-12  # sums of the same numbers in another order differ by less


@dataclass(frozen=True)
class ReplayBatch:
    """N transitions for an update, under SB3's names, and what prioritised replay and action masks add to them.

    Attributes:
        observations: ``(N, ...)``, or a dict of them.
        actions: ``(N, 1)`` int64, or ``(N, d)``.
        next_observations: ``(N, ...)`` at the end of the transition.
        dones: ``(N, 1)`` 1.0 where the world ended the episode (a time limit does not), else 0.0.
        rewards: ``(N, 1)``, discounted and summed over the steps of the transition.
        discounts: ``(N, 1)`` of what follows; None stands for the learner's gamma.
        next_masks: ``(N, actions)`` bool, allowed at the end of the transition; None allows everything.
        weights: ``(N, 1)`` importance weights; None stands for 1.
        positions: ``(N,)`` int64, of the transitions in a prioritised memory.
    """

    observations: Any
    actions: Tensor
    next_observations: Any
    dones: Tensor
    rewards: Tensor
    discounts: Tensor | None = None
    next_masks: Tensor | None = None
    weights: Tensor | None = None
    positions: Tensor | None = None


class SumTree:
    """Non-negative numbers at ``size`` positions, from which positions are drawn in proportion to them.

    Every node holds the sum over 64 children, recomputed whenever one of them changes, so that errors of rounding do
    not add up. All numbers are float64.

    Args:
        size: number of positions; all begin with 0.
        device: of the tensors.
    """

    def __init__(self, size: int, device: torch.device | str = "cpu") -> None:
        self.size = size
        self._levels: list[Tensor] = []
        rows = size
        while not self._levels or rows > 1:
            rows = -(-rows // _BRANCHES)
            self._levels.append(torch.zeros(rows, _BRANCHES, dtype=torch.float64, device=device))

    @property
    def values(self) -> Tensor:
        """``(size,)`` the numbers."""
        return self._levels[0].view(-1)[: self.size]

    @property
    def total(self) -> Tensor:
        """``()`` their sum."""
        return self._levels[-1].sum()

    def set(self, positions: Tensor, values: Tensor) -> None:
        """Put ``values`` ``(n,)`` at ``positions`` ``(n,)``."""
        self._levels[0].view(-1)[positions] = values
        for lower, upper in pairwise(self._levels):
            positions = positions // _BRANCHES
            upper.view(-1)[positions] = lower[positions].sum(1)

    def find(self, fractions: Tensor) -> Tensor:
        """Positions ``(n,)`` at which the running sum exceeds these fractions ``(n,)`` float64 of the total."""
        rest = fractions * (self.total * _BELOW)
        node = torch.zeros(len(fractions), dtype=torch.int64, device=fractions.device)
        for level in reversed(self._levels):
            row = level[node]
            sums = row.cumsum(1)
            child = torch.searchsorted(sums, rest.unsqueeze(1), right=True)
            value = row.gather(1, child).squeeze(1)
            before = sums.gather(1, child).squeeze(1) - value
            rest = torch.minimum(rest - before, value * _BELOW).clamp(min=0)
            node = node * _BRANCHES + child.squeeze(1)
        return node


class Priorities:
    """Proportional prioritised replay (Schaul et al. 2016, section 3.3).

    Position i is drawn with probability P_i = p_i / sum_j p_j, p_i = (|error_i| + eps)^alpha with the error at its last
    use; one that was not used yet has the largest p so far. Its importance weight is (N P_i)^-beta over the largest
    weight of the batch. The draws are stratified: one in each of n equal parts of the sum.

    Args:
        size: number of positions.
        alpha: 0 is uniform.
        beta: 1 corrects the draws fully; may be changed at any time.
        eps: in the units of the errors.
        initial: the largest p before there is any.
        device: of the tensors.

    Attributes:
        tree: the numbers p.
        largest: ``()`` the largest p so far.

    Raises:
        InputError: a number out of its range.
    """

    def __init__(
        self,
        size: int,
        *,
        alpha: float,
        beta: float,
        eps: float = 1e-6,
        initial: float = 1.0,
        device: torch.device | str = "cpu",
    ) -> None:
        for name, value in (("alpha", alpha), ("beta", beta)):
            if not 0 <= value <= 1:
                raise InputError(f"priority_{name}: {value}; allowed: 0 to 1")
        for name, value in (("eps", eps), ("initial", initial)):
            if not 0 < value < math.inf:
                raise InputError(f"priority_{name}: {value}; allowed: greater than 0")
        self.alpha, self.beta, self.eps = alpha, beta, eps
        self.tree = SumTree(size, device)
        self.largest = torch.tensor(initial, dtype=torch.float64, device=device)

    def insert(self, positions: Tensor) -> None:
        """Give new transitions ``(n,)`` the largest priority."""
        self.tree.set(positions, self.largest.expand(len(positions)))

    def draw(self, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Positions ``(n,)`` and their weights ``(n,)`` float32."""
        device = self.largest.device
        within = torch.rand(n, dtype=torch.float64, generator=generator, device=device)
        positions = self.tree.find((torch.arange(n, device=device) + within) / n)
        drawn = self.tree.values[positions]
        return positions, (drawn.min() / drawn).pow(self.beta).float()

    def update(self, positions: Tensor, errors: Tensor) -> None:
        """Set the priorities of ``positions`` ``(n,)`` by errors ``(n,)``; one that is not finite gives the largest."""
        values = (errors.double().abs() + self.eps).pow(self.alpha)
        values = torch.where(values.isfinite(), values, self.largest)
        self.tree.set(positions, values)
        self.largest = torch.maximum(self.largest, values.max())

    def tensors(self) -> dict[str, Tensor]:
        """Everything that changes."""
        return {"priorities": self.tree.values, "largest_priority": self.largest}

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of ``tensors``."""
        values = tensors["priorities"].to(self.largest)
        self.tree.set(torch.arange(len(values), device=values.device), values)
        self.largest = tensors["largest_priority"].to(self.largest)


class TensorReplayBuffer(ReplayBuffer):
    """A ring of the last steps of all rows, in tensors allocated once, with the interface of SB3's buffer.

    With ``n_steps`` n a sample is a transition of m = min(n, steps to the episode's end or to the newest step) steps:
    its reward is sum_{k < m} gamma^k r_{t+k}, its discount gamma^m, and it is done only if the world ended the episode
    within it.

    Args:
        buffer_size: transitions, of all rows together.
        observation_space: also a Dict, which is kept as one tensor a key.
        action_space: of one row.
        device: of the tensors.
        n_envs: number of rows.
        optimize_memory_usage: not supported.
        n_steps: see above.
        gamma: discount factor; used with ``n_steps`` above 1.
        masked: keep the masks of the allowed actions too.

    Attributes:
        data: ``(slots, rows, ...)`` tensors ``observations, next_observations`` (or dicts of them), ``actions, rewards,
            terminated, ended`` and, where masked, ``next_masks``.

    Raises:
        InputError: a number out of its range, or a buffer that the device has no memory for.
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        device: torch.device | str = "auto",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
        *,
        n_steps: int = 1,
        gamma: float = 0.99,
        masked: bool = False,
    ) -> None:
        if optimize_memory_usage:
            raise InputError("optimize_memory_usage: True; allowed: False (both observations of a step are kept)")
        if n_steps < 1:
            raise InputError(f"n_steps: {n_steps}; allowed: at least 1")
        slots = max(buffer_size // n_envs, 1)
        BaseBuffer.__init__(self, slots, observation_space, action_space, device, n_envs=n_envs)
        self.n_steps, self.gamma, self.masked = n_steps, gamma, masked
        self.data = self._allocate()
        self._flat = tree.map_tensors(lambda x: x.flatten(0, 1), self.data)

    def _allocate(self) -> dict[str, Any]:
        def zeros(space: spaces.Space[Any]) -> Any:
            if isinstance(space, spaces.Dict):
                return {key: zeros(part) for key, part in space.items()}
            shape = (1,) if isinstance(space, spaces.Discrete) else space.shape or (1,)
            return torch.zeros((*rows, *shape), dtype=torch_dtype(space), device=self.device)

        rows = (self.buffer_size, self.n_envs)
        try:
            data = {"observations": zeros(self.observation_space), "next_observations": zeros(self.observation_space)}
            data |= {"actions": zeros(self.action_space), "rewards": torch.zeros(rows, device=self.device)}
            flags = ("terminated", "ended")
            data |= {name: torch.zeros(rows, dtype=torch.bool, device=self.device) for name in flags}
            if self.masked:
                assert isinstance(self.action_space, spaces.Discrete), "only choices are masked"
                choices = int(self.action_space.n)
                data["next_masks"] = torch.zeros((*rows, choices), dtype=torch.bool, device=self.device)
        except torch.OutOfMemoryError as error:
            raise InputError(
                f"buffer_size: {self.buffer_size * self.n_envs} transitions do not fit into the memory of "
                f"{self.device}; allowed: fewer"
            ) from error
        return data

    @property
    def filled(self) -> int:
        """Number of transitions in it."""
        return self.size() * self.n_envs

    def add_tensor(
        self,
        obs: Observation,
        next_obs: Observation,
        action: Tensor,
        reward: Tensor,
        terminated: Tensor,
        truncated: Tensor,
        next_masks: Tensor | None = None,
    ) -> None:
        """Store one step of all rows.

        Args:
            obs: ``(rows, ...)`` before the step.
            next_obs: ``(rows, ...)`` after it, where the episode ended its last.
            action: ``(rows, ...)``.
            reward: ``(rows,)``.
            terminated: ``(rows,)`` bool.
            truncated: ``(rows,)`` bool.
            next_masks: ``(rows, actions)`` bool at ``next_obs``.
        """
        step = {"observations": obs, "next_observations": next_obs, "actions": action, "rewards": reward}
        step |= {"terminated": terminated, "ended": terminated | truncated}
        if self.masked:
            assert next_masks is not None, "the memory keeps masks"
            step["next_masks"] = next_masks
        for name, value in step.items():
            tree.map_tensors(_store, tree.take(self.data[name], self.pos), value)
        self.pos += 1
        if self.pos == self.buffer_size:
            self.full, self.pos = True, 0

    def cut(self) -> None:
        """No transition goes on beyond the newest step: what is stored next begins new episodes."""
        self.data["ended"][self.pos - 1] = True

    def add(self, obs: Any, next_obs: Any, action: Any, reward: Any, done: Any, infos: list[dict[str, Any]]) -> None:
        """The same from SB3's loop."""
        truncated = np.array([info.get("TimeLimit.truncated", False) for info in infos])
        done = np.asarray(done, dtype=bool)
        arrays = (obs, next_obs, action, reward, done & ~truncated, done & truncated)
        self.add_tensor(*(self._tensors(x) for x in arrays))

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> ReplayBatch:  # type: ignore[override]
        """``batch_size`` transitions, drawn with replacement by the device's global generator."""
        return self._get_samples(torch.randint(self.filled, (batch_size,), device=self.device))

    def _get_samples(self, batch_inds: Any, env: VecNormalize | None = None) -> ReplayBatch:  # type: ignore[override]
        """The transitions at positions ``(n,)``, which count slot by slot and row by row within a slot."""
        last, discounts = batch_inds, None
        if self.n_steps == 1:
            rewards = self._take("rewards", batch_inds).unsqueeze(1)
        else:
            last, rewards, discounts = self._ahead(batch_inds)
        return ReplayBatch(
            self._take("observations", batch_inds),
            self._take("actions", batch_inds),
            self._take("next_observations", last),
            self._take("terminated", last).unsqueeze(1).float(),
            rewards,
            discounts,
            self._take("next_masks", last) if self.masked else None,
        )

    def _ahead(self, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Position of the last step of each transition, its reward and its discount."""
        slot, row = positions // self.n_envs, positions % self.n_envs
        k = torch.arange(self.n_steps, device=self.device)
        following = (slot.unsqueeze(1) + k) % self.buffer_size * self.n_envs + row.unsqueeze(1)
        ended = self._flat["ended"][following].int()
        newest = (self.pos - 1 - slot) % self.buffer_size
        inside = (ended.cumsum(1) == ended) & (k <= newest.unsqueeze(1))
        powers = self.gamma ** k.float()
        rewards = (torch.where(inside, self._flat["rewards"][following], 0.0) * powers).sum(1, keepdim=True)
        steps = inside.sum(1, keepdim=True)
        return following.gather(1, steps - 1).squeeze(1), rewards, self.gamma**steps

    def _take(self, name: str, positions: Tensor) -> Any:
        return tree.map_tensors(lambda x: x.index_select(0, positions), self._flat[name])

    def _tensors(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: self._tensors(part) for key, part in value.items()}
        return torch.as_tensor(np.asarray(value), device=self.device)

    def state_tensors(self) -> dict[str, Tensor]:
        """Everything in it, by name."""
        held = tree.map_tensors(lambda x: x[: self.size()], self.data)
        return {**dict(tree.named_tensors(held)), "place": torch.tensor([self.pos, int(self.full)])}

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of ``state_tensors``.

        Raises:
            InputError: a tensor is absent, or of another shape than this memory needs.
        """
        if (place := tensors.get("place")) is None:
            raise InputError("replay memory: absent")
        self.pos, self.full = int(place[0]), bool(place[1])
        for name, tensor in tree.named_tensors(self.data):
            held = tensor[: self.size()]
            if name not in tensors or tensors[name].shape != held.shape:
                found = tuple(tensors[name].shape) if name in tensors else "absent"
                raise InputError(f"replay memory {name}: {found}; this model needs {tuple(held.shape)}")
            held.copy_(tensors[name])


class PrioritizedReplayBuffer(TensorReplayBuffer):
    """The same, from which transitions are drawn by their last errors.

    Args:
        *args: as above.
        alpha: see ``Priorities``.
        beta: see ``Priorities``.
        eps: see ``Priorities``.
        initial: see ``Priorities``.
        **kwargs: as above.

    Attributes:
        priorities: of the positions.
    """

    def __init__(
        self,
        *args: Any,
        alpha: float = 0.6,
        beta: float = 0.4,
        eps: float = 1e-6,
        initial: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        size = self.buffer_size * self.n_envs
        self.priorities = Priorities(size, alpha=alpha, beta=beta, eps=eps, initial=initial, device=self.device)

    def add_tensor(self, *args: Any, **kwargs: Any) -> None:
        """Store one step of all rows, with the largest priority."""
        first = self.pos * self.n_envs
        self.priorities.insert(torch.arange(first, first + self.n_envs, device=self.device))
        super().add_tensor(*args, **kwargs)

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> ReplayBatch:  # type: ignore[override]
        """``batch_size`` transitions with their weights and positions."""
        positions, weights = self.priorities.draw(batch_size)
        batch = self._get_samples(positions)
        return ReplayBatch(**{**vars(batch), "weights": weights.unsqueeze(1), "positions": positions})

    def state_tensors(self) -> dict[str, Tensor]:
        """Everything in it, by name."""
        return super().state_tensors() | self.priorities.tensors()

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of ``state_tensors``; raises as above."""
        super().load_state_tensors(tensors)
        if "priorities" not in tensors:
            raise InputError("replay memory priorities: absent")
        self.priorities.load_tensors(tensors)


def _store(held: Tensor, value: Tensor) -> Tensor:
    return held.copy_(value.view_as(held))

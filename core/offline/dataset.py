"""Logged transitions as tensors: the one form in which every offline algorithm and estimator takes its data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
import xarray as xr
from gymnasium import spaces
from torch import Tensor

from core.bandits.row_checks import refuse_outside, refuse_rows
from core.errors import InputError

STD_FLOOR = 1e-3
"""Added to the standard deviation of each feature (TD3+BC, Fujimoto and Gu 2021): one that is constant stays finite."""


@dataclass(frozen=True, eq=False)
class TransitionBatch:
    """N transitions, each over one or several steps; a learner bootstraps with ``discounts * ~terminated``.

    Attributes:
        observations: ``(N, do)``.
        actions: ``(N,)`` int64 of a Discrete space, ``(N, da)`` of a Box.
        rewards: ``(N,)``, the discounted sum over the steps of the transition.
        next_observations: ``(N, do)`` after its last step.
        terminated: ``(N,)`` bool, the world ended within it.
        discounts: ``(N,)``, gamma to the number of its steps.
        weights: ``(N,)`` importance weights of a sampler that is not uniform.
        extras: what else the dataset holds of the rows.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    next_observations: Tensor
    terminated: Tensor
    discounts: Tensor
    weights: Tensor | None = None
    extras: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.actions)

    def take(self, rows: Tensor) -> TransitionBatch:
        """The transitions ``rows`` (K,) int64."""
        return _take(self, rows)


@dataclass(frozen=True)
class Standardizer:
    """Observations to (x - mean) / std and back.

    Attributes:
        mean: ``(do,)``.
        std: ``(do,)``, ``STD_FLOOR`` included.
    """

    mean: Tensor
    std: Tensor

    @staticmethod
    def fit(observations: Tensor) -> Standardizer:
        """From the rows (N, do)."""
        x = observations.double()
        return Standardizer(x.mean(0).to(observations), (x.std(0, correction=0) + STD_FLOOR).to(observations))

    def apply(self, observations: Tensor) -> Tensor:
        """Standardised (..., do)."""
        return (observations - self.mean) / self.std

    def invert(self, standardised: Tensor) -> Tensor:
        """The units of the data (..., do)."""
        return standardised * self.std + self.mean


@dataclass(frozen=True, eq=False, kw_only=True)
class OfflineDataset:
    """N logged steps of E episodes, episode by episode and step by step, all tensors on one device.

    Attributes:
        observations: ``(N, do)`` float, in the units of the space.
        actions: ``(N,)`` int64 of a Discrete space (counted from 0), ``(N, da)`` of a Box, in its units.
        rewards: ``(N,)``.
        next_observations: ``(N, do)``; true also where the episode was truncated, of no effect where it terminated.
        terminated: ``(N,)`` bool, the world ended the episode with this step.
        truncated: ``(N,)`` bool, the log stops after this step but the world does not.
        episode: ``(N,)`` int64, the same for all steps of an episode and for no other's.
        step: ``(N,)`` int64, rising by 1.
        observation_space: a Box with do numbers.
        action_space: Discrete or Box; it alone says which of both the actions are.
        behaviour_log_prob: ``(N,)`` log-probability (or log-density) of the logged action when it was taken.
        behaviour_probability: ``(N, A)`` of every action of a Discrete space.
        extras: further ``(N, ...)`` tensors, carried along by everything that selects rows.
        name: in messages; the file if there is one.

    Raises:
        InputError: no rows; shapes that do not fit; a value that is not finite, an action outside its space, an episode
            with gaps, or an end that is not at its last step (the field and row are named).
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    next_observations: Tensor
    terminated: Tensor
    truncated: Tensor
    episode: Tensor
    step: Tensor
    observation_space: spaces.Box
    action_space: spaces.Discrete | spaces.Box
    behaviour_log_prob: Tensor | None = None
    behaviour_probability: Tensor | None = None
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    name: str = "dataset"

    def __post_init__(self) -> None:
        _check_shapes(self)
        _check_values(self)
        _check_episodes(self)

    def __len__(self) -> int:
        return len(self.rewards)

    @property
    def device(self) -> torch.device:
        """Where all tensors are."""
        return self.rewards.device

    @property
    def discrete(self) -> bool:
        """Whether the actions are choices; the space says so, never the type of the numbers."""
        return isinstance(self.action_space, spaces.Discrete)

    @property
    def choices(self) -> int:
        """Number A of actions to choose from.

        Raises:
            InputError: the actions are continuous.
        """
        if not isinstance(self.action_space, spaces.Discrete):
            raise InputError(f"{self.name}: action_space is {self.action_space}, this needs a Discrete one")
        return int(self.action_space.n)

    @property
    def episodes(self) -> int:
        """Number E of episodes."""
        return len(self.starts)

    @cached_property
    def starts(self) -> Tensor:
        """``(E,)`` row of each episode's first step."""
        first = torch.ones(len(self), dtype=torch.bool, device=self.device)
        first[1:] = self.episode[1:] != self.episode[:-1]
        return first.nonzero()[:, 0]

    @cached_property
    def lengths(self) -> Tensor:
        """``(E,)`` steps of each episode."""
        return torch.diff(self.starts, append=self.starts.new_tensor([len(self)]))

    @cached_property
    def longest(self) -> int:
        """Steps T of the longest episode."""
        return int(self.lengths.max())

    @cached_property
    def episode_index(self) -> Tensor:
        """``(N,)`` number 0..E-1 of each row's episode."""
        return torch.repeat_interleave(torch.arange(self.episodes, device=self.device), self.lengths)

    @cached_property
    def ends(self) -> Tensor:
        """``(N,)`` row of the last step of each row's episode."""
        return (self.starts + self.lengths - 1)[self.episode_index]

    @cached_property
    def mask(self) -> Tensor:
        """``(E, T)`` bool, which steps of the longest episode's T each episode has."""
        return torch.arange(self.longest, device=self.device) < self.lengths[:, None]

    def padded(self, values: Tensor) -> Tensor:
        """Row values ``(N, ...)`` as ``(E, T, ...)``, zeros behind an episode's end."""
        out = values.new_zeros(*self.mask.shape, *values.shape[1:])
        out[self.mask] = values
        return out

    def take(self, rows: Tensor) -> OfflineDataset:
        """The rows ``rows`` (K,) int64, which must hold their episodes without gaps."""
        return _take(self, rows)

    def take_episodes(self, index: Tensor) -> OfflineDataset:
        """The episodes ``index`` (K,) int64 of 0..E-1, in that order; repeated ones become episodes of their own."""
        lengths = self.lengths[index]
        first = torch.cumsum(lengths, 0) - lengths
        number = torch.repeat_interleave(torch.arange(len(index), device=self.device), lengths)
        rows = self.starts[index][number] + torch.arange(len(number), device=self.device) - first[number]
        kept = self.episode[rows] if len(torch.unique(index)) == len(index) else number
        return _take(self, rows, episode=kept)

    def to(self, device: torch.device | str) -> OfflineDataset:
        """The same on another device."""
        return replace(self, **{name: _map(lambda x: x.to(device), value) for name, value in _tensors(self).items()})

    def with_rewards(self, rewards: Tensor) -> OfflineDataset:
        """The same steps with other rewards (N,)."""
        return replace(self, rewards=rewards)

    def returns(self, gamma: float = 1.0) -> Tensor:
        """``(N,)`` float64: sum of the rewards from each step to its episode's end, discounted by ``gamma`` a step."""
        total = self.rewards.double().clone()
        lengths, order = self.lengths.sort(descending=True)
        starts, steps = self.starts[order], torch.arange(self.longest, device=self.device)
        longer = torch.searchsorted(-lengths, -steps - 1).tolist()  # episodes with a step behind t: the first so many
        for t in range(self.longest - 2, -1, -1):
            rows = starts[: longer[t]] + t
            total[rows] += gamma * total[rows + 1]
        return total

    def episode_returns(self, gamma: float = 1.0) -> Tensor:
        """``(E,)`` float64 return of each episode."""
        return self.returns(gamma)[self.starts]

    def initial_observations(self) -> Tensor:
        """``(E, do)`` the first observation of each episode."""
        return self.observations[self.starts]

    def n_step(self, n: int, gamma: float, rows: Tensor | None = None) -> TransitionBatch:
        """Transitions of up to n steps from each row (or from ``rows`` (K,) alone).

        With m = min(n, steps left): the reward is r_t + ... + gamma^(m-1) r_{t+m-1}, the next observation that after m
        steps, the discount gamma^m. Only a termination within the m steps ends the bootstrap, truncation does not.

        Raises:
            InputError: n below 1 or gamma outside [0, 1].
        """
        if n < 1 or not 0.0 <= gamma <= 1.0:
            raise InputError(f"n = {n}, gamma = {gamma}; allowed: n of at least 1, gamma in [0, 1]")
        rows = torch.arange(len(self), device=self.device) if rows is None else rows.to(self.device)
        last = torch.minimum(rows + n - 1, self.ends[rows])
        total = torch.zeros(len(rows), dtype=torch.float64, device=self.device)
        for k in range(min(n, self.longest)):
            inside = rows + k <= last
            total += gamma**k * torch.where(inside, self.rewards[(rows + k).clamp(max=len(self) - 1)], 0.0)
        return TransitionBatch(
            self.observations[rows],
            self.actions[rows],
            total.to(self.rewards),
            self.next_observations[last],
            self.terminated[last],
            (gamma ** (last - rows + 1).double()).to(self.rewards),
            extras={name: value[rows] for name, value in self.extras.items()},
        )

    def sample(self, batch: int, generator: torch.Generator, *, n: int = 1, gamma: float = 0.99) -> TransitionBatch:
        """``batch`` transitions drawn uniformly, with replacement."""
        rows = torch.randint(len(self), (batch,), generator=generator, device=generator.device)
        return self.n_step(n, gamma, rows)

    def windows(self, length: int, stride: int = 1) -> Tensor:
        """Rows ``(W, length)`` of windows within an episode, begun every ``stride`` steps, and that which ends with it.

        Episodes shorter than ``length`` have none.

        Raises:
            InputError: a length or stride below 1.
        """
        if length < 1 or stride < 1:
            raise InputError(f"length = {length}, stride = {stride}; allowed: at least 1")
        rows = torch.arange(len(self), device=self.device)
        place, left = rows - self.starts[self.episode_index], self.ends - rows + 1
        begins = rows[(left >= length) & ((place % stride == 0) | (left == length))]
        return begins[:, None] + torch.arange(length, device=self.device)

    def split(self, fraction: float, generator: torch.Generator) -> tuple[OfflineDataset, OfflineDataset]:
        """Two datasets with a share ``fraction`` of the episodes, drawn at random, and with the rest.

        Raises:
            InputError: one of both would be empty.
        """
        first = round(fraction * self.episodes)
        if not 0 < first < self.episodes:
            raise InputError(f"fraction: {fraction} of {self.episodes} episodes leaves one part empty")
        order = torch.randperm(self.episodes, generator=generator, device=generator.device).to(self.device)
        return self.take_episodes(order[:first].sort().values), self.take_episodes(order[first:].sort().values)

    def normalised(self) -> tuple[OfflineDataset, Standardizer]:
        """The same with standardised observations, and how that was done."""
        scale = Standardizer.fit(self.observations)
        low, high = (
            scale.apply(torch.from_numpy(bound).to(self.observations)).cpu().numpy().astype(np.float32)
            for bound in (self.observation_space.low, self.observation_space.high)
        )
        standardised = replace(
            self,
            observations=scale.apply(self.observations),
            next_observations=scale.apply(self.next_observations),
            observation_space=spaces.Box(low, high),
        )
        return standardised, scale

    @staticmethod
    def concat(datasets: Sequence[OfflineDataset]) -> OfflineDataset:
        """All episodes of several datasets, numbered anew.

        Raises:
            InputError: none, or different spaces, extras or knowledge of the behaviour policy.
        """
        if not datasets:
            raise InputError("datasets: none given")
        first = datasets[0]
        for other in datasets[1:]:
            for name in ("observation_space", "action_space"):
                if getattr(first, name) != getattr(other, name):
                    raise InputError(f"{other.name}: {name} is not that of {first.name}")
            if _tensors(first).keys() != _tensors(other).keys() or first.extras.keys() != other.extras.keys():
                raise InputError(f"{other.name}: holds other optional fields or extras than {first.name}")
        joined: dict[str, Any] = {
            name: {key: torch.cat([d.extras[key] for d in datasets]) for key in value}
            if name == "extras"
            else torch.cat([getattr(d, name) for d in datasets])
            for name, value in _tensors(first).items()
        }
        before = np.cumsum([0, *(d.episodes for d in datasets)]).tolist()
        joined["episode"] = torch.cat([d.episode_index + b for d, b in zip(datasets, before, strict=False)])
        return replace(first, **joined)

    @staticmethod
    def from_rollout(
        record: xr.Dataset,
        observation: str | Sequence[str],
        observation_space: spaces.Box,
        action_space: spaces.Discrete | spaces.Box,
        *,
        extras: Sequence[str] = (),
        name: str = "rollout",
    ) -> OfflineDataset:
        """Of what ``core.simulation.rollout`` recorded.

        A record has what was seen before each step. So a step is kept if the next one was recorded too, or if the world
        ended with it; an episode that still ran at the end of the record is truncated one step before.

        Args:
            record: with the dims ``rep`` and ``time``.
            observation: variable, or variables side by side, that the policy saw.
            observation_space: of the numbers in them.
            action_space: of ``action``.
            extras: variables to carry along.
            name: see the class.

        Raises:
            InputError: a variable is absent, or as the class.
        """
        names = [observation] if isinstance(observation, str) else list(observation)
        for variable in (*names, "action", "reward", *extras):
            if variable not in record:
                raise InputError(f"{name}: no variable {variable!r}; it has {', '.join(map(str, record.data_vars))}")
        alive = torch.from_numpy(record["alive"].to_numpy())
        seen = torch.cat([_variable(record, n).float().reshape(*alive.shape, -1) for n in names], -1)
        following = torch.cat([seen[:, 1:], seen[:, -1:]], 1)
        last = alive & ~torch.cat([alive[:, 1:], torch.zeros_like(alive[:, :1])], 1)
        terminated = last & torch.from_numpy(record["terminated"].to_numpy())[:, None]
        kept = alive.clone()
        kept[:, -1] &= terminated[:, -1]
        truncated = kept & ~torch.cat([kept[:, 1:], torch.zeros_like(kept[:, :1])], 1) & ~terminated
        rep, time = kept.nonzero(as_tuple=True)
        action = _variable(record, "action")[kept]
        return OfflineDataset(
            observations=seen[kept],
            actions=action.long() if isinstance(action_space, spaces.Discrete) else action.float(),
            rewards=_variable(record, "reward").float()[kept],
            next_observations=following[kept],
            terminated=terminated[kept],
            truncated=truncated[kept],
            episode=rep,
            step=time,
            observation_space=observation_space,
            action_space=action_space,
            extras={extra: _variable(record, extra)[kept] for extra in extras},
            name=name,
        )


def _variable(record: xr.Dataset, name: str) -> Tensor:
    return torch.from_numpy(record[name].to_numpy())


def _tensors(data: OfflineDataset | TransitionBatch) -> dict[str, Any]:
    """The fields that have rows: tensors, and the mapping of extras."""
    values = {f.name: getattr(data, f.name) for f in fields(data)}
    return {name: value for name, value in values.items() if isinstance(value, Tensor) or name == "extras"}


def _map(function: Any, value: Any) -> Any:
    return function(value) if isinstance(value, Tensor) else {key: function(item) for key, item in value.items()}


def _take(data: Any, rows: Tensor, **replaced: Tensor) -> Any:
    taken = {name: _map(lambda x: x[rows], value) for name, value in _tensors(data).items()}
    return replace(data, **{**taken, **replaced})


def _check_shapes(data: OfflineDataset) -> None:
    n = len(data.rewards)
    if not n:
        raise InputError(f"{data.name}: no steps; at least one is needed")
    if data.observation_space.shape is None or len(data.observation_space.shape) != 1:
        raise InputError(f"{data.name}: observation_space has shape {data.observation_space.shape}; allowed: (do,)")
    seen = (n, *data.observation_space.shape)
    shapes: dict[str, tuple[int, ...]] = {"observations": seen, "next_observations": seen}
    if isinstance(data.action_space, spaces.Discrete):
        if int(data.action_space.start):
            raise InputError(f"{data.name}: action_space starts at {data.action_space.start}; allowed: 0")
        shapes["actions"] = (n,)
        shapes["behaviour_probability"] = (n, int(data.action_space.n))
    elif isinstance(data.action_space, spaces.Box):
        shapes["actions"] = (n, *data.action_space.shape)
        if data.behaviour_probability is not None:
            raise InputError(f"{data.name}: behaviour_probability is for Discrete actions; give behaviour_log_prob")
    else:
        raise InputError(f"{data.name}: action_space is {data.action_space}; allowed: Discrete or Box")
    scalars = ("rewards", "terminated", "truncated", "episode", "step", "behaviour_log_prob")
    shapes |= dict.fromkeys(scalars, (n,))
    for name, shape in shapes.items():
        value = getattr(data, name)
        if value is not None and tuple(value.shape) != shape:
            raise InputError(f"{data.name}: {name} has shape {tuple(value.shape)}, must be {shape}")
    for name, value in data.extras.items():
        if value.shape[:1] != (n,):
            raise InputError(f"{data.name}: extras[{name!r}] has shape {tuple(value.shape)}, must be ({n}, ...)")
    devices = {v.device for v in (*_tensors(data).values(), *data.extras.values()) if isinstance(v, Tensor)}
    if len(devices) > 1:
        raise InputError(f"{data.name}: tensors on {', '.join(sorted(map(str, devices)))}; allowed: one device")
    for name in ("terminated", "truncated"):
        if getattr(data, name).dtype != torch.bool:
            raise InputError(f"{data.name}: {name} is {getattr(data, name).dtype}, must be bool")
    if data.discrete and data.actions.dtype != torch.int64:
        raise InputError(f"{data.name}: actions are {data.actions.dtype}; a Discrete space needs int64")


def _check_values(data: OfflineDataset) -> None:
    for name in ("observations", "next_observations", "rewards", "behaviour_log_prob"):
        value = getattr(data, name)
        if value is not None:
            refuse_outside(f"{data.name}: {name}", value, -np.inf, np.inf)
    if isinstance(data.action_space, spaces.Discrete):
        refuse_outside(f"{data.name}: actions", data.actions, 0, int(data.action_space.n) - 1)
    else:
        low, high = (torch.from_numpy(b).to(data.actions) for b in (data.action_space.low, data.action_space.high))
        inside = (data.actions >= low) & (data.actions <= high)
        refuse_rows(f"{data.name}: actions", data.actions, inside, f"inside {data.action_space}")
    if data.behaviour_probability is not None:
        refuse_outside(f"{data.name}: behaviour_probability", data.behaviour_probability, 0.0, 1.0)


def _check_episodes(data: OfflineDataset) -> None:
    same = data.episode[1:] == data.episode[:-1]
    gap = same & (data.step[1:] != data.step[:-1] + 1)
    refuse_rows(f"{data.name}: step", data.step[1:], ~gap, "the step before plus 1 within an episode", 1)
    numbers = data.episode[data.starts]
    if len(torch.unique(numbers)) < len(numbers):
        seen = torch.unique(numbers, return_counts=True)
        raise InputError(f"{data.name}: episode {seen[0][seen[1] > 1][0].item()} is not in one piece of rows")
    over, both = data.terminated | data.truncated, data.terminated & data.truncated
    last = torch.cat([~same, same.new_ones(1)])
    refuse_rows(
        f"{data.name}: terminated or truncated", over, over == last, "true at an episode's last row and only there"
    )
    refuse_rows(f"{data.name}: terminated and truncated", both, ~both, "one of them")

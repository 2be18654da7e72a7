"""Roll-outs of a policy in a batched simulator: recorded as an xarray Dataset, or summed up per episode."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from core.errors import InputError
from core.simulation import tree
from core.simulation.simulator import Policy, Simulator, Step, Variable


@dataclass(frozen=True)
class Draws:
    """All that is random in a batch of episodes, so that several policies can meet the same luck.

    Attributes:
        start: the initial states.
        noise: one batch of noise per step.
    """

    start: Any
    noise: tuple[Any, ...]

    def take(self, index: Any) -> Draws:
        """The draws of the selected copies."""
        return Draws(tree.take(self.start, index), tuple(tree.take(n, index) for n in self.noise))

    def repeat(self, times: int) -> Draws:
        """The same draws ``times`` over, repetition by repetition."""
        return Draws(tree.repeat(self.start, times), tuple(tree.repeat(n, times) for n in self.noise))


def draw(
    simulator: Simulator, horizon: int, batch: int, seed: int, device: str | torch.device = "cpu", start: Any = None
) -> Draws:
    """Draw what ``horizon`` steps of ``batch`` copies need; equal seeds give equal draws whatever the policy.

    A given ``start`` (states of ``batch`` copies) replaces the initial states drawn by the simulator.

    Raises:
        InputError: a horizon or batch below 1.
    """
    generator = torch.Generator(device).manual_seed(seed)
    if horizon < 1 or batch < 1:
        raise InputError(f"horizon = {horizon}, batch = {batch}: both must be at least 1")
    drawn = simulator.reset(batch, generator)
    noise = tuple(simulator.noise(batch, generator) for _ in range(horizon))
    return Draws(drawn if start is None else start, noise)


@dataclass(frozen=True)
class _Year:
    """One step of a batch of episodes: what was seen, done and earned; ``alive`` before the step."""

    state: Any
    action: Tensor
    step: Step
    alive: Tensor
    nonfinite: Tensor


def _episodes(simulator: Simulator, policy: Policy, draws: Draws) -> Iterator[_Year]:
    """Play all episodes to their end; a copy that has ended keeps its last state and earns nothing."""
    state = draws.start
    first = next(tree.named_tensors(state))[1]
    alive = torch.ones(len(first), dtype=torch.bool, device=first.device)
    none, playing = ~alive, len(first)
    if hasattr(policy, "reset"):
        policy.reset(playing)
    for t, noise in enumerate(draws.noise):
        with torch.no_grad():
            action = policy(simulator.observe(state, noise), state)
        step, nonfinite = simulator.step(state, action, noise), none
        total = tree.total(step.state, step.reward)
        if not math.isfinite(float(total.sum())):
            nonfinite = alive & (total - total != 0)
            step = _without(nonfinite, step, state)
            if bool((nonfinite & ~torch.isfinite(action).reshape(len(alive), -1).all(1)).any()):
                raise InputError(f"step {t}: the policy returned an action that is not finite")
        if playing < len(alive):
            reward = torch.where(tree.expand_mask(alive, step.reward), step.reward, 0.0)
            step = Step(tree.where(alive, step.state, state), reward, step.terminated & alive, step.info)
        yield _Year(state, action, step, alive, nonfinite)
        state, alive = step.state, alive & ~(step.terminated | nonfinite)
        playing = int(torch.count_nonzero(alive))
        if not playing:
            return


def _without(nonfinite: Tensor, step: Step, before: Any) -> Step:
    """The step in which a copy that is not finite keeps its last finite state and earns nothing."""
    reward = torch.where(tree.expand_mask(nonfinite, step.reward), 0.0, step.reward)
    return Step(tree.where(nonfinite, before, step.state), reward, step.terminated & ~nonfinite, step.info)


@dataclass(frozen=True)
class EpisodeTotals:
    """Per-episode sums of a batch of B episodes; all ``(B,)``.

    Attributes:
        reward: undiscounted sum of rewards.
        last_reward: reward of the episode's last step.
        length: number of steps played.
        terminated: the world ended the episode.
        nonfinite: the copy became non-finite and was ended for that.
    """

    reward: Tensor
    last_reward: Tensor
    length: Tensor
    terminated: Tensor
    nonfinite: Tensor


def episode_totals(simulator: Simulator, policy: Policy, draws: Draws) -> EpisodeTotals:
    """Play the episodes of ``draws`` and keep only their sums: what a search over policies needs.

    Args:
        simulator: the world.
        policy: any callable ``policy(observation, state) -> action`` in the domain's units.
        draws: from ``draw``; its length is the horizon.
    """
    years = _episodes(simulator, policy, draws)
    first = next(years)
    reward = last = first.step.reward
    length, terminated, nonfinite = first.alive.long(), first.step.terminated, first.nonfinite
    for year in years:
        reward = reward + year.step.reward
        last = torch.where(tree.expand_mask(year.alive, last), year.step.reward, last)
        length = length + year.alive
        terminated, nonfinite = terminated | year.step.terminated, nonfinite | year.nonfinite
    return EpisodeTotals(reward, last, length, terminated, nonfinite)


def rollout(
    simulator: Simulator,
    policy: Policy,
    horizon: int | None = None,
    batch: int | None = None,
    seed: int = 0,
    *,
    device: str | torch.device = "cpu",
    draws: Draws | None = None,
) -> xr.Dataset:
    """Play a batch of episodes and record them.

    Args:
        simulator: the world; ``simulator.variables`` says what is recorded.
        policy: any callable ``policy(observation, state) -> action`` in the domain's units.
        horizon: steps of each episode at most.
        batch: number of episodes.
        seed: seed of the world's randomness; equal seeds give every policy the same luck.
        device: where to compute.
        draws: explicit randomness, in place of ``horizon``, ``batch`` and ``seed``.

    Returns:
        Dataset with the dims ``rep`` and ``time`` before the variable's own: the recorded variables at each step
        (a state's variable before the step), ``reward``, ``alive`` (the step was played), and per episode ``length``,
        ``terminated`` and ``nonfinite``. After its end a copy keeps its last state; what it does and earns is 0.

    Raises:
        InputError: neither ``draws`` nor horizon and batch, or a policy that returns a non-finite action.
    """
    if draws is None:
        if horizon is None or batch is None:
            raise InputError(f"horizon = {horizon}, batch = {batch}: both must be at least 1, or give draws")
        draws = draw(simulator, horizon, batch, seed, device)
    steps = len(draws.noise)
    recorded = [name for name in simulator.variables if name != "reward"]
    frames: dict[str, list[Tensor]] = {name: [] for name in (*recorded, "reward", "alive")}
    totals: dict[str, Tensor] = {}
    state = draws.start
    for year in _episodes(simulator, policy, draws):
        for name in recorded:
            frames[name].append(_recorded(name, year))
        frames["reward"].append(year.step.reward)
        frames["alive"].append(year.alive)
        for name, mask in (("terminated", year.step.terminated), ("nonfinite", year.nonfinite)):
            totals[name] = totals[name] | mask if name in totals else mask
        state = year.step.state
    arrays = {name: _stack(name, values, steps, state) for name, values in frames.items()}
    return _dataset(simulator, arrays, {name: mask.cpu().numpy() for name, mask in totals.items()}, seed)


def _recorded(name: str, year: _Year) -> Tensor:
    """The variable ``name`` at this step: from the step's info, the state before the step, or the action."""
    if name in year.step.info:
        value = year.step.info[name]
    elif name == "action":
        value = year.action
    else:
        return getattr(year.state, name)
    return torch.where(tree.expand_mask(year.alive & ~year.nonfinite, value), value, torch.zeros_like(value))


def _stack(name: str, values: list[Tensor], steps: int, final: Any) -> np.ndarray:
    """Frames as ``(rep, time, ...)``, continued to ``steps`` when every copy has ended before."""
    stacked = torch.stack(values, dim=1)
    missing = steps - len(values)
    if missing:
        held = getattr(final, name, None)
        tail = torch.zeros_like(values[-1]) if held is None else held
        stacked = torch.cat([stacked, tail.unsqueeze(1).expand(-1, missing, *tail.shape[1:])], dim=1)
    return stacked.cpu().numpy()


def _dataset(
    simulator: Simulator, arrays: dict[str, np.ndarray], totals: dict[str, np.ndarray], seed: int
) -> xr.Dataset:
    described = {
        "reward": Variable(long_name="reward of the step"),
        "alive": Variable(long_name="the step was played"),
        **simulator.variables,
    }
    data: dict[str, Any] = {}
    coords: dict[str, Any] = {}
    for name, array in arrays.items():
        variable = described[name]
        dims = ("rep", "time", *variable.dims)
        if name == "reward" and array.ndim == 3:
            dims = ("rep", "time", "agent")
        data[name] = (dims, array, {"units": variable.units, "long_name": variable.long_name})
        coords.update({dim: list(labels) for dim, labels in variable.coords.items()})
    reps, steps = arrays["alive"].shape
    data["length"] = ("rep", arrays["alive"].sum(1), {"units": "1", "long_name": "steps played"})
    data["terminated"] = ("rep", totals["terminated"], {"long_name": "the world ended the episode"})
    data["nonfinite"] = ("rep", totals["nonfinite"], {"long_name": "ended because its state was not finite"})
    coords.update(rep=np.arange(reps), time=("time", np.arange(steps), {"units": "steps", "long_name": "time"}))
    return xr.Dataset(data, coords, {"seed": seed})

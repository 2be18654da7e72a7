"""Exact dynamic programming for a one-species fishery, on a logarithmic grid of the population.

The reward is linear in the harvest, so the decision is the escapement E <= N left after it:

    V_t(N) = N + max_{E <= N} W_t(E),
    W_t(E) = E[ 1(alive) V_{t+1}(N') ] - P(dead) penalty / (t + 1) - E,      V_horizon = 0,

with N' the population a year after the escapement E. The maximum over E <= N is a cumulative maximum along the grid,
and the expectation a matrix that is built once: Gauss-Hermite quadrature of the noise, cubic interpolation of V in
log N, and the extinction test at each quadrature node, so that nothing is interpolated across the threshold.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from core.errors import InputError
from core.simulation import Step
from simulators.fishery import YEARS, Fishery, FisheryNoise, FisheryState, OneSpecies

Mode = Literal["finite", "stationary", "discounted"]


@dataclass(frozen=True)
class _Expectation:
    """Expected value a year after each escapement: ``alive @ V`` and the probability ``dead``."""

    alive: Tensor
    dead: Tensor

    def __call__(self, value: Tensor, penalty: float) -> Tensor:
        return self.alive @ value - penalty * self.dead


def _linear_weights(position: Tensor, nodes: int) -> tuple[Tensor, Tensor]:
    """Linear interpolation on a uniform grid: indices and weights ``(..., 2)`` of ``position``."""
    first = position.floor().long().clamp(0, nodes - 2)
    share = position - first
    return torch.stack([first, first + 1], -1), torch.stack([1 - share, share], -1)


def _cubic_weights(position: Tensor, nodes: int) -> tuple[Tensor, Tensor]:
    """Four-point Lagrange interpolation on a uniform grid: indices and weights ``(..., 4)`` of ``position``."""
    first = position.floor().long().sub(1).clamp(0, nodes - 4)
    u = (position - first).unsqueeze(-1)
    offsets = torch.arange(4, dtype=u.dtype)
    weights = []
    for j in range(4):
        others = [k for k in range(4) if k != j]
        weights.append(torch.stack([(u[..., 0] - k) / (j - k) for k in others]).prod(0))
    return first.unsqueeze(-1) + offsets.long(), torch.stack(weights, -1)


def _grow(simulator: Fishery, escapement: Tensor, noise: Tensor) -> Step:
    state = FisheryState(escapement.unsqueeze(1), escapement.new_zeros(len(escapement)))
    return simulator.step(state, escapement.new_zeros(len(escapement), 1), FisheryNoise(noise.unsqueeze(1)))


def _expectation(simulator: Fishery, escapement: Tensor, population: Tensor, quadrature: int) -> _Expectation:
    nodes, weights = np.polynomial.hermite_e.hermegauss(quadrature)
    probability = torch.as_tensor(weights / weights.sum())
    size, count = len(escapement), len(population)
    spacing = math.log(float(population[1] / population[0]))
    alive, dead = torch.zeros(size, count, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
    # Noise that the grid resolves makes the value smooth. Without it the value jumps at the edge of the basin of
    # extinction, and a cubic that overshoots there would feed on itself from year to year.
    smooth = quadrature >= 3 and simulator.sigma >= spacing
    interpolate = _cubic_weights if smooth else _linear_weights
    rows = torch.arange(size).unsqueeze(-1).expand(size, 4 if smooth else 2)
    for xi, p in zip(nodes.tolist(), probability.tolist(), strict=True):
        step = _grow(simulator, escapement, torch.full_like(escapement, xi))
        following = step.state.population[:, 0].clamp(min=population[0].item(), max=population[-1].item())
        index, weight = interpolate((following / population[0]).log() / spacing, count)
        alive.index_put_((rows, index), p * weight * ~step.terminated.unsqueeze(-1), accumulate=True)
        dead += p * step.terminated
    return _Expectation(alive, dead)


@dataclass(frozen=True)
class Solution:
    """Optimal value and policy of a one-species fishery.

    Attributes:
        population: grid of N, ``(n,)``, from the extinction threshold up, geometric.
        escapement: grid of E, ``(m,)``, which continues that of N below the threshold.
        value: V_t on the grid, ``(years, n)``; one row when stationary.
        continuation: W_t on the grid of E, ``(years, m)``.
        mode: ``finite`` (time-aware), ``stationary`` or ``discounted``.
    """

    population: Tensor
    escapement: Tensor
    value: Tensor
    continuation: Tensor
    mode: Mode

    def value_at(self, population: float) -> float:
        """V_0 at a population within the grid."""
        return float(np.interp(math.log(population), self.population.log().numpy(), self.value[0].numpy()))

    def constant_escapement(self) -> float:
        """The escapement that the policy keeps where the population exceeds it: the maximiser of W in the first row."""
        return float(self.escapement[self.continuation[0].argmax()])

    def policy(self) -> DynamicProgrammingRule:
        """The optimal rule, as a policy of the simulator."""
        return DynamicProgrammingRule(self)

    def to_dataset(self) -> xr.Dataset:
        """Value and optimal mortality over the grid, with units."""
        rule = self.policy()
        years = torch.arange(len(self.value), dtype=torch.float64)
        mortality = torch.stack(
            [
                rule(self.population.unsqueeze(1), FisheryState(self.population, t.expand(len(self.population))))[:, 0]
                for t in years
            ]
        )
        return xr.Dataset(
            {
                "value": (("year", "population"), self.value.numpy(), {"units": "K", "long_name": "expected return"}),
                "mortality": (
                    ("year", "population"),
                    mortality.numpy(),
                    {"units": "1/year", "long_name": "optimal mortality"},
                ),
            },
            {
                "year": ("year", years.numpy(), {"units": "year"}),
                "population": ("population", self.population.numpy(), {"units": "K", "long_name": "population"}),
            },
            {"mode": self.mode, "escapement": self.constant_escapement()},
        )


class DynamicProgrammingRule:
    """The policy of a ``Solution``: keep the best escapement at or below the present population.

    The time-aware rule reads the year from the world's state; the stationary ones need the observation only.
    """

    def __init__(self, solution: Solution) -> None:
        self.solution = solution
        best = solution.continuation.cummax(dim=1)
        self._best_value, self._best_escapement = best.values, solution.escapement[best.indices]
        self._log_first = solution.escapement[0].log().item()
        self._spacing = (solution.escapement[1] / solution.escapement[0]).log().item()

    def __call__(self, observation: Tensor, state: FisheryState | None = None) -> Tensor:
        """Mortalities ``(B, 1)`` for populations ``(B, species)``."""
        population = observation[:, 0].to("cpu", torch.float64)
        rows = len(self._best_value)
        if rows > 1 and state is None:
            raise InputError("a time-aware rule needs the world's state: call it as rule(observation, state)")
        year = torch.zeros(len(population), dtype=torch.long)
        if rows > 1 and state is not None:
            year = state.year.to("cpu").long().clamp(max=rows - 1)
        position = (population.clamp(min=1e-300).log() - self._log_first) / self._spacing
        node = position.floor().long().clamp(0, len(self.solution.escapement) - 2)
        share = (position - node).clamp(0, 1)
        row = self.solution.continuation[year, node]
        here = row + share * (self.solution.continuation[year, node + 1] - row)
        escapement = torch.where(here >= self._best_value[year, node], population, self._best_escapement[year, node])
        mortality = (1 - escapement / population.clamp(min=1e-300)).clamp(0, 1)
        return mortality.unsqueeze(1).to(observation)


def solve(
    simulator: Fishery,
    *,
    mode: Mode = "finite",
    nodes: int = 801,
    quadrature: int = 9,
    horizon: int = YEARS,
    gamma: float = 0.99,
    upper: float | None = None,
) -> Solution:
    """Solve a one-species fishery to the accuracy of the grid.

    Args:
        simulator: a one-species world without effort cost.
        mode: ``finite``: V_t for each year, an upper bound that ends in liquidating the stock; ``stationary``: the rule
            of mid-horizon for every year; ``discounted``: the fixed point with discount ``gamma`` (the penalty taken at
            mid-horizon).
        nodes: points of the grid of N.
        quadrature: Gauss-Hermite nodes of the noise.
        horizon: years.
        gamma: discount of the mode ``discounted``.
        upper: largest population of the grid; 2.5 carrying capacities if not given.

    Raises:
        InputError: more than one species, a cost or weight that breaks the linearity, or sizes out of range.
    """
    if not isinstance(simulator.parameters, OneSpecies):
        raise InputError("solve: the world has three species; exact dynamic programming takes one-species models")
    if simulator.cost or any(w != 1 for w in simulator.weights):
        raise InputError("solve: cost and weights must be absent: the recursion takes the harvest itself as reward")
    if mode not in ("finite", "stationary", "discounted"):
        raise InputError(f"mode = {mode!r}: must be finite, stationary or discounted")
    limits = (("nodes", nodes, 16, 10_001), ("quadrature", quadrature, 1, 101), ("horizon", horizon, 1, 100_000))
    for name, number, least, most in limits:
        if not least <= number <= most:
            raise InputError(f"{name} = {number}: must be between {least} and {most}")
    if not 0 < gamma < 1:
        raise InputError(f"gamma = {gamma}: must be between 0 and 1")
    if simulator.threshold <= 0:
        raise InputError("threshold = 0: the logarithmic grid starts at the threshold, which must be greater than 0")
    world = simulator.to(torch.float64)
    low, high = world.threshold, 2.5 * simulator.parameters.K if upper is None else upper
    spacing = math.log(high / low) / (nodes - 1)
    below = math.ceil(math.log(5.0) / spacing)  # escapements go on down to a fifth of the threshold
    escapement = low * torch.exp(spacing * torch.arange(-below, nodes, dtype=torch.float64))
    population = escapement[below:]
    expect = _expectation(world, escapement, population, quadrature)

    def harvested(continuation: Tensor) -> Tensor:
        return population + continuation.cummax(0).values[below:]

    middle = horizon // 2
    if mode == "discounted":
        value = torch.zeros_like(population)
        for _ in range(math.ceil(math.log(1e-8) / math.log(gamma))):
            continuation = expect(gamma * value, world.penalty / (middle + 1)) - escapement
            value = harvested(continuation)
        return Solution(population, escapement, value[None], continuation[None], mode)
    values, continuations = [torch.zeros_like(population)], []
    for t in reversed(range(horizon)):
        continuations.append(expect(values[-1], world.penalty / (t + 1)) - escapement)
        values.append(harvested(continuations[-1]))
    value, continuation = torch.stack(values[:0:-1]), torch.stack(continuations[::-1])
    if mode == "stationary":
        value, continuation = value[middle : middle + 1], continuation[middle : middle + 1]
    return Solution(population, escapement, value, continuation, mode)

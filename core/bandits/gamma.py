"""Schedules of gamma, the exploitation parameter of inverse-gap weighting: it grows with the rows learned from.

A schedule is called with the number of available actions of each row and the number of rows the oracle has learned
from, and answers one gamma a row. Gamma is in 1/reward: actions that score well within n_A / gamma of the best are
explored like ties.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from core.errors import InputError


class GammaSchedule(Protocol):
    """What ``inverse_gap_weighting`` takes its gamma from."""

    def __call__(self, available: Tensor, examples: int) -> Tensor:
        """Gamma of each row, ``(n,)`` float64.

        Args:
            available: ``(n,)``, number of available actions n_A.
            examples: rows that the oracle has learned from.
        """
        ...


@dataclass(frozen=True)
class ConstantGamma:
    """The same gamma throughout.

    Attributes:
        gamma: at least 0; 0 explores uniformly.

    Raises:
        InputError: a gamma that is negative or not finite.
    """

    gamma: float

    def __post_init__(self) -> None:
        _check(self, "gamma")

    def __call__(self, available: Tensor, examples: int) -> Tensor:
        """Gamma of each row, ``(n,)``."""
        return _for_each(available, self.gamma)


@dataclass(frozen=True)
class PowerGamma:
    """Gamma = scale t^rho with t the rows learned from; the defaults are Vowpal Wabbit's ``--squarecb``.

    Attributes:
        scale: gamma after the first row.
        rho: exponent.

    Raises:
        InputError: a value that is negative or not finite.
    """

    scale: float = 10.0
    rho: float = 0.5

    def __post_init__(self) -> None:
        _check(self, "scale")
        _check(self, "rho")

    def __call__(self, available: Tensor, examples: int) -> Tensor:
        """Gamma of each row, ``(n,)``."""
        return _for_each(available, self.scale * _learned(examples) ** self.rho)


@dataclass(frozen=True)
class SquareCBGamma:
    """Gamma = sqrt(n_A T / (Reg(T) + log(2 / delta))) with Reg(T) = complexity log T, the same over the horizon.

    Source: Foster & Rakhlin 2020 (arXiv 2002.04926), the oracle's regret bound written as for a parametric
    class.

    Attributes:
        horizon: T, rounds to be played.
        complexity: of the oracle's class; its number of free parameters is a fair guess.
        delta: probability with which the bound may fail.

    Raises:
        InputError: a horizon below 1, a negative complexity, or a delta outside (0, 1).
    """

    horizon: int
    complexity: float
    delta: float = 0.05

    def __post_init__(self) -> None:
        _check(self, "horizon", 1)
        _check(self, "complexity")
        _check(self, "delta", above=True, below=1)

    def __call__(self, available: Tensor, examples: int) -> Tensor:
        """Gamma of each row, ``(n,)``."""
        regret = self.complexity * math.log(self.horizon) + math.log(2 / self.delta)
        return (_for_each(available, self.horizon / regret) * available).sqrt_()


@dataclass(frozen=True)
class FalconGamma:
    """FALCON: gamma_1 = 1, then gamma_m = c sqrt(n_A N / log(|F| N / delta)) in epoch m, N rows learned from.

    Epoch m is the rounds tau_{m-1} < t <= tau_m; the oracle is refitted once at its start, on the ``rows`` of the
    epoch, N of them: all earlier ones (FALCON) or the previous epoch's (FALCON+). log|F| is ``complexity``.

    Source: Simchi-Levi & Xu 2020 (arXiv 2003.12699, algorithms 1 and 2).

    Attributes:
        complexity: log|F|; the number of free parameters of the oracle is a fair guess.
        delta: probability with which the bound may fail.
        c: the constant, 1/30 in the paper.
        epochs: tau_1 < tau_2 < ..., the last of them the end of the last-but-one epoch; 2^m if not given.
        previous_epoch: learn from the previous epoch only (FALCON+).

    Raises:
        InputError: epochs that do not increase from at least 1, or a value outside its range.
    """

    complexity: float
    delta: float = 0.05
    c: float = 1 / 30
    epochs: tuple[int, ...] | None = None
    previous_epoch: bool = False

    def __post_init__(self) -> None:
        _check(self, "complexity")
        _check(self, "delta", above=True, below=1)
        _check(self, "c", above=True)
        if self.epochs is not None:
            ends = (0, *self.epochs)
            if len(ends) == 1 or any(b <= a for a, b in pairwise(ends)):
                raise InputError(f"epochs = {self.epochs}: must be increasing whole numbers of at least 1")

    def epoch(self, t: int) -> int:
        """Number m, from 1, of the epoch that round t, from 1, falls in.

        Raises:
            InputError: a round below 1.
        """
        if t < 1:
            raise InputError(f"t = {t}: rounds are counted from 1")
        if self.epochs is None:
            return max(1, (t - 1).bit_length())
        return 1 + sum(end < t for end in self.epochs)

    def rows(self, epoch: int) -> range:
        """Rounds, from 1, whose rows the oracle of an epoch learns from; none in the first.

        Raises:
            InputError: an epoch that does not exist.
        """
        last = math.inf if self.epochs is None else len(self.epochs) + 1
        if not 1 <= epoch <= last:
            raise InputError(f"epoch = {epoch}: must be at least 1 and at most {last}")
        return range(1 + (self._end(epoch - 2) if self.previous_epoch else 0), 1 + self._end(epoch - 1))

    def __call__(self, available: Tensor, examples: int) -> Tensor:
        """Gamma of each row in the epoch of round ``examples`` + 1, ``(n,)``."""
        learned = len(self.rows(self.epoch(_learned(examples) + 1)))
        if not learned:
            return _for_each(available, 1.0)
        share = learned / (self.complexity + math.log(learned / self.delta))
        return (_for_each(available, share) * available).sqrt_().mul_(self.c)

    def _end(self, epoch: int) -> int:
        if epoch < 1:
            return 0
        return 2**epoch if self.epochs is None else self.epochs[epoch - 1]


def _for_each(available: Tensor, gamma: float) -> Tensor:
    return torch.full_like(available, gamma, dtype=torch.float64)


def _learned(examples: int) -> int:
    if examples < 0:
        raise InputError(f"examples = {examples}: must be at least 0")
    return examples


def _check(schedule: object, name: str, low: float = 0.0, *, above: bool = False, below: float = math.inf) -> None:
    value = getattr(schedule, name)
    if not low <= value < below or (above and value == low):
        limit = "finite" if below == math.inf else f"below {below:g}"
        raise InputError(f"{name} = {value}: must be {'above' if above else 'at least'} {low:g} and {limit}")

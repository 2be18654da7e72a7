"""What every forecaster of the benchmark offers: settings that fit a group of series, and the group's forecasts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from core.checkpoint import EVERY_SECONDS, Checkpoint
from core.errors import InputError, require
from core.study import Config
from simulators.chaos.flow import DelayFlow, Flow


@dataclass(frozen=True)
class Fitting:
    """What a fit may use besides the training series.

    Attributes:
        seeds: one for each series, for what is its own (initial weights): a series is fitted alike in every group, up
            to the last bits.
        seed: of what the group shares (the order of batches, a reservoir).
        dt: time between two samples, for each series.
        flows: the known equations of each series, for forecasters that use them; None where there are none.
        observed: the channels of each flow's state that the series show; None for all.
        offset: ``(G, D)``; the equations' units are ``offset + scale * series``; None for series in those units.
        scale: ``(G, D)``.
        checkpoint: folder from which an interrupted fit goes on; None keeps nothing.
        progress: told the share done and a message.
    """

    seeds: tuple[int, ...]
    seed: int = 0
    dt: tuple[float, ...] = ()
    flows: tuple[Flow | DelayFlow, ...] | None = None
    observed: tuple[int, ...] | None = None
    offset: Tensor | None = None
    scale: Tensor | None = None
    checkpoint: Path | None = None
    progress: Callable[[float, str], None] | None = None

    def keep(self, name: str, every_seconds: float = EVERY_SECONDS) -> Checkpoint:
        """The file of that name in the folder of checkpoints; one that keeps nothing if there is no folder."""
        place = None if self.checkpoint is None else self.checkpoint / f"{name}.safetensors"
        return Checkpoint(place, every_seconds)


class Fitted(ABC):
    """Forecasters fitted to a group of G series, each to its own.

    Attributes:
        notes: numbers ``(G,)`` about the fits, such as ``condition_number``.
    """

    notes: Mapping[str, Tensor]

    @abstractmethod
    def forecast(self, horizon: int) -> Tensor:
        """The samples after the training series, ``(G, horizon, D)`` float64 on its device.

        A forecast that diverges or cannot be made is not finite from there on; nothing is raised.
        """


class Ensemble(Fitted):
    """Fitted forecasters that know how uncertain they are."""

    @abstractmethod
    def sample(self, horizon: int, members: int, generator: torch.Generator) -> Tensor:
        """Equally likely futures, ``(G, members, horizon, D)``."""


@dataclass
class Trivial(Fitted):
    """Forecasts made by a function of the horizon alone."""

    make: Callable[[int], Tensor]
    notes: Mapping[str, Tensor] = field(default_factory=dict)

    def forecast(self, horizon: int) -> Tensor:
        """The samples after the training series, ``(G, horizon, D)``."""
        return self.make(horizon)


class Forecaster(Config):
    """Settings of a forecaster; ``kind``, a literal of each subclass, names it in configs and on the command line."""

    packages: ClassVar[Sequence[tuple[str, str]]] = ()
    """What it imports beyond the base, and the extra that brings it."""
    grid: ClassVar[Mapping[str, Sequence[Any]]] = {}
    """The fields that the paper tunes, and the values that it tries."""
    together: ClassVar[bool] = True
    """Whether the series of a group are fitted at once; else a study keeps what it has after every few."""
    physical: ClassVar[bool] = False
    """Whether it needs the equations of the system."""

    kind: str

    @property
    def shortest(self) -> int:
        """The fewest samples of a training series that it takes."""
        return 12

    @abstractmethod
    def fit(self, train: Tensor, fitting: Fitting) -> Fitted:
        """Fit a forecaster to each series.

        Args:
            train: ``(G, T, D)`` float64, evenly sampled, finite, no channel constant; usually scaled to mean 0 and
                standard deviation 1. Computation is on its device.
            fitting: what else is known.
        """

    def check(self, samples: int) -> None:
        """Refuse a training series that is too short, or a package that is absent.

        Raises:
            InputError: fewer than ``shortest`` samples.
            MissingExtra: a package is not installed.
        """
        if samples < self.shortest:
            raise InputError(f"{self.kind}: {samples} training samples: needs at least {self.shortest}")
        for module, extra in self.packages:
            require(module, extra)

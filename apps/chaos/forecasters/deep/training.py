"""Training of one network for each series of a group at once, and their autoregressive forecasts.

As in Gilpin (2023) with darts 0.48.1: all windows of the training series, shuffled in every epoch, in batches of which
the last may be short; mean squared error of the next sample; Adam; no validation part, no early stop.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from apps.chaos.forecasters.forecaster import Fitted, Fitting, Forecaster
from core.checkpoint import EVERY_SECONDS, Checkpoint
from core.nn.adam import minimise
from core.nn.grouped import Dropout, Initial, keep_all, serve, shared_dropout
from core.seeds import stream

KEPT_PER_SECOND = 5e6
"""Bytes of parameters that a checkpoint may keep for each second of training."""


class Network(nn.Module, ABC):
    """Predicts samples from the windows before them, with parameters of its own for each of G series."""

    @abstractmethod
    def forward(self, windows: Tensor, dropout: Dropout = keep_all) -> Tensor:
        """The sample after each window, or after each sample of each window.

        Args:
            windows: ``(G, B, L, D)``.
            dropout: applied where the network drops values in training.

        Returns:
            ``(G, B, 1, D)`` or ``(G, B, L, D)``.
        """

    def roll_out(self, past: Tensor, horizon: int) -> Tensor:
        """Forecast sample by sample, each from the window before it.

        Args:
            past: the last window ``(G, L, D)`` of each series.
            horizon: samples.

        Returns:
            ``(G, horizon, D)``.
        """
        length = past.shape[1]
        series = torch.cat((past, past.new_empty(len(past), horizon, past.shape[2])), 1)
        for i in range(horizon):
            series[:, length + i] = self(series[:, None, i : length + i])[:, 0, -1]
        return series[:, length:]


class DeepForecaster(Forecaster):
    """Settings that all networks share."""

    grid: ClassVar[Mapping[str, Sequence[Any]]] = {"look_back": (5, 10, 25, 50, 100)}

    look_back: int = Field(default=25, ge=1)
    """Samples from which a network predicts the next."""
    epochs: int = Field(default=100, ge=1)
    """Passes over all windows of the training series."""
    batch: int = Field(default=32, ge=1)
    """Windows from which a step of the optimiser is computed."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Of Adam."""
    dtype: Literal["float32", "float64"] = "float32"
    """Of the computation."""

    @property
    def window(self) -> int:
        """Samples in a window of the training."""
        return self.look_back

    @property
    def dropped(self) -> float:
        """Share of the values that the network drops in training."""
        return 0.0

    @property
    def shortest(self) -> int:
        """The fewest samples of a training series that it takes."""
        return max(self.look_back, self.window) + 11

    @abstractmethod
    def network(self, channels: int, initial: Initial) -> Network:
        """Untrained networks, one for each generator, for series of ``channels`` channels."""

    def fit(self, train: Tensor, fitting: Fitting) -> Fitted:
        """Train a network for each series.

        Args:
            train: ``(G, T, D)``.
            fitting: its seeds give initial weights, its seed the order of the windows and the masks of dropout.

        Raises:
            InputError: a series is too short, or the checkpoint is damaged.
        """
        self.check(train.shape[1])
        series = train.to(getattr(torch, self.dtype)).contiguous()
        network = self.untrained(series, fitting)
        minimise(
            dict(network.named_parameters()),
            self.loss(network, series, fitting.seed),
            self.epochs * self.batches(series),
            learning_rate=self.learning_rate,
            checkpoint=self._checkpoint(fitting, network),
            progress=fitting.progress,
        )
        serve(network)
        return DeepFitted(network, series[:, -self.look_back :])

    def untrained(self, series: Tensor, fitting: Fitting) -> Network:
        """The networks of a fit before its first step, for ``series`` ``(G, T, D)``."""
        generators = [torch.Generator().manual_seed(seed) for seed in fitting.seeds]
        return self.network(series.shape[2], Initial(generators, series.dtype)).to(series.device)

    def batches(self, series: Tensor) -> int:
        """Batches in an epoch over ``series`` ``(G, T, D)``."""
        return -(-(series.shape[1] - self.window) // self.batch)

    def loss(self, network: Network, series: Tensor, seed: int) -> Callable[[int], Tensor]:
        """The sum over series ``(G, T, D)`` of the mean squared error over a batch, as a function of the step."""
        groups, samples, channels = series.shape
        seen, count = self.window * channels, samples - self.window
        # A window and the sample after it lie side by side in memory: this copies nothing.
        windows = series.as_strided((groups, count, seen + channels), (samples * channels, channels, 1))
        epochs: dict[int, tuple[Tensor, ...]] = {}

        def loss(step: int) -> Tensor:
            epoch, batch = divmod(step, self.batches(series))
            if epoch not in epochs:
                epochs.clear()
                generator = torch.Generator().manual_seed(stream(seed, f"windows of epoch {epoch}"))
                epochs[epoch] = torch.randperm(count, generator=generator).to(series.device).split(self.batch)
            chosen = windows[:, epochs[epoch][batch]]
            drop = shared_dropout(self.dropped, seed, step, series.device)
            predicted = network(chosen[..., :seen].unflatten(2, (self.window, channels)), drop)
            size = predicted.shape[2] * channels
            error = functional.mse_loss(predicted.flatten(2), chosen[..., -size:], reduction="sum")
            return error / (chosen.shape[1] * size)

        return loss

    def _checkpoint(self, fitting: Fitting, network: Network) -> Checkpoint:
        held = sum(x.nbytes for x in network.parameters())
        # Large networks are kept less often, so that the time goes into training rather than into writing.
        return fitting.keep(f"{self.kind}-{self.hash}", max(EVERY_SECONDS, held / KEPT_PER_SECOND))


@dataclass
class DeepFitted(Fitted):
    """Trained networks.

    Attributes:
        network: of each series.
        past: the last samples ``(G, L, D)`` of each series.
        notes: none.
    """

    network: Network
    past: Tensor
    notes: Mapping[str, Tensor] = field(default_factory=dict)

    def forecast(self, horizon: int) -> Tensor:
        """The samples after the training series, ``(G, horizon, D)``."""
        with torch.no_grad():
            return self.network.roll_out(self.past, horizon).double()

"""Recurrent networks as darts builds them: one that runs along the series, and one that reads a window."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from apps.chaos.forecasters.deep.training import DeepForecaster, Network
from core.nn.grouped import Cell, Dropout, GroupedLinear, GroupedRecurrent, Initial, State, keep_all


class LSTM(DeepForecaster):
    """Predicts the next sample at every step and carries its state along the forecast (darts' RNNModel).

    ``look_back`` is not the length of the training windows: it is the warm-up on the last samples before a forecast.
    """

    kind: Literal["lstm"] = "lstm"
    cell: Literal["lstm", "gru"] = "lstm"
    """Of the layers."""
    layers: int = Field(default=2, ge=1)
    """Recurrent layers."""
    hidden: int = Field(default=25, ge=1)
    """Units of a layer."""
    training_length: int = Field(default=24, ge=1)
    """Samples in a window of the training."""
    epochs: int = Field(default=200, ge=1)
    """Passes over all windows of the training series."""

    @property
    def window(self) -> int:
        """Samples in a window of the training."""
        return self.training_length

    def network(self, channels: int, initial: Initial) -> Network:
        """Untrained networks, one for each generator."""
        return RunningNetwork(initial, self.cell, channels, self.hidden, self.layers)


class RNN(DeepForecaster):
    """Reads the window with a tanh layer and predicts from its last state (darts' BlockRNNModel)."""

    kind: Literal["rnn"] = "rnn"
    hidden: int = Field(default=25, ge=1)
    """Units of the layer."""

    def network(self, channels: int, initial: Initial) -> Network:
        """Untrained networks, one for each generator."""
        return WindowNetwork(initial, channels, self.hidden)


class RunningNetwork(Network):
    """See ``LSTM``."""

    def __init__(self, initial: Initial, cell: Cell, channels: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            GroupedRecurrent(initial, cell, hidden if i else channels, hidden) for i in range(layers)
        )
        self.out = GroupedLinear(initial, hidden, channels)

    def forward(self, windows: Tensor, dropout: Dropout = keep_all) -> Tensor:
        """The sample after every sample of each window, ``(G, B, L, D)``."""
        return self._run(windows.permute(0, 3, 2, 1), self._rest)[0].permute(0, 3, 2, 1)

    def roll_out(self, past: Tensor, horizon: int) -> Tensor:
        """Forecast ``(G, horizon, D)`` after a warm-up on ``past`` ``(G, L, D)``."""
        forecast = past.new_empty(len(past), horizon, past.shape[2])
        x, states = past.mT.unsqueeze(3), self._rest
        for i in range(horizon):
            predicted, states = self._run(x, states)
            x = predicted[:, :, -1:]
            forecast[:, i] = x[:, :, 0, 0]
        return forecast

    @property
    def _rest(self) -> list[State | None]:
        return [None for _ in self.layers]

    def _run(self, x: Tensor, states: list[State | None]) -> tuple[Tensor, list[State | None]]:
        """Predictions ``(G, D, steps, B)`` after each of the samples ``x`` (G, D, steps, B), and the states then."""
        after: list[State | None] = []
        for layer, state in zip(self.layers, states, strict=True):
            x, last = layer(x, state)
            after.append(last)
        return self.out(x.flatten(2)).unflatten(2, x.shape[2:]), after


class WindowNetwork(Network):
    """See ``RNN``."""

    def __init__(self, initial: Initial, channels: int, hidden: int) -> None:
        super().__init__()
        self.layer = GroupedRecurrent(initial, "elman", channels, hidden)
        self.out = GroupedLinear(initial, hidden, channels)

    def forward(self, windows: Tensor, dropout: Dropout = keep_all) -> Tensor:
        """The sample ``(G, B, 1, D)`` after each window ``(G, B, L, D)``."""
        (last,) = self.layer(windows.permute(0, 3, 2, 1))[1]
        return self.out(last).mT.unsqueeze(2)

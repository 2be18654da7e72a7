"""Generic N-BEATS (Oreshkin et al. 2020), as darts builds it for several channels."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from apps.chaos.forecasters.deep.training import DeepForecaster, Network
from core.nn.grouped import Dropout, GroupedLinear, Initial, keep_all


class NBeats(DeepForecaster):
    """Blocks that each explain what the blocks before left of the window, and add to the forecast.

    A block maps its input x to h by ``layers`` layers with ReLU, and h to ``theta`` coefficients of a backcast and as
    many of a forecast, by maps without bias. The next block sees x less the backcast; the forecasts are summed.
    """

    kind: Literal["nbeats"] = "nbeats"
    stacks: int = Field(default=30, ge=1)
    """Stacks of blocks."""
    blocks: int = Field(default=1, ge=1)
    """Blocks in a stack."""
    layers: int = Field(default=4, ge=1)
    """Fully connected layers of a block."""
    width: int = Field(default=256, ge=1)
    """Units of a layer."""
    theta: int = Field(default=5, ge=1)
    """Coefficients of a backcast, and of a forecast."""

    def network(self, channels: int, initial: Initial) -> Network:
        """Untrained networks, one for each generator."""
        return NBeatsNetwork(self, channels, initial)


class NBeatsNetwork(Network):
    """The blocks of all stacks; see ``NBeats``."""

    def __init__(self, settings: NBeats, channels: int, initial: Initial) -> None:
        super().__init__()
        count = settings.stacks * settings.blocks
        self.blocks = nn.ModuleList(Block(settings, channels, initial, i + 1 == count) for i in range(count))

    def forward(self, windows: Tensor, dropout: Dropout = keep_all) -> Tensor:
        """The sample ``(G, B, 1, D)`` after each window ``(G, B, L, D)``."""
        x = windows.flatten(2).mT
        forecasts = []
        for block in self.blocks:
            x, forecast = block(x)
            forecasts.append(forecast)
        return torch.stack(forecasts).sum(0).mT.unsqueeze(2)


class Block(nn.Module):
    """One block; the ``last`` makes no backcast, which none would see."""

    def __init__(self, settings: NBeats, channels: int, initial: Initial, last: bool) -> None:
        super().__init__()
        inputs, width, theta = settings.look_back * channels, settings.width, settings.theta
        sizes = [inputs] + [width] * settings.layers
        self.layers = nn.ModuleList(GroupedLinear(initial, *pair) for pair in pairwise(sizes))
        self.theta = GroupedLinear(initial, width, theta if last else 2 * theta, bias=False)
        self.forecast = GroupedLinear(initial, theta, channels)
        self.backcast = None if last else GroupedLinear(initial, theta, inputs)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What is left ``(G, L D, B)`` of ``x`` (G, L D, B), and the forecast ``(G, D, B)``."""
        h = x
        for layer in self.layers:
            h = layer(h).relu_()
        theta = self.theta(h)
        if self.backcast is None:
            return x, self.forecast(theta)
        back, ahead = theta.chunk(2, 1)
        return x - self.backcast(back), self.forecast(ahead)

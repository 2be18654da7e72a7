"""N-HiTS (Challu et al. 2023), as darts builds it for several channels and one step ahead."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from apps.chaos.forecasters.deep.training import DeepForecaster, Network
from core.nn.grouped import Dropout, GroupedLinear, Initial, keep_all


class NHits(DeepForecaster):
    """Blocks as in N-BEATS, each of which sees the maxima of its input over pools of its own size, largest first."""

    kind: Literal["nhits"] = "nhits"
    stacks: int = Field(default=3, ge=1)
    """Blocks."""
    layers: int = Field(default=2, ge=1)
    """Fully connected layers of a block."""
    width: int = Field(default=512, ge=1)
    """Units of a layer."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Share of the units that are dropped in training."""

    @property
    def pools(self) -> list[int]:
        """Values in a pool of each block."""
        largest = max(self.look_back // 2, 1)
        return [int(x) for x in largest // np.geomspace(1, largest, self.stacks)]

    @property
    def dropped(self) -> float:
        """Share of the values that the network drops in training."""
        return self.dropout

    def network(self, channels: int, initial: Initial) -> Network:
        """Untrained networks, one for each generator."""
        return NHitsNetwork(self, channels, initial)


class NHitsNetwork(Network):
    """The blocks; see ``NHits``."""

    def __init__(self, settings: NHits, channels: int, initial: Initial) -> None:
        super().__init__()
        pools = settings.pools
        self.blocks = nn.ModuleList(
            Block(settings, pool, channels, initial, i + 1 == len(pools)) for i, pool in enumerate(pools)
        )

    def forward(self, windows: Tensor, dropout: Dropout = keep_all) -> Tensor:
        """The sample ``(G, B, 1, D)`` after each window ``(G, B, L, D)``."""
        x = windows.flatten(2).mT
        forecasts = []
        for block in self.blocks:
            x, forecast = block(x, dropout)
            forecasts.append(forecast)
        return torch.stack(forecasts).sum(0).mT.unsqueeze(2)


class Block(nn.Module):
    """One block; the ``last`` makes no backcast, which none would see."""

    def __init__(self, settings: NHits, pool: int, channels: int, initial: Initial, last: bool) -> None:
        super().__init__()
        inputs = settings.look_back * channels
        self.pool = pool
        sizes = [-(-inputs // pool)] + [settings.width] * settings.layers
        self.layers = nn.ModuleList(GroupedLinear(initial, *pair) for pair in pairwise(sizes))
        self.forecast = GroupedLinear(initial, settings.width, channels)
        self.backcast = None if last else GroupedLinear(initial, settings.width, inputs)

    def forward(self, x: Tensor, dropout: Dropout) -> tuple[Tensor, Tensor]:
        """What is left ``(G, L D, B)`` of ``x`` (G, L D, B), and the forecast ``(G, D, B)``."""
        h = x
        if self.pool > 1:
            short = -x.shape[1] % self.pool
            h = functional.pad(x, (0, 0, 0, short), value=-float("inf")).unflatten(1, (-1, self.pool)).amax(2)
        for layer in self.layers:
            h = dropout(layer(h).relu())
        return (x if self.backcast is None else x - self.backcast(h)), self.forecast(h)

"""A temporal convolutional network (Bai et al. 2018), as darts builds it."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from apps.chaos.forecasters.deep.training import DeepForecaster, Network
from core.nn.grouped import Dropout, GroupedCausalConvolution, Initial, keep_all


class TCN(DeepForecaster):
    """Residual blocks of causal convolutions, as many as see the whole window; trained on every sample of it."""

    kind: Literal["tcn"] = "tcn"
    filters: int = Field(default=3, ge=1)
    """Channels of a convolution."""
    kernel: int = Field(default=3, ge=2)
    """Taps of a convolution."""
    dilation_base: int = Field(default=2, ge=2)
    """By how much the taps of a block lie farther apart than those of the block before."""
    dropout: float = Field(default=0.2, ge=0, lt=1)
    """Share of the values that are dropped after each convolution in training."""

    @property
    def blocks(self) -> int:
        """Residual blocks that cover the window; at least one."""
        base = self.dilation_base
        reach = (self.look_back - 1) * (base - 1) / (self.kernel - 1) / 2 + 1
        return max(1, math.ceil(math.log(reach, base)))

    @property
    def dropped(self) -> float:
        """Share of the values that the network drops in training."""
        return self.dropout

    def network(self, channels: int, initial: Initial) -> Network:
        """Untrained networks, one for each generator."""
        return TCNNetwork(self, channels, initial)


class TCNNetwork(Network):
    """See ``TCN``."""

    def __init__(self, settings: TCN, channels: int, initial: Initial) -> None:
        super().__init__()
        count = settings.blocks
        self.blocks = nn.ModuleList(Block(settings, channels, initial, i, i + 1 == count) for i in range(count))

    def forward(self, windows: Tensor, dropout: Dropout = keep_all) -> Tensor:
        """The sample after every sample of each window, ``(G, B, L, D)``."""
        x = windows.permute(0, 3, 1, 2)
        for block in self.blocks:
            x = block(x, dropout)
        return x.permute(0, 2, 3, 1)


class Block(nn.Module):
    """Two convolutions and a way around them; the ``last`` block gives the channels of the series."""

    def __init__(self, settings: TCN, channels: int, initial: Initial, index: int, last: bool) -> None:
        super().__init__()
        filters, kernel, dilation = settings.filters, settings.kernel, settings.dilation_base**index
        inputs, outputs = (filters if index else channels), (channels if last else filters)
        self.last = last
        self.first = GroupedCausalConvolution(initial, inputs, filters, kernel, dilation)
        self.second = GroupedCausalConvolution(initial, filters, outputs, kernel, dilation)
        # As in darts, which compares what goes in with what comes out.
        self.around = GroupedCausalConvolution(initial, inputs, outputs, 1) if inputs != outputs else None

    def forward(self, x: Tensor, dropout: Dropout) -> Tensor:
        """``(G, inputs, B, L)`` to ``(G, outputs, B, L)``."""
        h = self.second(dropout(self.first(x).relu()))
        return dropout(h if self.last else h.relu()) + (x if self.around is None else self.around(x))

"""DLinear and NLinear (Zeng et al. 2023) as darts builds them: a linear map from all values of the window."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from apps.chaos.forecasters.deep.training import DeepForecaster, Network
from core.nn.grouped import Dropout, GroupedLinear, Initial, keep_all

AVERAGED = 25
"""Samples of the moving average of DLinear."""


class DLinear(DeepForecaster):
    """The trend of the window, a moving average over 25 samples, and the remainder are mapped separately."""

    kind: Literal["dlinear"] = "dlinear"

    def network(self, channels: int, initial: Initial) -> Network:
        """Untrained networks, one for each generator."""
        return DLinearNetwork(self.look_back, channels, initial)


class NLinear(DeepForecaster):
    """A linear map of the window, less its last sample if ``normalize``."""

    kind: Literal["nlinear"] = "nlinear"
    normalize: bool = True
    """Whether the last sample is taken off the window and put back onto the forecast (the paper's darts: no)."""

    def network(self, channels: int, initial: Initial) -> Network:
        """Untrained networks, one for each generator."""
        return NLinearNetwork(self.look_back, channels, initial, self.normalize)


class DLinearNetwork(Network):
    """See ``DLinear``."""

    average: Tensor

    def __init__(self, look_back: int, channels: int, initial: Initial) -> None:
        super().__init__()
        self.register_buffer("average", moving_average(look_back, AVERAGED).to(initial.dtype))
        self.remainder = _mean_map(look_back * channels, channels, initial)
        self.trend = _mean_map(look_back * channels, channels, initial)

    def forward(self, windows: Tensor, dropout: Dropout = keep_all) -> Tensor:
        """The sample ``(G, B, 1, D)`` after each window ``(G, B, L, D)``."""
        trend = self.average @ windows
        columns = [x.flatten(2).mT for x in (windows - trend, trend)]
        return (self.remainder(columns[0]) + self.trend(columns[1])).mT.unsqueeze(2)


class NLinearNetwork(Network):
    """See ``NLinear``."""

    def __init__(self, look_back: int, channels: int, initial: Initial, normalize: bool) -> None:
        super().__init__()
        self.normalize = normalize
        self.map = _mean_map(look_back * channels, channels, initial)

    def forward(self, windows: Tensor, dropout: Dropout = keep_all) -> Tensor:
        """The sample ``(G, B, 1, D)`` after each window ``(G, B, L, D)``."""
        last = windows[:, :, -1:] if self.normalize else windows.new_zeros(())
        return self.map((windows - last).flatten(2).mT).mT.unsqueeze(2) + last


def moving_average(length: int, width: int) -> Tensor:
    """The matrix ``(length, length)`` of a centred average over an odd ``width``; the ends repeat beyond them."""
    seen = (torch.arange(length)[:, None] + torch.arange(-(width // 2), width // 2 + 1)).clamp(0, length - 1)
    ones = torch.ones(seen.shape, dtype=torch.float64)
    return torch.zeros(length, length, dtype=torch.float64).scatter_add_(1, seen, ones) / width


def _mean_map(inputs: int, outputs: int, initial: Initial) -> GroupedLinear:
    made = GroupedLinear(initial, inputs, outputs)
    nn.init.constant_(made.weight, 1 / inputs)
    return made

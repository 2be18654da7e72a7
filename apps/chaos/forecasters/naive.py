"""Naive baselines: the line through the ends, the mean, and the last samples again and again."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from apps.chaos.forecasters.forecaster import Fitting, Forecaster, Trivial


class NaiveDrift(Forecaster):
    """The line through the first and the last training sample, continued."""

    kind: Literal["naive_drift"] = "naive_drift"

    def fit(self, train: Tensor, fitting: Fitting) -> Trivial:
        """Draw the line of each channel."""
        last = train[:, -1:].clone()
        slope = (last - train[:, :1]) / (train.shape[1] - 1)

        def make(horizon: int) -> Tensor:
            return last + slope * torch.arange(1, horizon + 1, dtype=train.dtype, device=train.device)[:, None]

        return Trivial(make)


class NaiveMean(Forecaster):
    """The mean of the training series."""

    kind: Literal["naive_mean"] = "naive_mean"

    def fit(self, train: Tensor, fitting: Fitting) -> Trivial:
        """Average each channel."""
        mean = train.mean(1, keepdim=True)
        return Trivial(lambda horizon: mean.repeat(1, horizon, 1))


class NaiveSeasonal(Forecaster):
    """The last ``season`` training samples, repeated."""

    kind: Literal["naive_seasonal"] = "naive_seasonal"
    season: int = Field(default=1, ge=1)
    """Samples K; 1 repeats the last sample."""

    @property
    def shortest(self) -> int:
        """The fewest samples of a training series that it takes."""
        return self.season + 11

    def fit(self, train: Tensor, fitting: Fitting) -> Trivial:
        """Keep the last samples."""
        last = train[:, -self.season :].clone()
        return Trivial(lambda horizon: last[:, torch.arange(horizon, device=train.device) % self.season])

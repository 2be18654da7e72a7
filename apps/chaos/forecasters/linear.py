"""Linear regression on lags: the next sample from the last samples of all channels by ordinary least squares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from apps.chaos.forecasters.delay_regression import DelayRegression, fit_delay_regression
from apps.chaos.forecasters.forecaster import Fitting, Forecaster


class Linear(Forecaster):
    """Ordinary least squares on the lags of all channels, one step, rolled out in closed loop.

    Where lags are collinear it takes the weights of least norm.
    """

    grid: ClassVar[Mapping[str, Sequence[Any]]] = {"lags": (3, 5, 10, 25)}

    kind: Literal["linear"] = "linear"
    lags: int = Field(default=25, ge=1, le=10_000)
    """Last samples that it looks at."""

    @property
    def shortest(self) -> int:
        """The fewest samples of a training series that it takes."""
        return self.lags + 11

    def fit(self, train: Tensor, fitting: Fitting) -> DelayRegression:
        """Fit each series ``(G, T, D)``."""
        return fit_delay_regression(train, self.lags, order=1, penalty=0.0, increments=False)

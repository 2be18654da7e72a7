"""Analogue forecasting with a modern Hopfield memory: what followed states like this one.

The memory holds the delay vectors of the training series and the increments that followed them. A state retrieves them
with weights softmax(-beta |q - xi|^2) (Ramsauer et al. 2021, arXiv 2008.02217, with the Euclidean similarity); a linear
fit with the same weights corrects the mean increment for the distance between the state and the mean of what it
retrieved (locally weighted regression).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from apps.chaos.forecasters.forecaster import Fitted, Fitting, Forecaster
from core.nn.hopfield import hopfield_weights


class Hopfield(Forecaster):
    """The increment of the state from an associative memory of the training series; nothing is trained."""

    grid: ClassVar[Mapping[str, Sequence[Any]]] = {
        "beta": (10.0, 30.0, 100.0, 300.0, 1000.0),
        "delay": (1, 2, 3, 4, 5),
    }

    kind: Literal["hopfield"] = "hopfield"
    beta: float = Field(default=100.0, gt=0)
    """Inverse temperature, 1 / squared distance: of series of standard deviation 1."""
    delay: int = Field(default=3, ge=1, le=1000)
    """Last states k in a pattern, one sample apart."""
    ridge: float = Field(default=1e-6, gt=0)
    """Of the local linear fit, in units of its weighted mean of squares."""

    @property
    def shortest(self) -> int:
        """The fewest samples of a training series that it takes."""
        return self.delay + 11

    def fit(self, train: Tensor, fitting: Fitting) -> Fitted:
        """Store each series ``(G, T, D)``."""
        patterns = train[:, :-1].unfold(1, self.delay, 1).transpose(2, 3).flatten(2)
        increments = train[:, self.delay :] - train[:, self.delay - 1 : -1]
        return _Memory(self, train[:, -self.delay :].clone(), patterns, increments)


@dataclass
class _Memory(Fitted):
    """Memories of G series.

    Attributes:
        settings: of the retrieval.
        last: ``(G, k, D)``, the end of the training series.
        patterns: ``(G, M, k D)``.
        increments: ``(G, M, D)``, what followed each.
    """

    settings: Hopfield
    last: Tensor
    patterns: Tensor
    increments: Tensor
    notes: Mapping[str, Tensor] = field(default_factory=dict)

    def forecast(self, horizon: int) -> Tensor:
        """The samples after the training series, ``(G, horizon, D)``."""
        series, delay, channels = self.last.shape
        path = torch.cat([self.last, self.last.new_empty(series, horizon, channels)], 1)
        squares = self.patterns.square().sum(2)
        left = torch.nn.functional.pad(self.patterns, (1, 0), value=1.0)
        right = torch.cat([self.patterns, self.increments], 2)
        for now in range(delay, delay + horizon):
            query = path[:, now - delay : now].flatten(1)[:, None]
            weights = hopfield_weights(self.patterns, query, self.settings.beta, "euclidean", squares)
            step = self._increment(query, (weights.mT * left).mT @ right)
            torch.add(path[:, now - 1 : now], step, out=path[:, now : now + 1])
        return path[:, delay:].contiguous()

    def _increment(self, query: Tensor, moments: Tensor) -> Tensor:
        """The local linear fit at the query ``(G, 1, k D)``, ``(G, 1, D)``.

        Args:
            query: where.
            moments: ``(G, 1 + k D, k D + D)``, weighted means of patterns and increments (first row) and of the
                products of patterns with both.
        """
        width = query.shape[2]
        means = moments[:, :1]
        covariance = torch.baddbmm(moments[:, 1:], means[:, :, :width].mT, means, alpha=-1)
        own = covariance[:, :, :width]
        own.diagonal(dim1=1, dim2=2).add_(self.settings.ridge)
        away = torch.linalg.solve_ex(own, (query - means[:, :, :width]).mT).result
        return torch.baddbmm(means[:, :, width:], away.mT, covariance[:, :, width:])

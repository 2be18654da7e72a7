"""Nonlinear vector autoregression: ridge regression on monomials of the last states.

``NVAR`` is the benchmark's (Gilpin 2023, arXiv 2303.08011), whose scripts use order 1: a ridge-regularised linear
model. ``NGRC`` is next-generation reservoir computing as Gauthier et al. (2021, arXiv 2106.07688) use it: order 2 or
more, predicting the increment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from apps.chaos.forecasters.delay_regression import DelayRegression, fit_delay_regression
from apps.chaos.forecasters.forecaster import Fitting, Forecaster


class _Monomials(Forecaster):
    """What the two have in common."""

    increments: ClassVar[bool]

    order: int
    delay: int
    ridge: float

    @property
    def shortest(self) -> int:
        """The fewest samples of a training series that it takes."""
        return self.delay + 11

    def fit(self, train: Tensor, fitting: Fitting) -> DelayRegression:
        """Fit each series ``(G, T, D)``.

        Raises:
            InputError: order and delay make more than 20,000 monomials.
        """
        return fit_delay_regression(train, self.delay, self.order, self.ridge, self.increments)


class NVAR(_Monomials):
    """The next state from the last states and a bias, as published: of order 1."""

    increments = False
    grid: ClassVar[Mapping[str, Sequence[Any]]] = {"delay": (2, 5, 15, 30, 60, 120)}

    kind: Literal["nvar"] = "nvar"
    order: int = Field(default=1, ge=1, le=5)
    """Highest degree of the monomials."""
    delay: int = Field(default=30, ge=1, le=10_000)
    """Last states that it looks at, one sample apart."""
    ridge: float = Field(default=1e-4, ge=0)
    """Penalty of the squared weights, in units of the sum of squared residuals."""


class NGRC(_Monomials):
    """The increment of the state from monomials of the last states; at order 3 and delay 1 a polynomial map."""

    increments = True
    grid: ClassVar[Mapping[str, Sequence[Any]]] = {
        "order": (2, 3),
        "delay": (1, 2),
        "ridge": tuple(10.0**power for power in range(-10, -1)),
    }

    kind: Literal["ngrc"] = "ngrc"
    order: int = Field(default=2, ge=1, le=5)
    """Highest degree of the monomials."""
    delay: int = Field(default=2, ge=1, le=10_000)
    """Last states that it looks at, one sample apart."""
    ridge: float = Field(default=1e-6, ge=0)
    """Penalty of the squared weights, in units of the sum of squared residuals."""

"""The surplus-production model of a stock and the likelihood of its abundance index.

Pella and Tomlinson (1969), with observation error only, as Polacheck, Hilborn and Punt (1993) fit it:
B_{t+1} = B_t + (r/p) B_t (1 - (B_t/K)^p) - C_t,  I_t = q B_t exp(eps_t),  eps_t ~ N(0, sigma^2);
B_t and I_t at the start of year t, before its catch C_t. Exponent p = 1 is Schaefer's model.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from simulators.fishery.stocks import Stock

Array = NDArray[np.float64]

PARAMETERS = ("r", "K", "initial_depletion")
# r per year; K in largest catches; B_1 / K.
LOWER = np.log([1e-3, 1.0, 0.01])
UPPER = np.log([3.0, 1000.0, 100.0])
_LOWEST_DEPLETION = 1e-3
_LARGEST_CATCH_SHARE = 0.98
_PENALTY = 1e3
_SLOPE_OUTSIDE = 1e4
# Keeps the logarithm finite for data without any noise.
_LOWEST_VARIANCE = 1e-24


def msy_factor(exponent: float) -> float:
    """MSY / (r K): 1/4 at p = 1, else (p+1)^(-(p+1)/p)."""
    return (exponent + 1) ** (-(exponent + 1) / exponent)


@dataclass(frozen=True)
class ProductionLikelihood:
    """Concentrated likelihood of many points theta = (log r, log K / max C, log B_1 / K) at once.

    Attributes:
        stock: the data.
        exponent: p of the production function.
    """

    stock: Stock
    exponent: float

    @cached_property
    def log_index(self) -> Array:
        """(T,) logarithm of the observed index, NaN in the gaps."""
        return np.log(self.stock.index)

    @cached_property
    def observed(self) -> NDArray[np.bool_]:
        """(T,) the years with an index."""
        return np.isfinite(self.stock.index)

    def depletion(self, theta: Array) -> tuple[Array, Array]:
        """B_t / K (T+1, m) at theta (m, 3), the year after the data last; years (m,) of a catch beyond 98 % of B."""
        p = self.exponent
        r, scale, x = np.exp(theta.T)
        relative_catch = (self.stock.catch / self.stock.catch.max())[:, None] / scale
        path = np.empty((len(relative_catch) + 1, len(theta)))
        path[0] = x
        for t, caught in enumerate(relative_catch):
            x = np.maximum(x + (r / p) * x * (1.0 - x**p) - caught, _LOWEST_DEPLETION)
            path[t + 1] = x
        overfished = np.count_nonzero(relative_catch > _LARGEST_CATCH_SHARE * path[:-1], axis=0)
        return path, overfished.astype(np.float64)

    def log_q_k(self, path: Array, log_index: Array | None = None) -> Array:
        """log(q K) (m,): q is the geometric mean of I / B (of ``log_index`` (T, m) or (T, 1), if given)."""
        observed = self.log_index[:, None] if log_index is None else log_index
        return (observed - np.log(path[:-1]))[self.observed].mean(axis=0)

    def sigma(self, path: Array, log_index: Array | None = None) -> Array:
        """Standard deviation (m,) of log(I / q B), divisor n."""
        observed = self.log_index[:, None] if log_index is None else log_index
        return np.std((observed - np.log(path[:-1]))[self.observed], axis=0)

    def log_likelihood(self, sigma: Array) -> Array:
        """Log-likelihood (m,) of the log index at its best q and sigma."""
        variance = np.maximum(sigma**2, _LOWEST_VARIANCE)
        return -0.5 * np.count_nonzero(self.observed) * (np.log(2 * np.pi * variance) + 1)

    def objective(self, theta: Array, log_index: Array | None = None) -> Array:
        """Negative log-likelihood (m,) with its penalties: overfished years, and the distance outside the bounds."""
        inside = np.clip(theta, LOWER, UPPER)
        path, overfished = self.depletion(inside)
        value = -self.log_likelihood(self.sigma(path, log_index)) + _PENALTY * overfished
        return value + _SLOPE_OUTSIDE * np.abs(theta - inside).sum(axis=1)


def at_bound(theta: Array) -> NDArray[np.bool_]:
    """Which of the parameters (m, 3) lie at a bound, to within 0.1 %."""
    return np.logical_or(theta < LOWER + 1e-3, theta > UPPER - 1e-3)

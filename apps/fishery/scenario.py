"""A scenario: the world that the methods of a study are compared in, a model of the paper or a fitted stock."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator

from apps.fishery.surplus_production import SurplusProductionFit, fit_surplus_production
from core.errors import InputError
from core.study import Config
from simulators.fishery import YEARS, Fishery, model, stock_world
from simulators.fishery.stocks import Stock, read_stock, shipped_stocks

ASSUMED_SIGMA = 0.05
"""Process noise of a stock where none is given: a surplus-production fit has observation error only."""


class Scenario(Config):
    """A world: one of the paper's models, or a stock fitted to data (a one-species world scaled to K = 1)."""

    name: str = Field(pattern=r"^[a-z0-9_-]+$")
    """Name in tables and figures."""
    model: Literal[1, 2, 3, 4] | None = None
    """Model of the paper; this or ``stock``."""
    stock: str | None = None
    """A shipped stock or the path of a CSV file ``year,catch,index``; this or ``model``."""
    variant: str | None = None
    """Drift or forcing of the three-species model."""
    parameters: dict[str, float] = Field(default_factory=dict)
    """Biological parameters to replace, by name."""
    sigma: float | None = Field(default=None, ge=0)
    """Standard deviation of the process noise; the model's own if absent, an assumed 0.05 for a stock."""
    threshold: float = Field(default=0.05, ge=0)
    """Population at or below which a species counts as lost."""
    observe_time: bool = False
    """Whether the policy sees the year."""
    horizon: int = Field(default=YEARS, ge=1, le=100_000)
    """Years of an episode."""
    exponent: float = Field(default=1.0, ge=0.01, le=10)
    """Shape p of a stock's surplus production."""
    initial: Literal["virgin", "free"] = "virgin"
    """A stock's biomass in the first year: equal to K, or estimated."""
    content: str = ""
    """SHA-256 of a stock's data, filled in when the config is loaded: other data are another scenario."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if (self.model is None) == (self.stock is None):
            raise InputError("give either model (1 to 4) or stock")
        if self.stock is not None:
            if self.variant is not None or self.parameters:
                raise InputError("variant and parameters belong to a model, not to a stock")
            content = _digest(read_stock(self.stock))
            if self.content not in ("", content):
                raise InputError(f"stock = {self.stock}: the data are not those that the config was made with")
            path = self.stock if self.stock in shipped_stocks() else str(Path(self.stock).resolve())
            object.__setattr__(self, "stock", path)
            object.__setattr__(self, "content", content)
        self.world()
        return self

    def fit(self, intervals: Literal["profile", "none"] = "none") -> SurplusProductionFit | None:
        """The fit behind a stock; None for a model.

        Raises:
            InputError: the file has changed since the config was loaded.
        """
        if self.stock is None:
            return None
        return _fit(self.stock, self.content, self.exponent, self.initial, intervals)

    def world(self, dtype: torch.dtype = torch.float64) -> Fishery:
        """The simulator.

        Raises:
            InputError: an impossible value, or data that do not identify the stock's parameters.
        """
        options: dict[str, Any] = {"threshold": self.threshold, "observe_time": self.observe_time, "dtype": dtype}
        fit = self.fit()
        if fit is None:
            return model(self.model or 0, variant=self.variant, parameters=self.parameters, sigma=self.sigma, **options)
        if not fit.identified:
            raise InputError(f"stock = {self.stock}: not identified, {', '.join(fit.at_bound)} at a bound: no world")
        sigma = ASSUMED_SIGMA if self.sigma is None else self.sigma
        return stock_world(fit.r, fit.biomass_next / fit.K, self.exponent, sigma, **options)


def _digest(stock: Stock) -> str:
    return hashlib.sha256(b"".join(a.tobytes() for a in (stock.year, stock.catch, stock.index))).hexdigest()


@lru_cache(maxsize=16)
def _fit(
    path: str, content: str, exponent: float, initial: Literal["virgin", "free"], intervals: Literal["profile", "none"]
) -> SurplusProductionFit:
    stock = read_stock(path)
    if _digest(stock) != content:
        raise InputError(f"stock = {path}: the file has changed since the study began")
    return fit_surplus_production(stock, exponent=exponent, initial=initial, intervals=intervals)

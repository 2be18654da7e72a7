"""A scenario: the world that the methods of a study are compared in, a model of the paper or a fitted stock."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Literal, Self

import torch
import xarray as xr
from pydantic import Field, model_validator

from apps.fishery.surplus_production import fit_surplus_production
from core.errors import InputError
from core.study import Config, Context, Product
from simulators.fishery import YEARS, Fishery, model, stock_world
from simulators.fishery.stocks import read_stock

Positive = Annotated[float, Field(gt=0)]


class StockFit(Product):
    """Surplus-production fit of a stock, with profile intervals."""

    stock: str
    """A shipped stock, or the path of a CSV file ``year,catch,index``."""
    content: str
    """SHA-256 of the file, so that an edited file is another fit."""
    exponent: float
    """Shape p of the surplus production."""
    initial: Literal["virgin", "free"]
    """Biomass of the first year: equal to K, or estimated."""

    @property
    def label(self) -> str:
        """Name on the screen."""
        return f"fit {self.stock}"

    def make(self, directory: Path, context: Context) -> None:
        """Write ``fit.nc``."""
        fit = fit_surplus_production(read_stock(self.stock), exponent=self.exponent, initial=self.initial)
        fit.to_dataset().to_netcdf(directory / "fit.nc", engine="h5netcdf")

    @staticmethod
    def read(directory: Path) -> xr.Dataset:
        """The fit in a product's folder."""
        return xr.load_dataset(directory / "fit.nc", engine="h5netcdf")


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
    horizon: int = Field(default=YEARS, ge=1)
    """Years of an episode."""
    exponent: Positive = 1.0
    """Shape p of a stock's surplus production."""
    initial: Literal["virgin", "free"] = "virgin"
    """A stock's biomass in the first year: equal to K, or estimated."""
    content: str = ""
    """SHA-256 of a stock's file, filled in when the config is loaded."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if (self.model is None) == (self.stock is None):
            raise InputError("give either model (1 to 4) or stock")
        if self.stock is None:
            self._model()
            return self
        if self.variant is not None or self.parameters:
            raise InputError("variant and parameters belong to a model, not to a stock")
        stock = read_stock(self.stock)
        content = hashlib.sha256(b"".join(a.tobytes() for a in (stock.year, stock.catch, stock.index))).hexdigest()
        if self.content not in ("", content):
            raise InputError(f"stock = {self.stock}: the file is not the one that the config was made with")
        object.__setattr__(self, "content", content)
        return self

    @property
    def fit(self) -> StockFit | None:
        """The fit behind a stock; None for a model."""
        if self.stock is None:
            return None
        return StockFit(stock=self.stock, content=self.content, exponent=self.exponent, initial=self.initial)

    def world(self, context: Context, dtype: torch.dtype = torch.float64) -> Fishery:
        """The simulator; a stock is fitted first, once for all runs.

        Raises:
            InputError: the data do not identify the stock's parameters.
        """
        if self.fit is None:
            return self._model().to(dtype)
        fit = StockFit.read(context.product(self.fit))
        if not fit.attrs["identified"]:
            raise InputError(f"stock {self.stock}: not identified ({fit.attrs['at_bound']} at a bound): no world")
        return stock_world(
            float(fit["r"]),
            float(fit["biomass_next"] / fit["K"]),
            self.exponent,
            0.05 if self.sigma is None else self.sigma,
            threshold=self.threshold,
            observe_time=self.observe_time,
            dtype=dtype,
        )

    def _model(self) -> Fishery:
        return model(
            self.model or 0,
            variant=self.variant,
            parameters=self.parameters,
            sigma=self.sigma,
            threshold=self.threshold,
            observe_time=self.observe_time,
        )

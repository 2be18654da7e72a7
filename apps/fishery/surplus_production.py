"""Surplus-production fit of a stock: r, K and MSY with intervals, or the statement that the data do not identify them.

Model, bounds and likelihood: ``production_likelihood``. Source: Polacheck, Hilborn and Punt (1993), Can. J. Fish.
Aquat. Sci. 50, 2597-2607; Pella and Tomlinson (1969), IATTC Bulletin 13, 421-496.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import xarray as xr

from apps.fishery.fit_intervals import ParameterInterval, bootstrap_intervals, profile_intervals
from apps.fishery.production_likelihood import (
    LOWER,
    PARAMETERS,
    UPPER,
    Array,
    ProductionLikelihood,
    at_bound,
    msy_factor,
)
from apps.fishery.simplex_search import simplex_search
from core.errors import InputError
from simulators.fishery.stocks import Stock

_STARTS_R = (0.15, 0.3, 0.6)
_STARTS_K = (5.0, 10.0, 20.0)
_FREE = {"virgin": 2, "free": 3}


@dataclass(frozen=True)
class SurplusProductionFit:
    """The best fit to one stock, biomass in its catch unit (T years).

    Attributes:
        stock: the data.
        exponent: p of the production function; 1 is Schaefer's model.
        initial: whether B_1 was ``virgin`` (equal to K) or ``free``.
        r: intrinsic growth rate, 1 / year.
        K: carrying capacity, catch unit.
        q: catchability, index unit / catch unit.
        sigma: standard deviation of log(index / (q B)), divisor n.
        msy: maximum sustainable yield, catch unit / year.
        initial_depletion: B_1 / K.
        biomass: (T,) at the start of each year, before its catch.
        biomass_next: at the start of the year after the last catch.
        predicted_index: (T,) q B.
        residuals: (T,) log(index / (q B)), NaN where there is no index.
        log_likelihood: at the maximum.
        intervals: 95 % intervals of ``r``, ``K``, ``msy``; empty where none were asked for.
        interval_method: ``profile``, ``bootstrap`` or ``none``.
        at_bound: names of the fitted parameters that ended at a bound.
    """

    stock: Stock
    exponent: float
    initial: str
    r: float
    K: float
    q: float
    sigma: float
    msy: float
    initial_depletion: float
    biomass: Array
    biomass_next: float
    predicted_index: Array
    residuals: Array
    log_likelihood: float
    intervals: dict[str, ParameterInterval]
    interval_method: str
    at_bound: tuple[str, ...]

    @property
    def identified(self) -> bool:
        """Whether no parameter lies at a bound: if one does, r, K, q and MSY are not results."""
        return not self.at_bound

    @property
    def biomass_at_msy(self) -> float:
        """Biomass that yields the MSY, K (p+1)^(-1/p), catch unit."""
        return self.K * (self.exponent + 1) ** (-1 / self.exponent)

    def to_dataset(self) -> xr.Dataset:
        """Data, fit and intervals with units, dims ``year`` and ``end`` (low, high).

        What is not identified is written as NaN (r, K, q, MSY, B_1 / K and biomass), and the parameters at a bound
        are named in the attribute ``at_bound``.
        """
        biomass, index = self.stock.catch_unit, self.stock.index_unit
        known = 1.0 if self.identified else np.nan
        quantities: dict[str, tuple[float, str, str]] = {
            "r": (self.r * known, "1/year", "intrinsic growth rate"),
            "K": (self.K * known, biomass, "carrying capacity"),
            "q": (self.q * known, f"({index})/({biomass})", "catchability"),
            "msy": (self.msy * known, f"{biomass}/year", "maximum sustainable yield"),
            "initial_depletion": (self.initial_depletion * known, "1", "biomass of the first year over K"),
            "biomass_next": (self.biomass_next * known, biomass, "biomass after the last catch"),
            "sigma": (self.sigma, "1", "standard deviation of the log residuals"),
            "log_likelihood": (self.log_likelihood, "1", "log-likelihood"),
        }
        series: dict[str, tuple[Array, str, str]] = {
            "catch": (self.stock.catch, f"{biomass}/year", "catch"),
            "index": (self.stock.index, index, "observed abundance index"),
            "biomass": (self.biomass * known, biomass, "biomass at the start of the year"),
            "predicted_index": (self.predicted_index, index, "fitted abundance index"),
            "residuals": (self.residuals, "1", "log of observed over fitted index"),
        }
        data = xr.Dataset(coords={"year": self.stock.year, "end": ["low", "high"]})
        for name, (value, units, words) in quantities.items():
            data[name] = xr.Variable((), value, {"units": units, "long_name": words})
        for name, (values, units, words) in series.items():
            data[name] = xr.Variable("year", values, {"units": units, "long_name": words})
        for name, ends in self.intervals.items():
            attributes = {"units": data[name].attrs["units"], "long_name": f"95 % interval of {name}"}
            data[f"{name}_interval"] = xr.Variable("end", [ends.low, ends.high], attributes)
            data[f"{name}_open"] = xr.Variable("end", [ends.low_open, ends.high_open], {"long_name": "end at a bound"})
        data.attrs = {
            "stock": self.stock.name,
            "source": self.stock.source,
            "exponent": self.exponent,
            "initial": self.initial,
            "interval_method": self.interval_method,
            "identified": int(self.identified),
            "at_bound": ", ".join(self.at_bound) or "none",
        }
        return data


def fit_surplus_production(
    stock: Stock,
    *,
    exponent: float = 1.0,
    initial: Literal["virgin", "free"] = "virgin",
    intervals: Literal["profile", "bootstrap", "none"] = "profile",
    resamples: int = 1000,
    seed: int = 0,
) -> SurplusProductionFit:
    """Fit r and K (and B_1 / K, if ``initial`` is ``free``) by maximum likelihood, q and sigma profiled out.

    Bounds: 1e-3 < r < 3, max(C) < K < 1000 max(C), 0.01 < B_1 / K < 100. A parameter that ends at one makes the fit
    not identified. ``resamples`` and ``seed`` are those of the bootstrap of residuals.

    Raises:
        InputError: an exponent outside [0.01, 10], an unknown ``initial`` or ``intervals``, fewer than 100 resamples.
    """
    _check_arguments(exponent, initial, intervals, resamples)
    likelihood, free = ProductionLikelihood(stock, exponent), _FREE[initial]
    starts = np.array([[np.log(r), np.log(k), 0.0] for r in _STARTS_R for k in _STARTS_K])
    directions = np.broadcast_to(np.eye(3)[:free], (len(starts), free, 3))
    points, values = simplex_search(lambda theta, _: likelihood.objective(theta), starts, directions)
    theta = np.clip(points[values.argmin()], LOWER, UPPER)

    r, scale, initial_depletion = (float(x) for x in np.exp(theta))
    largest = float(stock.catch.max())
    path, _ = likelihood.depletion(theta[None])
    biomass = path[:, 0] * scale * largest
    q = float(np.exp(likelihood.log_q_k(path)[0])) / (scale * largest)
    sigma = likelihood.sigma(path)
    estimates = {"r": r, "K": scale * largest, "msy": msy_factor(exponent) * r * scale * largest}
    ends: dict[str, ParameterInterval] = {}
    if intervals == "profile":
        ends = profile_intervals(likelihood, theta, free)
    elif intervals == "bootstrap":
        ends = bootstrap_intervals(likelihood, theta, free, resamples, seed)
    bounded = at_bound(theta[None])[0, :free]
    return SurplusProductionFit(
        stock=stock,
        exponent=exponent,
        initial=initial,
        **estimates,
        q=q,
        sigma=float(sigma[0]),
        initial_depletion=initial_depletion,
        biomass=biomass[:-1],
        biomass_next=float(biomass[-1]),
        predicted_index=q * biomass[:-1],
        residuals=likelihood.log_index - np.log(q * biomass[:-1]),
        log_likelihood=float(likelihood.log_likelihood(sigma)[0]),
        intervals={n: e._replace(low=e.low * estimates[n], high=e.high * estimates[n]) for n, e in ends.items()},
        interval_method=intervals,
        at_bound=tuple(name for name, hit in zip(PARAMETERS, bounded, strict=False) if hit),
    )


def _check_arguments(exponent: float, initial: str, intervals: str, resamples: int) -> None:
    if not 0.01 <= exponent <= 10:
        raise InputError(f"exponent: {exponent} is outside [0.01, 10]")
    if initial not in _FREE:
        raise InputError(f"initial: {initial!r} is not one of {', '.join(_FREE)}")
    if intervals not in ("profile", "bootstrap", "none"):
        raise InputError(f"intervals: {intervals!r} is not one of profile, bootstrap, none")
    if resamples < 100:
        raise InputError(f"resamples: {resamples} is below 100")

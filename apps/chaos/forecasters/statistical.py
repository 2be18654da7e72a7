"""The statistical forecasters of single channels: ARIMA, exponential smoothing, Theta, 4Theta and automatic ARIMA."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import scipy.signal
import torch
from pydantic import Field

from apps.chaos.forecasters.channels import ChannelForecaster, Forecast
from core.errors import InputError, require
from simulators.chaos.spectrum import dominant_period

Season = Literal["additive", "none"]
STATSMODELS = (("statsmodels", "chaos"),)


class Arima(ChannelForecaster):
    """ARIMA(p, 1, 0) of each channel, estimated by statsmodels.

    The estimate is least squares on the differenced lags, the Gaussian maximum likelihood given the first p values. For
    a smooth series the exact likelihood has its maximum at the same place, but statsmodels' state space form often
    cannot be initialised there (near the unit circle the Lyapunov equation has no solution), and takes a hundred times
    longer. Where least squares is not stationary, the estimate is Burg's, which always is.
    """

    kind: Literal["arima"] = "arima"
    order: int = Field(default=10, ge=1)
    """p, the number of autoregressive terms."""

    packages: ClassVar[Sequence[tuple[str, str]]] = STATSMODELS
    grid: ClassVar[Mapping[str, Sequence[Any]]] = {"order": (3, 5, 10, 25)}

    @property
    def shortest(self) -> int:
        """Twice the order, and ten."""
        return 2 * self.order + 10

    def channel(self, values: np.ndarray) -> Forecast:
        """Estimate the coefficients; the forecast is the recursion of the last p differences."""
        coefficients = self.coefficients(values)
        denominator = np.concatenate([[1.0], -coefficients])
        differences = np.diff(values)[: -self.order - 1 : -1]
        # A filter without input, started from the past, is the recursion of the model.
        start = scipy.signal.lfiltic([1.0], denominator, differences)

        def forecast(horizon: int) -> np.ndarray:
            changes, _ = scipy.signal.lfilter([1.0], denominator, np.zeros(horizon), zi=start)
            return values[-1] + np.cumsum(changes)

        return forecast

    def coefficients(self, values: np.ndarray) -> np.ndarray:
        """The autoregressive coefficients ``(p,)`` of the differences of a channel ``(T,)``."""
        least_squares = require("statsmodels.tsa.arima.estimators.hannan_rissanen", "chaos").hannan_rissanen
        burg = require("statsmodels.tsa.arima.estimators.burg", "chaos").burg
        differences = np.diff(values)
        # Without a moving average the method of Hannan and Rissanen is least squares on the lags.
        found, _ = least_squares(differences, ar_order=self.order, ma_order=0, demean=False)
        if not found.is_stationary:
            # Constant differences have no estimate by Burg's method; least squares is on the unit circle there.
            with contextlib.suppress(ValueError):
                found, _ = burg(differences, ar_order=self.order, demean=False)
        return np.asarray(found.ar_params)


class ExponentialSmoothing(ChannelForecaster):
    """Holt-Winters smoothing of each channel with an additive trend, not damped, by statsmodels.

    A channel without a significant period has no season.
    """

    kind: Literal["exp_smoothing"] = "exp_smoothing"
    seasonal: Season = "additive"
    """The season, of the dominant period of the channel."""

    packages: ClassVar[Sequence[tuple[str, str]]] = STATSMODELS
    grid: ClassVar[Mapping[str, Sequence[Any]]] = {"seasonal": ("additive", "none")}

    def channel(self, values: np.ndarray) -> Forecast:
        """Fit level, trend and season with their smoothing factors."""
        period = season_length(values) if self.seasonal == "additive" else None
        season = {} if period is None else {"seasonal": "add", "seasonal_periods": period}
        smoothing = require("statsmodels.tsa.holtwinters", "chaos")
        forecast: Forecast = smoothing.ExponentialSmoothing(values, trend="add", **season).fit().forecast
        return forecast


class _ThetaLines(ChannelForecaster):
    """What methods of two Theta lines are set by."""

    theta: float = Field(default=2.0, ge=1)
    """Curvature of the second Theta line."""
    season: Season = "additive"
    """The season, of the dominant period of the channel (none if there is no significant one)."""

    packages: ClassVar[Sequence[tuple[str, str]]] = STATSMODELS
    grid: ClassVar[Mapping[str, Sequence[Any]]] = {"season": ("additive", "none")}

    def period(self, values: np.ndarray) -> int | None:
        """Samples of the season that is taken out of a channel; None if there is none."""
        return season_length(values) if self.season == "additive" else None


class Theta(_ThetaLines):
    """The Theta method of each channel, by statsmodels.

    Assimakopoulos and Nikolopoulos (2000), International Journal of Forecasting 16, 521.
    """

    kind: Literal["theta"] = "theta"

    def channel(self, values: np.ndarray) -> Forecast:
        """Fit the drift and the smoothing."""
        models = require("statsmodels.tsa.forecasting.theta", "chaos")
        period = self.period(values)
        fitted = models.ThetaModel(
            values, period=period, deseasonalize=period is not None, use_test=False, method="additive"
        ).fit()
        return lambda horizon: np.asarray(fitted.forecast(horizon, theta=self.theta))


class FourTheta(_ThetaLines):
    """The 4Theta method of each channel: the best of four combinations of two Theta lines.

    The lines are joined additively or multiplicatively, around a linear or an exponential trend; the combination with
    the least mean absolute error on the training series is kept. A channel with a value of zero or less, as any that
    was scaled to mean zero, only has the additive linear one. Spiliotis, Assimakopoulos and Makridakis (2020), European
    Journal of Operational Research 284, 550.
    """

    kind: Literal["four_theta"] = "four_theta"

    def channel(self, values: np.ndarray) -> Forecast:
        """Remove the season, try the combinations and keep the best."""
        period = self.period(values)
        season = np.zeros(1)
        if period is not None:
            decompose = require("statsmodels.tsa.seasonal", "chaos").seasonal_decompose
            season = decompose(values, model="additive", period=period).seasonal[:period]
        level = values - np.resize(season, len(values))
        kinds = [(False, False)]
        if level.min() > 0:
            kinds += [(False, True), (True, False), (True, True)]
        tried = [self._combination(level, multiplicative, exponential) for multiplicative, exponential in kinds]
        best = min(tried, key=lambda found: found[0])[1]

        def forecast(horizon: int) -> np.ndarray:
            return best(horizon) + np.resize(season, len(values) + horizon)[len(values) :]

        return forecast

    def _combination(self, values: np.ndarray, multiplicative: bool, exponential: bool) -> tuple[float, Forecast]:
        """The mean absolute error in the sample, and the forecast."""
        steps = np.arange(len(values))
        line = np.polyfit(steps, np.log(values) if exponential else values, 1)

        def trend(at: np.ndarray) -> np.ndarray:
            return np.exp(np.polyval(line, at)) if exponential else np.polyval(line, at)

        def combine(smooth: np.ndarray, trended: np.ndarray) -> np.ndarray:
            weight = 1 / self.theta
            if multiplicative:
                return smooth**weight * trended ** (1 - weight)
            return weight * smooth + (1 - weight) * trended

        # A line that is not positive makes the product NaN: smoothing then fails or its error is NaN.
        lined = (
            values**self.theta * trend(steps) ** (1 - self.theta)
            if multiplicative
            else self.theta * values + (1 - self.theta) * trend(steps)
        )
        if not np.isfinite(lined).all():
            return np.inf, lambda horizon: np.full(horizon, np.nan)
        smoothing = require("statsmodels.tsa.holtwinters", "chaos")
        smoothed = smoothing.SimpleExpSmoothing(lined, initialization_method="estimated").fit()
        error = float(np.abs(values - combine(smoothed.fittedvalues, trend(steps))).mean())

        def forecast(horizon: int) -> np.ndarray:
            return combine(smoothed.forecast(horizon), trend(len(values) + np.arange(horizon)))

        return (error if np.isfinite(error) else np.inf), forecast


class AutoArima(ChannelForecaster):
    """ARIMA of each channel whose orders the corrected Akaike criterion chooses, by statsforecast.

    Hyndman and Khandakar (2008), Journal of Statistical Software 27 (3).
    """

    kind: Literal["auto_arima"] = "auto_arima"

    packages: ClassVar[Sequence[tuple[str, str]]] = (("statsforecast", "forecasting"),)

    def channel(self, values: np.ndarray) -> Forecast:
        """Search for the orders, without a season."""
        fitted = require("statsforecast.models", "forecasting").AutoARIMA().fit(values)
        return lambda horizon: np.asarray(fitted.predict(horizon)["mean"])


def season_length(values: np.ndarray) -> int | None:
    """The dominant period of a channel ``(T,)`` in whole samples; None if it has none or less than two periods."""
    try:
        period = round(dominant_period(torch.from_numpy(values), 1.0))
    except InputError:
        return None
    return period if 2 <= period <= len(values) // 2 else None

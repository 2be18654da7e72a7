"""Forecasters: settings that fit a group of series at once, and the forecasts of the group."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from apps.chaos.forecasters.bred import Bred
from apps.chaos.forecasters.chronos import Chronos
from apps.chaos.forecasters.darts_models import Darts
from apps.chaos.forecasters.deep import LSTM, RNN, TCN, DLinear, NBeats, NHits, NLinear, Transformer
from apps.chaos.forecasters.diffusion import Diffusion
from apps.chaos.forecasters.esn import ESN
from apps.chaos.forecasters.fft import FFT
from apps.chaos.forecasters.forecaster import Ensemble, Fitted, Fitting, Forecaster, Trivial
from apps.chaos.forecasters.hopfield import Hopfield
from apps.chaos.forecasters.hybrid import Hybrid
from apps.chaos.forecasters.kalman import Kalman
from apps.chaos.forecasters.linear import Linear
from apps.chaos.forecasters.naive import NaiveDrift, NaiveMean, NaiveSeasonal
from apps.chaos.forecasters.node import Node
from apps.chaos.forecasters.nvar import NGRC, NVAR
from apps.chaos.forecasters.statistical import Arima, AutoArima, ExponentialSmoothing, FourTheta, Theta
from apps.chaos.forecasters.trees import HistGradientBoosting, RandomForest, XGBoost

__all__ = ["FORECASTERS", "AnyForecaster", "Ensemble", "Fitted", "Fitting", "Forecaster", "Trivial"]

FORECASTERS: tuple[type[Forecaster], ...] = (
    NBeats,
    NHits,
    Transformer,
    LSTM,
    RNN,
    TCN,
    DLinear,
    NLinear,
    Linear,
    RandomForest,
    XGBoost,
    HistGradientBoosting,
    Kalman,
    Node,
    ESN,
    NVAR,
    NGRC,
    Hopfield,
    Arima,
    AutoArima,
    ExponentialSmoothing,
    Theta,
    FourTheta,
    FFT,
    NaiveDrift,
    NaiveMean,
    NaiveSeasonal,
    Hybrid,
    Bred,
    Diffusion,
    Darts,
    Chronos,
)
"""Every kind, in the order of the paper's table; those beyond the paper last of their family."""
AnyForecaster = Annotated[
    NBeats
    | NHits
    | Transformer
    | LSTM
    | RNN
    | TCN
    | DLinear
    | NLinear
    | Linear
    | RandomForest
    | XGBoost
    | HistGradientBoosting
    | Kalman
    | Node
    | ESN
    | NVAR
    | NGRC
    | Hopfield
    | Arima
    | AutoArima
    | ExponentialSmoothing
    | Theta
    | FourTheta
    | FFT
    | NaiveDrift
    | NaiveMean
    | NaiveSeasonal
    | Hybrid
    | Bred
    | Diffusion
    | Darts
    | Chronos,
    Field(discriminator="kind"),
]

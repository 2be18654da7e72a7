"""Chaos: forecasters of chaotic systems under one protocol, for the catalogue's systems and for series of one's own.

>>> from apps.chaos import ChaosStudy
>>> study = ChaosStudy.load("quick")
>>> len(study.systems), study.methods[0].name
(20, 'nbeats')

A forecaster by itself, fitted to two series of 300 samples and one channel:

>>> import torch
>>> from apps.chaos import Linear, fit_scaled
>>> waves = torch.sin(0.1 * torch.arange(300.0)[None, :, None] * torch.tensor([1.0, 1.3])[:, None, None])
>>> forecast, diverged = fit_scaled(Linear(lags=3), waves, seeds=(0, 1)).forecast(50)
>>> forecast.shape, diverged.tolist()
(torch.Size([2, 50, 1]), [False, False])
"""

from apps.chaos.fitting import ScaledFitted, fit_scaled
from apps.chaos.forecast import forecast_series
from apps.chaos.forecasters import (
    ESN,
    FORECASTERS,
    LSTM,
    NGRC,
    NVAR,
    Diffusion,
    Ensemble,
    Fitted,
    Fitting,
    Forecaster,
    Hopfield,
    Hybrid,
    Linear,
    NBeats,
    NHits,
    Node,
)
from apps.chaos.leaderboard import stored_evidence, write_tables
from apps.chaos.metrics import cumulative, evaluate, instantaneous, smape
from apps.chaos.protocol import Method, Protocol, Scenario
from apps.chaos.published import compare_with_published, published_scores
from apps.chaos.recommendation import recommend
from apps.chaos.series import Series, read_series
from apps.chaos.study import ChaosStudy
from apps.chaos.valid_time import valid_time

__all__ = [
    "ESN",
    "FORECASTERS",
    "LSTM",
    "NGRC",
    "NVAR",
    "ChaosStudy",
    "Diffusion",
    "Ensemble",
    "Fitted",
    "Fitting",
    "Forecaster",
    "Hopfield",
    "Hybrid",
    "Linear",
    "Method",
    "NBeats",
    "NHits",
    "Node",
    "Protocol",
    "ScaledFitted",
    "Scenario",
    "Series",
    "compare_with_published",
    "cumulative",
    "evaluate",
    "fit_scaled",
    "forecast_series",
    "instantaneous",
    "published_scores",
    "read_series",
    "recommend",
    "smape",
    "stored_evidence",
    "valid_time",
    "write_tables",
]

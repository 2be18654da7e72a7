"""Errors and correlations of forecasts ``(..., H, D)``, each to ``(...)``, and the registry of all metrics.

The first 17 of the registry are those of ``compute_metrics`` in dysts 0.96, with the conventions of Gilpin (2023),
Phys. Rev. Research 5, 043252: sMAPE goes from 0 to 200 (that of dysts is half of it). sMAPE, WAPE and the other
percentages depend on where zero is: they are for data in their own units, never for standardised series.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from apps.chaos.orbit_metrics import dtw, hellinger_distance, kl_divergence, mutual_information
from apps.chaos.paired import Array, alike, batched, each, finite, paired
from core.errors import InputError

_TINY = 1e-10
_SHIFT = 1e-8


@dataclass(frozen=True)
class Metric:
    """A metric of the registry.

    Attributes:
        name: key.
        symbol: for tables.
        unit: ``%``, ``1``, ``nat``, or ``u`` for the unit of the data.
        better: whether a low or a high value is better.
        function: of truth and forecast ``(..., H, D)``, arrays or tensors, to ``(...)`` of the same kind.
        training: whether it takes the training series as ``train``.
    """

    name: str
    symbol: str
    unit: str
    better: Literal["low", "high"]
    function: Callable[..., Array]
    training: bool = False

    def __call__(self, truth: Array, forecast: Array, **options: object) -> Array:
        """The metric of each series; NaN where a value is not finite.

        Raises:
            InputError: shapes that do not fit.
        """
        return self.function(truth, forecast, **options)


def _terms(name: str, y: Tensor, p: Tensor, std: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Of every sample ``(..., H)``: two terms whose sums over samples have the metric (or its square) as ratio."""
    error = (y - p).abs()
    ones = torch.ones(y.shape[:-1], dtype=y.dtype, device=y.device)
    if name == "smape":
        return 200 * _ratio(error, y.abs() + p.abs()).mean(-1), ones
    if name == "mae":
        return error.mean(-1), ones
    if name == "wape":
        return 100 * error.sum(-1), y.abs().sum(-1)
    if name in ("mse", "rmse"):
        return error.square().mean(-1), ones
    if name == "nrmse":
        variance = (y.std(-2, correction=0) if std is None else std).square()
        return (error.square() / (variance[..., None, :] + _TINY)).mean(-1), ones
    raise InputError(f"metric {name!r}: no curve; those with one are {', '.join(CURVES)}")


CURVES = ("smape", "nrmse", "mae", "mse", "rmse", "wape")
"""The metrics that are known sample by sample."""
_ROOTS = ("rmse", "nrmse")


def _additive(name: str, y: Tensor, p: Tensor, std: Tensor | None = None) -> Tensor:
    above, below = _terms(name, y, p, std)
    value = _ratio(above.sum(-1), below.sum(-1))
    return value.sqrt() if name in _ROOTS else value


@batched
def smape(y: Tensor, p: Tensor) -> Tensor:
    """200 mean(|y - p| / (|y| + |p|)), from 0 to 200; a value that is zero in both is right."""
    return _additive("smape", y, p)


@batched
def mae(y: Tensor, p: Tensor) -> Tensor:
    """Mean |y - p|."""
    return _additive("mae", y, p)


@batched
def mse(y: Tensor, p: Tensor) -> Tensor:
    """Mean (y - p)^2."""
    return _additive("mse", y, p)


@batched
def rmse(y: Tensor, p: Tensor) -> Tensor:
    """Root of the mean (y - p)^2."""
    return _additive("rmse", y, p)


@batched
def nrmse(y: Tensor, p: Tensor, *, std: Array | None = None) -> Tensor:
    """Root of the mean of (y - p)^2 / (std^2 + 1e-10), ``std`` (..., D) by channel, by default of the truth."""
    return _additive("nrmse", y, p, _like(std, y))


@batched
def wape(y: Tensor, p: Tensor) -> Tensor:
    """100 sum|y - p| / sum|y|."""
    return _additive("wape", y, p)


@batched
def marre(y: Tensor, p: Tensor) -> Tensor:
    """100 mean|y - p| / (max y - min y), the range over all samples and channels."""
    return 100 * _ratio((y - p).abs().mean((-2, -1)), y.amax((-2, -1)) - y.amin((-2, -1)))


@batched
def ope(y: Tensor, p: Tensor) -> Tensor:
    """sum|y - p| / sum|y - mean y|, one mean over samples and channels."""
    return _ratio((y - p).abs().sum((-2, -1)), (y - _mean(y)).abs().sum((-2, -1)))


@batched
def mape(y: Tensor, p: Tensor, *, signed: bool = False) -> Tensor:
    """100 mean(|y - p| / |y|); ``signed`` divides by y itself, as the published results of 2021 do."""
    return 100 * _ratio((y - p).abs(), y if signed else y.abs()).mean((-2, -1))


@batched
def coefficient_of_variation(y: Tensor, p: Tensor) -> Tensor:
    """100 std(y - p) / mean(y), over all samples and channels: it has the sign of the mean and ignores a bias."""
    return 100 * (y - p).flatten(-2).std(-1, correction=0) / y.mean((-2, -1))


@batched
def r2_score(y: Tensor, p: Tensor) -> Tensor:
    """1 - sum (y - p)^2 / sum (y - mean y)^2, one mean over samples and channels."""
    return 1 - _ratio((y - p).square().sum((-2, -1)), (y - _mean(y)).square().sum((-2, -1)))


@batched
def rmsle(y: Tensor, p: Tensor) -> Tensor:
    """Root mean square of log(1 + y) - log(1 + p), each less its own minimum by channel, plus 1e-8."""
    low_y, low_p = y.amin(-2, keepdim=True), p.amin(-2, keepdim=True)
    return (torch.log1p(p - low_p + _SHIFT) - torch.log1p(y - low_y + _SHIFT)).square().mean((-2, -1)).sqrt()


@batched
def mase(y: Tensor, p: Tensor, *, train: Array, season: int = 1) -> Tensor:
    """mean|y - p| over the mean |y_t - y_(t - season)| of the training series ``train`` (..., T, D).

    Raises:
        InputError: a training series that is not longer than the season, or of other channels.
    """
    past = torch.as_tensor(train).to(y)
    if past.ndim < 2 or past.shape[-1] != y.shape[-1] or not 1 <= season < past.shape[-2]:
        raise InputError(f"train: {tuple(past.shape)}, season {season}: needs (..., more than season, {y.shape[-1]})")
    return _ratio((y - p).abs().mean((-2, -1)), (past[..., season:, :] - past[..., :-season, :]).abs().mean((-2, -1)))


@batched
def pearson(y: Tensor, p: Tensor) -> Tensor:
    """Correlation over samples, mean over channels; NaN where a channel is constant."""
    return _correlation(y, p)


@batched
def spearman(y: Tensor, p: Tensor) -> Tensor:
    """Correlation of the ranks over samples, mean over channels; NaN where a channel is constant."""
    ranks = [torch.from_numpy(stats.rankdata(x.cpu().numpy(), axis=-2)).to(y) for x in (y, p)]
    return _correlation(*ranks)


@batched
def kendall(y: Tensor, p: Tensor) -> Tensor:
    """Kendall's tau-b over samples, mean over channels; NaN where a channel is constant."""
    return each(_kendall, y, p)


METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        m.name: m
        for m in (
            Metric("mse", "MSE", "u²", "low", mse),
            Metric("mae", "MAE", "u", "low", mae),
            Metric("rmse", "RMSE", "u", "low", rmse),
            Metric("nrmse", "NRMSE", "1", "low", nrmse),
            Metric("marre", "MARRE", "%", "low", marre),
            Metric("r2_score", "R²", "1", "high", r2_score),
            Metric("rmsle", "RMSLE", "1", "low", rmsle),
            Metric("smape", "sMAPE", "%", "low", smape),
            Metric("mape", "MAPE", "%", "low", mape),
            Metric("wape", "WAPE", "%", "low", wape),
            Metric("spearman", "ρ", "1", "high", spearman),
            Metric("pearson", "r", "1", "high", pearson),
            Metric("kendall", "τ", "1", "high", kendall),
            Metric("coefficient_of_variation", "CV", "%", "low", coefficient_of_variation),
            Metric("mutual_information", "I", "nat", "high", mutual_information),
            Metric("kl_divergence", "KL", "nat", "low", kl_divergence),
            Metric("hellinger_distance", "Hellinger", "1", "low", hellinger_distance),
            Metric("mase", "MASE", "1", "low", mase, training=True),
            Metric("ope", "OPE", "1", "low", ope),
            Metric("dtw", "DTW", "u", "low", dtw),
        )
    }
)
"""All metrics, by name."""


def metric(name: str) -> Metric:
    """A metric of the registry.

    Raises:
        InputError: there is none of that name.
    """
    if name not in METRICS:
        raise InputError(f"metric {name!r}: must be among {', '.join(METRICS)}")
    return METRICS[name]


def evaluate(
    truth: Array, forecast: Array, names: Sequence[str] | None = None, *, train: Array | None = None
) -> dict[str, Array]:
    """Several metrics ``(...)`` of truth and forecast ``(..., H, D)``; by default all for which there is the input.

    Raises:
        InputError: an unknown name, shapes that do not fit, or a metric that needs ``train``.
        MissingExtra: ``mutual_information`` without scikit-learn.
    """
    chosen = [m for m in METRICS.values() if train is not None or not m.training]
    chosen = chosen if names is None else [metric(name) for name in names]
    if train is None and any(m.training for m in chosen):
        raise InputError(f"train: {', '.join(m.name for m in chosen if m.training)} needs the training series")
    return {m.name: m(truth, forecast, **({"train": train} if m.training else {})) for m in chosen}


def cumulative(name: str, truth: Array, forecast: Array, *, std: Array | None = None) -> Array:
    """The horizoned error E(i) ``(..., H)``: the metric over the samples 1 to i, by cumulative sums.

    NaN from the first sample on that is not finite. The standard deviation in ``nrmse`` is ``std`` (..., D), by
    default of the whole truth: that of the first i samples says nothing for a small i.

    Raises:
        InputError: a metric without curve, or shapes that do not fit.
    """
    y, p = paired(truth, forecast)
    above, below = _terms(name, y, p, _like(std, y))
    value = _ratio(above.cumsum(-1), below.cumsum(-1))
    value = value.sqrt() if name in _ROOTS else value
    return alike(torch.where(finite(y, p).cummin(-1).values, value, torch.nan), truth, forecast)


def instantaneous(name: str, truth: Array, forecast: Array, *, std: Array | None = None) -> Array:
    """The error of each sample by itself ``(..., H)``; as ``cumulative`` in all else, and NaN at that sample alone.

    Raises:
        InputError: a metric without curve, or shapes that do not fit.
    """
    y, p = paired(truth, forecast)
    value = _ratio(*_terms(name, y, p, _like(std, y)))
    value = value.sqrt() if name in _ROOTS else value
    return alike(torch.where(finite(y, p), value, torch.nan), truth, forecast)


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    # No error of nothing is no error.
    return torch.where(above == 0, 0.0, above / below)


def _mean(y: Tensor) -> Tensor:
    return y.mean((-2, -1), keepdim=True)


def _like(std: Array | None, y: Tensor) -> Tensor | None:
    return None if std is None else torch.as_tensor(std).to(y)


def _correlation(y: Tensor, p: Tensor) -> Tensor:
    a, b = (x - x.mean(-2, keepdim=True) for x in (y, p))
    varies = (y.amax(-2) > y.amin(-2)) & (p.amax(-2) > p.amin(-2))
    # Each is scaled first, so that the squares of small channels do not vanish.
    a, b = (x / x.abs().amax(-2, keepdim=True) for x in (a, b))
    value = (a * b).sum(-2) / (a.square().sum(-2).sqrt() * b.square().sum(-2).sqrt())
    return torch.where(varies, value, torch.nan).mean(-1)


def _kendall(y: NDArray[np.float64], p: NDArray[np.float64]) -> float:
    return float(np.mean([stats.kendalltau(a, b).statistic for a, b in zip(y.T, p.T, strict=True)]))

"""Scores of the forecasts of a group, one row a series: valid times, metrics, curves of the error, and ensembles."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from apps.chaos.fitting import ScaledFitted
from apps.chaos.groups import Group
from apps.chaos.metrics import METRICS, cumulative, evaluate, instantaneous
from apps.chaos.protocol import Protocol
from apps.chaos.valid_time import THRESHOLDS, valid_time
from core.seeds import stream
from core.stats import crps
from simulators.chaos import invariant_differences

INVARIANTS = ("correlation_dimension", "largest_exponent", "power_spectrum")
FEWEST_FOR_INVARIANTS = 200
"""Samples of a forecast."""
LEADS = 80
"""Horizons at which curves are kept, evenly spaced on a logarithmic axis."""

DESCRIBED: Mapping[str, tuple[str, str]] = {
    "forecast": ("forecast", "units of the system"),
    "valid_samples": ("valid prediction time", "samples"),
    "censored": ("1 if the forecast is valid to its end, else 0", "1"),
    "short": ("error of the short forecast", "by metric"),
    "smape": ("cumulative sMAPE, 0 to 200", "%"),
    "nrmse": ("error of a sample", "standard deviations of the truth"),
    "invariant": ("absolute difference of the invariant", "1; largest_exponent: 1 / time units"),
    "diverged": ("1 if the forecast left 1e6 standard deviations or is no number, else 0", "1"),
    "fit_seconds": ("wall time of the fit for one series", "s"),
    "forecast_seconds": ("wall time of the forecast for one series", "s"),
    "crps": ("continuous ranked probability score", "standard deviations of the truth"),
    "spread": ("spread of the ensemble", "standard deviations of the truth"),
    "error": ("error of the ensemble mean", "standard deviations of the truth"),
    "rank": ("rank of the truth among the members", "1"),
    "lead": ("horizon", "samples"),
}
"""Long name and units of what ``score`` gives."""


def leads(horizon: int) -> NDArray[np.int64]:
    """Horizons in samples, 1 to ``horizon``."""
    return np.unique(np.geomspace(1, horizon, min(LEADS, horizon)).round().astype(np.int64))


def score(part: Group, fitted: ScaledFitted, *, protocol: Protocol, members: int = 0) -> xr.Dataset:
    """Forecast the series of a group and score them.

    Args:
        part: G series.
        fitted: to them.
        protocol: horizons.
        members: of ensemble forecasts; 0 for none.

    Returns:
        With the dim ``series``: ``forecast`` (series, sample, channel) in raw units; ``valid_samples`` and
        ``censored`` (series, definition); ``short`` (series, metric); ``smape`` cumulative and ``nrmse`` instantaneous
        (series, lead); ``invariant`` (series, quantity); ``diverged``; ``forecast_seconds``; and of ensembles ``crps``,
        ``spread``, ``error`` (series, lead) in standard deviations and ``rank`` (series, lead).
    """
    started = time.perf_counter()
    forecast, diverged = fitted.forecast(protocol.horizon)
    seconds = (time.perf_counter() - started) / len(part)
    keep = slice(part.scored)
    predicted = forecast[..., keep].cpu().numpy()
    truth = part.truth[..., keep].numpy()
    # A channel that does not vary leaves no valid sample, and ends no other series.
    std = np.where(np.ptp(truth, 1) > 0, truth.std(1), np.nan)
    at = leads(protocol.horizon)
    valid = {name: valid_time(truth, predicted, std, definition=name) for name in THRESHOLDS}
    short = evaluate(truth[:, : protocol.short], predicted[:, : protocol.short], train=part.train[..., keep].numpy())
    found = xr.Dataset(
        {
            "forecast": (("series", "sample", "channel"), predicted.astype(np.float32)),
            # Counts and flags are floats, because a series that could not be forecast has NaN.
            "valid_samples": (("series", "definition"), np.stack([v.samples for v in valid.values()], 1).astype(float)),
            "censored": (("series", "definition"), np.stack([v.censored for v in valid.values()], 1).astype(float)),
            "short": (("series", "metric"), np.stack([np.asarray(short[name]) for name in METRICS], 1)),
            "smape": (("series", "lead"), cumulative("smape", truth, predicted)[:, at - 1]),
            "nrmse": (("series", "lead"), instantaneous("nrmse", truth, predicted, std=std)[:, at - 1]),
            "diverged": ("series", diverged.cpu().numpy().astype(float)),
            "forecast_seconds": ("series", np.full(len(part), seconds)),
        },
        # Systems of other dimensions stand beside these.
        {"definition": list(valid), "metric": list(METRICS), "lead": at, "channel": range(part.scored)},
    )
    if part.train.shape[-1] == part.scored and protocol.horizon >= FEWEST_FOR_INVARIANTS:
        found = found.merge(_invariants(part, truth, predicted))
    if members and fitted.probabilistic:
        found = found.merge(_ensemble(part, fitted, truth, std, at, protocol, members))
    return found


def _invariants(part: Group, truth: NDArray[np.float64], predicted: NDArray[np.float64]) -> xr.Dataset:
    """Differences of the invariants, system by system because of the time step; NaN for a truth that has none."""
    values = np.full((len(part), len(INVARIANTS)), np.nan)
    varies = (np.ptp(truth, 1) > 0).all(-1)
    for dt in sorted(set(part.dt)):
        rows = np.flatnonzero(varies & (np.array(part.dt) == dt))
        if len(rows):
            found = invariant_differences(torch.from_numpy(truth[rows]), torch.from_numpy(predicted[rows]), dt)
            values[rows] = np.stack([found[name].numpy() for name in INVARIANTS], 1)
    return xr.Dataset({"invariant": (("series", "quantity"), values)}, {"quantity": list(INVARIANTS)})


def _ensemble(
    part: Group,
    fitted: ScaledFitted,
    truth: NDArray[np.float64],
    std: NDArray[np.float64],
    at: NDArray[np.int64],
    protocol: Protocol,
    members: int,
) -> xr.Dataset:
    """Scores of an ensemble, in standard deviations of the truth, means over channels."""
    generator = torch.Generator(device=fitted.offset.device).manual_seed(stream(protocol.seed, "ensemble"))
    drawn = fitted.sample(protocol.horizon, members, generator)[:, :, at - 1, : part.scored].cpu().numpy()
    drawn, truth = drawn / std[:, None, None], truth[:, at - 1] / std[:, None]
    cases = np.moveaxis(drawn, 1, -1)
    scored = np.asarray(crps(cases, truth)).mean(-1)
    spread = np.sqrt(cases.var(-1, ddof=1).mean(-1))
    error = np.sqrt(np.square(cases.mean(-1) - truth).mean(-1))
    rank = np.where(np.isfinite(cases).all(-1), (cases < truth[..., None]).sum(-1), np.nan)
    along = ("series", "lead")
    return xr.Dataset(
        {
            "crps": (along, scored),
            "spread": (along, spread),
            "error": (along, error),
            "rank": ((*along, "channel"), rank),
        }
    )

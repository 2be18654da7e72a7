"""Forecasts from many origins of one series, each of a forecaster fitted to as many samples before it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from apps.chaos.fitting import Normalisation, fit_scaled
from apps.chaos.forecasters.forecaster import Forecaster
from apps.chaos.valid_time import ValidTime, valid_time
from core.checkpoint import Checkpoint
from core.errors import InputError
from core.seeds import stream

FITTED = 2 / 3
"""Share of the series that is fitted before each origin; the origins lie in the rest."""
MEMBERS = 100
"""Of an ensemble."""


@dataclass(frozen=True)
class Origins:
    """Where forecasts begin.

    Attributes:
        length: samples that are fitted before each.
        at: the first forecast sample of each.
        scored: lead times that all have a truth for.
        longest: lead times that the first has a truth for.
    """

    length: int
    at: tuple[int, ...]
    scored: int
    longest: int


def origins_of(samples: int, horizon: int, count: int, shortest: int, *, last: int | None = None) -> Origins:
    """Evenly spaced origins in the last third of a series.

    Where that is too short for the horizon, the lead times that all origins score are half of it, and early origins
    score more of them.

    Args:
        samples: of the series.
        horizon: samples to forecast.
        count: origins at most.
        shortest: samples that the forecaster needs.
        last: samples for origins and truths; None for a third of the series.

    Raises:
        InputError: a series that is too short.
    """
    length = max(shortest, int(FITTED * samples) if last is None else samples - last)
    rest = samples - length
    if rest < 4:
        raise InputError(f"{samples} samples: forecasts from several origins need at least {max(12, shortest + 4)}")
    scored = min(horizon, max(1, rest // 2))
    places = np.unique(np.linspace(length, samples - scored, min(count, rest - scored + 1)).round().astype(int))
    return Origins(length, tuple(int(p) for p in places), scored, min(horizon, rest))


@dataclass(frozen=True)
class Rolled:
    """Forecasts from K origins and what came.

    Attributes:
        forecast: ``(K, L, D)`` in the units of the data, L the longest scored lead time.
        truth: ``(K, L, D)``, NaN beyond the end of the series.
        spread: ``(K, D)``, standard deviations of what was fitted.
        members: ``(K, M, L, D)`` of an ensemble; None without.
        seconds: of the fit of all.
    """

    forecast: Tensor
    truth: Tensor
    spread: Tensor
    members: Tensor | None
    seconds: float

    @property
    def errors(self) -> Tensor:
        """Absolute errors ``(K, L, D)``: NaN where there is no truth, infinite where there is no finite forecast."""
        error = (self.forecast - self.truth).abs()
        return torch.where(self.truth.isnan(), torch.nan, torch.where(self.forecast.isfinite(), error, torch.inf))

    def valid_time(self) -> ValidTime:
        """Valid samples of each by V1; censored where they end with the truth or the horizon."""
        known = ~self.truth.isnan().any(-1)
        found = valid_time(torch.where(known[..., None], self.truth, self.forecast), self.forecast, self.spread)
        samples = torch.minimum(torch.as_tensor(found.samples), known.sum(-1))
        return ValidTime(samples.numpy(), (samples == known.sum(-1)).numpy())


def rolled(
    forecaster: Forecaster,
    values: Tensor,
    origins: Origins,
    *,
    dt: float,
    seed: int = 0,
    normalize: Normalisation = "train_zscore",
    members: int = 0,
    device: torch.device | str = "cpu",
    checkpoint: Path | None = None,
    progress: Callable[[float, str], None] | None = None,
) -> Rolled:
    """Fit the forecaster before every origin, as one group, and forecast from there.

    Args:
        forecaster: settings.
        values: ``(T, D)``, the series in its units.
        origins: where forecasts begin.
        dt: time between two samples.
        seed: of initial weights and ensembles.
        normalize: how what is fitted is scaled.
        members: of ensembles, where the forecaster has them.
        device: where to compute.
        checkpoint: folder that keeps fits that were interrupted, and the forecasts.
        progress: told the share done and a message.

    Raises:
        InputError: a series that is too short for the forecaster.
        MissingExtra: a package is not installed.
    """
    kept = Checkpoint(None if checkpoint is None else checkpoint / "forecasts.safetensors")
    found = kept.load()
    if found is None:
        found = _forecasts(forecaster, values, origins, dt, seed, normalize, members, device, checkpoint, progress)
        kept.save(found)
    longest = origins.longest
    padded = torch.cat([values, values.new_full((longest, values.shape[1]), torch.nan)])
    truth = torch.stack([padded[at : at + longest] for at in origins.at])
    drawn = found["members"] if found["members"].numel() else None
    return Rolled(found["forecast"], truth, found["spread"], drawn, float(found["seconds"]))


def _forecasts(
    forecaster: Forecaster,
    values: Tensor,
    origins: Origins,
    dt: float,
    seed: int,
    normalize: Normalisation,
    members: int,
    device: torch.device | str,
    checkpoint: Path | None,
    progress: Callable[[float, str], None] | None,
) -> dict[str, Tensor]:
    started = time.perf_counter()
    if checkpoint is not None:
        checkpoint.mkdir(parents=True, exist_ok=True)
    fitted = fit_scaled(
        forecaster,
        torch.stack([values[at - origins.length : at] for at in origins.at]),
        seeds=[stream(seed, f"weights before origin {at}") for at in origins.at],
        seed=stream(seed, "rolling"),
        dt=(dt,) * len(origins.at),
        normalize=normalize,
        device=device,
        checkpoint=checkpoint,
        progress=progress,
    )
    seconds = time.perf_counter() - started
    drawn = torch.empty(0)
    if members and fitted.probabilistic:
        generator = torch.Generator().manual_seed(stream(seed, "rolling ensemble"))
        drawn = fitted.sample(origins.longest, members, generator)
    forecast = fitted.forecast(origins.longest)[0]
    return {
        "forecast": forecast.cpu(),
        "spread": fitted.spread.cpu(),
        "members": drawn.cpu(),
        "seconds": torch.tensor(seconds, dtype=torch.float64),
    }

"""Forecasts in the units of the data from forecasters that see scaled series."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from apps.chaos.forecasters.forecaster import Ensemble, Fitted, Fitting, Forecaster
from core.errors import InputError
from simulators.chaos.flow import DelayFlow, Flow

Normalisation: TypeAlias = Literal["train_zscore", "none"]
DIVERGED = 1e6
"""Standard deviations of the training series beyond which a forecast has diverged; it is held there."""


@dataclass(frozen=True)
class ScaledFitted:
    """Fitted forecasters, and the units of their series.

    Attributes:
        fitted: forecasts ``(raw - offset) / scale``.
        offset: ``(G, D)``.
        scale: ``(G, D)``.
        spread: ``(G, D)``, standard deviations of the training series.
    """

    fitted: Fitted
    offset: Tensor
    scale: Tensor
    spread: Tensor

    @property
    def notes(self) -> Mapping[str, Tensor]:
        """Numbers ``(G,)`` about the fits."""
        return self.fitted.notes

    @property
    def probabilistic(self) -> bool:
        """Whether there is ``sample``."""
        return isinstance(self.fitted, Ensemble)

    def forecast(self, horizon: int) -> tuple[Tensor, Tensor]:
        """The samples after the training series, ``(G, horizon, D)`` float64, and which diverged ``(G,)``.

        A forecast that leaves 1e6 standard deviations is held at that distance, from there on also where it overflows;
        what is not a number before stays so.

        Raises:
            InputError: the forecaster gave another shape.
        """
        scaled = self.fitted.forecast(horizon)
        expected = (len(self.offset), horizon, self.offset.shape[1])
        if tuple(scaled.shape) != expected:
            raise InputError(f"forecast: {tuple(scaled.shape)}: must be (series, horizon, channels), {expected}")
        return self._raw(scaled)

    def sample(self, horizon: int, members: int, generator: torch.Generator) -> Tensor:
        """Equally likely futures, ``(G, members, horizon, D)``.

        Raises:
            InputError: the forecaster has none.
        """
        if not isinstance(self.fitted, Ensemble):
            raise InputError("sample: this forecaster gives one forecast, not an ensemble")
        drawn = self.fitted.sample(horizon, members, generator)
        return self._raw(drawn.flatten(1, 2))[0].reshape(drawn.shape)

    def _raw(self, scaled: Tensor) -> tuple[Tensor, Tensor]:
        raw = self.offset[:, None] + self.scale[:, None] * scaled.double()
        limit = DIVERGED * self.spread[:, None]
        distance = (raw - self.offset[:, None]).abs()
        diverged = ~(distance <= limit).flatten(1).all(1)
        held = torch.minimum(torch.maximum(raw, self.offset[:, None] - limit), self.offset[:, None] + limit)
        left = (distance > limit).any(-1, keepdim=True).cumsum(1) > 0
        at = torch.arange(raw.shape[1], device=raw.device)[:, None].expand_as(raw)
        latest = torch.where(held.isnan(), 0, at).cummax(1).values
        return torch.where(left & held.isnan(), held.gather(1, latest), held), diverged


def fit_scaled(
    forecaster: Forecaster,
    train: Tensor,
    *,
    seeds: Sequence[int],
    seed: int = 0,
    dt: Sequence[float] = (),
    flows: Sequence[Flow | DelayFlow] | None = None,
    observed: Sequence[int] | None = None,
    normalize: Normalisation = "train_zscore",
    device: torch.device | str = "cpu",
    checkpoint: Path | None = None,
    progress: Callable[[float, str], None] | None = None,
) -> ScaledFitted:
    """Fit a forecaster to each series of a group.

    Args:
        forecaster: settings.
        train: ``(G, T, D)`` in the units of the data.
        seeds: one for each series.
        seed: of what the group shares.
        dt: time between two samples, for each series.
        flows: the equations of each series, where they are known.
        observed: the channels of each flow's state that the series show; None for all.
        normalize: mean 0 and standard deviation 1 over the training series, or as they are.
        device: where to compute.
        checkpoint: folder from which an interrupted fit goes on.
        progress: told the share done and a message.

    Raises:
        InputError: a series that is too short for the forecaster.
        MissingExtra: a package is not installed.
    """
    forecaster.check(train.shape[1])
    raw = train.to(device=device, dtype=torch.float64)
    mean, spread = raw.mean(1), raw.std(1)
    spread = torch.where(spread > 0, spread, 1.0)
    plain = normalize == "none"
    offset = torch.zeros_like(mean) if plain else mean
    scale = torch.ones_like(spread) if plain else spread
    fitting = Fitting(
        seeds=tuple(seeds),
        seed=seed,
        dt=tuple(dt),
        flows=None if flows is None else tuple(flows),
        observed=None if observed is None else tuple(observed),
        offset=offset,
        scale=scale,
        checkpoint=checkpoint,
        progress=progress,
    )
    fitted = forecaster.fit((raw - offset[:, None]) / scale[:, None], fitting)
    return ScaledFitted(fitted, offset, scale, spread)

"""Forecasters of single channels by libraries without batches: a plain loop in which a failure spoils one series."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from apps.chaos.forecasters.forecaster import Fitted, Fitting, Forecaster
from apps.chaos.forecasters.quiet import quiet

Forecast = Callable[[int], np.ndarray]
"""The values ``(horizon,)`` after the end of a channel."""


class ChannelForecaster(Forecaster):
    """A forecaster that treats each channel of each series as a series of its own.

    An interrupted fit begins again: a channel takes a fraction of a second.
    """

    together: ClassVar[bool] = False

    @abstractmethod
    def channel(self, values: np.ndarray) -> Forecast:
        """Fit one channel ``(T,)`` float64; anything that it raises makes the forecast of the series NaN."""

    def fit(self, train: Tensor, fitting: Fitting) -> Fitted:
        """Fit every channel of every series; ``notes["failed"]`` counts the channels of a series that failed."""
        self.check(train.shape[1])
        fits: list[list[Forecast | None]] = []
        for number, series in enumerate(train.cpu().numpy(), start=1):
            attempts = [self._attempt(np.ascontiguousarray(values)) for values in series.T]
            fits.append([None if isinstance(attempt, str) else attempt for attempt in attempts])
            if fitting.progress is not None:
                errors = "".join(f"; {attempt}" for attempt in attempts if isinstance(attempt, str))
                fitting.progress(number / len(train), f"{self.kind}: series {number} of {len(train)}{errors}")
        return FittedChannels(fits, train.device)

    def _attempt(self, values: np.ndarray) -> Forecast | str:
        """The fit of a channel, or why there is none."""
        if not np.isfinite(values).all():
            return "not finite"
        with quiet():
            try:
                return self.channel(values)
            # The libraries raise whatever comes up inside them; a channel that they cannot fit is a result.
            except ImportError:
                raise
            except Exception as error:
                return repr(error)


@dataclass
class FittedChannels(Fitted):
    """The forecasts of every channel of every series; None where the fit failed.

    Args:
        fits: G lists of D forecasts.
        device: of the forecasts.
    """

    fits: Sequence[Sequence[Forecast | None]]
    device: torch.device

    def __post_init__(self) -> None:
        failed = [sum(fit is None for fit in series) for series in self.fits]
        self.notes = {"failed": torch.tensor(failed, dtype=torch.float64, device=self.device)}

    def forecast(self, horizon: int) -> Tensor:
        """The samples after the training series, ``(G, horizon, D)``; NaN for a series with a failed channel."""
        out = np.full((len(self.fits), horizon, len(self.fits[0])), np.nan)
        for series, fits in enumerate(self.fits):
            made = [fit for fit in fits if fit is not None]
            if len(made) == len(fits):
                with quiet():
                    out[series] = np.stack([fit(horizon) for fit in made], axis=1)
        return torch.from_numpy(out).to(self.device)

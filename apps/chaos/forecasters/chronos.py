"""Forecasts by a pretrained model of the Chronos family, whose weights the user has in a folder."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from apps.chaos.forecasters.forecaster import Ensemble, Fitted, Fitting, Forecaster
from apps.chaos.forecasters.quiet import quiet
from core.errors import InputError, require
from core.torchvision_guard import shield


class Chronos(Forecaster):
    """A model that forecasts without training on the series; each channel is a series of its own.

    Ansari and others (2024), "Chronos: Learning the Language of Time Series", TMLR. Nothing is downloaded.
    """

    kind: Literal["chronos"] = "chronos"
    weights: Path
    """Folder of the model: config.json and the weights."""
    context: int = Field(default=512, ge=1)
    """The last samples, which the model sees."""
    members: int = Field(default=20, ge=1)
    """Sampled futures whose median is the forecast, of a model that samples."""

    packages: ClassVar[Sequence[tuple[str, str]]] = (("chronos", "forecasting"),)

    def check(self, samples: int) -> None:
        """Refuse also a folder without a model.

        Raises:
            InputError: too few samples, or no such folder.
            MissingExtra: chronos is not installed.
        """
        super().check(samples)
        if not (self.weights / "config.json").is_file():
            raise InputError(
                f"chronos: weights {self.weights}: must be a local folder with config.json and the weights"
            )

    def fit(self, train: Tensor, fitting: Fitting) -> Fitted:
        """Load the model.

        Raises:
            InputError: the folder holds no model of Chronos.
        """
        self.check(train.shape[1])
        shield()
        pipelines = require("chronos", "forecasting").BaseChronosPipeline
        try:
            pipeline = pipelines.from_pretrained(self.weights, device_map=str(train.device), local_files_only=True)
        except (AssertionError, OSError, TypeError, ValueError) as error:
            raise InputError(f"chronos: weights {self.weights}: not a model of Chronos: {error}") from error
        context = train[:, -self.context :].float()
        if pipeline.forecast_type.value == "samples":
            return SampledChronos(pipeline, context, fitting.seeds, self.members)
        return FittedChronos(pipeline, context, fitting.seeds)


@dataclass
class FittedChronos(Fitted):
    """A pretrained model and what it sees of each series.

    Attributes:
        pipeline: of chronos.
        context: ``(G, C, D)`` float32.
        seeds: of the samples, one for each series.
    """

    pipeline: Any
    context: Tensor
    seeds: Sequence[int]
    notes: Mapping[str, Tensor] = field(default_factory=dict, kw_only=True)

    @property
    def settings(self) -> dict[str, Any]:
        """How the model makes the median."""
        return {}

    def forecast(self, horizon: int) -> Tensor:
        """The median of the samples after the training series, ``(G, horizon, D)``."""

        def median(channels: list[Tensor]) -> Tensor:
            quantiles, _ = self.pipeline.predict_quantiles(
                channels, prediction_length=horizon, quantile_levels=[0.5], **self.settings
            )
            return torch.stack([torch.as_tensor(channel).reshape(horizon) for channel in quantiles], dim=1)

        return self._each(median, (horizon,))

    def _each(self, make: Any, shape: tuple[int, ...]) -> Tensor:
        """``make`` applied to the channels of each finite series, under the seed of the series: ``(G, *shape, D)``."""
        channels = self.context.shape[2]
        out = torch.full((len(self.context), *shape, channels), torch.nan, dtype=torch.float64)
        device = self.context.device
        # chronos names its loggers by their files, and warns of every long horizon.
        loggers = [name for name in logging.root.manager.loggerDict if "chronos" in name]
        for number, (series, seed) in enumerate(zip(self.context, self.seeds, strict=True)):
            if not series.isfinite().all():
                continue
            # The models draw from torch's own generators, which are put back.
            with quiet(*loggers), torch.random.fork_rng([device] if device.type == "cuda" else []):
                torch.manual_seed(seed)
                out[number] = make(list(series.T.cpu())).double()
        return out.to(device)


@dataclass
class SampledChronos(FittedChronos, Ensemble):
    """A pretrained model that samples futures.

    Attributes:
        members: futures whose median is the forecast.
    """

    members: int

    @property
    def settings(self) -> dict[str, Any]:
        """How many futures the model draws for the median."""
        return {"num_samples": self.members}

    def sample(self, horizon: int, members: int, generator: torch.Generator) -> Tensor:
        """Equally likely futures of each channel alone, ``(G, members, horizon, D)``.

        Beyond the length that the model was trained for, each block of futures goes on from the median of the last.
        """
        seeds = torch.randint(2**63 - 1, (len(self.seeds),), generator=generator, device=generator.device).tolist()

        def draw(channels: list[Tensor]) -> Tensor:
            drawn: Tensor = self.pipeline.predict(channels, prediction_length=horizon, num_samples=members)
            return drawn.movedim(0, -1)

        return SampledChronos(self.pipeline, self.context, seeds, members)._each(draw, (members, horizon))

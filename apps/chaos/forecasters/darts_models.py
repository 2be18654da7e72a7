"""Any of the neural and regression models of the library darts, as forecasters of single series."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, JsonValue, field_validator
from torch import Tensor

from apps.chaos.forecasters.forecaster import Fitted, Fitting, Forecaster
from apps.chaos.forecasters.quiet import quiet
from core.errors import InputError, MissingExtra, require
from core.torchvision_guard import shield

REGRESSIONS = ("LinearRegressionModel", "RandomForestModel")
"""Models of scikit-learn on lags, without epochs."""
TRAINING_LENGTH = 24
"""Samples of the windows on which darts trains its RNNModel, at least."""
LOGGERS = ("darts", "pytorch_lightning", "lightning.pytorch")
"""Of darts and of Lightning, which trains its networks."""
OURS = (
    "input_chunk_length",
    "lags",
    "log_tensorboard",
    "n_epochs",
    "pl_trainer_kwargs",
    "random_state",
    "save_checkpoints",
    "work_dir",
)
"""Arguments of darts that the fields of the forecaster and the fit decide."""


class Darts(Forecaster):
    """A model of darts (Herzen and others 2022, Journal of Machine Learning Research 23 (124)), one for each series.

    All channels of a series go into one model, which is trained on all windows and rolled out. An interrupted fit keeps
    the weights of the series that were done.
    """

    kind: Literal["darts"] = "darts"
    model: Literal[
        "BlockRNNModel",
        "DLinearModel",
        "LinearRegressionModel",
        "NBEATSModel",
        "NHiTSModel",
        "NLinearModel",
        "RandomForestModel",
        "RNNModel",
        "TCNModel",
        "TiDEModel",
        "TransformerModel",
        "TSMixerModel",
    ]
    """The class in darts.models."""
    look_back: int = Field(default=25, ge=1)
    """Samples that the model sees."""
    epochs: int = Field(default=100, ge=1)
    """Passes over the training windows; the regressions have none."""
    arguments: dict[str, JsonValue] = Field(default_factory=dict)
    """Further arguments of the class, passed on."""
    dtype: Literal["float32", "float64"] = "float32"
    """Of the series and so of the weights."""

    packages: ClassVar[Sequence[tuple[str, str]]] = (("darts", "forecasting"),)
    grid: ClassVar[Mapping[str, Sequence[Any]]] = {"look_back": (5, 10, 25, 50, 100)}
    together: ClassVar[bool] = False

    @field_validator("arguments")
    @classmethod
    def _not_ours(cls, arguments: dict[str, JsonValue]) -> dict[str, JsonValue]:
        if taken := sorted(set(arguments) & set(OURS)):
            raise ValueError(f"{taken[0]} is not passed on: the forecaster sets {', '.join(OURS)}")
        return arguments

    @property
    def shortest(self) -> int:
        """The look-back (or the training windows of RNNModel), and ten."""
        return 10 + (max(self.look_back, TRAINING_LENGTH) if self.model == "RNNModel" else self.look_back)

    def fit(self, train: Tensor, fitting: Fitting) -> Fitted:
        """Train one model after the other.

        Raises:
            InputError: darts refuses the arguments.
            MissingExtra: darts, or torch's side of it, cannot be imported.
        """
        self.check(train.shape[1])
        models: list[Any] = []
        # Lightning sets the level of its messages when it is imported: before they are silenced.
        self._class()
        with quiet(*LOGGERS):
            self._build(0, train.device, self.epochs)
            for number, series in enumerate(train.cpu().numpy().astype(self.dtype)):
                models.append(self._train(number, series, train.device, fitting) if np.isfinite(series).all() else None)
                if fitting.progress is not None:
                    text = f"{self.model}: series {number + 1} of {len(train)}"
                    fitting.progress((number + 1) / len(train), text)
        return FittedDarts(models, train.shape[2], train.device)

    def _train(self, number: int, values: np.ndarray, device: torch.device, fitting: Fitting) -> Any:
        """The trained model; None where the weights are not finite."""
        series = require("darts", "forecasting").TimeSeries.from_values(values)
        seed = fitting.seeds[number]
        if self.model in REGRESSIONS:
            return self._build(seed, device, self.epochs).fit(series)
        checkpoint = fitting.keep(f"darts_{number}")
        if (kept := checkpoint.load()) is not None:
            # darts makes the network when it sees the series: here for no epoch.
            model = self._build(seed, device, 0).fit(series, verbose=False)
            model.model.load_state_dict(kept)
        else:
            model = self._build(seed, device, self.epochs).fit(series, verbose=False)
            checkpoint.save(model.model.state_dict())
        return model

    def _class(self) -> Any:
        shield()
        return getattr(require("darts.models", "forecasting"), self.model)

    def _build(self, seed: int, device: torch.device, epochs: int) -> Any:
        arguments: dict[str, Any] = {"random_state": seed}
        if self.model in REGRESSIONS:
            arguments["lags"] = self.look_back
        else:
            arguments |= {
                "input_chunk_length": self.look_back,
                "n_epochs": epochs,
                "pl_trainer_kwargs": _trainer(device),
            }
        if self.model == "RNNModel":
            arguments["training_length"] = max(TRAINING_LENGTH, self.look_back)
        else:
            arguments["output_chunk_length"] = 1
        try:
            return self._class()(**{**arguments, **self.arguments})
        except ImportError as error:
            raise MissingExtra(f"darts: {self.model} cannot be imported: {error}") from error
        except (TypeError, ValueError) as error:
            raise InputError(f"darts: {self.model} refuses its arguments {self.arguments}: {error}") from error


@dataclass
class FittedDarts(Fitted):
    """The models of all series; None where there is none.

    Attributes:
        models: of darts.
        channels: D.
        device: of the forecasts.
    """

    models: Sequence[Any]
    channels: int
    device: torch.device
    notes: Mapping[str, Tensor] = field(default_factory=dict)

    def forecast(self, horizon: int) -> Tensor:
        """The samples after the training series, ``(G, horizon, D)``; NaN for a series without a model."""
        out = np.full((len(self.models), horizon, self.channels), np.nan)
        with quiet(*LOGGERS):
            for number, model in enumerate(self.models):
                if model is not None:
                    out[number] = model.predict(horizon, verbose=False).values()
        return torch.from_numpy(out).to(self.device)


def _trainer(device: torch.device) -> dict[str, Any]:
    """Lightning's settings: on ``device``, silent, and without a file."""
    place = {"accelerator": "gpu", "devices": [device.index or 0]} if device.type == "cuda" else {"accelerator": "cpu"}
    quiet = ("enable_checkpointing", "enable_model_summary", "enable_progress_bar", "logger")
    return {**place, **dict.fromkeys(quiet, False)}

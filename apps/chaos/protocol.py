"""The protocol of the benchmark: how series are sampled, what is fitted, tuned and forecast, and who takes part."""

from __future__ import annotations

from itertools import product
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from apps.chaos.fitting import Normalisation
from apps.chaos.forecasters import AnyForecaster, Forecaster
from core.errors import InputError
from core.study import Config
from core.study.loading import from_options

LyapunovSource = Literal["estimated", "stored"]


class Protocol(Config):
    """Sampling and splits; the defaults are those of Gilpin (2023), with replicates."""

    points: int = Field(default=100, ge=2, le=10_000)
    """Samples per unit of the time scale."""
    timescale: Literal["period", "lyapunov"] = "period"
    """Unit: the dominant period of a system, or the inverse of its largest exponent."""
    grid: Literal["exact", "published"] = "exact"
    """Spacing of the samples: the unit over ``points``, or stretched by n / (n - 1) as in the published series."""
    context: int = Field(default=1000, ge=20)
    """Samples that are fitted."""
    horizon: int = Field(default=5000, ge=1)
    """Samples that are forecast from there, without anchor."""
    short: int = Field(default=200, ge=2)
    """Samples of the short forecast, which most metrics score."""
    replicates: int = Field(default=5, ge=1, le=1000)
    """Test series of each system, from different initial conditions."""
    burn_in: int = Field(default=300, ge=0)
    """Samples that are left out before a series begins."""
    tolerance: float = Field(default=1e-10, gt=0, le=1e-3)
    """Relative and absolute tolerance of the integration."""
    tuning: Literal["series", "context"] = "series"
    """Tune on a training series of its own, or by cross-validation on the contexts of the test series."""
    folds: int = Field(default=1, ge=1, le=20)
    """Validation blocks at the end of the tuning series, each forecast from all that is before it."""
    validation: int = Field(default=200, ge=1)
    """Samples of a validation block."""
    lyapunov: LyapunovSource = "estimated"
    """Whose largest exponent scales time: that of the shipped table, or the one that the catalogue states."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Of initial conditions, noise and initial weights."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.short > self.horizon:
            raise InputError(f"short = {self.short}: must be at most the horizon, {self.horizon}")
        least = self.folds * self.validation + 20
        if self.tuning == "context" and self.context < least:
            raise InputError(f"context = {self.context}: {self.folds} folds of {self.validation} samples need {least}")
        return self


class Method(Config):
    """A forecaster, what is tuned, and how its series are scaled."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    """Name in the report."""
    forecaster: AnyForecaster
    """Its settings."""
    grid: dict[str, tuple[Any, ...]] | None = None
    """Fields to tune and the values to try; null for those of the paper, {} for none."""
    normalize: Normalisation = "train_zscore"
    """Scale series by mean and standard deviation of the training part, or leave them."""
    at_once: int = Field(default=0, ge=0)
    """Series that are fitted together; 0 for all."""
    members: int = Field(default=0, ge=0, le=1000)
    """Members of an ensemble forecast, where the forecaster has one; 0 for none."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        unknown = set(self.fields) - set(type(self.forecaster).model_fields)
        if unknown:
            known = ", ".join(n for n in type(self.forecaster).model_fields if n != "kind")
            raise InputError(f"method {self.name}: grid: {', '.join(sorted(unknown))}: must be among {known}")
        if any(not values for values in self.fields.values()):
            raise InputError(f"method {self.name}: grid: needs at least one value for each field")
        self.candidates()
        return self

    @property
    def fields(self) -> dict[str, tuple[Any, ...]]:
        """What is tuned."""
        grid = type(self.forecaster).grid if self.grid is None else self.grid
        return {name: tuple(values) for name, values in grid.items()}

    def candidates(self) -> list[Forecaster]:
        """The forecaster with every combination of the grid's values, the last field fastest."""
        base = self.forecaster.model_dump()
        return [
            from_options(type(self.forecaster), base | dict(zip(self.fields, values, strict=True)), self.name)
            for values in product(*self.fields.values())
        ]


class Scenario(Config):
    """One way to pose the task: how much is known of a series."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    """Name in the report."""
    train_length: int | None = Field(default=None, ge=12)
    """Latest samples of the context that are fitted; null for all."""
    noise: float = Field(default=0.0, ge=0, le=1)
    """Noise on what is fitted and tuned on, in standard deviations of each channel; forecasts are scored against the
    truth."""
    observe: int | None = Field(default=None, ge=1)
    """Only this many of the first channels are seen and forecast; null for all."""
    embedding: int = Field(default=1, ge=1, le=20)
    """Delay vectors of this many lags are fitted, the delay chosen on the training series; 1 for the series itself."""
    methods: tuple[str, ...] | None = None
    """Who takes part; null for all."""
    retune: bool = False
    """Tune with as many samples as are fitted; else with the whole context, as in the paper."""

    @property
    def plain(self) -> bool:
        """Whether all of the series is seen as it is; its length apart."""
        return (self.noise, self.observe, self.embedding) == (0.0, None, 1)

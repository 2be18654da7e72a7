"""Few declines among many approvals: rows resampled or reweighted, and the probabilities set right afterwards.

Exploration by inverse gaps reads the scale of the gaps between predictions, not only their order. So whatever changes
the share of the declines that a model sees is undone by formula where there is one, and what is left is recalibrated
on rows that were held back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from scipy.optimize import isotonic_regression, minimize
from torch import Tensor

from apps.payments.metrics import mean_gap
from apps.payments.oracles.factored import penalised_loss
from apps.payments.oracles.oracle import Oracle, OracleConfig, check_labels
from apps.payments.oracles.rows import Rows
from core.errors import InputError
from core.study import Config
from simulators.payments.context import PaymentContext, Sizes

Array = NDArray[np.float64]
EDGE = 1e-12
"""Probabilities are kept this far from 0 and 1 before their logit is taken."""


class ImbalanceSettings(Config):
    """What is done about the rare declines."""

    method: Literal["none", "class_weight", "downsample", "focal"] = "none"
    """``class_weight`` gives both labels the same total weight, ``downsample`` keeps a share of the approvals,
    ``focal`` weighs down the rows that are predicted well (Lin et al. 2017)."""
    keep: float = Field(default=0.25, gt=0, le=1)
    """Of ``downsample``: share of the approvals that is kept."""
    focus: float = Field(default=2.0, gt=0, le=10)
    """Of ``focal``: exponent."""
    recalibration: Literal["none", "platt", "isotonic"] | None = None
    """On the rows held back; null is ``platt`` with a method and none without. Isotonic maps are flat beyond the
    centres of their outer blocks, so there the best actions tie; Platt's keeps every gap."""
    held_back: float = Field(default=0.1, gt=0, lt=1)
    """Share of the rows that recalibration learns from."""

    @model_validator(mode="after")
    def _calibrated(self) -> Self:
        if self.method != "none" and self.recalibration == "none":
            raise InputError(f"recalibration = none: method = {self.method} distorts the gaps, use platt or isotonic")
        return self

    @property
    def calibration(self) -> Literal["none", "platt", "isotonic"]:
        """The recalibration that is done."""
        return self.recalibration or ("none" if self.method == "none" else "platt")


def corrected(prediction: Tensor, keep: float) -> Tensor:
    """Approval probability f = f' / (f' + w (1 - f')) when a model saw a share w of the approvals and predicts f'.

    Weights do the same as sampling: w is then the weight of an approval over that of a decline.
    """
    return prediction if keep == 1 else prediction / (prediction + keep * (1 - prediction))


class Platt(Config):
    """f -> sigmoid(slope logit f + intercept)."""

    kind: Literal["platt"] = "platt"
    slope: float = Field(ge=0)
    """Never negative: a calibration does not reverse an order."""
    intercept: float
    """Shift of the logit."""

    @classmethod
    def fit(cls, prediction: Array, reward: Array, weight: Array) -> Platt:
        """Maximum likelihood with Platt's targets (n_1 + 1) / (n_1 + 2) and 1 / (n_0 + 2) in place of 1 and 0."""
        approved, declined = float(weight @ reward), float(weight @ (1 - reward))
        low, high = 1 / (declined + 2), (approved + 1) / (approved + 2)
        logit = _logit(torch.from_numpy(prediction)).numpy()
        found = minimize(
            penalised_loss(np.stack([logit, np.ones(len(logit))], 1), low + reward * (high - low), np.zeros(2), weight),
            np.array([1.0, 0.0]),
            jac=True,
            method="L-BFGS-B",
            bounds=[(0, None), (None, None)],
        )
        return cls(slope=float(found.x[0]), intercept=float(found.x[1]))

    def __call__(self, prediction: Tensor) -> Tensor:
        """The calibrated probabilities."""
        return (self.slope * _logit(prediction) + self.intercept).sigmoid()


class Isotonic(Config):
    """Centred isotonic regression (Oron and Flournoy 2017): straight lines between the blocks' centres.

    Plain isotonic regression is a staircase, on which all gaps within a step are zero; through the centres it rises.
    """

    kind: Literal["isotonic"] = "isotonic"
    centre: tuple[float, ...]
    """Mean prediction of each block, ascending."""
    level: tuple[float, ...]
    """Observed approval rate of each block, ascending."""

    @classmethod
    def fit(cls, prediction: Array, reward: Array, weight: Array) -> Isotonic:
        """Least squares among the non-decreasing maps; levels are kept 1 / (n + 2) away from 0 and 1."""
        order = np.argsort(prediction, kind="stable")
        x, inverse = np.unique(prediction[order], return_inverse=True)
        mass = np.bincount(inverse, weight[order])
        x, mass, sums = x[mass > 0], mass[mass > 0], np.bincount(inverse, (weight * reward)[order])[mass > 0]
        found = isotonic_regression(sums / mass, weights=mass)
        centre = np.add.reduceat(x * mass, found.blocks[:-1]) / found.weights
        level = np.clip(found.x[found.blocks[:-1]], 1 / (len(reward) + 2), 1 - 1 / (len(reward) + 2))
        return cls(centre=tuple(centre.tolist()), level=tuple(level.tolist()))

    def __call__(self, prediction: Tensor) -> Tensor:
        """The calibrated probabilities."""
        centre, level = (prediction.new_tensor(values) for values in (self.centre, self.level))
        if len(centre) == 1:
            return level.expand_as(prediction)
        after = torch.searchsorted(centre, prediction.contiguous()).clamp_(1, len(centre) - 1)
        share = (prediction - centre[after - 1]) / (centre[after] - centre[after - 1])
        return torch.lerp(level[after - 1], level[after], share.clamp_(0, 1))


Calibration = Platt | Isotonic
CALIBRATIONS: dict[str, type[Platt] | type[Isotonic]] = {"platt": Platt, "isotonic": Isotonic}


class RecalibratedOracle(Oracle[OracleConfig]):
    """An oracle whose probabilities are set right.

    Args:
        raw: as it was fitted, on resampled or reweighted rows.
        keep: w of ``corrected``; 1 leaves the probabilities.
        calibration: learned from the rows that were held back.
    """

    def __init__(self, raw: Oracle[Any], keep: float, calibration: Calibration) -> None:
        super().__init__(raw.settings, raw.sizes)
        self.raw, self.keep, self.calibration = raw, keep, calibration

    @property
    def parameters(self) -> int:
        """Number of free parameters, those of the calibration included."""
        return self.raw.parameters + (2 if isinstance(self.calibration, Platt) else len(self.calibration.level))

    def state(self) -> dict[str, Tensor]:
        """The tensors of the raw model."""
        return self.raw.state()

    def extras(self) -> dict[str, Any]:
        """The raw model's."""
        return self.raw.extras()

    def gaps(self, context: PaymentContext, mask: Tensor) -> tuple[float, float]:
        """Mean predicted gap of the raw and of the recalibrated model on n payments with their available actions."""
        return mean_gap(self.raw.predict_all(context), mask), mean_gap(self.predict_all(context), mask)

    def save(self, directory: str | Path, **more: Any) -> None:
        """Write the raw model with its recalibration beside it; see ``Oracle.save``."""
        data = {"keep": self.keep, "calibration": self.calibration.model_dump(mode="json")}
        super().save(directory, recalibration=data, **more)

    def _chunk(self, device: torch.device) -> int:
        return self.raw._chunk(device)

    def _approval(self, context: PaymentContext, dtype: torch.dtype) -> Tensor:
        return self._right(self.raw._approval(context, dtype))

    def _approval_of(self, context: PaymentContext, action: Tensor, dtype: torch.dtype) -> Tensor:
        return self._right(self.raw._approval_of(context, action, dtype))

    def _right(self, prediction: Tensor) -> Tensor:
        return self.calibration(corrected(prediction, self.keep))

    @classmethod
    def restored(cls, raw: Oracle[Any], data: Mapping[str, Any]) -> RecalibratedOracle:
        """The oracle of which ``data`` was saved beside the raw model."""
        calibration = CALIBRATIONS[data["calibration"]["kind"]].model_validate(data["calibration"])
        return cls(raw, float(data["keep"]), calibration)


def fit_recalibrated(
    settings: OracleConfig,
    imbalance: ImbalanceSettings,
    rows: Rows,
    sizes: Sizes,
    *,
    seed: int,
    device: torch.device | str,
    previous: Oracle[Any] | None,
) -> RecalibratedOracle:
    """Hold rows back, resample or reweight the rest, fit, correct, and recalibrate on what was held back.

    Raises:
        InputError, OracleDiverged: see ``OracleConfig.fit``.
        ConstantLabels: the rows that are left, or those held back, have one label only.
    """
    rows.check(sizes)
    generator = torch.Generator().manual_seed(seed)
    held = torch.rand(len(rows), generator=generator) < imbalance.held_back
    kept, approved = ~held, rows.reward.cpu() >= 0.5
    if imbalance.method == "downsample":
        kept &= ~approved | (torch.rand(len(rows), generator=generator) < imbalance.keep)
    training, calibrating = (rows.take(chosen.to(rows.reward.device)) for chosen in (kept, held))
    check_labels(training)
    check_labels(calibrating)
    keep = imbalance.keep if imbalance.method == "downsample" else 1.0
    if imbalance.method == "class_weight":
        training, keep = _balanced(training)
    focus = imbalance.focus if imbalance.method == "focal" else 0.0
    previous = previous.raw if isinstance(previous, RecalibratedOracle) else previous
    raw = settings.fit(training, sizes, seed=seed, device=device, focus=focus, previous=previous)
    prediction = corrected(raw.predict(calibrating.context, calibrating.action, torch.float64), keep)
    weight = torch.ones_like(calibrating.reward) if calibrating.weight is None else calibrating.weight
    columns = [column.cpu().double().numpy() for column in (prediction, calibrating.reward, weight)]
    return RecalibratedOracle(raw, keep, CALIBRATIONS[imbalance.calibration].fit(*columns))


def _balanced(rows: Rows) -> tuple[Rows, float]:
    """The rows with both labels of the same total weight, and the weight of an approval over that of a decline."""
    weight = torch.ones_like(rows.reward) if rows.weight is None else rows.weight
    approved = rows.reward >= 0.5
    total, approvals = weight.sum(), weight[approved].sum()
    of_approval, of_decline = total / (2 * approvals), total / (2 * (total - approvals))
    balanced = weight * torch.where(approved, of_approval, of_decline)
    return replace(rows, weight=balanced), float(of_approval / of_decline)


def _logit(prediction: Tensor) -> Tensor:
    edge = max(EDGE, torch.finfo(prediction.dtype).eps / 2)
    return prediction.clamp(edge, 1 - edge).logit()

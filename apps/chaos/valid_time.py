"""Valid prediction time by three definitions, and errors on an axis of Lyapunov times."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, TypeAlias, get_args

import numpy as np
import torch
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from apps.chaos.metrics import cumulative
from apps.chaos.paired import Array, alike, finite, paired
from core.errors import InputError

Definition: TypeAlias = Literal["V1", "V2", "V3"]

THRESHOLDS: Mapping[Definition, float] = MappingProxyType({"V1": 0.4, "V2": 30.0, "V3": 40.0})
"""The usual threshold of each definition: in standard deviations for V1, in sMAPE (0 to 200) for V2 and V3."""


@dataclass(frozen=True)
class ValidTime:
    """How long forecasts are valid.

    Attributes:
        samples: ``(...)`` int64, the valid samples.
        censored: ``(...)`` bool, whether the forecast is valid to its end, so that its valid time is at least this.
    """

    samples: Array
    censored: Array

    def lyapunov_times(self, exponent: ArrayLike | Tensor, dt: ArrayLike | Tensor) -> Array:
        """In Lyapunov times ``(...)``: samples x ``dt`` x the largest exponent, both ``(...)`` or one for all.

        NaN where the exponent is.

        Raises:
            InputError: an exponent or time step that is not positive.
        """
        rate = _rate(exponent, dt)
        if isinstance(self.samples, Tensor):
            return self.samples * rate.to(self.samples.device)
        return np.asarray(self.samples * rate.cpu().numpy())


def valid_time(
    truth: Array,
    forecast: Array,
    std: Array,
    *,
    definition: Definition = "V1",
    threshold: float | None = None,
) -> ValidTime:
    """The valid samples of forecasts ``(..., H, D)``, all in the units of the data.

    - V1: the samples before the first with sqrt(mean over channels of (y - p)^2 / std^2) > threshold (0.4).
    - V2: the samples before the first whose cumulative sMAPE is > threshold (30 of 200), as in Zhang and Gilpin
      (2025).
    - V3: the samples up to the last whose cumulative sMAPE is < threshold (40 of 200), as in the code of Gilpin
      (2023). It is generous: a forecast that has long left the truth can still count.

    A sample that is not finite ends a forecast by every definition; a standard deviation that is NaN leaves no valid
    sample.

    Args:
        truth: ``(..., H, D)``.
        forecast: ``(..., H, D)``; its first sample follows the last that was fitted.
        std: ``(..., D)`` standard deviations of the channels.
        definition: V1, V2 or V3.
        threshold: other than the usual.

    Raises:
        InputError: shapes that do not fit, an unknown definition, a threshold or a standard deviation that is not
            positive.
    """
    if definition not in get_args(Definition):
        raise InputError(f"definition {definition!r}: must be among {', '.join(get_args(Definition))}")
    limit = THRESHOLDS[definition] if threshold is None else threshold
    if not limit > 0:
        raise InputError(f"threshold: {limit} is not positive")
    y, p = paired(truth, forecast)
    whole = finite(y, p)
    horizon = y.shape[-2]
    if definition == "V1":
        scale = torch.as_tensor(std).to(y)
        if bool((scale <= 0).any()):
            raise InputError("std: the standard deviation of every channel must be positive")
        invalid = ~(((y - p) / scale[..., None, :]).square().mean(-1).sqrt() <= limit)
    else:
        error = torch.as_tensor(cumulative("smape", y, p))
        invalid = ~(error <= limit) if definition == "V2" else ~(error < limit)
    invalid = invalid | ~whole
    if definition == "V3":
        count = torch.arange(1, horizon + 1, device=y.device)
        samples = torch.where(invalid, 0, count).amax(-1)
    else:
        samples = (~invalid).cumprod(-1).sum(-1)
    return ValidTime(alike(samples, truth, forecast), alike(samples == horizon, truth, forecast))


def lyapunov_axis(points: int = 3000) -> NDArray[np.float64]:
    """Horizons in Lyapunov times, evenly spaced in the logarithm from 1e-3 to 1e3, ``(points,)``."""
    return np.logspace(-3, 3, points)


def on_lyapunov_axis(
    errors: Array, exponent: ArrayLike | Tensor, dt: ArrayLike | Tensor, axis: ArrayLike | None = None
) -> Array:
    """Curves of the error ``(..., H)`` against Lyapunov time ``(..., G)``, linearly interpolated.

    Sample i (from 1) lies at i x ``dt`` x the largest exponent. NaN before the first sample, beyond the last, and
    beside a NaN.

    Args:
        errors: ``(..., H)``, as of ``cumulative``.
        exponent: largest Lyapunov exponent, 1 / time, ``(...)`` or one for all.
        dt: time between samples, ``(...)`` or one for all.
        axis: horizons in Lyapunov times ``(G,)``; by default ``lyapunov_axis()``.

    Raises:
        InputError: an exponent or time step that is not positive.
    """
    curves = torch.as_tensor(errors).to(torch.float64)
    horizon = curves.shape[-1]
    rate = _rate(exponent, dt).to(curves.device).expand(curves.shape[:-1])
    grid = torch.as_tensor(np.asarray(lyapunov_axis() if axis is None else axis, dtype=np.float64))
    place = grid.to(curves.device) / rate[..., None] - 1
    # The rounding of a horizon that is a sample must not lose the sample.
    nearest = place.round()
    place = torch.where((place - nearest).abs() < 1e-9 * (1 + nearest.abs()), nearest, place)
    inside = (place >= 0) & (place <= horizon - 1)
    place = place.nan_to_num(-1.0).clamp(0, horizon - 1)
    left, right = place.floor().long(), place.ceil().long()
    below, above = curves.gather(-1, left), curves.gather(-1, right)
    value = torch.where(left == right, below, below + (place - left) * (above - below))
    return alike(torch.where(inside, value, torch.nan), errors)


def mean_curve(curves: ArrayLike, axis: ArrayLike | None = None) -> xr.Dataset:
    """Mean of the systems' curves ``(systems, G)`` at each horizon, over the systems whose curve is finite there.

    Args:
        curves: one a system, as of ``on_lyapunov_axis``; averages over replicates where there are some.
        axis: horizons in Lyapunov times ``(G,)``; by default ``lyapunov_axis()``.

    Returns:
        ``mean``, ``standard_error`` (standard deviation over the root of their number; NaN for one) and ``systems``
        (their number), along ``lyapunov_time``.

    Raises:
        InputError: not ``(systems, G)``.
    """
    grid = np.asarray(lyapunov_axis() if axis is None else axis, dtype=np.float64)
    values = np.asarray(curves, dtype=np.float64)
    if values.ndim != 2 or values.shape[1] != len(grid):
        raise InputError(f"curves: has shape {values.shape}, expected (systems, {len(grid)})")
    known = np.isfinite(values)
    count = known.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(known, values, 0.0).sum(0) / count
        spread = np.sqrt(np.where(known, (values - mean) ** 2, 0.0).sum(0) / (count - 1))
        error = np.where(count > 1, spread / np.sqrt(count), np.nan)
    along = "lyapunov_time"
    return xr.Dataset(
        {"mean": (along, mean), "standard_error": (along, error), "systems": (along, count)},
        {along: (along, grid, {"long_name": "horizon", "units": "Lyapunov times"})},
    )


def _rate(exponent: ArrayLike | Tensor, dt: ArrayLike | Tensor) -> Tensor:
    factors = {}
    for name, given in (("exponent", exponent), ("dt", dt)):
        value = torch.as_tensor(given, dtype=torch.float64)
        refused = value[value <= 0]
        if refused.numel():
            raise InputError(f"{name}: {refused.flatten()[0]:g} is not positive, there is no Lyapunov time")
        factors[name] = value
    return factors["exponent"] * factors["dt"].to(factors["exponent"].device)

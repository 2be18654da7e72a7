"""The scales of time of a user's series: its dominant period and its largest Lyapunov exponent."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from apps.chaos.series import Numbers, Series
from core.errors import InputError
from core.stats import Interval
from simulators.chaos.embedding import delay_embedding, embedding_delay, embedding_dimension
from simulators.chaos.neighbours import largest_exponent_of_series
from simulators.chaos.spectrum import dominant_period

REGULAR = 0.05
"""Exponent times period below which a series does not count as chaotic; in the catalogue 95 % of systems have 0.15."""
DOUBTFUL = 0.9
"""R^2 below which neighbours do not drift apart exponentially."""
PARTED = 0.5
"""Growth of the log distance of neighbours along the straight stretch below which its slope tells little."""
LATEST = 5000
"""Samples that an estimate of the exponent uses at most; its work grows with their square."""


@dataclass(frozen=True)
class Scales:
    """Scales of time, in the time unit of the series.

    Attributes:
        period: dominant period, the median over channels; NaN without one.
        dt: time between two samples.
        exponent: largest Lyapunov exponent, 1 / time, with its interval; None if it is not known.
        source: of the exponent: ``given`` or ``estimated``; empty if it is not known.
        chaotic: whether Lyapunov times mean something.
        warnings: what the user should know.
    """

    period: float
    dt: float
    exponent: Interval | None
    source: str
    chaotic: bool
    warnings: tuple[str, ...] = ()

    @property
    def lyapunov(self) -> float:
        """Largest exponent, 1 / time; NaN if it is not known."""
        return math.nan if self.exponent is None else self.exponent.mean

    def attributes(self) -> dict[str, Any]:
        """The scales as attributes of a dataset; NaN where there is none."""
        known = self.exponent
        return {
            "period": self.period,
            "lyapunov": self.lyapunov,
            "lyapunov_low": math.nan if known is None else known.low,
            "lyapunov_high": math.nan if known is None else known.high,
            "lyapunov_source": self.source,
            "chaotic": int(self.chaotic),
            "samples_per_period": self.period / self.dt,
            "samples_per_lyapunov_time": 1 / (self.lyapunov * self.dt) if self.chaotic else math.nan,
        }


def scales_of(series: Series, lyapunov: float | None, *, exponent: bool = True) -> Scales:
    """Period and exponent of a series; the exponent by Rosenstein's method, where none is given.

    Args:
        series: to measure.
        lyapunov: largest exponent, 1 / time unit of the series, above 0; None if it is not known.
        exponent: whether to estimate it.
    """
    period = _period(series)
    if lyapunov is not None:
        return Scales(period, series.dt, Interval(lyapunov, lyapunov, lyapunov, 1), "given", True)
    if not exponent:
        return Scales(period, series.dt, None, "", False)
    try:
        found = _estimate(series, period)
    except InputError as error:
        return Scales(period, series.dt, None, "", False, (f"no Lyapunov exponent can be estimated: {error}",))
    value, said = found.exponent, []
    turn = period if math.isfinite(period) else 10 * series.dt
    if not (value.mean * turn >= REGULAR and value.low > 0):
        shown = f"{value.mean:.3g} [{value.low:.3g}, {value.high:.3g}] per {series.time_unit or 'unit of time'}"
        said.append(f"not chaotic: the largest Lyapunov exponent is about zero, {shown}; lead times are in periods")
        return Scales(period, series.dt, value, "estimated", False, tuple(said))
    grown = value.mean * (found.window[1] - found.window[0])
    if grown < PARTED:
        why = f"neighbours drift apart by a factor of {math.exp(grown):.2f} only (regular motion, noise or few samples)"
        said.append(f"the Lyapunov exponent is doubtful: {why}")
    elif found.r_squared < DOUBTFUL:
        why = f"neighbours do not drift apart exponentially (R^2 {found.r_squared:.2f})"
        said.append(f"the Lyapunov exponent is doubtful: {why}")
    return Scales(period, series.dt, value, "estimated", True, tuple(said))


def scales_sentence(attributes: Mapping[str, Any]) -> str:
    """The scales of time in words.

    Args:
        attributes: of a dataset, as ``Scales.attributes`` gives them, with ``time_unit``.
    """
    unit = str(attributes.get("time_unit") or "time units")
    period, exponent = float(attributes["period"]), float(attributes["lyapunov"])
    said = [f"dominant period {period:.4g} {unit}" if math.isfinite(period) else "no dominant period"]
    if math.isfinite(exponent):
        low, high = float(attributes["lyapunov_low"]), float(attributes["lyapunov_high"])
        shown = f"{exponent:.4g}" if low == high else f"{exponent:.3g} [{low:.3g}, {high:.3g}]"
        said.append(f"largest Lyapunov exponent {shown} / {unit} ({attributes['lyapunov_source']})")
    return "; ".join(said)


def state_points(series: Series) -> Numbers:
    """Points of a state space ``(T', D')``: the standardised channels, or a delay embedding of a single one."""
    values = series.values[-LATEST:]
    values = (values - values.mean(0)) / values.std(0)
    if values.shape[1] > 1:
        return values
    channel = values[:, 0]
    delay = embedding_delay(channel)
    return np.asarray(delay_embedding(torch.from_numpy(channel), delay, embedding_dimension(channel, delay)))


def theiler_window(series: Series, period: float, points: int) -> int:
    """A period in samples, as far as ``points`` allow."""
    turn = period / series.dt if math.isfinite(period) else 1.0
    return max(1, min(round(turn), points // 10))


def _estimate(series: Series, period: float) -> Any:
    points = state_points(series)
    return largest_exponent_of_series(points, series.dt, theiler=theiler_window(series, period, len(points)))


def _period(series: Series) -> float:
    found = []
    for channel in series.values.T:
        try:
            found.append(float(dominant_period(channel, series.dt)))
        except InputError:
            continue
    known = [p for p in found if math.isfinite(p)]
    return float(np.median(known)) if known else math.nan

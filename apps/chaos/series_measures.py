"""What a series is like: its period, how fast neighbours part, and the dimension of the set that it visits."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
import xarray as xr

from apps.chaos.series import Numbers, Series
from apps.chaos.series_scales import LATEST, Scales, scales_of, state_points, theiler_window
from core.errors import InputError
from core.stats import Interval
from simulators.chaos.dimension import CorrelationDimension, correlation_dimension
from simulators.chaos.embedding import embedding_delay, embedding_dimension
from simulators.chaos.neighbours import Divergence, largest_exponent_of_series
from simulators.chaos.spectrum import power_spectrum

T = TypeVar("T")
UNEVEN = 0.25
"""Of a dimension: how far its slopes half a decade to either side may lie apart where there is a plateau."""
_HALF_DECADE = 3.3


@dataclass(frozen=True, eq=False)
class Measures:
    """Invariants of a series, as far as it allows them.

    Attributes:
        series: that was measured.
        scales: its period and exponent.
        delay: of a delay embedding of the first channel, samples.
        embedding: dimension of that embedding.
        divergence: how neighbours drift apart.
        dimension: correlation dimension.
        frequency: ``(F,)``, 1 / time.
        power: ``(F, D)``, of the standardised channels.
        notes: why something is missing, and what else to know.
    """

    series: Series
    scales: Scales
    delay: int | None
    embedding: int | None
    divergence: Divergence | None
    dimension: CorrelationDimension | None
    frequency: Numbers
    power: Numbers
    notes: tuple[str, ...]

    def table(self) -> list[tuple[str, str, Interval | float]]:
        """Quantity, unit, and value, with its 95 % interval where there is one."""
        unit = self.series.time_unit or "time units"
        rows: list[tuple[str, str, Interval | float]] = []
        if math.isfinite(self.scales.period):
            rows.append(("dominant period", unit, self.scales.period))
        if self.divergence is not None:
            rows.append(("largest Lyapunov exponent", f"1 / {unit}", self.divergence.exponent))
        if self.dimension is not None:
            rows.append(("correlation dimension", "", self.dimension.dimension))
        if self.delay is not None:
            rows.append(("embedding delay", "samples", float(self.delay)))
        if self.embedding is not None:
            rows.append(("embedding dimension", "", float(self.embedding)))
        return rows

    def dataset(self) -> xr.Dataset:
        """Numbers as attributes, curves as variables."""
        data = xr.Dataset(
            {"power": (("frequency", "channel"), self.power)},
            {"frequency": self.frequency, "channel": list(self.series.channels)},
            {"source": self.series.source, "notes": "\n".join(self.notes), **self.scales.attributes()},
        )
        if self.divergence is not None:
            data["divergence"] = ("divergence_time", self.divergence.curve.numpy())
            data = data.assign_coords(divergence_time=self.divergence.times.numpy())
        if self.dimension is not None:
            found = self.dimension.dimension
            data["correlation"] = ("radius", self.dimension.correlation.numpy())
            data = data.assign_coords(radius=self.dimension.radii.numpy())
            data.attrs |= {"dimension": found.mean, "dimension_low": found.low, "dimension_high": found.high}
        for name, value in (("embedding_delay", self.delay), ("embedding_dimension", self.embedding)):
            if value is not None:
                data.attrs[name] = value
        return data


def measures(series: Series) -> Measures:
    """Measure a series; what cannot be measured is left out and named in the notes.

    Exponent, dimension and embedding use the last 5000 samples.

    Args:
        series: to measure.
    """
    notes: list[str] = []
    scales = scales_of(series, None)
    notes += scales.warnings
    if len(series) > LATEST:
        notes.append(f"exponent, dimension and embedding are those of the last {LATEST:,} of {len(series):,} samples")
    first = np.ascontiguousarray(series.values[-LATEST:, 0])
    delay = _tried("embedding delay", lambda: embedding_delay(first), notes)
    embedding, divergence, dimension = None, None, None
    if delay is not None:
        theiler = theiler_window(series, scales.period, len(first))
        embedding = _tried("embedding", lambda: embedding_dimension(first, delay, theiler=theiler), notes)
    points = _tried("state space", lambda: state_points(series), notes)
    if points is not None:
        theiler = theiler_window(series, scales.period, len(points))
        dimension = _tried("dimension", lambda: correlation_dimension(points, theiler=theiler), notes)
        notes += [] if dimension is None else _doubts(dimension, len(points))
        divergence = _tried("exponent", lambda: largest_exponent_of_series(points, series.dt, theiler=theiler), [])
    scaled = (series.values - series.values.mean(0)) / series.values.std(0)
    segments = min(8, max(1, len(series) // 64))
    spectrum = _tried("spectrum", lambda: power_spectrum(torch.from_numpy(scaled), segments).numpy(), notes)
    power = np.empty((0, scaled.shape[1])) if spectrum is None else spectrum
    frequency = np.linspace(0, 0.5 / series.dt, len(power))
    return Measures(series, scales, delay, embedding, divergence, dimension, frequency, power, tuple(notes))


def _doubts(found: CorrelationDimension, samples: int) -> list[str]:
    """Why a slope may be no dimension: more than samples can show (Eckmann and Ruelle 1992), or no plateau."""
    value, most = found.dimension.mean, 2 * math.log10(samples)
    if value > most:
        return [f"the dimension is doubtful: above {most:.1f}, the most that {samples:,} samples can show (noise?)"]
    low = found.windows[:, 0].numpy()
    near = (low > found.window[0] / _HALF_DECADE) & (low < found.window[0] * _HALF_DECADE)
    slopes = found.slopes.numpy()[near]
    if np.isnan(slopes).any() or np.ptp(slopes) > UNEVEN * value:
        shown = f"{np.nanmin(slopes):.2f} to {np.nanmax(slopes):.2f}"
        return [f"the dimension is doubtful: no plateau, slopes of the correlation sum go from {shown}"]
    return []


def _tried(what: str, measure: Callable[[], T], notes: list[str]) -> T | None:
    try:
        return measure()
    except InputError as error:
        notes.append(f"no {what}: {error}")
        return None

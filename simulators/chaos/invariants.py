"""Invariants of series with their intervals, and how much those of a forecast differ from those of the truth."""

from __future__ import annotations

import math

import torch
import xarray as xr
from torch import Tensor

from core.errors import InputError
from core.stats import Interval
from simulators.chaos.dimension import correlation_dimension, correlation_dimensions
from simulators.chaos.embedding import delay_embedding, embedding_delay, embedding_dimension
from simulators.chaos.flow import Flow, jacobian
from simulators.chaos.neighbours import (
    divergence_curves,
    largest_exponent_of_series,
    straightest,
)
from simulators.chaos.series_checks import Series, as_points, check_spacing
from simulators.chaos.spectrum import (
    dominant_period,
    hellinger_distance,
    multiscale_entropy,
    peak_periods,
    spectrum_distance,
)
from simulators.chaos.tangent import orthonormalised

SHORTEST = 500
"""Samples of a series below which its invariants mean nothing."""
REFERENCES = 1500
"""About how many points of an orbit are looked at where two orbits are compared."""


def series_invariants(series: Series, dt: float, period: float | None = None) -> xr.Dataset:
    """Invariants of a series with their intervals, for a scalar series from its delay embedding.

    Every channel is scaled to mean 0 and standard deviation 1 first.

    Args:
        series: ``(T,)`` or ``(T, D)``, evenly sampled.
        dt: time between two samples.
        period: dominant period in time units; None takes that of the spectrum. It is the Theiler window.

    Returns:
        Variables with units and long names: ``period``; ``largest_exponent`` with ``largest_exponent_interval`` (bound)
        and the curve ``log_distance`` (lag) it comes from; ``correlation_dimension`` with its interval and
        ``correlation_slope`` (correlation), the slopes of other decades of the correlation sum; ``sample_entropy``
        (channel, scale); for a scalar series ``embedding_delay`` and ``embedding_dimension``.

    Raises:
        InputError: fewer than 500 samples, not finite or constant ones, an impossible spacing or period, no significant
            period where none is given, or fewer than five periods.
    """
    points = as_points(series, SHORTEST)
    check_spacing(dt)
    if period is None:
        period = dominant_period(points, dt)
    theiler = math.ceil(period / dt) if 0 < period < math.inf else 0
    if not 1 <= theiler <= len(points) // 5:
        raise InputError(
            f"period: {period} time units is outside (0, {len(points) // 5 * dt:g}], a fifth of the series"
        )
    samples = len(points)
    points = (points - points.mean(0)) / points.std(0)
    entropies = torch.stack([multiscale_entropy(channel) for channel in points.T])
    found: dict[str, tuple[object, ...]] = {
        "period": ((), period, {"units": "time units", "long_name": "dominant period"}),
        "sample_entropy": (
            ("channel", "scale"),
            entropies.cpu().numpy(),
            {"units": "nat", "long_name": "sample entropy of averages over `scale` samples"},
        ),
    }
    if points.shape[1] == 1:
        delay = embedding_delay(points, longest=max(1, min(theiler, len(points) // 30)))
        dimension = embedding_dimension(points, delay, theiler=theiler)
        points = delay_embedding(points, delay, dimension)
        found["embedding_delay"] = (
            (),
            delay * dt,
            {"units": "time units", "long_name": "first minimum of the average mutual information"},
        )
        found["embedding_dimension"] = (
            (),
            dimension,
            {"units": "1", "long_name": "least dimension with at most 1 % false nearest neighbours"},
        )
    divergence = largest_exponent_of_series(points, dt, theiler=theiler)
    correlation = correlation_dimension(points, theiler=theiler)
    found |= _with_interval(
        "largest_exponent",
        divergence.exponent,
        {"units": "1 / time units", "long_name": "largest Lyapunov exponent (Rosenstein)"},
    )
    found |= _with_interval(
        "correlation_dimension",
        correlation.dimension,
        {"units": "1", "long_name": "correlation dimension (Grassberger and Procaccia)"},
    )
    found["log_distance"] = (
        "lag",
        divergence.curve.cpu().numpy(),
        {"units": "1", "long_name": "mean log distance of neighbours, in standard deviations"},
    )
    found["correlation_slope"] = (
        "correlation",
        correlation.slopes.numpy(),
        {"units": "1", "long_name": "slope of log C against log r over a decade of C"},
    )
    return xr.Dataset(
        found,
        coords={
            "bound": ["low", "high"],
            "scale": ("scale", range(1, entropies.shape[1] + 1), {"units": "samples"}),
            "channel": range(len(entropies)),
            "lag": ("lag", divergence.times.numpy(), {"units": "time units", "long_name": "time since neighbours"}),
            "correlation": (
                "correlation",
                correlation.windows[:, 0].numpy(),
                {"units": "1", "long_name": "lower end of the decade of the correlation sum C"},
            ),
        },
        attrs={
            "dt": dt,
            "samples": samples,
            "theiler_window": theiler * dt,
            "linear_part": list(divergence.window),
            "linear_part_r_squared": divergence.r_squared,
            "correlation_window": list(correlation.window),
            "level": divergence.exponent.level,
        },
    )


def _with_interval(name: str, interval: Interval, attributes: dict[str, str]) -> dict[str, tuple[object, ...]]:
    bounds = {**attributes, "long_name": f"{interval.level:.0%} bootstrap interval of {attributes['long_name']}"}
    return {
        name: ((), interval.mean, attributes),
        f"{name}_interval": ("bound", [interval.low, interval.high], bounds),
    }


def invariant_differences(
    truth: Tensor, forecast: Tensor, dt: float, *, theiler: int | None = None, flow: Flow | None = None
) -> dict[str, Tensor]:
    """How much the invariants of forecasts differ from the truth's; a perfect climate is 0 in all of them.

    Both are scaled by the truth's means and standard deviations first. About 1500 points of each orbit are looked at.

    Args:
        truth: ``(S, T, D)``, or ``(T, D)`` for one truth of all forecasts.
        forecast: ``(S, T, D)``, or ``(T, D)``; the same times.
        dt: time between two samples.
        theiler: samples; None takes the truth's dominant period, at most a tenth of the series.
        flow: the equations, in the units of the series and of its states; adds ``lyapunov_spectrum``.

    Returns:
        ``(S,)`` each: ``correlation_dimension`` and ``largest_exponent`` (1 / time units), absolute differences;
        ``power_spectrum``, root mean square difference of spectra scaled to a maximum of 1; ``hellinger``, distance of
        the spectra as distributions; with a flow ``lyapunov_spectrum``, root mean square difference of the exponents of
        the tangent flow along both. NaN for a forecast that is not finite or that does not move.

    Raises:
        InputError: different shapes, fewer than 200 samples, a truth that is not finite or has a constant channel, or
            an impossible spacing or Theiler window.
    """
    check_spacing(dt)
    one, many = (x.double() if x.ndim == 3 else x.double()[None] for x in (truth, forecast))
    if one.shape[1:] != many.shape[1:] or one.shape[0] not in (1, many.shape[0]) or one.shape[1] < 200:
        shapes = f"{tuple(truth.shape)} and {tuple(forecast.shape)}"
        raise InputError(f"truth, forecast: have shapes {shapes}, expected the same samples, 200 or more, and channels")
    spread = one.std(1, keepdim=True)
    if not bool(one.isfinite().all()) or not bool((spread > 0).all()):
        raise InputError("truth: has a value that is not finite, or a constant channel")
    length = one.shape[1]
    if theiler is None:
        periods, _ = peak_periods(one, dt)
        window = (periods.quantile(0.5, dim=1) / dt).ceil().long().clamp(1, length // 10)
    elif 0 <= theiler <= length // 4:
        window = torch.full((len(one),), theiler, device=one.device)
    else:
        raise InputError(f"theiler: {theiler} samples is outside [0, {length // 4}], a quarter of the series")
    scaled = [(x - one.mean(1, keepdim=True)) / spread for x in (one, many)]
    usable = many.isfinite().all(-1).all(-1) & (many.std(1) > 0).any(-1)
    scaled[1] = scaled[1].where(usable[:, None, None], 0.0)
    windows = (window, window.expand(len(many)))
    stride = max(1, length // REFERENCES)
    pairs = list(zip(scaled, windows, strict=True))
    dimension = [correlation_dimensions(x[:, ::stride], w // stride) for x, w in pairs]
    exponent = [_largest_exponents(x, dt, w) for x, w in pairs]
    differences = {
        "correlation_dimension": (dimension[0] - dimension[1]).abs(),
        "largest_exponent": (exponent[0] - exponent[1]).abs(),
        "power_spectrum": spectrum_distance(scaled[0], scaled[1]),
        "hellinger": hellinger_distance(scaled[0], scaled[1]),
    }
    if flow is not None:
        along = [exponents_along(flow, x, dt) for x in (one, many)]
        differences["lyapunov_spectrum"] = (along[0] - along[1]).square().mean(1).sqrt()
    return {name: value.where(usable, torch.nan) for name, value in differences.items()}


def _largest_exponents(points: Tensor, dt: float, theiler: Tensor) -> Tensor:
    means, _ = divergence_curves(points, theiler, points.shape[1] // 4, references=REFERENCES)
    return straightest(means[:, 0])[2] / dt


def exponents_along(flow: Flow, states: Tensor, dt: float) -> Tensor:
    """Lyapunov exponents ``(S, D)`` of the tangent flow along given states ``(S, T, D)``, solutions or not.

    Between two samples the tangents move by the exponential of the Jacobian at their middle; the first fifth only
    aligns them. NaN along states that are not finite.

    Raises:
        InputError: states of another dimension than the flow's, or a flow observed by other coordinates.
    """
    if states.shape[-1] != flow.dimension or flow.coordinates is not None:
        raise InputError(
            f"flow: {flow.name} has {flow.dimension} states, which the {states.shape[-1]} channels are not"
        )
    finite = states.isfinite().all(-1).all(-1)
    states = states.where(finite[:, None, None], flow.initial.to(states))
    middle = (states[:, 1:] + states[:, :-1]) / 2
    steps, rows = middle.shape[1], middle.flatten(0, 1)
    times = (dt * (torch.arange(steps, device=states.device) + 0.5)).to(states).repeat(len(states))
    moved = torch.linalg.matrix_exp(dt * jacobian(flow, times, rows)).unflatten(0, (-1, steps))
    tangents = torch.eye(flow.dimension, dtype=states.dtype, device=states.device).expand(len(states), -1, -1)
    growth = torch.zeros_like(states[:, 0])
    for i in range(steps):
        # Rows are tangent vectors.
        tangents, logarithms = orthonormalised(tangents @ moved[:, i].mT)
        if i >= steps // 5:
            growth += logarithms
    exponents = growth / (dt * (steps - steps // 5))
    return exponents.sort(1, descending=True).values.where(finite[:, None], torch.nan)

"""Delay embedding of a scalar series: the delay from mutual information, the dimension from false neighbours.

Fraser and Swinney (1986), Physical Review A 33, 1134; Kennel, Brown and Abarbanel (1992), Physical Review A 45, 3403.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from core.errors import InputError
from simulators.chaos.neighbours import nearest
from simulators.chaos.series_checks import Series, as_points, check_theiler

STRETCHED = 15.0
"""Growth of a distance by one more coordinate above which two neighbours were false."""
APART = 2.0
"""Distance in standard deviations of the series above which two nearest neighbours are false."""
FALSE = 0.01
"""Share of false neighbours at which a dimension is enough."""


def delay_embedding(series: Tensor, delay: int, dimension: int) -> Tensor:
    """Points (x(t), x(t + delay), ..., x(t + (dimension - 1) delay)) of series.

    Args:
        series: ``(T,)``, or ``(..., T, D)`` with all channels delayed alike.
        delay: samples.
        dimension: copies of each channel.

    Returns:
        ``(T - (dimension - 1) delay, dimension)``, or ``(..., the same, dimension * D)`` with the oldest copies first.

    Raises:
        InputError: a delay or dimension below 1, or a series that is too short for them.
    """
    if delay < 1 or dimension < 1:
        raise InputError(f"delay, dimension: {delay} and {dimension}, both must be at least 1")
    channels = series[:, None] if series.ndim == 1 else series
    length = channels.shape[-2] - (dimension - 1) * delay
    if length < 1:
        raise InputError(
            f"series: {channels.shape[-2]} samples are too few for dimension {dimension} at delay {delay},"
            f" at least {(dimension - 1) * delay + 1} are needed"
        )
    return torch.cat([channels[..., k * delay : k * delay + length, :] for k in range(dimension)], -1)


def mutual_information(series: Series, longest: int) -> Tensor:
    """Average mutual information in nats of x(t) and x(t + k), ``(longest + 1,)`` for k = 0 ... longest.

    From the ranks of the series in (T / 5)^(1/2), at most 32, equally filled bins.

    Raises:
        InputError: fewer than 50 samples, not finite or constant ones, or a lag above half of the series.
    """
    values = as_points(series, 50)[:, 0].contiguous()
    length = len(values)
    if not 1 <= longest <= length // 2:
        raise InputError(f"longest: {longest} samples is outside [1, {length // 2}]")
    bins = min(32, max(4, math.isqrt(length // 5)))
    rank = torch.searchsorted(values.sort().values, values)
    letter = rank * bins // length
    found = []
    for lag in range(longest + 1):
        pair = letter[: length - lag] * bins + letter[lag:]
        joint = torch.bincount(pair, minlength=bins * bins).double().view(bins, bins) / (length - lag)
        alone = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
        found.append(torch.where(joint > 0, joint * (joint / alone).log(), 0.0).nansum())
    return torch.stack(found)


def embedding_delay(series: Series, *, longest: int | None = None) -> int:
    """Delay in samples: the first minimum of the mutual information, or where the autocorrelation ends if sooner.

    Where there is neither, the first lag at which the information has fallen to 1/e of the entropy, else ``longest``.
    The information is averaged over three lags, so that its noise makes no minima; the autocorrelation ends the search
    for maps, whose information only falls.

    Args:
        series: ``(T,)``.
        longest: lag looked at; None takes a tenth of the series.

    Raises:
        InputError: as ``mutual_information``.
    """
    values = as_points(series, 50)
    longest = len(values) // 10 if longest is None else longest
    information = mutual_information(values, longest)
    smooth = information.unfold(0, 3, 1).mean(-1) if len(information) > 4 else information[1:]
    # Entry i of the smoothed curve belongs to lag i + 1.
    minima = ((smooth[1:-1] < smooth[:-2]) & (smooth[1:-1] <= smooth[2:])).nonzero()
    candidates = [int(minima[0]) + 2] if len(minima) else []
    if len(forgotten := (_autocorrelation(values[:, 0], longest) <= 0).nonzero()):
        candidates.append(int(forgotten[0]))
    if candidates:
        return min(candidates)
    fallen = (information <= information[0] / math.e).nonzero()
    return int(fallen[0]) if len(fallen) else longest


def _autocorrelation(values: Tensor, longest: int) -> Tensor:
    """Correlation of a series ``(T,)`` with itself ``k`` samples later, ``(longest + 1,)`` for k = 0 ... longest."""
    deviations = values - values.mean()
    power = torch.fft.rfft(deviations, 2 * len(values)).abs().square()
    return torch.fft.irfft(power)[: longest + 1] / deviations.square().sum()


def false_neighbours(series: Series, delay: int, dimension: int, *, theiler: int = 0, largest: int = 10) -> float:
    """Share of nearest neighbours in ``dimension`` dimensions that one more dimension separates.

    A neighbour is false where the new coordinate stretches the distance more than 15 times, or where the distance in
    the higher dimension is above two standard deviations (noise has no near neighbours in many dimensions).

    Args:
        series: ``(T,)``.
        delay: samples.
        dimension: that is judged.
        theiler: neighbours closer in time than so many samples do not count.
        largest: dimension for which there have to be points, so that every one is judged by the same number of them.

    Raises:
        InputError: fewer than 100 points in the largest dimension, not finite or constant ones, or an impossible delay,
            dimension or Theiler window.
    """
    if delay < 1 or not 1 <= dimension <= largest:
        raise InputError(f"delay, dimension: {delay} and {dimension}, allowed are at least 1 and 1 to {largest}")
    values = as_points(series, largest * delay + 100)[:, 0]
    length = len(values) - largest * delay
    check_theiler(theiler, length)
    points = delay_embedding(values, delay, dimension)[:length]
    partner = nearest(points[None], torch.tensor([theiler], device=values.device))[0]
    distance = (points - points[partner]).norm(dim=1)
    added = (values[dimension * delay :][:length] - values[dimension * delay + partner]).abs()
    apart = (distance.square() + added.square()).sqrt() > APART * values.std()
    return float(((added > STRETCHED * distance) | apart).double().mean())


def embedding_dimension(series: Series, delay: int, *, theiler: int = 0, largest: int = 10) -> int:
    """Least dimension in which at most 1 % of nearest neighbours are false; ``largest`` where there is none.

    Args:
        series: ``(T,)``.
        delay: samples.
        theiler: neighbours closer in time than so many samples do not count.
        largest: dimension looked at.

    Raises:
        InputError: as ``false_neighbours``.
    """
    for dimension in range(1, largest):
        if false_neighbours(series, delay, dimension, theiler=theiler, largest=largest) <= FALSE:
            return dimension
    return largest

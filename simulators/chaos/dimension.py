"""Correlation dimension of points: the slope of the correlation sum.

Grassberger and Procaccia (1983), Physica D 9, 189-208, with the window of Theiler (1986), Physical Review A 34, 2427.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from core.errors import InputError
from core.stats import Interval
from simulators.chaos.series_checks import Series, as_points, check_theiler

WINDOW = (1e-3, 1e-2)
"""Correlation sums between which the slope is taken by default."""
BLOCKS = 30
"""Most blocks of points that are resampled."""
_BINS, _STEP, _DEEPEST = 640, 0.03125, -16.0
"""Bins of the logarithm of a distance over the spread of the points, from exp(-16) to exp(4)."""
_AT_ONCE = 1 << 21


@dataclass(frozen=True)
class CorrelationDimension:
    """The dimension, and what a reader needs to see the plateau.

    Attributes:
        dimension: slope of log C against log r in the window, with the block-bootstrap interval of C.
        window: correlation sums between which it was taken.
        radii: ``(R,)``, in the unit of the points.
        correlation: ``(R,)``, share C(r) of pairs closer than r.
        windows: ``(W, 2)``, other windows of one decade in C.
        slopes: ``(W,)``, slopes in them; NaN where too few pairs are so close. A dimension is where they agree.
        theiler: samples.
    """

    dimension: Interval
    window: tuple[float, float]
    radii: Tensor
    correlation: Tensor
    windows: Tensor
    slopes: Tensor
    theiler: int


def correlation_dimension(
    points: Series,
    *,
    theiler: int,
    window: tuple[float, float] = WINDOW,
    level: float = 0.95,
    resamples: int = 500,
    seed: int = 0,
) -> CorrelationDimension:
    """Correlation dimension of points ``(T, D)`` of a state space, such as a delay embedding.

    Args:
        points: in time order; ``(T,)`` stands for one coordinate. The coordinates should have comparable spreads.
        theiler: pairs closer in time than so many samples do not count; about a period.
        window: correlation sums between which the slope is taken.
        level: of the interval.
        resamples: of the bootstrap, in blocks at least as long as the Theiler window where the series allows ten.
        seed: of the bootstrap.

    Raises:
        InputError: fewer than 200 points, points that are not finite, a constant coordinate, an impossible Theiler
            window or window of C, or too few distances in the window (rounded or repeating points).
    """
    orbit = as_points(points, 200)
    check_theiler(theiler, len(orbit))
    if not 0 < window[0] < window[1] <= 1:
        raise InputError(f"window: {window} is not two growing correlation sums in (0, 1]")
    blocks = max(10, min(BLOCKS, len(orbit) // max(1, theiler)))
    spread = spreads(orbit[None])
    pairs = pair_counts(orbit[None] / spread[:, None, None], torch.tensor([theiler]), blocks)[0]
    correlation = _correlation(pairs.sum((0, 1))[None])
    dimension = slopes(correlation, window)
    if not bool(dimension.isfinite()):
        raise InputError(f"points: too few different distances have a correlation sum in {window}")
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(blocks, (resamples, blocks), generator=generator)
    times = torch.nn.functional.one_hot(drawn, blocks).sum(1).to(pairs)
    # A pair is there as often as the blocks of its two points were drawn: the bootstrap of a statistic of pairs.
    again = torch.einsum("ra,rb,abk->rk", times, times, pairs)
    tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=again.dtype, device=again.device)
    low, high = slopes(_correlation(again), window).nanquantile(tails).tolist()
    lower = torch.logspace(-4, -1, 13, dtype=torch.float64)
    windows = torch.stack([lower, 10 * lower], 1)
    return CorrelationDimension(
        Interval(float(dimension), low, high, blocks, level),
        window,
        float(spread) * log_radii(orbit).exp(),
        correlation[0],
        windows,
        torch.stack([slopes(correlation, (a, b))[0] for a, b in windows.tolist()]).cpu(),
        theiler,
    )


def spreads(points: Tensor) -> Tensor:
    """Root mean square distance ``(S,)`` of the points ``(S, T, D)`` of a series from their mean."""
    return (points - points.mean(1, keepdim=True)).square().sum(-1).mean(-1).sqrt()


def log_radii(like: Tensor) -> Tensor:
    """Logarithms ``(R,)`` of the radii at which correlation sums are taken, in spreads of the points."""
    return _DEEPEST + _STEP * torch.arange(1, _BINS + 1, dtype=torch.float64, device=like.device)


def pair_counts(points: Tensor, theiler: Tensor, blocks: int) -> Tensor:
    """Pairs ``(S, blocks, blocks, R)`` of points of two blocks with a distance in each bin below ``log_radii``.

    Args:
        points: ``(S, T, D)``, divided by their spread; not finite points fall into no bin.
        theiler: ``(S,)``, pairs with ``|i - j| <= theiler`` do not count.
        blocks: consecutive and equally long up to one point.
    """
    series, length, _ = points.shape
    index = torch.arange(length, device=points.device)
    block_of = index * blocks // length
    theiler = theiler.to(points.device)[:, None, None]
    counts = torch.zeros(series, blocks * blocks, _BINS + 1, dtype=torch.float64, device=points.device)
    offset = (_BINS + 1) * torch.arange(series * blocks * blocks, device=points.device).view(series, blocks * blocks)
    rows = max(1, _AT_ONCE // (series * length))
    for begin in range(0, length, rows):
        near, far = index[begin : begin + rows], index[begin:]
        distance = torch.cdist(points[:, near], points[:, begin:], compute_mode="donot_use_mm_for_euclid_dist")
        level = ((distance.log_() - _DEEPEST) / _STEP).clamp_(0, _BINS).nan_to_num_(_BINS)
        level.masked_fill_(far - near[:, None] <= theiler, _BINS)
        pair = block_of[near][:, None] * blocks + block_of[far]
        slot = level.long() + offset[:, pair]
        counts.view(-1).index_add_(0, slot.flatten(), counts.new_ones(()).expand(slot.numel()))
    return counts[..., :_BINS].view(series, blocks, blocks, _BINS)


def _correlation(counts: Tensor) -> Tensor:
    """Correlation sums ``(S, R)``, of pairs whose distance fell into any bin."""
    sums = counts.cumsum(-1)
    return sums / sums[:, -1:]


def slopes(correlation: Tensor, window: tuple[float, float]) -> Tensor:
    """Least-squares slopes ``(S,)`` of log C against log r where C ``(S, R)`` is in the window; NaN under 3 radii."""
    inside = ((correlation >= window[0]) & (correlation <= window[1])).to(correlation)
    x, y = log_radii(correlation), torch.where(inside > 0, correlation, 1.0).log()
    n = inside.sum(-1, keepdim=True)
    x_off = inside * (x - (inside * x).sum(-1, keepdim=True) / n)
    y_off = inside * (y - (inside * y).sum(-1, keepdim=True) / n)
    slope = (x_off * y_off).sum(-1) / x_off.square().sum(-1)
    return torch.where(n[:, 0] >= 3, slope, torch.nan)


def correlation_dimensions(points: Tensor, theiler: Tensor, window: tuple[float, float] = WINDOW) -> Tensor:
    """Dimensions ``(S,)`` of many series ``(S, T, D)`` at once, without intervals; NaN where there is none.

    Args:
        points: of S series.
        theiler: ``(S,)`` samples.
        window: correlation sums between which the slope is taken.
    """
    scaled = points / spreads(points)[:, None, None]
    return slopes(_correlation(pair_counts(scaled, theiler, 1)[:, 0, 0]), window)

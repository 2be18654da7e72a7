"""The largest Lyapunov exponent of a series, from how neighbouring stretches of it drift apart.

Rosenstein, Collins and De Luca (1993), Physica D 65, 117-134.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from core.errors import InputError
from core.stats import Interval
from simulators.chaos.series_checks import Series, as_points, check_spacing, check_theiler

LINEAR = 0.99
"""R^2 above which a stretch of the curve counts as straight."""
SATURATED = 0.6
"""Share of the way to its plateau up to which the curve is used; beyond it bends, which makes exponents too small."""
BLOCKS = 40
"""Most blocks of reference points that are resampled."""
_AT_ONCE = 1 << 22
_CANDIDATES = 25


@dataclass(frozen=True)
class Divergence:
    """How neighbours drift apart.

    Attributes:
        exponent: largest Lyapunov exponent, 1 / time units, with the bootstrap interval over blocks of reference
            points, in each of which the window is selected anew. It covers what another stretch of the orbit would
            give, not the bias of the method.
        times: ``(K + 1,)``, time since the two points were neighbours.
        curve: ``(K + 1,)``, mean logarithm of their distance.
        window: times between which the curve is straight.
        r_squared: of the line.
    """

    exponent: Interval
    times: Tensor
    curve: Tensor
    window: tuple[float, float]
    r_squared: float


def largest_exponent_of_series(
    points: Series,
    dt: float,
    *,
    theiler: int,
    horizon: int | None = None,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Divergence:
    """Largest Lyapunov exponent from points ``(T, D)`` of a state space, such as a delay embedding.

    The slope of the longest stretch of the curve with R^2 of at least 0.99, between the start and 60 % of the way to
    the plateau; the straightest stretch where none is so straight. Exponents of flows come out too small in the mean:
    by 5 to 17 % in 50 periods of the systems Lorenz, Chen, SprottB and 80 of Rossler.

    Args:
        points: in time order; ``(T,)`` stands for one coordinate.
        dt: time between two of them.
        theiler: neighbours closer in time than so many samples do not count; about a period.
        horizon: samples over which pairs are followed; None takes ten Theiler windows, at least 20 samples and at most
            a quarter of the series.
        level: of the interval.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        InputError: fewer than 50 points, points that are not finite, a constant coordinate, an impossible spacing,
            Theiler window or horizon, or no two points that are neighbours.
    """
    orbit = as_points(points, 50)
    check_spacing(dt)
    check_theiler(theiler, len(orbit))
    reach = default_horizon(theiler, len(orbit)) if horizon is None else horizon
    if not 4 <= reach <= len(orbit) // 2:
        raise InputError(f"horizon: {reach} samples is outside [4, {len(orbit) // 2}], half of the series")
    windows = torch.tensor([theiler], device=orbit.device)
    means, weights = divergence_curves(orbit[None], windows, reach, BLOCKS)
    curve = _weighted(means, weights)
    begin, end, slope, r_squared = straightest(curve)
    if not bool(slope.isfinite()):
        raise InputError("series: no two of its points are neighbours at a distance above zero")
    generator = torch.Generator().manual_seed(seed)
    blocks = means.shape[1]
    drawn = torch.randint(blocks, (resamples, blocks), generator=generator).to(orbit.device)
    times = torch.nn.functional.one_hot(drawn, blocks).sum(1).to(means)
    again = (times @ (means * weights)[0]) / (times @ weights[0])
    slopes = straightest(again)[2] / dt
    tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=slopes.dtype, device=slopes.device)
    low, high = slopes.quantile(tails).tolist()
    return Divergence(
        Interval(float(slope) / dt, low, high, blocks, level),
        dt * torch.arange(reach + 1, dtype=torch.float64),
        curve[0],
        (dt * int(begin), dt * int(end)),
        float(r_squared),
    )


def default_horizon(theiler: int, samples: int) -> int:
    """Samples over which pairs are followed."""
    return max(4, min(samples // 4, max(20, 10 * theiler)))


def nearest(points: Tensor, theiler: Tensor, references: Tensor | None = None) -> Tensor:
    """Index ``(S, R)`` of the nearest other point in its series of each reference point, of points ``(S, T, D)``.

    Pairs at distance zero are left out, because rounded data repeat without being neighbours on an orbit.

    Args:
        points: of S series.
        theiler: ``(S,)``, pairs with ``|i - j| <= theiler`` are left out.
        references: indices ``(R,)`` of points; None takes all of them.
    """
    series, length, _ = points.shape
    index = torch.arange(length, device=points.device)
    references = index if references is None else references
    found = []
    block = max(1, _AT_ONCE // (series * length))
    for begin in range(0, len(references), block):
        rows = references[begin : begin + block]
        distance = torch.cdist(points[:, rows], points, compute_mode="donot_use_mm_for_euclid_dist")
        close = (rows[:, None] - index).abs() <= theiler[:, None, None]
        found.append(distance.masked_fill_(close | (distance == 0), torch.inf).argmin(-1))
    return torch.cat(found, -1)


def divergence_curves(
    points: Tensor, theiler: Tensor, horizon: int, blocks: int = 1, references: int | None = None
) -> tuple[Tensor, Tensor]:
    """Mean log distances ``(S, blocks, horizon + 1)`` of neighbours in consecutive blocks, and the pairs behind them.

    Args:
        points: ``(S, T, D)``.
        theiler: ``(S,)``.
        horizon: samples over which pairs are followed.
        blocks: of reference points, equally long, a few last points left over.
        references: about how many reference points, evenly spread; None takes every point.
    """
    count = points.shape[1] - horizon
    index = torch.arange(0, count, max(1, count // (references or count)), device=points.device)
    each = len(index) // blocks
    index = index[: each * blocks]
    partner = nearest(points[:, :count], theiler, index)
    rows = torch.arange(len(points), device=points.device)[:, None]
    means, weights = [], []
    for k in range(horizon + 1):
        distance = (points[:, index + k] - points[rows, partner + k]).norm(dim=-1).unflatten(1, (blocks, each))
        apart = distance > 0
        pairs = apart.sum(-1)
        logarithm = torch.where(apart, distance, 1.0).log()
        means.append(logarithm.sum(-1) / pairs.clamp(min=1))
        weights.append(pairs.double())
    return torch.stack(means, -1), torch.stack(weights, -1)


def _weighted(means: Tensor, weights: Tensor) -> Tensor:
    """Curves ``(S, K + 1)`` of blocks ``(S, blocks, K + 1)``."""
    return (means * weights).sum(1) / weights.sum(1)


def straightest(curves: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """First and last sample of the straight stretch of every curve ``(S, K + 1)``, its slope a sample, and R^2."""
    last = curves.shape[1] - 1
    plateau = curves[:, -max(1, last // 4) :].median(1).values
    top = curves[:, 0] + SATURATED * (plateau - curves[:, 0])
    reached = curves >= top[:, None]
    saturation = torch.where(reached.any(1), reached.int().argmax(1), last).clamp(min=4)
    share = torch.linspace(0, 1, _CANDIDATES, dtype=curves.dtype, device=curves.device)
    # A stretch has at least a third of the samples up to saturation, and at least five.
    begin, length = torch.cartesian_prod(share, share).unbind(1)
    shortest = (saturation / 3).ceil().clamp(min=4)[:, None]
    begins = (begin * (saturation[:, None] - shortest)).long()
    ends = begins + (shortest + length * (saturation[:, None] - shortest - begins)).long()
    slopes, r_squared = _line(curves, begins, ends)
    best = r_squared.max(1, keepdim=True).values
    straight = r_squared >= best.clamp(max=LINEAR)
    # The longest, and of equally long ones the straightest.
    chosen = torch.where(straight, (ends - begins) + r_squared, -1.0).argmax(1, keepdim=True)
    return tuple(x.gather(1, chosen)[:, 0] for x in (begins, ends, slopes, r_squared))  # type: ignore[return-value]


def _line(curves: Tensor, begins: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
    """Slope a sample and R^2 of least-squares lines: stretches ``(S, W)`` of curves ``(S, K + 1)``."""
    origin = curves[:, :1]
    y = curves - origin
    x = torch.arange(curves.shape[1], dtype=curves.dtype, device=curves.device).expand_as(y)
    sums = torch.nn.functional.pad(torch.stack([y, y * y, x * y]).cumsum(-1), (1, 0))
    of_y, of_yy, of_xy = (s.gather(-1, ends + 1) - s.gather(-1, begins) for s in sums)
    n = (ends - begins + 1).to(curves.dtype)
    middle = (begins + ends) / 2
    xx = n * (n * n - 1) / 12
    xy = of_xy - middle * of_y
    yy = (of_yy - of_y.square() / n).clamp(min=0)
    return xy / xx, torch.where(yy > 0, xy.square() / (xx * yy), 0.0)

"""95 % intervals of r, K and MSY of a surplus-production fit: profile likelihood, or residual bootstrap."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from apps.fishery.production_likelihood import LOWER, UPPER, Array, ProductionLikelihood, at_bound
from apps.fishery.simplex_search import simplex_search

# Half the 95 % quantile of chi-squared with one degree of freedom.
LIKELIHOOD_DROP = 1.92
_GRID = np.geomspace(1e-3, 1.0, 32)
_REFINEMENTS = 3
_PIECES = 8
_TRADES = 60
_DEPLETIONS = 20
# log r, log K and log MSY are linear in theta: the coordinates of which each is the sum.
_COORDINATES = {"r": [1.0, 0.0, 0.0], "K": [0.0, 1.0, 0.0], "msy": [1.0, 1.0, 0.0]}
# The step that moves each by one, and the one that leaves it and trades r against K.
_ALONG = {"r": [1.0, 0.0, 0.0], "K": [0.0, 1.0, 0.0], "msy": [1.0, 0.0, 0.0]}
_TRADE = {"r": [0.0, -1.0, 0.0], "K": [-1.0, 0.0, 0.0], "msy": [-1.0, 1.0, 0.0]}


class ParameterInterval(NamedTuple):
    """An interval whose end is open where it rests on a bound of the parameters instead of on the data."""

    low: float
    high: float
    low_open: bool
    high_open: bool


@dataclass(frozen=True)
class _Sides:
    """The s sides of profiles that are followed together.

    Attributes:
        likelihood: the model and its data.
        best: its objective at the maximum.
        along: (s, 3) step of theta that moves the profiled logarithm by one.
        nuisance: (s, k, 3) steps that leave it; the first trades r against K.
    """

    likelihood: ProductionLikelihood
    best: float
    along: Array
    nuisance: Array

    def of(self, rows: NDArray[np.intp]) -> _Sides:
        return replace(self, along=self.along[rows], nuisance=self.nuisance[rows])

    def profile(self, moved: Array, others: Array | None = None) -> tuple[Array, Array]:
        """The maximum over the nuisance steps from points ``moved`` (s, g, 3): theta (s, g, 3), drop (s, g).

        A coarse grid of the nuisance steps finds where to start, as the likelihood has several valleys where the
        catch nearly exhausts the stock; ``others`` (s, g, a, 3) are further starts.
        """
        starts = np.stack([self._scanned(i, row) for i, row in enumerate(moved)])[:, :, None]
        if others is not None:
            starts = np.concatenate([starts, others], axis=2)
        shape, steps = starts.shape[:-1], self.nuisance.shape[1:]
        points, values = simplex_search(
            lambda theta, _: self.likelihood.objective(theta),
            starts.reshape(-1, 3),
            np.broadcast_to(self.nuisance[:, None, None], (*shape, *steps)).reshape(-1, *steps),
            steps=(0.1, 0.01),
            tolerance=1e-6,
            iterations=150,
        )
        points, values = points.reshape(starts.shape), values.reshape(shape)
        least = values.argmin(axis=2)[..., None]
        return (
            np.take_along_axis(points, least[..., None], axis=2)[:, :, 0],
            np.take_along_axis(values, least, axis=2)[:, :, 0] - self.best,
        )

    def _scanned(self, side: int, moved: Array) -> Array:
        """The best point (g, 3) of a grid of the nuisance steps of one side around each of the points (g, 3)."""
        trade, *further = self.nuisance[side]
        used = trade != 0
        ends = (np.stack([LOWER, UPPER]) - moved[:, None])[..., used] / trade[used]
        low, high = ends.min(axis=1).max(axis=1), ends.max(axis=1).min(axis=1)
        share = np.linspace(0.0, 1.0, _TRADES)
        grid = moved[:, None] + (low[:, None] + (high - low)[:, None] * share)[..., None] * trade
        for step in further:
            depletion = np.linspace(LOWER[2], UPPER[2], _DEPLETIONS)[:, None] * step
            grid = (np.where(step == 0, grid, 0.0)[:, :, None] + depletion).reshape(len(moved), -1, 3)
        values = self.likelihood.objective(grid.reshape(-1, 3)).reshape(grid.shape[:2])
        return np.take_along_axis(grid, values.argmin(axis=1)[:, None, None], axis=1)[:, 0]


def profile_intervals(likelihood: ProductionLikelihood, theta: Array, free: int) -> dict[str, ParameterInterval]:
    """Where the profile log-likelihood of log r, log K and log MSY has first fallen by 1.92, on both sides of theta.

    Args:
        likelihood: the model and its data.
        theta: (3,) the maximum.
        free: how many of its leading entries were fitted.

    Returns:
        For each of r, K, msy the two ends as factors of the estimate.
    """
    names = [name for name in _COORDINATES for _ in ("low", "high")]
    further = np.eye(3)[2:free]
    sides = _Sides(
        likelihood,
        float(likelihood.objective(theta[None])[0]),
        along=np.array([_ALONG[name] for name in names]),
        nuisance=np.array([np.vstack([_TRADE[name], further]) for name in names]),
    )
    # The way from the estimate to the bound of each side, in logarithms.
    limits = np.array([np.dot(_COORDINATES[name], bound - theta) for name in _COORDINATES for bound in (LOWER, UPPER)])
    shifts, points = _crossings(sides, theta, limits)
    open_ended = np.isnan(shifts) | at_bound(points)[:, :free].any(axis=1)
    ends = np.exp(np.where(np.isnan(shifts), limits, shifts))
    return {
        name: ParameterInterval(float(low), float(high), bool(low_open), bool(high_open))
        for name, (low, high), (low_open, high_open) in zip(
            _COORDINATES, ends.reshape(-1, 2), open_ended.reshape(-1, 2), strict=True
        )
    }


def _crossings(sides: _Sides, theta: Array, limits: Array) -> tuple[Array, Array]:
    """Shift (s,) at which each side first falls by 1.92, NaN if it never does, and theta (s, 3) there."""
    grid = limits[:, None] * _GRID
    points, drop = sides.profile(theta + grid[..., None] * sides.along[:, None])
    shifts, ends = np.full(len(grid), np.nan), points[:, -1].copy()
    rows = np.flatnonzero((drop > LIKELIHOOD_DROP).any(axis=1))
    if rows.size == 0:
        return shifts, ends
    sides, zero = sides.of(rows), np.zeros((len(rows), 1))
    maximum = np.broadcast_to(theta, (len(rows), 1, 3))
    grid, drop = np.hstack([zero, grid[rows]]), np.hstack([zero, drop[rows]])
    points = np.concatenate([maximum, points[rows]], axis=1)
    for _ in range(_REFINEMENTS):
        grid, drop, points = _refined(sides, *_bracket(grid, drop, points))
    grid, drop, points = _bracket(grid, drop, points)
    # The drop is close to quadratic in the shift, so its root is close to linear.
    root = np.sqrt(np.maximum(drop, 0.0))
    weight = (np.sqrt(LIKELIHOOD_DROP) - root[:, 0]) / (root[:, 1] - root[:, 0])
    shifts[rows] = grid[:, 0] + weight * (grid[:, 1] - grid[:, 0])
    ends[rows] = points[:, 1]
    return shifts, ends


def _bracket(grid: Array, drop: Array, points: Array) -> tuple[Array, Array, Array]:
    """The neighbours on the grid (s, g) between which each side first falls by 1.92."""
    first = np.argmax(drop > LIKELIHOOD_DROP, axis=1)
    pair = first[:, None] + np.array([-1, 0])
    return (
        np.take_along_axis(grid, pair, axis=1),
        np.take_along_axis(drop, pair, axis=1),
        np.take_along_axis(points, pair[..., None], axis=1),
    )


def _refined(sides: _Sides, grid: Array, drop: Array, points: Array) -> tuple[Array, Array, Array]:
    """A finer grid between the two ends of each bracket (s, 2), ends included."""
    finer = grid[:, :1] + (grid[:, 1:] - grid[:, :1]) * np.linspace(0, 1, _PIECES + 1)
    steps = finer[:, 1:-1, None] - grid[:, None]
    starts = points[:, None] + steps[..., None] * sides.along[:, None, None]
    inner, inner_drop = sides.profile(starts[:, :, 0], starts)
    return (
        finer,
        np.hstack([drop[:, :1], inner_drop, drop[:, 1:]]),
        np.concatenate([points[:, :1], inner, points[:, 1:]], axis=1),
    )


def bootstrap_intervals(
    likelihood: ProductionLikelihood, theta: Array, free: int, resamples: int, seed: int
) -> dict[str, ParameterInterval]:
    """Percentiles 2.5 and 97.5 of refits to the fitted log index plus resampled residuals.

    Arguments and result as ``profile_intervals``. An end is open where the refit that defines it lies at a bound.
    """
    path, _ = likelihood.depletion(theta[None])
    fitted = np.log(path[:-1]) + likelihood.log_q_k(path)
    residuals = (likelihood.log_index[:, None] - fitted)[likelihood.observed, 0]
    log_index = np.full((len(fitted), resamples), np.nan)
    drawn = np.random.default_rng(seed).choice(residuals, size=(len(residuals), resamples))
    log_index[likelihood.observed] = fitted[likelihood.observed] + drawn
    refits, _ = simplex_search(
        lambda x, rows: likelihood.objective(x, log_index[:, rows]),
        np.broadcast_to(theta, (resamples, 3)),
        np.broadcast_to(np.eye(3)[:free], (resamples, free, 3)),
        tolerance=1e-6,
    )
    refits = np.clip(refits, LOWER, UPPER)
    bounded = np.asarray(at_bound(refits)[:, :free].any(axis=1))
    intervals = {}
    for name, coordinates in _COORDINATES.items():
        shifts = (refits - theta) @ np.array(coordinates)
        order = np.argsort(shifts, kind="stable")
        low, high = order[int(0.025 * resamples)], order[int(np.ceil(0.975 * resamples)) - 1]
        intervals[name] = ParameterInterval(
            float(np.exp(shifts[low])), float(np.exp(shifts[high])), bool(bounded[low]), bool(bounded[high])
        )
    return intervals

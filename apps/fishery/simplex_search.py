"""Nelder and Mead's simplex search, many independent searches in lockstep (Nelder and Mead 1965)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Objective = Callable[[Array, NDArray[np.intp]], Array]

# How far along the line from the worst vertex through the centroid each candidate lies:
# reflection, expansion, contraction outside, contraction inside.
_STEPS = np.array([1.0, 2.0, 0.5, -0.5])


def simplex_search(
    objective: Objective,
    starts: Array,
    directions: Array,
    *,
    steps: tuple[float, ...] = (0.3, 0.03),
    tolerance: float = 1e-8,
    iterations: int = 400,
) -> tuple[Array, Array]:
    """Minimise from each of m starts within the affine subspace through it.

    Args:
        objective: values (j,) at points (j, D) of the searches (j,) in ``range(m)`` to which they belong.
        starts: (m, D).
        directions: (m, k, D) spanning vectors; every point visited is its start plus a combination of them.
        steps: edge of the first simplex; each further one starts a new simplex at the best point so far.
        tolerance: a search ends when its simplex is no wider and its values differ by no more than this.
        iterations: upper limit for each simplex.

    Returns:
        The best points (m, D) and their values (m,).
    """
    best, values = starts, np.full(len(starts), np.inf)
    for step in steps:
        simplex = np.concatenate([best[:, None], best[:, None] + step * directions], axis=1)
        best, values = _search(objective, simplex, tolerance, iterations)
    return best, values


def _search(objective: Objective, simplex: Array, tolerance: float, iterations: int) -> tuple[Array, Array]:
    points = simplex.copy()
    values = _evaluate(objective, points, np.arange(len(points)))
    active = np.arange(len(points))
    for _ in range(iterations):
        x, f = _ordered(points[active], values[active])
        points[active], values[active] = x, f
        wide = np.abs(x - x[:, :1]).max(axis=(1, 2)) > tolerance
        going = wide | (f[:, -1] - f[:, 0] > tolerance)
        if not going.any():
            break
        active = active[going]
        points[active], values[active] = _advance(objective, x[going], f[going], active)
    x, f = _ordered(points, values)
    return x[:, 0], f[:, 0]


def _advance(objective: Objective, x: Array, f: Array, rows: NDArray[np.intp]) -> tuple[Array, Array]:
    """One iteration of every search on its ordered simplex x (j, k+1, D), f (j, k+1)."""
    centroid = x[:, :-1].mean(axis=1)
    candidates = centroid[:, None] + _STEPS[:, None] * (centroid - x[:, -1])[:, None]
    trial = _evaluate(objective, candidates, rows)
    reflected, expanded, outside, inside = trial.T
    chosen = np.select(
        [reflected < f[:, 0], reflected < f[:, -2], reflected < f[:, -1]],
        [np.where(expanded < reflected, 1, 0), 0, 2],
        default=3,
    )
    accepted = np.select(
        [chosen < 2, chosen == 2], [np.ones(len(x), dtype=bool), outside <= reflected], default=inside < f[:, -1]
    )
    every = np.arange(len(x))
    x[every, -1] = np.where(accepted[:, None], candidates[every, chosen], x[:, -1])
    f[every, -1] = np.where(accepted, trial[every, chosen], f[:, -1])
    shrunk = np.flatnonzero(~accepted)
    if shrunk.size:
        x[shrunk, 1:] = 0.5 * (x[shrunk, :1] + x[shrunk, 1:])
        f[shrunk, 1:] = _evaluate(objective, x[shrunk, 1:], rows[shrunk])
    return x, f


def _evaluate(objective: Objective, points: Array, rows: NDArray[np.intp]) -> Array:
    count, vertices, dimension = points.shape
    return objective(points.reshape(-1, dimension), np.repeat(rows, vertices)).reshape(count, vertices)


def _ordered(x: Array, f: Array) -> tuple[Array, Array]:
    order = np.argsort(f, axis=1, kind="stable")
    return np.take_along_axis(x, order[:, :, None], axis=1), np.take_along_axis(f, order, axis=1)

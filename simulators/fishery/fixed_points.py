"""Equilibria of the one-species model without harvest and noise, and where they appear and vanish (May 1977)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from core.errors import InputError
from simulators.fishery.parameters import OneSpecies


@dataclass(frozen=True)
class FixedPointDiagram:
    """Positive equilibria against predation.

    Attributes:
        beta_H: predation of each equilibrium, ``(n,)``, population/year.
        population: the equilibrium, ``(n,)``.
        stable: whether a small disturbance shrinks from year to year, ``(n,)`` bool.
        tipping_points: predation at which two equilibria meet (saddle-node bifurcations), ascending.
    """

    beta_H: NDArray[np.float64]
    population: NDArray[np.float64]
    stable: NDArray[np.bool_]
    tipping_points: tuple[float, ...]


def fixed_points(parameters: OneSpecies, points: int = 400) -> FixedPointDiagram:
    """Equilibria of X -> X + r X (1 - X/K) - beta_H X^2/(c^2 + X^2), for every predation.

    Every X in (0, K) is the equilibrium of exactly one predation, beta_H(X) = r (1 - X/K) (c^2 + X^2) / X, so the
    diagram is this curve; it folds where d beta_H / dX = 0, that is -2 X^3 + K X^2 - K c^2 = 0.

    Args:
        parameters: the biology; its own ``beta_H`` plays no part.
        points: equilibria on the curve.

    Raises:
        InputError: another production curve than the logistic one.
    """
    if parameters.exponent != 1:
        raise InputError(f"exponent = {parameters.exponent}: the diagram is for logistic growth, exponent 1")
    r, K, c = parameters.r, parameters.K, parameters.c
    x = np.geomspace(1e-3 * K, K, points)
    predation = r * (1 - x / K) * (c**2 + x**2) / x
    # d/dX of the yearly map at the equilibrium
    slope = 1 + r * (1 - 2 * x / K) - predation * 2 * c**2 * x / (c**2 + x**2) ** 2
    roots = np.roots([-2.0, K, 0.0, -K * c**2])
    folds = roots.real[(abs(roots.imag) < 1e-9) & (roots.real > 0) & (roots.real < K)]
    tipping = r * (1 - folds / K) * (c**2 + folds**2) / folds
    return FixedPointDiagram(predation, x, abs(slope) < 1, tuple(sorted(tipping.tolist())))

"""Explicit Runge-Kutta tableaux: rk4, Dormand-Prince 5(4), Tsitouras 5(4) and Dormand-Prince 8(5,3).

Dormand and Prince, J. Comput. Appl. Math. 6, 19 (1980); Tsitouras, Comput. Math. Appl. 62, 770 (2011); Hairer, Norsett
and Wanner, Solving Ordinary Differential Equations I, section II.10 and its code dop853.f.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np

from core.errors import InputError
from simulators.chaos import dop853

Method = Literal["rk4", "dopri5", "tsit5", "dop853"]


@dataclass(frozen=True, eq=False)
class Tableau:
    """Coefficients; a step is y + h (weights . k), stage i is f(t + nodes_i h, y + h (stages_i . k)).

    The stages after the first ``len(weights)`` serve the dense output alone; the first of them is f at the end of the
    step, which is also the first stage of the next one.

    Attributes:
        order: of the step.
        weights: ``(s,)``.
        nodes: ``(S,)``, S >= s + 1.
        stages: ``(S, S)``, strictly lower triangular.
        errors: ``(e, s + 1)``; the error estimate is h (errors . k). Two rows are combined as in dop853.f. None for a
            method without an estimate.
        exponent: the step is scaled by error to the power of -1 / exponent.
        dense: ``(S, p)``; y(t + x h) is y + h sum over j of x^(j+1) (dense_j . k).
    """

    order: int
    weights: np.ndarray
    nodes: np.ndarray
    stages: np.ndarray
    errors: np.ndarray | None
    exponent: int
    dense: np.ndarray


def _lower(rows: list[list[float]]) -> np.ndarray:
    square = np.zeros((len(rows) + 1, len(rows) + 1))
    for i, row in enumerate(rows, start=1):
        square[i, : len(row)] = row
    return square


def _hermite(stages: int, weights: np.ndarray) -> np.ndarray:
    """The cubic through both ends of a step and their slopes."""
    first, last, step = np.eye(stages)[0], np.eye(stages)[-1], np.zeros(stages)
    step[: len(weights)] = weights
    return np.stack([first, 3 * step - 2 * first - last, first + last - 2 * step], axis=1)


def _rk4() -> Tableau:
    weights = np.array([1, 2, 2, 1]) / 6
    return Tableau(
        order=4,
        weights=weights,
        nodes=np.array([0, 0.5, 0.5, 1, 1]),
        stages=_lower([[0.5], [0, 0.5], [0, 0, 1], list(weights)]),
        errors=None,
        exponent=4,
        dense=_hermite(5, weights),
    )


def _dopri5() -> Tableau:
    stages = _lower(
        [
            [1 / 5],
            [3 / 40, 9 / 40],
            [44 / 45, -56 / 15, 32 / 9],
            [19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729],
            [9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656],
            [35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84],
        ]
    )
    # Shampine, Math. Comput. 46, 135 (1986): the quartic whose error at the middle is least.
    middle = [
        6025192743 / 30085553152,
        0,
        51252292925 / 65400821598,
        -2691868925 / 45128329728,
        187940372067 / 1594534317056,
        -1776094331 / 19743644256,
        11237099 / 235043384,
    ]
    return Tableau(
        order=5,
        weights=stages[6, :6],
        nodes=np.array([0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1]),
        stages=stages,
        errors=np.array([[-71 / 57600, 0, 71 / 16695, -71 / 1920, 17253 / 339200, -22 / 525, 1 / 40]]),
        exponent=5,
        dense=_through_the_middle(stages[6, :6], np.array(middle) / 2),
    )


def _through_the_middle(weights: np.ndarray, middle: np.ndarray) -> np.ndarray:
    """The quartic through both ends of a step, their slopes, and y + h (middle . k) half-way."""
    cubic = _hermite(len(middle), weights)
    missing = 16 * (middle - cubic @ [1 / 2, 1 / 4, 1 / 8])
    # x^2 (1 - x)^2 vanishes with its slope at both ends and is 1/16 half-way.
    return np.column_stack([cubic, np.zeros(len(middle))]) + np.outer(missing, [0, 1, -2, 1])


def _tsit5() -> Tableau:
    stages = _lower(
        [
            [0.161],
            [-0.008480655492356989, 0.335480655492357],
            [2.8971530571054935, -6.359448489975075, 4.3622954328695815],
            [5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175525],
            [5.86145544294642, -12.92096931784711, 8.159367898576159, -0.071584973281401, -0.028269050394068383],
            [0.09646076681806523, 0.01, 0.4798896504144996, 1.379008574103742, -3.290069515436081, 2.324710524099774],
        ]
    )
    error = [
        -0.00178001105222577714,
        -0.0008164344596567469,
        0.007880878010261995,
        -0.1447110071732629,
        0.5823571654525552,
        -0.45808210592918697,
        1 / 66,
    ]
    # The continuous weights of section 5, multiplied out.
    dense = np.array(
        [
            [1, -2.763706197274826, 2.9132554618219126, -1.0530884977290216],
            [0, 0.13169999999999998, -0.2234, 0.1017],
            [0, 3.9302962368947516, -5.941033872131505, 2.490627285651253],
            [0, -12.411077166933676, 30.33818863028232, -16.548102889244902],
            [0, 37.50931341651104, -88.1789048947664, 47.37952196281928],
            [0, -27.896526289197286, 65.09189467479366, -34.87065786149661],
            [0, 1.5, -4, 2.5],
        ]
    )
    return Tableau(
        order=5,
        weights=stages[6, :6],
        nodes=np.array([0, 0.161, 0.327, 0.9, 0.9800255409045097, 1, 1]),
        stages=stages,
        errors=np.array([error]),
        exponent=5,
        dense=dense,
    )


def _sparse(rows: list[dict[int, float]], columns: int) -> np.ndarray:
    found = np.zeros((len(rows), columns))
    for i, row in enumerate(rows):
        for j, value in row.items():
            found[i, j] = value
    return found


def _dop853() -> Tableau:
    stages = _sparse(dop853.STAGES, 16)
    weights = stages[12, :12]
    fifth, third = _sparse(dop853.ERRORS, 13)
    third = np.append(weights, 0.0) - third
    first, last, step = np.eye(16)[0], np.eye(16)[12], np.append(weights, np.zeros(4))
    nested = [step, first - step, 2 * step - first - last, *_sparse(dop853.DENSE, 16)]
    # F0 x + F1 x (1 - x) + F2 x^2 (1 - x) + F3 x^2 (1 - x)^2 + ..., multiplied out.
    dense, basis = np.zeros((16, 7)), np.polynomial.Polynomial([0, 1])
    for i, row in enumerate(nested):
        dense[:, : basis.degree()] += np.outer(row, basis.coef[1:])
        basis = basis * (np.polynomial.Polynomial([1, -1]) if i % 2 == 0 else np.polynomial.Polynomial([0, 1]))
    return Tableau(
        order=8,
        weights=weights,
        nodes=np.array(dop853.NODES),
        stages=stages,
        errors=np.stack([fifth, third]),
        exponent=8,
        dense=dense,
    )


_TABLEAUX = {"rk4": _rk4, "dopri5": _dopri5, "tsit5": _tsit5, "dop853": _dop853}


@cache
def tableau(method: Method) -> Tableau:
    """Coefficients of a method.

    Raises:
        InputError: of an unknown method.
    """
    if method not in _TABLEAUX:
        raise InputError(f"method = {method!r}; allowed are {', '.join(_TABLEAUX)}")
    return _TABLEAUX[method]()

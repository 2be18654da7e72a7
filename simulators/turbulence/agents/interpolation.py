"""From the values of a few agents to a field on the grid: A c A^T with a matrix A made once."""

from __future__ import annotations

import math
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.errors import InputError

Interpolation = Literal["bilinear", "biquadratic", "fourier"]


def interpolation_matrix(n: int, agents: int, kind: Interpolation = "biquadratic") -> Tensor:
    """The matrix A ``(n, agents)`` that interpolates periodically, along either axis, between equidistant agents.

    Agent j stands on point j n/agents. ``biquadratic`` is the interpolating quadratic spline with its knots half-way
    between the agents; ``fourier`` the trigonometric polynomial of least degree. All reproduce the agents' values at
    their points, and constants exactly.

    Returns:
        float64; the field of the values c ``(..., agents, agents)`` is ``A @ c @ A.T``.

    Raises:
        InputError: a number of agents that does not divide n, or an unknown kind.
    """
    if agents < 1 or n % agents:
        raise InputError(f"agents_per_side = {agents}: must divide the {n} points of a side")
    if kind not in get_args(Interpolation):
        raise InputError(f"interpolation = {kind!r}: must be one of {', '.join(get_args(Interpolation))}")
    distance = np.arange(n)[:, None] * agents / n - np.arange(agents)  # in spacings of the agents
    distance = (distance + agents / 2) % agents - agents / 2
    if kind == "bilinear":
        weights = _periodic(lambda d: np.maximum(1 - abs(d), 0), distance, agents)
    elif kind == "biquadratic":
        at_agents = distance[:: n // agents]
        weights = _periodic(_spline, distance, agents) @ np.linalg.inv(_periodic(_spline, at_agents, agents))
    else:
        weights = _dirichlet(distance, agents)
    return torch.from_numpy(weights / weights.sum(1, keepdims=True))


def _periodic(kernel, distance: NDArray[np.float64], period: int) -> NDArray[np.float64]:  # type: ignore[no-untyped-def]
    """The kernel and its images: with very few agents it reaches around the box."""
    total: NDArray[np.float64] = sum(kernel(distance + image * period) for image in range(-2, 3))
    return total


def _spline(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    """The quadratic B-spline, centred on its agent."""
    d = abs(distance)
    return np.where(d <= 0.5, 0.75 - d**2, 0.5 * np.maximum(1.5 - d, 0) ** 2)


def _dirichlet(distance: NDArray[np.float64], agents: int) -> NDArray[np.float64]:
    angle = 2 * math.pi * distance / agents
    total = np.ones_like(angle)
    for k in range(1, (agents + 1) // 2):
        total += 2 * np.cos(k * angle)
    if agents % 2 == 0:
        total += np.cos(agents // 2 * angle)
    return total / agents

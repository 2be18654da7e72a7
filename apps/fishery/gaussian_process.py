"""A policy smoothed by Gaussian-process regression on its own sampled actions.

Source: Montealegre-Mora et al. (2023), appendix on policy interpolation: actions sampled on three long-and-narrow grids
of the state, an RBF plus white-noise kernel, and the posterior mean as the new policy.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core.errors import require
from core.seeds import stream
from core.simulation import Policy, rollout
from simulators.fishery import YEARS, Fishery


def popular_window(values: np.ndarray, share: float = 0.7) -> tuple[float, float]:
    """The smallest interval that holds more than ``share`` of the visited values.

    The widths tried are 0.8^k (k = 0..10) of the visited range, each at 100 placements; widths are absolute.

    Args:
        values: visited populations of one species.
        share: what the interval must hold.
    """
    low, high = float(values.min()), float(values.max())
    ordered, found = np.sort(values), (low, high)
    for k in range(1, 11):
        width = 0.8**k * (high - low)
        left = np.linspace(low, high - width, 100)
        held = np.searchsorted(ordered, left + width, "right") - np.searchsorted(ordered, left, "left")
        best = int(held.argmax())
        if held[best] <= share * len(ordered):
            break
        found = (float(left[best]), float(left[best] + width))
    return found


def design_points(
    simulator: Fishery, policy: Policy, *, long: int = 51, short: int = 5, episodes: int = 50, seed: int = 0
) -> Tensor:
    """Populations at which the policy is sampled, ``(n, species)``.

    One grid a species: ``long`` points on [0, 1] along it, ``short`` points over the popular window along the others
    (2 ``long`` - 1 points on [0, 1] in a one-species world).

    Args:
        simulator: the world.
        policy: whose visits define the windows.
        long: points along the long axis.
        short: points along the others.
        episodes: roll-outs that define what is visited.
        seed: of these roll-outs.
    """
    species = len(simulator.species)
    if species == 1:
        return torch.linspace(0, 1, 2 * long - 1, dtype=torch.float64).unsqueeze(1)
    visits = rollout(simulator, policy, YEARS, episodes, stream(seed, "visits"))
    population, alive = visits["population"].values, visits["alive"].values
    windows = [torch.linspace(*popular_window(population[..., i][alive]), short) for i in range(species)]
    axis = torch.linspace(0, 1, long)
    grids = [torch.cartesian_prod(*[axis if j == i else windows[j] for j in range(species)]) for i in range(species)]
    return torch.cat(grids).double()


@dataclass(frozen=True)
class GaussianProcessRule:
    """The posterior mean as a policy: clip(k(N, X) alpha, 0, 1).

    Attributes:
        inputs: design points X, ``(n, species)``.
        weights: alpha, ``(n, harvested)``.
        amplitude: factor of the RBF kernel.
        length: its length scale, population.
        noise: variance of the white-noise kernel.
    """

    inputs: Tensor
    weights: Tensor
    amplitude: float
    length: float
    noise: float

    def __call__(self, observation: Tensor, state: Any = None) -> Tensor:
        """Mortalities ``(B, harvested)`` for populations ``(B, species)``."""
        inputs, weights = self.inputs.to(observation), self.weights.to(observation)
        distance = torch.cdist(observation[:, : inputs.shape[1]], inputs)
        kernel = self.amplitude * torch.exp(-0.5 * (distance / self.length) ** 2)
        return (kernel @ weights).clamp(0, 1)


def fit_rule(inputs: Tensor, actions: Tensor, *, optimize: bool = True) -> GaussianProcessRule:
    """Regress sampled actions on populations with 1 * RBF(10) + White(0.1).

    Args:
        inputs: populations, ``(n, species)``.
        actions: sampled mortalities, ``(n, harvested)``.
        optimize: maximise the marginal likelihood from these starting values (as the authors' code does), or keep them.

    Raises:
        MissingExtra: scikit-learn is not installed.
    """
    process = require("sklearn.gaussian_process", "fishery")
    kernels = require("sklearn.gaussian_process.kernels", "fishery")

    def fit(optimizer: str | None) -> Any:
        kernel = 1.0 * kernels.RBF(10.0) + kernels.WhiteKernel(0.1)
        regressor = process.GaussianProcessRegressor(kernel, optimizer=optimizer, random_state=0)
        return regressor.fit(inputs.numpy(), actions.double().numpy())

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fitted = fit("fmin_l_bfgs_b" if optimize else None)
    if any("failed to converge" in str(w.message) for w in caught):
        warnings.warn("the kernel's optimisation did not converge; its starting values are used", stacklevel=2)
        fitted = fit(None)
    smooth, white = fitted.kernel_.k1, fitted.kernel_.k2
    weights = torch.as_tensor(fitted.alpha_).reshape(len(inputs), -1)
    return GaussianProcessRule(
        inputs, weights, float(smooth.k1.constant_value), float(smooth.k2.length_scale), float(white.noise_level)
    )


def smooth(
    simulator: Fishery,
    sampled: Policy,
    *,
    long: int = 51,
    short: int = 5,
    points: int | None = None,
    optimize: bool = True,
    seed: int = 0,
) -> GaussianProcessRule:
    """Smooth a sampling policy: sample it on the design points and regress.

    Args:
        simulator: the world.
        sampled: the policy, with its actions sampled.
        long: points along the long axis of each design grid.
        short: points along the short axes.
        points: keep at most so many design points, drawn at random (the regression costs their cube); None keeps all.
        optimize: see ``fit_rule``.
        seed: of the visits and of the draw.

    Raises:
        MissingExtra: scikit-learn is not installed.
    """
    inputs = design_points(simulator, sampled, long=long, short=short, seed=seed)
    if points is not None and points < len(inputs):
        chosen = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(seed))[:points]
        inputs = inputs[chosen]
    return fit_rule(inputs, sampled(inputs), optimize=optimize)

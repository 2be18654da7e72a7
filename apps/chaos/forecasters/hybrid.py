"""Equations that are known but wrong, and a learned correction of each step."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from apps.chaos.forecasters.delay_regression import monomials
from apps.chaos.forecasters.equations import Equations, known_equations
from apps.chaos.forecasters.forecaster import Fitted, Fitting, Forecaster
from apps.chaos.forecasters.ridge import ridge
from core.nn.adam import minimise
from core.nn.grouped import GroupedLinear, Initial

Residual = Callable[[Tensor], Tensor]
"""Corrections ``(G, N, D)`` of states ``(G, N, D)``."""


class Hybrid(Forecaster):
    """x_{n+1} = P(x_n) + r(x_n): P integrates imperfect equations over one sample, r is learned from what P misses.

    (Pathak et al. 2018 with a reservoir for r.) Every parameter of the equations is off by ``parameter_error``, its
    sign drawn from the seed of the series. r is a polynomial by ridge regression, or a network of two hidden layers by
    Adam, both fitted to the residuals of single steps over the training series.
    """

    physical: ClassVar = True

    kind: Literal["hybrid"] = "hybrid"
    parameter_error: float = Field(default=0.05, ge=0, le=0.2)
    """Relative error of every parameter of the equations."""
    residual: Literal["ridge", "mlp", "none"] = "ridge"
    """The correction; ``none`` leaves the imperfect equations alone."""
    order: int = Field(default=3, ge=1, le=5)
    """Degree of the polynomial (ridge)."""
    penalty: NonNegativeFloat = 1e-6
    """Of the ridge regression, for residuals of standard deviation 1."""
    hidden: PositiveInt = 32
    """Width of the network (mlp)."""
    iterations: PositiveInt = 1000
    """Steps of Adam over all residuals (mlp)."""
    learning_rate: PositiveFloat = 3e-3
    """Of Adam (mlp)."""

    def fit(self, train: Tensor, fitting: Fitting) -> HybridFitted:
        """Fit the correction of each series; see ``Forecaster.fit``.

        Raises:
            InputError: no equations, or ones that do not fit the series (see ``known_equations``).
        """
        self.check(train.shape[1])
        equations = known_equations(self.kind, train, fitting, self.parameter_error)
        if self.residual == "none":
            return HybridFitted(equations, None, train[:, -1:])
        states = train[:, :-1]
        missed = train[:, 1:] - equations.path(states, 1)[:, :, 0]
        size = missed.std(1, keepdim=True)
        size = torch.where(size > 0, size, 1.0)
        learn = self._polynomial if self.residual == "ridge" else self._network
        unit = learn(states, missed / size, fitting)
        return HybridFitted(equations, lambda x: size * unit(x), train[:, -1:])

    def _polynomial(self, states: Tensor, targets: Tensor, fitting: Fitting) -> Residual:
        factors = monomials(1, states.shape[2], self.order)[:, :-1].to(states.device)

        def features(x: Tensor) -> Tensor:
            return nn.functional.pad(x, (0, 1), value=1.0)[..., factors].prod(-2)

        found = ridge(features(states), targets, self.penalty)
        return lambda x: torch.baddbmm(found.intercept, features(x), found.weights)

    def _network(self, states: Tensor, targets: Tensor, fitting: Fitting) -> Residual:
        initial = Initial([torch.Generator().manual_seed(seed) for seed in fitting.seeds], torch.float64)
        sizes = (states.shape[2], self.hidden, self.hidden, targets.shape[2])
        layers = [GroupedLinear(initial, i, o) for i, o in pairwise(sizes)]
        network = nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2]).to(states.device)
        inputs, outputs = states.mT.contiguous(), targets.mT.contiguous()
        minimise(
            dict(network.named_parameters()),
            lambda step: (network(inputs) - outputs).square().mean((1, 2)).sum(),
            self.iterations,
            learning_rate=self.learning_rate,
            checkpoint=fitting.keep(f"{self.kind}-{self.hash}"),
            progress=fitting.progress,
        )
        network.requires_grad_(False)
        return lambda x: network(x.mT).mT


class HybridFitted(Fitted):
    """Equations, corrections, and the last samples ``(G, 1, D)`` of the training series."""

    def __init__(self, equations: Equations, residual: Residual | None, last: Tensor) -> None:
        self.equations, self.residual, self.last = equations, residual, last
        self.notes = {}

    def forecast(self, horizon: int) -> Tensor:
        """See ``Fitted.forecast``."""
        if self.residual is None:
            return self.equations.path(self.last, horizon)[:, 0]
        x, ahead = self.last, []
        for _ in range(horizon):
            x = self.equations.path(x, 1)[:, :, 0] + self.residual(x)
            ahead.append(x)
        return torch.cat(ahead, 1)

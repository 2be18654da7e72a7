"""Regression of the next state on monomials of the last states, rolled out in closed loop."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations_with_replacement

import torch
from torch import Tensor

from apps.chaos.forecasters.forecaster import Fitted
from apps.chaos.forecasters.ridge import ridge
from core.errors import InputError

FEATURES = 20_000
"""Largest number of monomials: their normal equations take 3 GB for one series."""
ELEMENTS = 2**25
"""Most numbers in the features of the series that are fitted at once."""


def monomials(delay: int, channels: int, order: int) -> Tensor:
    """Positions of the factors of each monomial among the last ``delay`` states, each followed by a 1.

    Returns:
        ``(order, F)``: column j holds the factors of monomial j in the flat ``delay * (channels + 1)`` numbers, ones
        making up for a lower degree. Monomials come by degree, then in the order of their factors, where the oldest
        state comes first; the last one is the constant 1.

    Raises:
        InputError: more than 20,000 monomials.
    """
    variables = delay * channels
    count = math.comb(variables + order, order)
    if count > FEATURES:
        raise InputError(
            f"order = {order}, delay = {delay}: {count:,} monomials of {channels} channels, at most {FEATURES:,}"
        )
    places = [step * (channels + 1) + channel for step in range(delay) for channel in range(channels)]
    one = channels
    rows = [
        factors + (one,) * (order - degree)
        for degree in range(1, order + 1)
        for factors in combinations_with_replacement(places, degree)
    ]
    return torch.tensor([*rows, (one,) * order]).T.contiguous()


@dataclass
class DelayRegression(Fitted):
    """x_{t+1} = W m(x_{t-k+1}, ..., x_t), or x_t plus that, for each of G series.

    Attributes:
        last: ``(G, k, D)``, the end of the training series.
        factors: ``(order, F)``, of ``monomials``.
        weights: ``(G, F, D)``.
        increments: whether the regression gives the increment.
    """

    last: Tensor
    factors: Tensor
    weights: Tensor
    increments: bool
    notes: Mapping[str, Tensor] = field(default_factory=dict)

    def forecast(self, horizon: int) -> Tensor:
        """The samples after the training series, ``(G, horizon, D)``: a step is one product, and two kernels more
        from order 2 on.
        """
        series, delay, channels = self.last.shape
        path = self.last.new_ones(series, delay + horizon, channels + 1)
        path[:, :delay, :channels] = self.last
        weights, linear = self.weights, len(self.factors) == 1
        if linear:
            # The window itself, ones and all, takes the place of the features.
            weights = weights.new_zeros(series, delay * (channels + 1), channels)
            weights[:, self.factors[0]] = self.weights
        for now in range(delay, delay + horizon):
            window = path[:, now - delay : now].flatten(1)
            features = window if linear else window[:, self.factors].prod(1)
            torch.baddbmm(
                path[:, now - 1 : now, :channels],
                features[:, None],
                weights,
                beta=float(self.increments),
                out=path[:, now : now + 1, :channels],
            )
        return path[:, delay:, :channels].contiguous()


def fit_delay_regression(train: Tensor, delay: int, order: int, penalty: float, increments: bool) -> DelayRegression:
    """Fit ``DelayRegression`` by ``ridge``.

    Args:
        train: ``(G, T, D)`` float64.
        delay: states k, one sample apart.
        order: highest degree of the monomials.
        penalty: of the ridge regression; 0 for ordinary least squares.
        increments: whether x_{t+1} - x_t is the target.

    Raises:
        InputError: too many monomials.
    """
    _, samples, channels = train.shape
    factors = monomials(delay, channels, order).to(train.device)
    weights, conditions = [], []
    for part in train.split(max(1, ELEMENTS // (samples * factors.numel()))):
        padded = torch.nn.functional.pad(part[:, :-1], (0, 1), value=1.0)
        windows = padded.unfold(1, delay, 1).transpose(2, 3).flatten(2)
        features = windows[..., factors[:, :-1]].prod(-2)
        targets = part[:, delay:] - part[:, delay - 1 : -1] if increments else part[:, delay:]
        found = ridge(features, targets, penalty)
        weights.append(torch.cat([found.weights, found.intercept], 1))
        conditions.append(found.condition)
    notes = {"condition_number": torch.cat(conditions)}
    return DelayRegression(train[:, -delay:].clone(), factors, torch.cat(weights), increments, notes)

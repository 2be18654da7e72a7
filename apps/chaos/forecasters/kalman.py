"""A linear state space model, identified by subspaces, with its Kalman filter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from apps.chaos.forecasters.forecaster import Fitted, Fitting, Forecaster


class Kalman(Forecaster):
    """N4SID identification of x' = A x + w, y = C x + v, and the forecast of its Kalman filter.

    Van Overschee and De Moor (1994), Automatica 30, 75; in the variant of Verhaegen and Verdult (2007), Filtering and
    System Identification, pages 140, 329 and 333, without inputs.
    """

    kind: Literal["kalman"] = "kalman"
    states: int = Field(default=1, ge=1)
    """Dimension of the state."""

    @property
    def rows(self) -> int:
        """Samples of the past, and of the future, in a column of the Hankel matrices."""
        return max(10, self.states)

    @property
    def shortest(self) -> int:
        """Enough for as many columns of the Hankel matrices as rows of a scalar series, and the fit of the matrices."""
        return 4 * self.rows

    def fit(self, train: Tensor, fitting: Fitting) -> Fitted:
        """Identify the model of each series and filter the series with it.

        ``notes`` tell the modulus of the slowest ``pole``: the forecast decays where it is below 1.
        """
        self.check(train.shape[1])
        finite = train.isfinite().all(dim=2).all(dim=1)
        series = train.double().where(finite[:, None, None], 0.0)
        transition, output, noise = identify(series, min(self.states, self.rows * train.shape[2]), self.rows)
        state, _ = kalman_filter(transition, output, noise, series)
        state = state.where(finite[:, None], torch.nan)
        pole = torch.linalg.eigvals(transition).abs().amax(dim=1)
        return FittedKalman(transition, output, state, {"pole": pole.where(finite, torch.nan)})


@dataclass
class FittedKalman(Fitted):
    """A linear model of each series and its state one sample after the series.

    Attributes:
        transition: ``(G, n, n)``.
        output: ``(G, D, n)``.
        state: ``(G, n)``.
    """

    transition: Tensor
    output: Tensor
    state: Tensor
    notes: Mapping[str, Tensor] = field(default_factory=dict)

    def forecast(self, horizon: int) -> Tensor:
        """The samples after the training series, ``(G, horizon, D)``."""
        states = [self.state]
        for _ in range(horizon - 1):
            states.append(torch.einsum("gij,gj->gi", self.transition, states[-1]))
        return torch.einsum("gdi,ghi->ghd", self.output, torch.stack(states, dim=1))


def identify(series: Tensor, states: int, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """The linear models of series without inputs.

    Args:
        series: ``(G, T, D)`` float64, finite.
        states: dimension n of the state.
        rows: samples of the past, and of the future, in a column of the Hankel matrices.

    Returns:
        ``transition`` A ``(G, n, n)``, ``output`` C ``(G, D, n)``, and the covariance ``noise`` of the residuals of
        state and output together, ``(G, n + D, n + D)``.
    """
    # (G, rows * D, T - rows + 1): a column is the samples of one window, the oldest first.
    hankel = series.unfold(1, rows, 1).permute(0, 3, 2, 1).flatten(1, 2)
    past, future = hankel[..., :-rows], hankel[..., rows:]
    # The future by its regression on the past. A QR decomposition spares the squared condition of a Gram matrix.
    triangle = torch.linalg.qr(torch.cat([past, future], dim=1).mT, mode="r")[1].mT
    block = past.shape[1]
    regression = triangle[:, block:, :block] @ torch.linalg.pinv(triangle[:, :block, :block])
    # Its rank is that of the system, its row space the states that the Kalman filter would have.
    _, singular, right = torch.linalg.svd(regression @ hankel, full_matrices=False)
    state = (singular[:, :states].sqrt()[..., None] * right[:, :states])[..., :-1]
    after = torch.cat([state[..., 1:], series[:, rows:-1].mT], dim=1)
    before = state[..., :-1]
    matrices = after @ before.mT @ torch.linalg.pinv(before @ before.mT, hermitian=True)
    residuals = after - matrices @ before
    return matrices[:, :states], matrices[:, states:], residuals @ residuals.mT / residuals.shape[-1]


def kalman_filter(transition: Tensor, output: Tensor, noise: Tensor, series: Tensor) -> tuple[Tensor, Tensor]:
    """Filter the series from a state of mean 0 and covariance 1.

    Args:
        transition: A ``(G, n, n)``.
        output: C ``(G, D, n)``.
        noise: covariance ``(G, n + D, n + D)`` of the noise of state and output.
        series: ``(G, T, D)``.

    Returns:
        The state predicted for the sample after the series, ``(G, n)``, and the last Kalman gain ``(G, n, D)``.
    """
    n = transition.shape[1]
    within, across, measured = noise[:, :n, :n], noise[:, :n, n:], noise[:, n:, n:]
    state = torch.zeros_like(transition[..., :1])
    spread = torch.eye(n, dtype=transition.dtype, device=transition.device).expand_as(transition)
    gain = torch.zeros_like(output.mT)
    for sample in series.unbind(dim=1):
        projected = across + transition @ spread @ output.mT
        # A series without noise makes the matrix singular: hence the pseudo-inverse.
        gain = projected @ torch.linalg.pinv(measured + output @ spread @ output.mT, hermitian=True)
        spread = transition @ spread @ transition.mT + within - gain @ projected.mT
        state = transition @ state + gain @ (sample[..., None] - output @ state)
    return state[..., 0], gain

"""Drawing actions from a distribution over the available ones, with the propensity that has to be logged."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from core.bandits.exploration import greedy, uniform, with_floor
from core.bandits.row_checks import refuse_rows
from core.errors import InputError

SUM_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-6}
"""How far the probabilities of a row may sum from 1."""


@dataclass(frozen=True)
class Choice:
    """Actions drawn, one a row.

    Attributes:
        action: ``(n,)`` int64.
        propensity: ``(n,)``, probability with which it was drawn.
    """

    action: Tensor
    propensity: Tensor


@dataclass(frozen=True)
class SliceChoice(Choice):
    """Actions drawn by ``sample_epsilon_slice``; ``propensity`` is that of the mixture, for its evaluation.

    Attributes:
        explored: ``(n,)`` bool, the coin: true in the rows of the slice, which alone train the oracle.
        given_coin: ``(n,)``, propensity knowing the coin: 1 / n_A in the slice, 1 outside.
    """

    explored: Tensor
    given_coin: Tensor


def sample_actions(probabilities: Tensor, mask: Tensor, uniforms: Tensor) -> Choice:
    """Draw one action a row by inversion of the cumulative sum.

    Where rounding leaves the sum below a uniform, the row gets its last action that has probability: never a masked
    one, nor one of propensity 0.

    Args:
        probabilities: ``(n, K)``, at least 0, summing to 1 in each row and 0 where masked.
        mask: ``(n, K)`` bool.
        uniforms: ``(n,)`` in [0, 1).

    Raises:
        InputError: a row that does not sum to 1 (``SUM_TOLERANCE``) or holds NaN, a uniform outside [0, 1], a masked
            action drawn, or shapes that differ.
    """
    if probabilities.shape != mask.shape or uniforms.shape != probabilities.shape[:1]:
        raise InputError(
            f"probabilities {tuple(probabilities.shape)}, mask {tuple(mask.shape)}, uniforms {tuple(uniforms.shape)}: "
            "must be (n, K), (n, K) and (n,)"
        )
    if probabilities.dtype not in SUM_TOLERANCE:
        raise InputError(f"probabilities of {probabilities.dtype}: must be torch.float32 or torch.float64")
    cumulative = probabilities.cumsum(1)
    total = cumulative[:, -1]
    refuse_rows("sum of the probabilities", total, (total - 1).abs() <= SUM_TOLERANCE[total.dtype], "1")
    refuse_rows("uniforms", uniforms, (uniforms >= 0) & (uniforms <= 1), "[0, 1)")
    below_total = torch.nextafter(total, torch.zeros_like(total))
    reached = torch.minimum(uniforms.to(total.dtype), below_total)[:, None]
    action = torch.searchsorted(cumulative, reached, right=True)
    propensity = probabilities.gather(1, action)[:, 0]
    drawable = mask.gather(1, action)[:, 0] & (propensity > 0)
    refuse_rows("drawn action", action[:, 0], drawable, "an available one, with all probabilities at least 0")
    return Choice(action[:, 0], propensity)


def sample_epsilon_slice(scores: Tensor, mask: Tensor, epsilon: float, coins: Tensor, uniforms: Tensor) -> SliceChoice:
    """A share epsilon of the rows, set by a coin, explores uniformly; the others take the best action.

    Args:
        scores: ``(n, K)``.
        mask: ``(n, K)`` bool.
        epsilon: probability of the coin, in [0, 1].
        coins: ``(n,)`` uniforms in [0, 1); below epsilon a row explores.
        uniforms: ``(n,)`` in [0, 1), for the actions.

    Raises:
        InputError: as ``epsilon_greedy`` and ``sample_actions``.
    """
    best = greedy(scores, mask)
    mixture = with_floor(best, mask, epsilon)
    explored = coins < epsilon
    drawn = sample_actions(torch.where(explored[:, None], uniform(mask, scores.dtype), best), mask, uniforms)
    marginal = mixture.gather(1, drawn.action[:, None])[:, 0]
    return SliceChoice(drawn.action, marginal, explored, drawn.propensity)

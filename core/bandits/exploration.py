"""Exploration rules over dynamic action sets: scores of the actions to a distribution over the available ones.

Scores are rewards, so larger is better. Every rule takes scores ``(n, K)`` and a mask ``(n, K)``, true where the action
is available in that row, and returns probabilities ``(n, K)`` of the scores' dtype on the scores' device: 0 where
masked, summing to 1 in each row. What a masked action scores does not matter, not even NaN. n_A below is the number of
actions available in a row, b the best of them, ties to the lowest id.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from core.bandits.row_checks import refuse_rows
from core.errors import InputError


def best_action(scores: Tensor, mask: Tensor) -> Tensor:
    """Available action of the highest score, ties to the lowest id; ``(n,)`` int64.

    Scores closer than 1e-35 (float32) are ties.

    Raises:
        InputError: a row without an available action, an available score that is NaN or inf, or shapes that differ.
    """
    return _gaps_and_best(scores, mask)[1]


def uniform(mask: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """1 / n_A on each available action.

    Raises:
        InputError: a row without an available action, or a mask that is not ``(n, K)`` bool.
    """
    _check_mask(mask)
    available = _count(mask)
    refuse_rows("available actions", available[:, 0], available[:, 0] > 0, "at least 1")
    return _as_numbers(mask, dtype).div_(available)


def greedy(scores: Tensor, mask: Tensor) -> Tensor:
    """All probability on ``best_action``.

    Raises:
        InputError: as ``best_action``.
    """
    return torch.zeros_like(scores).scatter_(1, best_action(scores, mask)[:, None], 1)


def epsilon_greedy(scores: Tensor, mask: Tensor, epsilon: float | Tensor) -> Tensor:
    """Epsilon / n_A + (1 - epsilon) [a = b].

    Args:
        scores: ``(n, K)``.
        mask: ``(n, K)`` bool.
        epsilon: in [0, 1], one for all rows or ``(n,)``.

    Raises:
        InputError: as ``best_action``, or an epsilon outside [0, 1].
    """
    return with_floor(greedy(scores, mask), mask, epsilon)


def inverse_gap_weighting(scores: Tensor, mask: Tensor, gamma: float | Tensor) -> Tensor:
    """pi(a) = 1 / (n_A + gamma (f(b) - f(a))) for the available a other than b, and pi(b) the rest, at least 1 / n_A.

    Gamma = 0 is ``uniform`` and gamma to infinity is ``greedy``.

    Source: SquareCB (Foster & Rakhlin 2020, arXiv 2002.04926, algorithm 1), with the n_A of the row in place of K.

    Args:
        scores: ``(n, K)``.
        mask: ``(n, K)`` bool.
        gamma: at least 0 and finite, one for all rows or ``(n,)``; see ``core.bandits.gamma``.

    Raises:
        InputError: as ``best_action``, or an impossible gamma.
    """
    gaps, best = _gaps_and_best(scores, mask)
    available = _count(mask).to(scores.dtype)
    # Above 0, so that the infinite gap of a masked action always becomes probability 0.
    rate = _row_parameter(gamma, "gamma", scores).clamp(min=torch.finfo(scores.dtype).tiny)
    probabilities = gaps.mul_(rate).add_(available).reciprocal_()
    others = probabilities.sum(1, keepdim=True) - available.reciprocal_()
    return probabilities.scatter_(1, best[:, None], 1 - others)


def softmax(scores: Tensor, mask: Tensor, temperature: float | Tensor) -> Tensor:
    """pi(a) proportional to exp(f(a) / temperature).

    Args:
        scores: ``(n, K)``.
        mask: ``(n, K)`` bool.
        temperature: above 0, in units of the scores, one for all rows or ``(n,)``.

    Raises:
        InputError: as ``best_action``, or an impossible temperature.
    """
    gaps, _ = _gaps_and_best(scores, mask)
    rate = _row_parameter(temperature, "temperature", scores, low=torch.finfo(scores.dtype).tiny).reciprocal()
    return gaps.mul_(-rate).softmax(1)


def bootstrap_votes(scores: Tensor, mask: Tensor) -> Tensor:
    """Thompson sampling by the bootstrap: the share of B resampled oracles that rank an action best, plus one.

    pi(a) = (votes(a) + 1) / (B + n_A), so that no available action has propensity 0.

    Args:
        scores: ``(B, n, K)``, of oracles fitted on resampled (for example Poisson(1)-weighted) rows.
        mask: ``(n, K)`` bool.

    Raises:
        InputError: as ``best_action``.
    """
    if scores.ndim != 3:
        raise InputError(f"scores of shape {tuple(scores.shape)}: must be (oracles, rows, actions)")
    votes = _as_numbers(mask, scores.dtype)
    one = votes.new_ones(1, 1).expand(len(mask), 1)
    for member in scores:
        votes.scatter_add_(1, best_action(member, mask)[:, None], one)
    return votes.div_(len(scores) + _count(mask))


def surviving_actions(
    scores: Tensor,
    mask: Tensor,
    leverage: float | Tensor,
    examples: int,
    *,
    mellowness: float = 1e-3,
    low: float = 0.0,
    high: float = 1.0,
) -> Tensor:
    """The mask without the actions that are worse than another by more than the scores can be wrong.

    RegCB's elimination (Foster et al. 2018, arXiv 1803.01088): an action stays if the upper end of its score, over the
    oracles whose summed squared loss exceeds the fitted one's by at most delta, reaches the best lower end. For least
    squares these ends are f -+ sqrt(delta leverage), here clipped to [low, high]; delta is that of Vowpal Wabbit's
    ``--elim``, c0 log(n_A t) (high - low)^2. Inverse-gap weighting on the narrower mask is the rule ``igw_elim``.

    Args:
        scores: ``(n, K)``.
        mask: ``(n, K)`` bool.
        leverage: how far a unit of squared loss lets a score move, squared: x' H^-1 x for least squares of Gram
            matrix H, 1 / rows for a mean; ``(n, K)`` or anything that broadcasts to it, inf where nothing is known.
        examples: t, rows that the oracle has learned from; with none every action stays.
        mellowness: c0.
        low: least possible reward.
        high: greatest possible reward.

    Raises:
        InputError: as ``best_action``; a leverage that is negative or NaN; or an impossible number.
    """
    if not 0 <= mellowness < math.inf:
        raise InputError(f"mellowness = {mellowness}: must be at least 0 and finite")
    if not -math.inf < low < high < math.inf:
        raise InputError(f"low = {low}, high = {high}: low must be below high, both finite")
    best_action(scores, mask)
    leverage = torch.as_tensor(leverage, dtype=scores.dtype, device=scores.device)
    if not (leverage >= 0).all():
        raise InputError("leverage: must be at least 0")
    if examples < 1:
        return mask.clone()
    delta = mellowness * (_count(mask) * examples).to(scores.dtype).log_() * (high - low) ** 2
    # Where nothing is known the score may lie anywhere, also at delta = 0.
    radius = torch.where(leverage == math.inf, math.inf, (delta * leverage).sqrt_())
    lower = torch.where(mask, scores - radius, -math.inf).amax(1, keepdim=True).clamp_(low, high)
    return mask & ((scores + radius).clamp_(low, high) >= lower)


def with_floor(probabilities: Tensor, mask: Tensor, eta: float | Tensor) -> Tensor:
    """A mixture with uniform exploration, (1 - eta) pi + eta / n_A: no available action below eta / n_A.

    Args:
        probabilities: ``(n, K)``, of any rule.
        mask: ``(n, K)`` bool.
        eta: in [0, 1], one for all rows or ``(n,)``.

    Raises:
        InputError: a row without an available action, an eta outside [0, 1], or shapes that differ.
    """
    _check_shapes(probabilities, mask, "probabilities")
    share = _row_parameter(eta, "eta", probabilities, high=1.0)
    return uniform(mask, probabilities.dtype).mul_(share).add_(probabilities * (1 - share))


def with_minimum(probabilities: Tensor, mask: Tensor, epsilon: float | Tensor) -> Tensor:
    """The nearest distribution that gives each available action at least epsilon / n_A.

    pi'(a) = max(pi(a) - tau, epsilon / n_A) with the tau that makes the sum 1: the Euclidean projection (Duchi et al.
    2008), and what Vowpal Wabbit's ``--epsilon`` does beside ``--squarecb``.

    Args:
        probabilities: ``(n, K)``, of any rule.
        mask: ``(n, K)`` bool.
        epsilon: in [0, 1], one for all rows or ``(n,)``.

    Raises:
        InputError: a row without an available action, an epsilon outside [0, 1], or shapes that differ.
    """
    _check_shapes(probabilities, mask, "probabilities")
    least = uniform(mask, probabilities.dtype).mul_(_row_parameter(epsilon, "epsilon", probabilities, high=1.0))
    minimum = least.amax(1, keepdim=True)
    ranked = probabilities.sort(1, descending=True).values
    rank = torch.arange(1, ranked.shape[1] + 1, device=ranked.device)
    # With the k largest lowered and the others at the minimum, tau is lowered[:, k - 1]; the right k is the largest
    # whose k-th probability stays above the minimum.
    lowered = (ranked.cumsum(1) + (_count(mask) - rank) * minimum - 1) / rank
    above = ((ranked - lowered > minimum) & (rank <= _count(mask))).sum(1, keepdim=True)
    tau = lowered.gather(1, (above - 1).clamp_(min=0)).clamp_(min=0)
    return torch.maximum(probabilities - tau, least)


def _gaps_and_best(scores: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """f(b) - f(a), inf where masked, ``(n, K)`` and free to overwrite; and b, ``(n,)`` int64."""
    _check_shapes(scores, mask, "scores")
    # 1 / mask - 1 is 0 or inf. Ten times faster than torch.where, whose branches an irregular mask defeats.
    costs = _as_numbers(mask, scores.dtype).reciprocal_().sub_(1).sub_(scores)
    least = costs.amin(1, keepdim=True)
    if not least.isfinite().all():
        # A row is at fault, or a masked score that is not finite came through the subtraction.
        costs = torch.where(mask, -scores, math.inf)
        least = costs.amin(1, keepdim=True)
        refuse_rows("available actions", mask.sum(1), mask.any(1), "at least 1")
        refuse_rows("scores", -least[:, 0], least[:, 0].isfinite(), "finite where an action is available")
    gaps = costs.sub_(least)
    # Four times faster than argmax: the least id among the gaps of 0, all others being far away.
    ids = torch.arange(gaps.shape[1], dtype=gaps.dtype, device=gaps.device)
    return gaps, torch.add(ids, gaps, alpha=torch.finfo(gaps.dtype).max).amin(1).long()


def _as_numbers(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """0 and 1, six times faster than from bool."""
    return mask.view(torch.uint8).to(dtype)


def _count(mask: Tensor) -> Tensor:
    """n_A, ``(n, 1)``."""
    return mask.view(torch.uint8).sum(1, keepdim=True, dtype=torch.int32)


def _check_mask(mask: Tensor) -> None:
    if mask.ndim != 2 or mask.dtype != torch.bool or not mask.shape[1]:
        raise InputError(f"mask of shape {tuple(mask.shape)}, {mask.dtype}: must be (rows, actions) of torch.bool")


def _check_shapes(values: Tensor, mask: Tensor, name: str) -> None:
    _check_mask(mask)
    if values.shape != mask.shape or values.dtype not in (torch.float32, torch.float64):
        raise InputError(
            f"{name} of shape {tuple(values.shape)}, {values.dtype}: must have the mask's shape {tuple(mask.shape)} "
            "and be torch.float32 or torch.float64"
        )


def _row_parameter(
    value: float | Tensor, name: str, like: Tensor, *, low: float = 0.0, high: float | None = None
) -> Tensor:
    """A number for each row, checked to be in [low, high] or, without ``high``, finite; ``(1, 1)`` or ``(n, 1)``."""
    rows = torch.as_tensor(value, dtype=like.dtype, device=like.device).reshape(-1)
    if len(rows) not in (1, len(like)):
        raise InputError(f"{name} of {len(rows)} values: must be 1 value, or {len(like)}, one a row")
    most = torch.finfo(like.dtype).max if high is None else high
    allowed = f"at least {low:g} and " + ("finite" if high is None else f"at most {high:g}")
    refuse_rows(name, rows, (rows >= low) & (rows <= most), allowed)
    return rows[:, None]

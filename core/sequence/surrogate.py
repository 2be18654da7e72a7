"""The ratio of the current policy to the one that sampled, and which tokens stand out by a number."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from core.bandits.philox import WORD, philox_uniform
from core.errors import InputError
from core.sequence.batch import TokenBatch, TokenScores
from core.sequence.reductions import reduce, wide

LIMIT = 20.0
"""Log-ratios are cut to this size: their exponentials stay finite in single precision."""
SAME = 1e-5
"""Log-ratios up to this size are what rounding alone explains, where a policy samples token by token in single
precision and scores in parallel. Those of half-precision policies are larger."""
Metrics = dict[str, Tensor]


def log_ratio(
    scores: TokenScores, batch: TokenBatch, level: Literal["token", "sequence"] = "token"
) -> tuple[Tensor, Metrics]:
    """``(B, T)`` log pi - log pi_old, 0 where not ``mask``, cut to +-20; and how many were cut, the KL divergence.

    Level ``sequence`` gives all tokens of a row their mean (Zheng et al. 2025, GSPO, arXiv 2507.18071). The divergence
    of the new policy from the old is the mean over tokens, at either level, of e^x - 1 - x, drawn from the old.

    Raises:
        InputError: a token that was drawn has an old log-probability of -inf.
    """
    old, mask = wide(batch.need("log_prob_old")), batch.mask
    impossible = (torch.isneginf(old) & mask).any(1)
    if bool(impossible.any()):
        row = int(impossible.int().argmax())
        raise InputError(
            f"TokenBatch.log_prob_old: row {row} holds -inf at a valid token; what was drawn is above -inf"
        )
    raw = torch.where(mask, wide(scores.log_prob) - old, 0.0)
    token = raw.detach().clamp(-LIMIT, LIMIT)
    if level == "sequence":
        raw = (raw.sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)).expand_as(raw)
    metrics = {
        "cut_ratios": (raw.detach().abs() > LIMIT).logical_and(mask).sum().float(),
        "kl": reduce(token.exp() - 1 - token, mask, "token"),
    }
    return raw.clamp(-LIMIT, LIMIT), metrics


def ratio_loss(log_ratio: Tensor, advantage: Tensor, clip: tuple[float, float] | None = None) -> tuple[Tensor, Tensor]:
    """``(B, T)`` -A rho, or the larger of it and -A clip(rho, 1 - low, 1 + high); bool, where the second is larger.

    Schulman et al. 2017, arXiv 1707.06347.

    Args:
        log_ratio: ``(B, T)``, see above.
        advantage: ``(B, T)`` A.
        clip: low and high; None leaves clipping out.
    """
    rho = log_ratio.exp()
    plain = -advantage * rho
    if clip is None:
        return plain, torch.zeros_like(plain, dtype=torch.bool)
    clipped = -advantage * rho.clamp(1 - clip[0], 1 + clip[1])
    return torch.maximum(plain, clipped), (clipped > plain).detach()


def covariance(log_prob: Tensor, advantage: Tensor, mask: Tensor) -> Tensor:
    """``(B, T)`` (A - mean A)(log pi - mean log pi) over the valid tokens, without a graph; 0 where not ``mask``.

    Exactly 0 where all advantages are equal.
    """
    n = mask.sum().clamp(min=1)
    a, lp = (torch.where(mask, wide(x.detach()), 0.0) for x in (advantage, log_prob))
    if not a.numel():
        return a
    spread = torch.where(mask, a, -torch.inf).max() > torch.where(mask, a, torch.inf).min()
    return torch.where(mask & spread, (a - a.sum() / n) * (lp - lp.sum() / n), 0.0)


def lots(log_prob: Tensor) -> Tensor:
    """``(B, T)`` uniform numbers in [0, 1), functions of each token's place and the bits of its log-probability.

    So a loss that draws lots is a function of what it is given: a training that is resumed draws the same, and every
    step of an optimiser, which moves the log-probabilities, draws anew.
    """
    bits = log_prob.detach().float().contiguous().view(torch.int32).flatten().long().bitwise_and(WORD)
    counter = bits.new_zeros(len(bits), 4)
    counter[:, 0], counter[:, 1] = bits, torch.arange(len(bits), device=bits.device)
    return philox_uniform(bits.new_zeros(2), counter).view_as(log_prob)


def largest(x: Tensor, allowed: Tensor, count: Tensor) -> Tensor:
    """``(B, T)`` bool: the ``count`` largest of the allowed entries of x, or all if there are fewer."""
    order = x.masked_fill(~allowed, -torch.inf).flatten().argsort(descending=True, stable=True)
    chosen = torch.zeros_like(order, dtype=torch.bool)
    chosen[order] = torch.arange(len(order), device=x.device) < count
    return chosen.view_as(allowed) & allowed


def share_count(ratio: float, mask: Tensor) -> Tensor:
    """Number of tokens that a share of the valid ones comes to, at least 1."""
    return (mask.sum().double() * ratio).floor().clamp(min=1)

"""How a policy's entropy falls in training, and what drives it (Cui et al. 2025, arXiv 2505.22617).

To first order a change dz of a softmax policy's logits changes its entropy by -Cov_{a ~ pi}(log pi(a), dz(a)):
rewarding what is probable already lowers it. Where nothing restrains this, the reward follows R = -a exp(H) + b over a
training.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from core.sequence.batch import TokenBatch, TokenScores
from core.sequence.clusters import tied_groups
from core.sequence.reductions import check, group_size, per_row, reduce, wide
from core.sequence.surrogate import covariance, log_ratio
from core.stats.interval import Interval, Sample, as_sample, check_level, check_paired

COLLAPSED, FLAT = 1e-3, 1e-3
"""Entropy in nats, and change of the mean reward, below which a policy has collapsed."""


def entropy_change(logits: Tensor, delta_logits: Tensor) -> Tensor:
    """``(...)`` first-order change of the entropies of softmax policies ``(..., V)``, -Cov(log pi, dz)."""
    log_p = wide(logits).log_softmax(-1)
    p = log_p.exp()
    centred = log_p - (p * log_p).sum(-1, keepdim=True)
    return -(p * centred * wide(delta_logits)).sum(-1)


@dataclass(frozen=True)
class EntropyMonitor:
    """Numbers of one minibatch that show whether its policy is about to collapse.

    Attributes:
        quantiles: of the tokens' entropies that are logged.
        shares: of the tokens of highest covariance, whose mean is logged.
    """

    quantiles: tuple[float, ...] = (0.5, 0.8, 0.95, 0.99)
    shares: tuple[float, ...] = (2e-4, 2e-3, 2e-2)

    def __post_init__(self) -> None:
        for name in ("quantiles", "shares"):
            found = getattr(self, name)
            check(f"EntropyMonitor.{name}", found, all(0 < x < 1 for x in found), "between 0 and 1")

    @torch.no_grad()
    def update(self, scores: TokenScores, batch: TokenBatch) -> dict[str, Tensor]:
        """Scalars to be logged, as far as the fields they need are there; none where no token is valid.

        ``entropy`` (a mean over tokens, nats) and its quantiles ``entropy_q50``..; of the covariance of advantages and
        log-probabilities the mean ``cov``, that of the highest tokens ``cov_top_0.02%``.. and the share of positive
        ones; ``entropy_slope`` = -cov, what a natural-gradient step changes the entropy by, a unit of step size; the
        divergence ``kl`` from the policy that sampled; ``reward`` of a sequence; ``tied``, the share of prompts whose
        rewards are all equal.
        """
        mask, found = batch.mask, dict[str, Tensor]()
        if not bool(mask.any()):
            return found
        if scores.entropy is not None:
            entropy = wide(scores.entropy)
            found["entropy"] = reduce(entropy, mask, "token")
            q = torch.tensor(self.quantiles, dtype=entropy.dtype, device=entropy.device)
            values = torch.nanquantile(torch.where(mask, entropy, torch.nan).flatten(), q)
            found |= {f"entropy_q{100 * name:g}": x for name, x in zip(self.quantiles, values, strict=True)}
        if batch.advantage is not None:
            cov = covariance(scores.log_prob, batch.advantage, mask)
            found["cov"] = reduce(cov, mask, "token")
            found["cov_positive"] = reduce((cov > 0).float(), mask, "token")
            found["entropy_slope"] = -found["cov"]
            sums = cov.masked_fill(~mask, -torch.inf).flatten().sort(descending=True).values.cumsum(0)
            for part in self.shares:
                n = (mask.sum() * part).long().clamp(min=1)
                found[f"cov_top_{100 * part:g}%"] = sums[n - 1] / n
        if batch.log_prob_old is not None:
            found["kl"] = log_ratio(scores, batch)[1]["kl"]
        if batch.reward is not None:
            reward = per_row(batch.reward, mask)
            weight = 1 / group_size(batch.group)
            found["reward"] = reward.mean()
            found["tied"] = (tied_groups(reward, batch.group) * weight).sum() / weight.sum()
        return found


@dataclass(frozen=True)
class EntropyLaw:
    """R = -a exp(H) + b.

    Attributes:
        a: reward that is bought, per exp(nat).
        b: reward at which exp(H) would be 0.
        r2: share of the reward's variance that the law explains.
        ceiling: b - a, the reward of a policy without entropy, with its bootstrap interval.
    """

    a: float
    b: float
    r2: float
    ceiling: Interval

    def reward(self, entropy: Sample) -> np.ndarray:
        """What the law says of policies of these entropies, in nats."""
        return self.b - self.a * np.exp(np.asarray(entropy, dtype=np.float64))


def fit_entropy_law(
    entropy: Sample, reward: Sample, *, blocks: int = 20, level: float = 0.95, resamples: int = 2_000, seed: int = 0
) -> EntropyLaw:
    """Least squares of the rewards of a training's updates on exp of the entropies.

    Consecutive updates are alike, so the interval is that of a bootstrap over blocks of them. The law is fitted within
    one training, in which both change with time: that alone gives part of its r2. Fit it on the first updates and ask
    ``EntropyLaw.reward`` for the others to see what it foretells.

    Args:
        entropy: one an update, in order, in nats.
        reward: one an update.
        blocks: into which the updates are cut.
        level: of the interval.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        InputError: the lengths differ, a value is not finite, the entropies are all equal, or there are fewer updates
            than blocks or than 3.
    """
    h, r = as_sample(entropy, "entropy"), as_sample(reward, "reward")
    check_paired(h, r)
    check_level(level)
    check("blocks", blocks, 2 <= blocks <= len(h), f"in [2, {len(h)}], the number of updates")
    check("entropy", float(h[0]), bool(np.ptp(h) > 0), "accompanied by another value; the entropies are all equal")
    x = np.exp(h)
    sums = np.stack([np.ones_like(x), x, r, x * x, x * r], 1)
    parts = np.stack([part.sum(0) for part in np.array_split(sums, blocks)])
    b, slope = _line(sums.sum(0))
    draws = np.random.default_rng(seed).integers(blocks, size=(resamples, blocks))
    ends = sum(_line(parts[draws].sum(1)))
    low, high = np.nanquantile(ends, [(1 - level) / 2, (1 + level) / 2])
    rest, total = r - b - slope * x, r - r.mean()
    r2 = 1 - float(rest @ rest) / float(total @ total) if np.ptp(r) > 0 else 0.0
    ceiling = Interval(float(b + slope), float(low), float(high), len(h), level)
    return EntropyLaw(-float(slope), float(b), r2, ceiling)


def _line(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Intercepts and slopes ``(...)`` from ``(..., 5)`` sums of 1, x, y, x^2, x y; NaN where all x are equal."""
    n, x, y, xx, xy = np.moveaxis(sums, -1, 0)
    spread = n * xx - x * x
    slope = np.divide(n * xy - x * y, spread, out=np.full_like(spread, np.nan), where=spread > 1e-12 * xx * n)
    return (y - slope * x) / n, slope


def entropy_alarm(entropy: Sequence[float], reward: Sequence[float], window: int = 50) -> str | None:
    """What is wrong with the entropies of a training's last updates, in words; None if nothing is.

    Collapse: below 1e-3 nats while the mean rewards of the two halves of the last ``window`` updates differ by no more
    than 1e-3 and twice the standard error of that difference. Explosion: three times that of ``window`` updates ago.
    """
    h, r = entropy[-window:], reward[-window:]
    if len(h) < window:
        return None
    half = window // 2
    before, after = r[:half], r[half:]
    error = math.sqrt(statistics.variance(before) / len(before) + statistics.variance(after) / len(after))
    if h[-1] < COLLAPSED and abs(statistics.fmean(after) - statistics.fmean(before)) <= 2 * error + FLAT:
        return f"the policy's entropy has collapsed to {h[-1]:.1e} nats and its reward stands still"
    if h[-1] > 3 * h[0]:
        return f"the policy's entropy has risen from {h[0]:.3g} to {h[-1]:.3g} nats within {window} updates"
    return None

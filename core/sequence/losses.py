"""Objectives over token sequences: frozen dataclasses of hyper-parameters, called with scores and a batch.

Those that are sums over tokens have ``terms`` ``(B, T)``; ``how`` says how terms become one number, ``need`` what they
read of the scores beyond ``log_prob``. ``EntropyBonus`` and ``ForkingTokens`` wrap another. RLOO is ``Reinforce`` on
``LeaveOneOut`` advantages, Dr.GRPO ``GRPO(how="constant")`` on ``GroupRelative(scale=None)``, GSPO
``GRPO(level="sequence", how="sequence")``, clip-higher ``GRPO(high=.28)``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import ConfigDict, Field
from torch import Tensor
from torch.nn import functional as F

from core.sequence.batch import LossResult, TokenBatch, TokenScores
from core.sequence.policy import NOTHING
from core.sequence.reductions import How, check, check_groups, group_max, group_sum, per_row, reduce, wide
from core.sequence.surrogate import (
    LIMIT,
    SAME,
    Metrics,
    covariance,
    largest,
    log_ratio,
    lots,
    ratio_loss,
    share_count,
)
from core.sequence.windows import Windowed


class TokenLoss:
    """An objective that is a reduced sum over tokens."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    how: How

    @property
    def need(self) -> frozenset[str]:
        """What is read of the scores beyond ``log_prob``."""
        return NOTHING

    def terms(self, scores: TokenScores, batch: TokenBatch) -> tuple[Tensor, Metrics]:
        """``(B, T)`` what each token adds, and what is logged."""
        raise NotImplementedError

    def __call__(self, scores: TokenScores, batch: TokenBatch) -> LossResult:
        """The loss."""
        terms, metrics = self.terms(scores, batch)
        return LossResult(reduce(terms, batch.mask, self.how), metrics)


@dataclass(frozen=True)
class CrossEntropy(TokenLoss):
    """-log pi of a batch whose tokens are the references."""

    how: How = "token"
    name: Literal["cross_entropy"] = "cross_entropy"

    def terms(self, scores: TokenScores, batch: TokenBatch) -> tuple[Tensor, Metrics]:
        """``(B, T)`` -log pi."""
        return -wide(scores.log_prob), {}


@dataclass(frozen=True)
class CTC:
    """-log of the probability of all labellings that collapse to the reference, over its length (Graves et al. 2006).

    Reads ``logits`` ``(B, T_frames, V)`` and ``frames``; the batch's tokens are the references. References that no
    labelling of so few frames gives count 0, and are counted.

    Attributes:
        blank: the symbol of no character.
        eos: a symbol that is no target; None where the references do not end in one.
    """

    blank: int = 0
    eos: int | None = None
    name: Literal["ctc"] = "ctc"

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    how: ClassVar[How] = "sequence"
    need: ClassVar[frozenset[str]] = frozenset({"logits", "frames"})

    def __call__(self, scores: TokenScores, batch: TokenBatch) -> LossResult:
        """The loss."""
        length = batch.mask.sum(1)
        if self.eos is not None:
            length = length - (batch.mask & (batch.tokens == self.eos)).sum(1)
        log_probs, frames = wide(scores.need("logits")).log_softmax(-1).transpose(0, 1), scores.need("frames")
        nll = F.ctc_loss(log_probs, batch.tokens, frames, length, self.blank, "none", zero_infinity=True)
        # Two equal symbols in a row need a blank between them.
        inside = torch.arange(1, batch.tokens.shape[1], device=length.device) < length.unsqueeze(1)
        repeats = ((batch.tokens[:, 1:] == batch.tokens[:, :-1]) & inside).sum(1)
        impossible = (length + repeats > frames).sum()
        return LossResult((nll / length.clamp(min=1)).mean(), {"impossible": impossible.float()})


@dataclass(frozen=True)
class Reinforce(TokenLoss):
    """-A log pi, the score-function gradient (Williams 1992)."""

    how: How = "row_sum"
    name: Literal["reinforce"] = "reinforce"

    def terms(self, scores: TokenScores, batch: TokenBatch) -> tuple[Tensor, Metrics]:
        """``(B, T)`` -A log pi."""
        return -batch.need("advantage") * wide(scores.log_prob), {}


@dataclass(frozen=True)
class MinimumRisk:
    """Expected risk under the policy renormalised to a prompt's sequences (MWER).

    Prabhavalkar et al. 2018, arXiv 1712.01818. A mean over prompts of sum_g p_g (D_g - mean D), D = -reward, p the
    softmax of the sequences' log-probabilities.

    Raises:
        InputError: on a call, a prompt has one sequence.
    """

    name: Literal["minimum_risk"] = "minimum_risk"

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    how: ClassVar[How] = "row_sum"
    need: ClassVar[frozenset[str]] = NOTHING

    def __call__(self, scores: TokenScores, batch: TokenBatch) -> LossResult:
        """The loss."""
        group, r = batch.group, per_row(batch.need("reward"), batch.mask)
        check_groups(group, "MinimumRisk", every=True)
        lp = per_row(scores.log_prob, batch.mask)
        weight = (lp - group_max(lp.detach(), group)).exp()
        p, n = weight / group_sum(weight, group), group_sum(torch.ones_like(r), group)
        risk = (p * (group_sum(r, group) / n - r)).sum() / (1 / n).sum().clamp(min=1)
        return LossResult(risk, {"largest_share": group_max(p.detach(), group).mean()})


@dataclass(frozen=True)
class GRPO(TokenLoss):
    """The clipped ratio loss of group-relative policy optimisation (Shao et al. 2024, arXiv 2402.03300).

    Attributes:
        low: ratios are clipped below 1 - low.
        high: and above 1 + high; .28 beside .2 is clip-higher (Yu et al. 2025, DAPO, arXiv 2503.14476).
        beta: weight of the divergence from the reference, e^x - 1 - x with x = log pi_ref - log pi.
        how: of the reduction.
        level: ratios of tokens, or of sequences (GSPO; there the clip range is of the order of 3e-4).
    """

    low: float = 0.2
    high: float = 0.2
    beta: float = 0.0
    how: How = "token"
    level: Literal["token", "sequence"] = "token"
    name: Literal["grpo"] = "grpo"

    def __post_init__(self) -> None:
        check("GRPO.low", self.low, 0 <= self.low <= 1, "in [0, 1]")
        check("GRPO.high", self.high, self.high >= 0, "at least 0")
        check("GRPO.beta", self.beta, self.beta >= 0, "at least 0")
        check("GRPO.level", self.level, self.level in ("token", "sequence"), "token or sequence")

    def terms(self, scores: TokenScores, batch: TokenBatch) -> tuple[Tensor, Metrics]:
        """``(B, T)`` the larger of both, and the divergence."""
        x, metrics = log_ratio(scores, batch, self.level)
        terms, clipped = ratio_loss(x, batch.need("advantage"), (self.low, self.high))
        metrics["clipped"] = reduce(clipped.float(), batch.mask, "token")
        if self.beta > 0:
            y = torch.where(batch.mask, wide(batch.need("log_prob_ref")) - wide(scores.log_prob), 0.0)
            y = y.clamp(-LIMIT, LIMIT)
            divergence = y.exp() - y - 1
            metrics["kl_ref"] = reduce(divergence.detach(), batch.mask, "token")
            terms = terms + self.beta * divergence
        return terms, metrics


def clip_higher(how: How = "token") -> GRPO:
    """``GRPO`` with the wider upper range of DAPO."""
    return GRPO(high=0.28, how=how)


@dataclass(frozen=True)
class ClipCov(TokenLoss):
    """Ratio loss from which a few tokens of high covariance are dropped (Cui et al. 2025, arXiv 2505.22617).

    Of the tokens that are not clipped and have low < cov < high, ``ratio`` N of the N valid ones are drawn at random
    and add nothing; the mean still divides by all. The authors' range of the ratios is 1 to both sides, so that their
    clipping hardly acts.

    Attributes:
        ratio: share of the tokens that is dropped; theirs is for batches of 10^5 tokens and drops one of 10^3.
        low: covariance above which a token can be dropped.
        high: and below which.
        clip: how far ratios may fall below and rise above 1.
        how: of the reduction.
    """

    ratio: float = 2e-4
    low: float = 1.0
    high: float = 5.0
    clip: tuple[float, float] = (1.0, 1.0)
    how: How = "token"
    name: Literal["clip_cov"] = "clip_cov"

    def __post_init__(self) -> None:
        check("ClipCov.ratio", self.ratio, 0 < self.ratio <= 1, "in (0, 1]")
        check("ClipCov.high", self.high, self.high > self.low, f"above low = {self.low}")
        check("ClipCov.clip", self.clip, min(self.clip) >= 0 and self.clip[0] <= 1, "(0 to 1, 0 or more)")

    def terms(self, scores: TokenScores, batch: TokenBatch) -> tuple[Tensor, Metrics]:
        """``(B, T)``, 0 of the dropped."""
        x, metrics = log_ratio(scores, batch)
        terms, clipped = ratio_loss(x, batch.need("advantage"), self.clip)
        cov = covariance(scores.log_prob, batch.need("advantage"), batch.mask)
        allowed = batch.mask & (cov > self.low) & (cov < self.high) & ~clipped
        dropped = largest(lots(scores.log_prob), allowed, share_count(self.ratio, batch.mask))
        metrics["clipped"] = reduce(clipped.float(), batch.mask, "token")
        metrics["dropped"] = reduce(dropped.float(), batch.mask, "token")
        return torch.where(dropped, 0.0, terms), metrics


@dataclass(frozen=True)
class KLCov(TokenLoss):
    """Unclipped ratio loss, with beta |log pi - log pi_old| on the tokens of highest covariance (Cui et al. 2025).

    With one update a rollout both policies are the same and the term has no gradient: this is then the plain policy
    gradient. For |A| > beta it weakens a token's update and does not stop it. Only positive covariances are restrained.
    Log-ratios below ``SAME`` count as 0: sampling and scoring round differently, and the term would pull by beta in a
    random direction. In bf16 they differ by more, and there the term does so on-policy.

    Attributes:
        ratio: share of the tokens that is restrained.
        beta: weight of the term.
        how: of the reduction.
    """

    ratio: float = 2e-3
    beta: float = 1.0
    how: How = "token"
    name: Literal["kl_cov"] = "kl_cov"

    def __post_init__(self) -> None:
        check("KLCov.ratio", self.ratio, 0 < self.ratio <= 1, "in (0, 1]")
        check("KLCov.beta", self.beta, self.beta >= 0, "at least 0")

    def terms(self, scores: TokenScores, batch: TokenBatch) -> tuple[Tensor, Metrics]:
        """``(B, T)``, with the term on the chosen."""
        x, metrics = log_ratio(scores, batch)
        terms, _ = ratio_loss(x, batch.need("advantage"))
        cov = covariance(scores.log_prob, batch.need("advantage"), batch.mask)
        chosen = largest(cov, batch.mask & (cov > 0), share_count(self.ratio, batch.mask))
        metrics["restrained"] = reduce(chosen.float(), batch.mask, "token")
        moved = chosen & (x.detach().abs() > SAME)
        return terms + torch.where(moved, self.beta * x.abs(), 0.0), metrics


@dataclass(frozen=True)
class EntropyBonus:
    """Another loss less weight times the policy's entropy, reduced as the other's terms are.

    Attributes:
        inner: the other.
        weight: of the entropy, in nats.
    """

    inner: OnlineLoss
    weight: float = 0.01
    name: Literal["entropy_bonus"] = "entropy_bonus"

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    @property
    def how(self) -> How:
        """Of the inner loss."""
        return self.inner.how

    @property
    def need(self) -> frozenset[str]:
        """What the inner loss reads, and the entropy."""
        return self.inner.need | {"entropy"}

    def __call__(self, scores: TokenScores, batch: TokenBatch) -> LossResult:
        """The loss."""
        found, entropy = self.inner(scores, batch), scores.need("entropy")
        value = found.value - self.weight * reduce(entropy, batch.mask, self.how)
        return LossResult(value, {**found.metrics, "entropy": reduce(entropy.detach(), batch.mask, "token")})


@dataclass(frozen=True)
class ForkingTokens(TokenLoss):
    """Another loss on the tokens of highest entropy alone (Wang et al. 2025, arXiv 2506.01939).

    A token counts where its entropy under the current policy is at or above the 1 - share quantile over the valid
    tokens; nothing that the other loss adds at the rest counts, and the mean still divides by all. Where many tokens
    have entropy 0 the quantile may be 0 and keep all of them.

    Attributes:
        inner: the other, a sum over tokens.
        share: of the tokens that count.
        lowest: let the others count instead, the 1 - share of lowest entropy.
        exact: take the floor(share N) highest, at least 1, also where entropies are equal.

    Raises:
        InputError: a share outside (0, 1], or an inner loss that is no sum over tokens.
    """

    inner: OnlineLoss = field(default_factory=clip_higher)
    share: float = 0.2
    lowest: bool = False
    exact: bool = False
    name: Literal["forking_tokens"] = "forking_tokens"

    def __post_init__(self) -> None:
        check("ForkingTokens.share", self.share, 0 < self.share <= 1, "in (0, 1]")
        check("ForkingTokens.inner", type(self.inner).__name__, hasattr(self.inner, "terms"), "a sum over tokens")

    @property
    def how(self) -> How:  # type: ignore[override]
        """Of the inner loss."""
        return self.inner.how

    @property
    def need(self) -> frozenset[str]:
        """What the inner loss reads, and the entropy."""
        return self.inner.need | {"entropy"}

    def keep(self, entropy: Tensor, mask: Tensor) -> Tensor:
        """``(B, T)`` bool, the tokens that count."""
        entropy = wide(entropy.detach())
        if self.exact:
            high = largest(entropy, mask, share_count(self.share, mask))
        else:
            seen = entropy[mask] if bool(mask.any()) else entropy.new_zeros(1)
            high = entropy >= torch.quantile(seen, 1 - self.share)
        return mask & (high != self.lowest)

    def terms(self, scores: TokenScores, batch: TokenBatch) -> tuple[Tensor, Metrics]:
        """``(B, T)``, 0 of what does not count."""
        inner: Any = self.inner
        terms, metrics = inner.terms(scores, batch)
        keep = self.keep(scores.need("entropy"), batch.mask)
        return torch.where(keep, terms, 0.0), {**metrics, "kept": reduce(keep.float(), batch.mask, "token")}


OnlineLoss = Annotated[
    CrossEntropy | CTC | Reinforce | MinimumRisk | Windowed | GRPO | ClipCov | KLCov | EntropyBonus | ForkingTokens,
    Field(discriminator="name"),
]
"""Any of these by ``name``, for configurations; in Python, any ``Loss`` with ``how`` and ``need`` can be wrapped."""

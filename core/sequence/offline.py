"""Learning from recorded sequences of known reward, by the consistency of values and policy along each of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import ConfigDict
from torch import Tensor
from torch.nn import functional

from core.errors import InputError
from core.sequence.batch import Loss, LossResult, TokenBatch, TokenScores
from core.sequence.policy import SequencePolicy
from core.sequence.reductions import check, per_token, reduce, suffix_sum, wide
from core.sequence.scoring import score_all


@dataclass(frozen=True)
class ReferencedBatch(TokenBatch):
    """Sequences with the whole distribution that a frozen reference has at each token.

    Attributes:
        logits_ref: ``(B, T, V)`` divided by the temperature.
    """

    logits_ref: Tensor | None = None

    def pad_to(self, length: int) -> Self:
        """The batch with T at least ``length``."""
        padded = super().pad_to(length)
        if self.logits_ref is None:
            return padded
        more = padded.tokens.shape[1] - self.tokens.shape[1]
        return padded.with_(logits_ref=functional.pad(self.logits_ref, (0, 0, 0, more)))


def with_reference(
    batch: TokenBatch, reference: SequencePolicy, temperature: float = 1.0, rows: int | None = None
) -> ReferencedBatch:
    """The batch with ``log_prob_ref`` and ``logits_ref`` of a reference, which scores ``rows`` sequences at a time."""
    scores = score_all(reference, batch, temperature, frozenset({"logits"}), rows)
    fields: dict[str, Any] = {name: getattr(batch, name) for name in TokenBatch.__dataclass_fields__}
    return ReferencedBatch(**{**fields, "log_prob_ref": scores.log_prob, "logits_ref": scores.need("logits")})


@dataclass(frozen=True)
class OREO:
    """Offline reasoning optimisation (Wang et al. 2024, arXiv 2412.16145; github.com/jwhj/OREO).

    The policy that maximises reward less beta times KL(pi || pi_ref) satisfies, on every path and from every state of
    it, V(s_t) - R_t + sum_{i >= t} d_i = 0 with d_i = beta (log pi - log pi_ref) and R_t the reward from t on. Critic
    and actor both minimise the square of that residual, the critic by V alone and the actor by d_t alone:

        L_V  = mean (V(s_t) - R_t + sum_{i >= t} sg d_i)^2
        L_pi = mean (sg V(s_t) - R_t + d_t + sum_{i > t} sg d_i)^2 + kl * KL(pi || pi_ref)

    Means are over the steps of a sequence and then over sequences. V is the value of the state before the action. The
    recorded rows need not come from the policy, nor in pairs. The value then guides a search.

    Args:
        beta: temperature.
        kl: weight of KL(pi || pi_ref), of the whole vocabulary at each token; above 0 it needs a ``ReferencedBatch``.
        level: what an action is: a token, a step (``segment``), or the whole response.
        one_step: (V(s_t) - r_t - V(s_{t+1}) + d_t)^2 in place of the sum to the end, differentiated by both values.

    Attributes:
        phases: critic and actor, each of which gets an optimiser step with scores of its own; to call the objective
            itself adds both.

    Raises:
        InputError: a value outside its range.
    """

    beta: float = 0.03
    kl: float = 0.01
    level: Literal["token", "step", "response"] = "token"
    one_step: bool = False
    name: Literal["oreo"] = "oreo"
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    def __post_init__(self) -> None:
        check("OREO.beta", self.beta, 0 < self.beta < math.inf, "above 0 and finite")
        check("OREO.kl", self.kl, 0 <= self.kl < math.inf, "at least 0 and finite")
        check("OREO.level", self.level, self.level in ("token", "step", "response"), "token, step or response")

    @property
    def need(self) -> frozenset[str]:
        """What is read of the scores beyond ``log_prob``."""
        return frozenset({"value", "logits"}) if self.kl else frozenset({"value"})

    @property
    def phases(self) -> tuple[Loss, ...]:
        """Critic, then actor."""
        return _Phase(self.critic, frozenset({"value"})), _Phase(self.actor, self.need)

    def __call__(self, scores: TokenScores, batch: TokenBatch) -> LossResult:
        """The sum of both losses."""
        critic, actor = self.critic(scores, batch), self.actor(scores, batch)
        return LossResult(critic.value + actor.value, critic.metrics | actor.metrics)

    def critic(self, scores: TokenScores, batch: TokenBatch) -> LossResult:
        """The squared residual as a function of the value."""
        steps = self._steps(scores.need("value"), scores.log_prob.detach(), batch)
        value = reduce(self._residual(steps).square(), steps.there, "sequence")
        return LossResult(value, {"critic": value.detach()})

    def actor(self, scores: TokenScores, batch: TokenBatch) -> LossResult:
        """The squared residual as a function of the present action, and the divergence from the reference."""
        steps = self._steps(scores.need("value").detach(), scores.log_prob, batch)
        residual = self._residual(steps)
        if not self.one_step:
            # The value of the sum to the end, the derivative of its first term alone.
            residual = residual.detach() + steps.d - steps.d.detach()
        value = reduce(residual.square(), steps.there, "sequence")
        metrics = {"actor": value.detach()}
        if self.kl:
            divergence = reduce(_divergence(scores.need("logits"), batch), batch.mask, "sequence")
            metrics["kl_ref"] = divergence.detach()
            value = value + self.kl * divergence
        return LossResult(value, metrics)

    def _steps(self, value: Tensor, log_prob: Tensor, batch: TokenBatch) -> _Steps:
        mask = batch.mask
        starts = mask & (mask.cumsum(1) == 1) if self.level == "response" else mask
        if self.level == "step":
            segment = batch.need("segment")
            same = (segment[:, 1:] == segment[:, :-1]) & mask[:, :-1]
            starts = mask & ~functional.pad(same, (1, 0))
        number = (starts.cumsum(1) - 1).clamp(min=0)

        def summed(x: Tensor, where: Tensor) -> Tensor:
            x = torch.where(where, wide(x), 0.0)
            return torch.zeros_like(x).scatter_add(1, number, x)

        count = starts.sum(1, keepdim=True)
        return _Steps(
            value=summed(value, starts),
            d=summed(self.beta * (log_prob - batch.need("log_prob_ref")), mask),
            reward=summed(per_token(batch.need("reward"), mask), mask),
            there=torch.arange(mask.shape[1], device=mask.device) < count,
        )

    def _residual(self, steps: _Steps) -> Tensor:
        if self.one_step:
            return steps.value - steps.reward - functional.pad(steps.value[:, 1:], (0, 1)) + steps.d
        return steps.value + suffix_sum(steps.d - steps.reward, steps.there)


@dataclass(frozen=True)
class _Steps:
    """The actions of each sequence, moved to the front: ``(B, T)`` each, 0 where not ``there``."""

    value: Tensor
    d: Tensor
    reward: Tensor
    there: Tensor


@dataclass(frozen=True)
class _Phase:
    """One of several losses of an objective."""

    loss: Callable[[TokenScores, TokenBatch], LossResult]
    need: frozenset[str]
    name: ClassVar[str] = "phase"

    def __call__(self, scores: TokenScores, batch: TokenBatch) -> LossResult:
        return self.loss(scores, batch)


def _divergence(logits: Tensor, batch: TokenBatch) -> Tensor:
    """``(B, T)`` KL(pi || pi_ref) in nats, in float32 at least."""
    logits_ref = batch.logits_ref if isinstance(batch, ReferencedBatch) else None
    if logits_ref is None:
        raise InputError("OREO.kl: is above 0 and reads logits_ref; must be 0, or the batch come from with_reference")
    log_prob, log_prob_ref = wide(logits).log_softmax(-1), wide(logits_ref).log_softmax(-1)
    # A token that is ruled out (-inf) by both adds nothing.
    difference = torch.where(log_prob > -math.inf, log_prob - log_prob_ref, 0.0)
    return (log_prob.exp() * difference).sum(-1)

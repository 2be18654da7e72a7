"""Learning from comparisons of sequences: DPO and differential information, CPL, and preference degrees.

A comparison is two rows of one ``group``; the one with the higher ``reward`` won.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from pydantic import ConfigDict
from torch import Tensor, nn
from torch.nn import functional

from core.errors import InputError
from core.sequence.batch import LossResult, TokenBatch, TokenScores
from core.sequence.pairs import ordered_pairs
from core.sequence.policy import NOTHING
from core.sequence.reductions import check, group_max, group_sum, per_row, reduce, wide


def margin_loss(
    winner: Tensor,
    loser: Tensor | float,
    *,
    bias: float = 1.0,
    smoothing: float = 0.0,
    squared: bool = False,
    weight: Tensor | None = None,
) -> Tensor:
    """Mean over pairs of -log sigmoid(winner - bias * loser).

    Args:
        winner: ``(N,)`` scores.
        loser: ``(N,)`` scores.
        bias: below 1, pairs in which both scores are low cost more.
        smoothing: probability that a label is wrong (conservative DPO).
        squared: ``(winner - bias * loser - 1/2) ** 2`` in place of the logistic loss (IPO: Azar et al. 2024, arXiv
            2310.12036, eq. 17, times the square of its tau).
        weight: ``(N,)`` of the pairs; equal where None.
    """
    margin = winner - bias * loser
    if squared:
        loss = (margin - 0.5).square()
    else:
        loss = -functional.logsigmoid(margin)
        if smoothing:
            loss = (1 - smoothing) * loss - smoothing * functional.logsigmoid(loser - bias * winner)
    return loss.mean() if weight is None else (weight * loss).sum() / weight.sum()


def did_weights(lp_target: Tensor, lp_ref: Tensor, group: Tensor, beta: float) -> Tensor:
    """Weights ``(B,)``, of sum 1 in each group, that make samples of pi_ref stand for DPO's right losers.

    The differential information q(y) of a target is in proportion to pi*(y) / pi_ref(y) (Won et al. 2025, arXiv
    2505.23761). With winners from pi_ref and losers from pi_l, the probability that w is preferred to l is
    sigmoid(log(pi_ref / pi_l)(w) - log(pi_ref / pi_l)(l)). It equals DPO's model, sigmoid of the difference of
    beta log(pi* / pi_ref), exactly if pi_l is in proportion to pi_ref (pi_ref / pi*)^beta, and then DPO finds pi*. So
    the winners must be drawn from pi_ref too, not picked.

    Args:
        lp_target: ``(B,)`` log-probabilities of the sequences under pi*; where pi* is the reference tilted by a reward,
            ``lp_ref + reward / temperature`` serves.
        lp_ref: ``(B,)`` under pi_ref, which drew them.
        group: ``(B,)``.
        beta: DPO's.
    """
    return _softmax_within(-beta * (lp_target - lp_ref), group)


def did_entropy(lp_target: Tensor, lp_ref: Tensor, group: Tensor) -> Tensor:
    """Entropy ``(B,)`` in nats of q, in proportion to pi*(y) / pi_ref(y), over the rows of each row's group.

    It is log n at most. Low entropy: the target sharpens the reference on a few of the sequences. High entropy: it
    spreads mass, and the log-probability of winners falls in training, which is no fault (Won et al. 2025).
    """
    q = _softmax_within(lp_target - lp_ref, group)
    return -group_sum(q.xlogy(q), group)


@dataclass(frozen=True)
class DPO:
    """Direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290, eq. 7).

    -log sigmoid(beta (h_w - h_l)), h the sum over the counted tokens of log pi - log pi_ref. All pairs of a group whose
    rewards differ are compared; to choose one pair a group, see ``draw_pairs``. That winners lose probability is
    expected where ``did_entropy`` is high.

    Args:
        beta: weight of the reference.
        label_smoothing: probability that a comparison is wrong.
        length_normalised: h is a mean over the tokens.
        ipo: (h_w - h_l - 1 / (2 beta))^2 (Azar et al. 2024, arXiv 2310.12036).

    Raises:
        InputError: a value outside its range, or smoothing together with ``ipo``.
    """

    beta: float = 0.1
    label_smoothing: float = 0.0
    length_normalised: bool = False
    ipo: bool = False
    name: Literal["dpo"] = "dpo"
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    need: ClassVar[frozenset[str]] = NOTHING

    def __post_init__(self) -> None:
        check("DPO.beta", self.beta, 0 < self.beta < math.inf, "above 0 and finite")
        good = 0 <= self.label_smoothing < 0.5 and not (self.ipo and self.label_smoothing)
        check("DPO.label_smoothing", self.label_smoothing, good, "in [0, 0.5), and 0 with ipo")

    def __call__(self, scores: TokenScores, batch: TokenBatch) -> LossResult:
        """The mean over the pairs; 0 where there are none."""
        h = total = per_row(wide(scores.log_prob) - batch.need("log_prob_ref"), batch.mask)
        if self.length_normalised:
            h = h / batch.mask.sum(1).clamp(min=1)
        winner, loser, _ = ordered_pairs(per_row(batch.need("reward"), batch.mask), batch.group)
        metrics = {"pairs": torch.tensor(float(len(winner)))}
        if not len(winner):
            return LossResult(0.0 * h.sum(), metrics)
        won, lost = self.beta * h[winner], self.beta * h[loser]
        value = margin_loss(won, lost, smoothing=self.label_smoothing, squared=self.ipo)
        with torch.no_grad():
            metrics |= {
                "accuracy": (won > lost).float().mean(),
                "margin": (won - lost).mean(),
                "winner_log_ratio": h[winner].mean(),
                "loser_log_ratio": h[loser].mean(),
                "did_entropy": did_entropy(total, torch.zeros_like(total), batch.group).mean(),
            }
        return LossResult(value / self.beta**2 if self.ipo else value, metrics)


@dataclass(frozen=True)
class CPL:
    """Contrastive preference learning (Hejna et al. 2024, arXiv 2310.13639).

    If preferences follow the regret, alpha log pi is the best policy's advantage, and
    -log sigmoid(S_w - bias S_l) with S = sum over the tokens of alpha log pi learns it without reward or reinforcement
    learning. Nothing is discounted, as in the authors' code. For continuous actions ``log_prob`` may be
    -|a - mu|^2, which is all that is read of them. Rows of equal reward count half each way.

    With ``bias`` 1, a shift of all log-probabilities changes nothing; below 1, pairs that are improbable as a whole
    cost more, which keeps the policy near the data. The authors train by cloning alone for the first 40 % of the
    updates and then go on with a new optimiser. Their variants: ``bc`` 1 with ``bias`` 1; and ``reference`` with alpha
    0.2 and ``bias`` 0.75, the reference being the cloned policy. ``reference`` with ``bias`` 1 is DPO, beta = alpha.

    Args:
        alpha: temperature of the advantage.
        bias: in (0, 1].
        bc: weight of the token mean of -log pi over all rows.
        reference: log pi - log pi_ref in place of log pi.
        level: whether whole sequences or their segments are compared, the latter by the sum of their dense rewards.
        pairs: compare within a group (segments: of one number), or all with all of a batch.

    Raises:
        InputError: a value outside its range.
    """

    alpha: float = 0.1
    bias: float = 0.5
    bc: float = 0.0
    reference: bool = False
    level: Literal["sequence", "segment"] = "sequence"
    pairs: Literal["group", "all"] = "group"
    name: Literal["cpl"] = "cpl"
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    need: ClassVar[frozenset[str]] = NOTHING

    def __post_init__(self) -> None:
        check("CPL.alpha", self.alpha, 0 < self.alpha < math.inf, "above 0 and finite")
        check("CPL.bias", self.bias, 0 < self.bias <= 1, "in (0, 1]")
        check("CPL.bc", self.bc, 0 <= self.bc < math.inf, "at least 0 and finite")
        check("CPL.level", self.level, self.level in ("sequence", "segment"), "sequence or segment")
        check("CPL.pairs", self.pairs, self.pairs in ("group", "all"), "group or all")

    def __call__(self, scores: TokenScores, batch: TokenBatch) -> LossResult:
        """The mean over the pairs, 0 where there are none, and the cloning term."""
        log_prob = wide(scores.log_prob)
        if self.reference:
            log_prob = log_prob - batch.need("log_prob_ref")
        if self.level == "segment":
            score, reward, group = _segments(log_prob, batch)
        else:
            score, reward, group = per_row(log_prob, batch.mask), per_row(batch.need("reward"), batch.mask), batch.group
        winner, loser, weight = ordered_pairs(reward, group if self.pairs == "group" else None, ties=True)
        won, lost = self.alpha * score[winner], self.alpha * score[loser]
        value = margin_loss(won, lost, bias=self.bias, weight=weight) if len(winner) else 0.0 * score.sum()
        metrics = {
            "pairs": weight.sum(),
            "accuracy": ((won > lost) * weight).sum().detach() / weight.sum().clamp(min=1),
        }
        if self.bc:
            cloning = reduce(-scores.log_prob, batch.mask, "token")
            metrics["bc"] = cloning.detach()
            value = value + self.bc * cloning
        return LossResult(value, metrics)


@dataclass(frozen=True)
class GradedBatch(TokenBatch):
    """Sequences of which key content was removed to some degree; see ``PreferenceDegree``.

    Attributes:
        level: ``(B,)`` int64, 0 for a sequence that is whole.
    """

    level: Tensor | None = None


@dataclass(frozen=True)
class PreferenceDegree:
    """A preference loss that must also tell how much key content a sequence has lost.

    Self-supervised preference optimisation (Li et al. 2024, arXiv 2409.17791): L = L_preference + weight * CE, where a
    linear head on the mean of the hidden states of a sequence predicts the level of removal. There is no public code;
    the number of levels and the weight are ours. A head that is an attribute of the policy is trained and stored with
    it.

    Args:
        head: ``Linear(D, levels + 1)``.
        remove: ``remove(batch, j)``, copies of all rows with key content removed to the degree j >= 1.
        weight: of the cross-entropy.
        inner: the preference loss, which sees the whole sequences only.

    Raises:
        InputError: a weight below 0, or a head of fewer than two classes.
    """

    head: nn.Linear
    remove: Callable[[TokenBatch, int], TokenBatch]
    weight: float = 0.1
    inner: DPO | CPL = field(default_factory=DPO)
    need: ClassVar[frozenset[str]] = frozenset({"hidden"})

    def __post_init__(self) -> None:
        check("PreferenceDegree.weight", self.weight, 0 <= self.weight < math.inf, "at least 0 and finite")
        check("PreferenceDegree.levels", self.levels, self.levels >= 1, "at least 1, one less than the head's classes")

    @property
    def levels(self) -> int:
        """The highest level of removal."""
        return self.head.out_features - 1

    def graded(self, batch: TokenBatch) -> GradedBatch:
        """All rows as they are, then those of level 1, and so on; this is what ``__call__`` wants to be scored.

        Above level 0, reward, advantage and the log-probabilities of sampler and reference are 0: nothing reads them.
        """
        parts = []
        for level in range(self.levels + 1):
            part = self.remove(batch, level).with_(context=batch.context) if level else batch
            fields = {f.name: getattr(part, f.name) for f in dataclasses.fields(TokenBatch)}
            if level:
                # They belong to the tokens that were there before, and T may have changed.
                stale = [n for n in ("log_prob_old", "log_prob_ref", "advantage", "reward") if fields[n] is not None]
                zeros = torch.zeros(part.tokens.shape, device=part.tokens.device)
                fields |= {name: zeros if fields[name].dim() == 2 else zeros[:, 0] for name in stale}
            parts.append(GradedBatch(**fields, level=torch.full_like(part.group, level)))
        return GradedBatch.joined(parts)

    def __call__(self, scores: TokenScores, batch: TokenBatch) -> LossResult:
        """The inner loss on level 0 plus the cross-entropy of the level on all rows."""
        if not isinstance(batch, GradedBatch) or batch.level is None:
            raise InputError("PreferenceDegree: needs a batch from its method graded")
        whole = batch.level == 0
        inner = self.inner(TokenScores(scores.log_prob[whole]), batch.with_(context=None)[whole])
        hidden = scores.need("hidden")
        mask = batch.mask.unsqueeze(-1)
        mean = torch.where(mask, wide(hidden), 0.0).sum(1) / mask.sum(1).clamp(min=1)
        logits = self.head(mean.to(self.head.weight.dtype))
        degree = functional.cross_entropy(logits, batch.level)
        accuracy = (logits.argmax(-1) == batch.level).float().mean()
        metrics = {**inner.metrics, "degree": degree.detach(), "degree_accuracy": accuracy}
        return LossResult(inner.value + self.weight * degree, metrics)


def _segments(x: Tensor, batch: TokenBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Sums of x, sums of the dense reward, and groups of the segments of all rows, ``(N,)`` each."""
    reward, mask = batch.need("reward"), batch.mask
    if reward.dim() == 1:
        raise InputError("reward of shape (B,): must be (B, T) to compare segments")
    group = batch.group.unsqueeze(1).expand_as(mask)
    row = torch.arange(len(mask), device=mask.device).unsqueeze(1).expand_as(mask)
    found, token = torch.unique(
        torch.stack([group[mask], batch.need("segment")[mask], row[mask]], 1), dim=0, return_inverse=True
    )

    def summed(values: Tensor) -> Tensor:
        return values.new_zeros(len(found)).index_add(0, token, values[mask])

    _, number = torch.unique(found[:, :2], dim=0, return_inverse=True)
    return summed(x), summed(wide(reward)), number


def _softmax_within(x: Tensor, group: Tensor) -> Tensor:
    """``(B,)`` softmax of x over the rows of each group."""
    e = (x - group_max(x, group)).exp()
    return e / group_sum(e, group)

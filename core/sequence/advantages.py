"""What a token is credited with: estimators that fill ``advantage`` ``(B, T)`` of a batch from its rewards.

Each is a frozen dataclass, called with a batch. Rewards ``(B,)`` are of sequences, ``(B, T)`` of tokens; where one kind
is needed the other is summed, or set at the last valid token.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import torch
from pydantic import ConfigDict, Field
from torch import Tensor

from core.sequence.batch import TokenBatch
from core.sequence.clusters import Cluster, cluster_ids, cluster_mass, semantic_entropy, tied_groups
from core.sequence.reductions import (
    check,
    check_groups,
    group_max,
    group_size,
    group_sum,
    per_row,
    per_token,
    standardised,
    suffix_sum,
    wide,
)

if TYPE_CHECKING:
    from core.sequence.batch import Estimator

Scale = Literal["group", "batch"]
"""Whose standard deviation divides the advantages of a group."""


def group_relative(r: Tensor, group: Tensor, scale: Scale | None = "group", eps: float = 1e-6) -> Tensor:
    """``(B,)`` (r - mean)/(std + eps) over the rows of each group (Shao et al. 2024, GRPO, arXiv 2402.03300).

    The deviation is of the group or of the whole batch, over n - 1; None divides by nothing (Dr.GRPO). A row that is
    alone in its group keeps its reward (over 1 + eps), as if the mean were 0 and the deviation 1. Where all rewards of
    a group are equal it is exactly 0.

    Args:
        r: ``(B,)`` rewards.
        group: ``(B,)`` int64.
        scale: whose deviation.
        eps: added to it.
    """
    r, n = wide(r), group_size(group)
    centred = torch.where(n == 1, r, torch.where(tied_groups(r, group), 0.0, r - group_sum(r, group) / n))
    if scale is None:
        return centred
    if scale == "batch":
        std = r.std() if len(r) > 1 else r.new_ones(())
    else:
        std = (group_sum(centred.square(), group) / (n - 1).clamp(min=1)).sqrt()
    return centred / (torch.where(n == 1, 1.0, std) + eps)


def leave_one_out(r: Tensor, group: Tensor) -> Tensor:
    """``(B, ...)`` r less the mean of the other rows of its group, which is G/(G - 1) (r - mean).

    A row that is alone keeps its own. Kool et al. 2019; Ahmadian et al. 2024 (RLOO, arXiv 2402.14740).
    """
    r, n = wide(r), group_size(group).reshape(-1, *(1,) * (r.dim() - 1))
    return r - (group_sum(r, group) - r) / (n - 1).clamp(min=1)


class _Estimator:
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class Whole(_Estimator):
    """Every token gets the reward of its whole sequence: REINFORCE with no baseline."""

    name: Literal["whole"] = "whole"

    def __call__(self, batch: TokenBatch) -> TokenBatch:
        """The batch with its ``advantage``."""
        return _of_rows(batch, per_row(batch.need("reward"), batch.mask))


@dataclass(frozen=True)
class RewardToGo(_Estimator):
    """A token gets what its sequence earns from there on, sum over u >= t of gamma^(u - t) r_u.

    Attributes:
        gamma: discount a token, in [0, 1].
    """

    gamma: float = 1.0
    name: Literal["reward_to_go"] = "reward_to_go"

    def __post_init__(self) -> None:
        check("RewardToGo.gamma", self.gamma, 0 <= self.gamma <= 1, "in [0, 1]")

    def __call__(self, batch: TokenBatch) -> TokenBatch:
        """The batch with its ``advantage``."""
        r = per_token(batch.need("reward"), batch.mask)
        return batch.with_(advantage=torch.where(batch.mask, suffix_sum(r, batch.mask, self.gamma), 0.0))


@dataclass(frozen=True)
class StandardisedReturns(_Estimator):
    """Discounted reward-to-go, standardised over the steps of its own sequence.

    What the public code of Luo et al. (2020, FG, arXiv 2003.03983) does before windows are added. It compares the steps
    of one sequence with each other: a good sequence earns no more than a bad one.

    Attributes:
        gamma: discount a token, in [0, 1].
    """

    gamma: float = 0.95
    name: Literal["standardised_returns"] = "standardised_returns"

    def __post_init__(self) -> None:
        check("StandardisedReturns.gamma", self.gamma, 0 <= self.gamma <= 1, "in [0, 1]")

    def __call__(self, batch: TokenBatch) -> TokenBatch:
        """The batch with its ``advantage``."""
        returns = suffix_sum(per_token(batch.need("reward"), batch.mask), batch.mask, self.gamma)
        return batch.with_(advantage=standardised(returns, batch.mask, torch.finfo(torch.float32).eps))


@dataclass(frozen=True)
class GroupRelative(_Estimator):
    """``group_relative`` of the sequences' rewards.

    Attributes:
        scale: whose deviation divides; None is Dr.GRPO.
        eps: added to it.

    Raises:
        InputError: on a call, no prompt has two sequences.
    """

    scale: Scale | None = "group"
    eps: float = 1e-6
    name: Literal["group_relative"] = "group_relative"

    def __post_init__(self) -> None:
        check("GroupRelative.scale", self.scale, self.scale in ("group", "batch", None), "group, batch or None")
        check("GroupRelative.eps", self.eps, self.eps > 0, "above 0")

    def __call__(self, batch: TokenBatch) -> TokenBatch:
        """The batch with its ``advantage``."""
        check_groups(batch.group, "GroupRelative")
        r = per_row(batch.need("reward"), batch.mask)
        return _of_rows(batch, group_relative(r, batch.group, self.scale, self.eps))


@dataclass(frozen=True)
class LeaveOneOut(_Estimator):
    """``leave_one_out`` of the sequences' rewards; with ``Reinforce`` this is RLOO.

    Raises:
        InputError: on a call, no prompt has two sequences.
    """

    name: Literal["leave_one_out"] = "leave_one_out"

    def __call__(self, batch: TokenBatch) -> TokenBatch:
        """The batch with its ``advantage``."""
        check_groups(batch.group, "LeaveOneOut")
        return _of_rows(batch, leave_one_out(per_row(batch.need("reward"), batch.mask), batch.group))


Plain = Annotated[Whole | RewardToGo | StandardisedReturns | GroupRelative | LeaveOneOut, Field(discriminator="name")]
"""The estimators that need no other."""


@dataclass(frozen=True)
class SemanticEntropyScale(_Estimator):
    """Smaller advantages for prompts whose answers disagree in meaning (Chen et al. 2025, SEED-GRPO, arXiv 2505.12346).

    The advantages of another estimator times f(alpha SE/log G), SE the entropy of a prompt's G answers over clusters of
    equal meaning. The paper's -(1/K) sum_k log p_k (``mean_log``) grows without bound as one p_k vanishes; the
    default -sum_k p_k log p_k stays in [0, log G]. The quotient is cut to [0, 1].

    Attributes:
        alpha: strength, in [0, 1]; 0 changes nothing.
        f: ``linear`` 1 - x, ``exp`` e^-x, ``focal`` (1 - x)^focus.
        focus: exponent of ``focal``.
        cluster: ``exact`` (the same tokens), or a function from a batch to ids ``(B,)``.
        mass: p_k are shares of the answers' probability, or of their number.
        entropy: of the two formulas.
        inner: whose advantages are scaled.
    """

    alpha: float = 0.5
    f: Literal["linear", "exp", "focal"] = "linear"
    focus: float = 2.0
    cluster: Cluster = "exact"
    mass: Literal["probability", "count"] = "probability"
    entropy: Literal["entropy", "mean_log"] = "entropy"
    inner: Plain = field(default_factory=lambda: GroupRelative(scale=None))
    name: Literal["semantic_entropy"] = "semantic_entropy"

    def __post_init__(self) -> None:
        check("SemanticEntropyScale.alpha", self.alpha, 0 <= self.alpha <= 1, "in [0, 1]")
        check("SemanticEntropyScale.f", self.f, self.f in ("linear", "exp", "focal"), "linear, exp or focal")
        check("SemanticEntropyScale.focus", self.focus, self.focus > 0, "above 0")
        check("SemanticEntropyScale.mass", self.mass, self.mass in ("probability", "count"), "probability or count")
        formulas = ("entropy", "mean_log")
        check("SemanticEntropyScale.entropy", self.entropy, self.entropy in formulas, "entropy or mean_log")

    def factor(self, batch: TokenBatch) -> Tensor:
        """``(B,)`` in [0, 1], the same for all sequences of a prompt."""
        ids = cluster_ids(batch, self.cluster)
        lp = per_row(batch.need("log_prob_old"), batch.mask) if self.mass == "probability" else None
        spread = semantic_entropy(ids, batch.group, lp, self.entropy)
        most = group_size(batch.group).log().clamp(min=math.log(2))
        x = self.alpha * (spread / most).clamp(0, 1)
        if self.f == "exp":
            return (-x).exp()
        return 1 - x if self.f == "linear" else (1 - x) ** self.focus

    def __call__(self, batch: TokenBatch) -> TokenBatch:
        """The batch with its ``advantage``."""
        inner: Estimator = self.inner
        found = inner(batch)
        return found.with_(advantage=found.need("advantage") * self.factor(batch).unsqueeze(1))


@dataclass(frozen=True)
class SemanticShare:
    """Reward without labels: the share of a prompt's answers that mean the same (Zhang et al. 2025, EMPO).

    arXiv 2504.05812. Its expectation is sum_k p_k^2 of the clusters' probabilities: it sharpens the majority, also a
    wrong one.

    Attributes:
        cluster: ``exact``, or a function from a batch to ids ``(B,)``.
        guard: prompts that get 0 throughout: of ``max_entropy`` all answers differ; of ``majority`` the largest cluster
            holds less than ``threshold`` of them.
        threshold: of ``majority``; the authors' later code has .25, for free-form answers .2.
    """

    cluster: Cluster = "exact"
    guard: Literal["max_entropy", "majority"] | None = "max_entropy"
    threshold: float = 0.25

    def __post_init__(self) -> None:
        check("SemanticShare.threshold", self.threshold, 0 < self.threshold <= 1, "in (0, 1]")
        guards = ("max_entropy", "majority", None)
        check("SemanticShare.guard", self.guard, self.guard in guards, "max_entropy, majority or None")

    def __call__(self, batch: TokenBatch) -> Tensor:
        """``(B,)`` rewards.

        Raises:
            InputError: no prompt has two sequences, or the clusters have a wrong shape.
        """
        check_groups(batch.group, "SemanticShare")
        found, largest = _cluster_shares(batch, self.cluster)
        if self.guard == "max_entropy":
            # All differ: every cluster has one of the n answers.
            found = torch.where(largest * group_size(batch.group) < 1.5, 0.0, found)
        elif self.guard == "majority":
            found = torch.where(largest < self.threshold, 0.0, found)
        return found


@dataclass(frozen=True)
class Voting:
    """Reward 1 for the answers of a prompt's largest cluster, of all that are equally large; else 0."""

    cluster: Cluster = "exact"

    def __call__(self, batch: TokenBatch) -> Tensor:
        """``(B,)`` rewards.

        Raises:
            InputError: no prompt has two sequences, or the clusters have a wrong shape.
        """
        check_groups(batch.group, "Voting")
        found, largest = _cluster_shares(batch, self.cluster)
        return (found == largest).float()


def random_reward(batch: TokenBatch, generator: torch.Generator | None = None) -> Tensor:
    """``(B,)`` 0 or 1 at even odds: the control that shows what a reward without information does."""
    device = batch.tokens.device if generator is None else generator.device
    return torch.randint(0, 2, (len(batch),), generator=generator, device=device).to(batch.tokens.device).float()


def _cluster_shares(batch: TokenBatch, cluster: Cluster) -> tuple[Tensor, Tensor]:
    """``(B,)`` share of each answer's cluster among its prompt's answers, and that of the prompt's largest."""
    found = cluster_mass(cluster_ids(batch, cluster), batch.group)
    return found, group_max(found, batch.group)


def _of_rows(batch: TokenBatch, advantage: Tensor) -> TokenBatch:
    return batch.with_(advantage=torch.where(batch.mask, advantage.unsqueeze(1), 0.0))

"""Pseudo-convolutional policy gradient: rewards and losses that meet in windows over the tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import ConfigDict
from torch import Tensor

from core.sequence.advantages import leave_one_out
from core.sequence.batch import LossResult, TokenBatch, TokenScores
from core.sequence.policy import NOTHING
from core.sequence.reductions import check, check_groups, per_token, reduce, standardised, wide

_EPS = torch.finfo(torch.float32).eps


@dataclass(frozen=True)
class Windowed:
    """Mean over sequences of (1/k) sum_i (sum_j w_j r_{q_i + j}) (sum_j w_j l_{q_i + j}) (Luo et al. 2020).

    r_t is the reward of token t, l_t = -log pi of it, both 0 outside the sequence; the k-wide windows begin at
    q_i = -(k - 1) + i s. The paper (FG, arXiv 2003.03983) lets fixed windows act on rewards and on losses; the formula
    is ours.

    The double sum is linear in the rewards, so the loss is -(1/k) sum_t c_t log pi_t with the credit
    c_t = sum_u K_tu r_u and K = A'A of the window matrix A_it = w_{t - q_i}: for s = 1 and equal weights a triangle
    around t. Rewards before t add variance and no bias; cutting those later than t + k - 1 adds bias. A token is
    credited with about k/s times a reward, so losses of equal weight and other windows are not of equal strength.

    Attributes:
        kernel: k, tokens a window.
        stride: s, tokens from one window to the next.
        weights: w_0 .. w_{k-1}; None is all 1, unless ``gamma``.
        gamma: w_j = gamma^j, where there are no ``weights``.
        causal: only rewards at the token and after it credit it.
        pad: ``both`` lets windows reach over the ends; ``none`` keeps those within their sequence, from q_0 = 0 on.
        baseline: ``group`` takes from the rewards the mean of the other sequences of the prompt at the same place,
            padded with 0; ``zscore`` standardises the credit over the tokens of its sequence.
        allow_gaps: allow strides above the kernel, which skip tokens.

    Raises:
        InputError: an impossible value; on a call, ``none`` with a kernel longer than the padded sequences, or
            ``group`` with a prompt of one sequence.
    """

    kernel: int = 5
    stride: int = 2
    weights: tuple[float, ...] | None = None
    gamma: float = 1.0
    causal: bool = False
    pad: Literal["both", "none"] = "both"
    baseline: Literal["none", "group", "zscore"] = "none"
    allow_gaps: bool = False
    name: Literal["pcpg"] = "pcpg"

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    how: ClassVar[Literal["row_sum"]] = "row_sum"
    need: ClassVar[frozenset[str]] = NOTHING

    def __post_init__(self) -> None:
        k, s, w = self.kernel, self.stride, self.weights
        check("Windowed.kernel", k, k >= 1, "at least 1")
        check(
            "Windowed.stride", s, s >= 1 and (s <= k or self.allow_gaps), f"in [1, {k}], unless allow_gaps skips tokens"
        )
        check("Windowed.weights", w, w is None or len(w) == k, f"as many numbers as the kernel, {k}")
        check(
            "Windowed.gamma",
            self.gamma,
            self.gamma > 0 and (w is None or self.gamma == 1),
            "above 0, and 1 with weights",
        )
        check("Windowed.pad", self.pad, self.pad in ("both", "none"), "both or none")
        check("Windowed.baseline", self.baseline, self.baseline in ("none", "group", "zscore"), "none, group or zscore")

    def windows(self, length: int) -> tuple[Tensor, Tensor]:
        """A ``(N, T)`` float64, the weight of token t in window i, and ``(N,)`` the tokens at which windows begin."""
        k, s, T = self.kernel, self.stride, length
        first, last = (1 - k, T - 1) if self.pad == "both" else (0, T - k)
        begin = torch.arange(first, last + 1, s)
        w = torch.tensor(self.weights or [self.gamma**j for j in range(k)], dtype=torch.float64)
        at = torch.arange(T) - begin.unsqueeze(1)
        return torch.where((at >= 0) & (at < k), w[at.clamp(0, k - 1)], 0.0), begin

    def credit(self, batch: TokenBatch) -> Tensor:
        """``(B, T)`` c_t, 0 where not ``mask``; the loss divides it by k."""
        mask, T = batch.mask, batch.tokens.shape[1]
        r = per_token(batch.need("reward"), mask)
        fits = self.pad == "both" or self.kernel <= T
        check("Windowed.kernel", self.kernel, fits, f"in [1, {T}], the length of the padded sequences, with pad none")
        if self.baseline == "group":
            check_groups(batch.group, "baseline 'group'", every=True)
            r = leave_one_out(r, batch.group)
        A, begin = self.windows(T)
        A = A.to(r)
        if self.pad == "both":
            K = A.T @ A
        else:
            inside = begin.to(batch.tokens) + self.kernel <= batch.length.unsqueeze(1)
            K = (A.T * inside.unsqueeze(1).to(r)) @ A
        if self.causal:
            K = K.triu()
        c = torch.where(mask, (K @ r.unsqueeze(2)).squeeze(2), 0.0)
        return standardised(c, mask, _EPS) if self.baseline == "zscore" else c

    def terms(self, scores: TokenScores, batch: TokenBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """``(B, T)`` what each token adds to its row's loss, and what is logged."""
        c = self.credit(batch)
        return -c * wide(scores.log_prob) / self.kernel, {"credit": reduce(c.abs(), batch.mask, "token")}

    def __call__(self, scores: TokenScores, batch: TokenBatch) -> LossResult:
        """The loss."""
        terms, metrics = self.terms(scores, batch)
        return LossResult(reduce(terms, batch.mask, self.how), metrics)

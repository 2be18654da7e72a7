"""How good a model of approval probabilities is, and how good the policy is that acts on it.

Predictions f, rewards r and actions are ``(n,)``; predictions, truth, policies and masks of all actions ``(n, K)``.
Tensors on any device, or arrays. Sums are in float64. A number that is not defined (the AUC of one label, say) is NaN.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

Values: TypeAlias = Tensor | ArrayLike
BINS = 15
"""Bins of equal mass of a reliability diagram."""
BASIS_POINTS = 10_000
PROPENSITY_EDGES = np.linspace(-5, 0, 41)
"""Of histograms of logged propensities, log10."""
WEIGHT_EDGES = np.linspace(-3, 5, 65)
"""Of histograms of importance weights, log10."""


@dataclass(frozen=True)
class Reliability:
    """A reliability diagram: predictions in bins of equal mass, each column ``(bins,)``.

    Attributes:
        predicted: mean prediction.
        observed: mean reward.
        count: rows.
    """

    predicted: Tensor
    observed: Tensor
    count: Tensor

    @property
    def gaps(self) -> Tensor:
        """|observed - predicted| of each bin, NaN of an empty one."""
        return (self.observed - self.predicted).abs()

    @property
    def expected_error(self) -> float:
        """ECE: mean gap, weighted by the rows."""
        return float((self.gaps.nan_to_num(0.0) * self.count).sum() / self.count.sum())

    @property
    def maximum_error(self) -> float:
        """MCE: the largest gap."""
        return float(self.gaps.nan_to_num(0.0).max()) if len(self.gaps) else math.nan


@dataclass(frozen=True)
class Ranking:
    """Rows in the order of their predictions, which AUC, average precision and reliability share.

    Attributes:
        prediction: ``(n,)`` ascending.
        reward: ``(n,)`` of the rows in that order.
        order: ``(n,)`` the row that each of them was.
    """

    prediction: Tensor
    reward: Tensor
    order: Tensor

    @staticmethod
    def of(prediction: Values, reward: Values) -> Ranking:
        """Sort the rows."""
        sorted_, order = _double(prediction).sort(stable=True)
        return Ranking(sorted_, _double(reward)[order], order)

    def _ties(self) -> tuple[Tensor, Tensor, Tensor]:
        """Rows up to and with each distinct prediction, rows of it, and approvals of it."""
        group, counts = self.prediction.unique_consecutive(return_inverse=True, return_counts=True)[1:]
        return counts.cumsum(0), counts, torch.bincount(group, self.reward, len(counts))

    def roc_auc(self) -> float:
        """Probability that an approved row has a higher prediction than a declined one; ties count half."""
        ends, counts, approvals = self._ties()
        positives = float(approvals.sum())
        negatives = len(self.reward) - positives
        if not positives or not negatives:
            return math.nan
        ranks = ends - (counts - 1) / 2
        return (float((ranks * approvals).sum()) - positives * (positives + 1) / 2) / (positives * negatives)

    def declines_average_precision(self) -> float:
        """Area under the precision-recall curve of the declines, by steps (average precision)."""
        ends, counts, approvals = self._ties()
        declines = counts - approvals
        total = float(declines.sum())
        if not total:
            return math.nan
        return float((declines / total * declines.cumsum(0) / ends).sum())

    def reliability(self, bins: int = BINS) -> Reliability:
        """The reliability diagram in bins of equal mass (as nearly as whole rows allow)."""
        n = len(self.reward)
        place = torch.arange(n, device=self.reward.device) * bins // max(n, 1)
        return self._binned(place, bins)

    def reliability_by_action(self, action: Tensor, actions: int, bins: int = BINS) -> Reliability:
        """A diagram of each action's own rows in bins of equal mass, columns ``(actions * bins,)``."""
        taken = action[self.order]
        counts = torch.bincount(taken, minlength=actions)
        by_action = taken.argsort(stable=True)
        sorted_ = taken[by_action]
        first = counts.cumsum(0) - counts
        place = torch.arange(len(taken), device=taken.device) - first[sorted_]
        cell = sorted_ * bins + place * bins // counts[sorted_].clamp(min=1)
        return Ranking(self.prediction[by_action], self.reward[by_action], by_action)._binned(cell, actions * bins)

    def _binned(self, cell: Tensor, cells: int) -> Reliability:
        count = torch.bincount(cell, minlength=cells)
        predicted, observed = (torch.bincount(cell, x, cells) / count for x in (self.prediction, self.reward))
        return Reliability(predicted, observed, count)


def log_loss(prediction: Values, reward: Values) -> float:
    """Mean of -r log f - (1 - r) log(1 - f); infinite where a certain prediction was wrong."""
    f, r = _double(prediction), _double(reward)
    return -float((torch.xlogy(r, f) + torch.xlogy(1 - r, 1 - f)).mean())


def brier_score(prediction: Values, reward: Values) -> float:
    """Mean of (f - r)^2."""
    return float((_double(prediction) - _double(reward)).square().mean())


def roc_auc(prediction: Values, reward: Values) -> float:
    """Area under the ROC curve; ties count half. NaN where all rewards are equal."""
    return Ranking.of(prediction, reward).roc_auc()


def declines_average_precision(prediction: Values, reward: Values) -> float:
    """PR-AUC of the declines, the rare class, as average precision. NaN where there are none."""
    return Ranking.of(prediction, reward).declines_average_precision()


def reliability(prediction: Values, reward: Values, bins: int = BINS) -> Reliability:
    """The reliability diagram, with its expected (ECE) and maximum (MCE) calibration errors."""
    return Ranking.of(prediction, reward).reliability(bins)


def action_calibration_errors(
    prediction: Values, reward: Values, action: Values, actions: int, bins: int = BINS
) -> Tensor:
    """ECE of each action's own rows ``(actions,)``, NaN of an action that was never taken."""
    diagram = Ranking.of(prediction, reward).reliability_by_action(torch.as_tensor(action), actions, bins)
    gaps, count = (x.reshape(actions, bins) for x in (diagram.gaps.nan_to_num(0.0), diagram.count))
    return (gaps * count).sum(1) / count.sum(1)


def action_entropy(policy: Values) -> float:
    """Mean over payments of the entropy of the policy, in nats."""
    pi = _double(policy)
    return -_mean_over_payments(pi, pi.clamp(min=torch.finfo(pi.dtype).tiny).log_())


def realizability_error(prediction: Values, truth: Values, weights: Values) -> float:
    """MSE = mean over payments of sum_a weights (f - P)^2.

    MSE_u takes the weights of a uniform choice among the available actions, 1 / n_A, MSE_log those of the logging
    policy.
    """
    return _mean_over_payments((_double(prediction) - _double(truth)).square_(), _double(weights))


def mean_gap(prediction: Values, mask: Values) -> float:
    """Mean predicted gap: f(best) - f(a) over a's rivals of the best action, averaged over payments with a choice."""
    available = torch.as_tensor(mask)
    f = _double(prediction)
    rivals = available.sum(1) - 1
    best = f.masked_fill(~available, -math.inf).amax(1)
    others = f.masked_fill(~available, 0.0).sum(1) - best
    choice = rivals > 0
    return float((best - others / rivals)[choice].mean())


def policy_value(policy: Values, truth: Values) -> float:
    """Approval rate of a policy: mean over payments of sum_a pi(a) P(a)."""
    return _mean_over_payments(_double(policy), _double(truth))


def greedy_value(prediction: Values, truth: Values, mask: Values) -> float:
    """Approval rate of the best available action by prediction (ties: the lowest id); of the truth itself, V*."""
    scores = _double(prediction).masked_fill(~torch.as_tensor(mask), -math.inf)
    return float(_double(truth).gather(1, scores.argmax(1, keepdim=True)).mean())


def regret(value: float, best: float) -> float:
    """Payments of 10,000 that a policy loses against the best: basis points of the approval rate."""
    return BASIS_POINTS * (best - value)


def rejections_avoided(value: float, baseline: float) -> float:
    """Share of the baseline's declines that a policy avoids, (V - V_0) / (1 - V_0)."""
    return (value - baseline) / (1 - baseline) if baseline < 1 else math.nan


def _mean_over_payments(a: Tensor, b: Tensor) -> float:
    return float(torch.dot(a.flatten(), b.flatten())) / len(a) if len(a) else math.nan


def _double(values: Values) -> Tensor:
    return torch.as_tensor(values).double()

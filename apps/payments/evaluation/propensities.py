"""Propensities of a log that did not record them: a model of the logged policy, and no substitute for its record."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from apps.payments.log.tables import Logged
from simulators.payments.context import FUNDINGS, INTERACTIONS, SCHEMES, PaymentContext, flag_bits

RIDGE = 1.0
ITERATIONS = 100


@dataclass(frozen=True)
class ActionModel:
    """A conditional logit of the logged action: p(a|x, A) proportional to exp(sum_f b_f theta_f phi(x) + pairs(b)).

    What the policy looked at and the model does not biases every estimate, and nothing in the log shows it.

    Attributes:
        effects: ``(F, d)``, theta.
        pairs: ``(F, F)``, upper triangle, of interventions that are on together.
    """

    effects: Tensor
    pairs: Tensor

    def probabilities(self, context: PaymentContext, mask: Tensor) -> Tensor:
        """``(n, K)`` float64, 0 where masked."""
        return _log_probabilities(self.effects, self.pairs, _features(context), mask).exp()


def fit_action_model(rows: Logged) -> ActionModel:
    """Fit the model to n logged actions by penalised maximum likelihood.

    Args:
        rows: their propensities are not looked at.
    """
    flags = (rows.mask.shape[1] - 1).bit_length()
    features = _features(rows.context)
    effects = torch.zeros(flags, features.shape[1], dtype=torch.float64, requires_grad=True)
    pairs = torch.zeros(flags, flags, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([effects, pairs], max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        chosen = _log_probabilities(effects, pairs, features, rows.mask).gather(1, rows.action[:, None])
        total: Tensor = -chosen.sum() + 0.5 * RIDGE * (effects.square().sum() + pairs.square().sum())
        total.backward()
        return total

    optimizer.step(loss)
    return ActionModel(effects.detach(), pairs.detach())


def _log_probabilities(effects: Tensor, pairs: Tensor, features: Tensor, mask: Tensor) -> Tensor:
    bits = flag_bits(len(effects))
    together = torch.einsum("kf,fg,kg->k", bits, pairs.triu(1), bits)
    scores = (features @ effects.T) @ bits.T + together
    return scores.masked_fill(~mask, -torch.inf).log_softmax(1)


def _features(context: PaymentContext) -> Tensor:
    """``(n, d)``: a constant, the numbers on like scales, and the small categories."""
    x = context.to(dtype=torch.float64)
    numbers = [
        torch.ones_like(x.hour),
        (x.log_amount - 3.6) / 1.2,
        x.cross_border,
        (x.expiry_days < 0).double(),
        x.stored,
        x.attempt,
    ]
    for name, levels in (("scheme", SCHEMES), ("funding", FUNDINGS), ("interaction", INTERACTIONS)):
        numbers += [(getattr(x, name) == i).double() for i in range(1, len(levels))]
    return torch.stack(numbers, 1)

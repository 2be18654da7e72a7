"""The probability that a payment is approved: issuer's approval x technical success x challenge completed."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from simulators.payments.context import PaymentContext, flag_bits
from simulators.payments.portfolio import Portfolio

TYPICAL_LOG_AMOUNT = 3.6
PREPAID = 2
BASE = 3.0
CHUNK, CHUNK_ON_GPU = 2**18, 2**26
"""Elements (payments x actions) that are worked on at once: what fits a core's cache, and what fills a GPU."""


def approval(portfolio: Portfolio, context: PaymentContext, failing: Tensor, action: Tensor | None = None) -> Tensor:
    """P(x, a), of every action or of one a payment.

    With la = log amount - 3.6, b the flags of the action and sg the logistic function,

        P = sg(z) * sg(4 + b_3 t_fmt + b_4 t_route - b_3 b_4) * (1 - b_0 (1 - sg(2.6 + q - 0.2 la))),
        z = base(x) + sum_f b_f D_f(x) + pairs(b).

    Args:
        portfolio: of the world.
        context: n payments.
        failing: ``(n,)`` factor of the technical success, 1 where the issuer has no outage.
        action: ``(n,)`` int64; None for all K actions.

    Returns:
        ``(n, K)``, or ``(n,)`` for given actions.
    """
    flags = portfolio.issuer_flag.shape[1]
    amount = context.log_amount - TYPICAL_LOG_AMOUNT
    base, effects = _logit(portfolio, context, amount)
    completed = torch.sigmoid(2.6 + portfolio.challenge[context.country] - 0.2 * amount)
    message, route = portfolio.technical[context.issuer].unbind(1)
    if action is not None:
        bits = (action[:, None] >> torch.arange(flags, device=action.device) & 1).to(base.dtype)
        z = base + (effects * bits).sum(1) + portfolio.pair[action]
        success = torch.sigmoid(4 + bits[:, 3] * message + bits[:, 4] * route - bits[:, 3] * bits[:, 4])
        return torch.sigmoid(z) * success * failing * (1 - bits[:, 0] * (1 - completed))
    # Technical success and challenge take 2 x 4 values a payment: those are looked up by flags 0, 3 and 4.
    eight = torch.arange(8, device=base.device)
    threeds, fmt, other = ((eight >> k & 1).to(base.dtype) for k in range(3))
    success = torch.sigmoid(4 + fmt * message[:, None] + other * route[:, None] - fmt * other)
    rest = success * failing[:, None] * (1 - threeds * (1 - completed[:, None]))
    actions = torch.arange(2**flags, device=base.device)
    which = (actions & 1) + 2 * (actions >> 3 & 1) + 4 * (actions >> 4 & 1)
    bits = flag_bits(flags, base.device, base.dtype).T.contiguous()
    result = base.new_empty(len(base), 2**flags)
    rows = max(1, (CHUNK if base.device.type == "cpu" else CHUNK_ON_GPU) // 2**flags)
    for start in range(0, len(base), rows):
        part = slice(start, start + rows)
        z = torch.addmm(portfolio.pair, effects[part], bits).add_(base[part, None])
        result[part] = z.sigmoid_().mul_(rest[part][:, which])
    return result


def _logit(portfolio: Portfolio, context: PaymentContext, amount: Tensor) -> tuple[Tensor, Tensor]:
    """The logit without interventions ``(n,)`` and what each intervention adds to it ``(n, F)``."""
    abroad = context.cross_border
    expired = (context.expiry_days < 0).to(amount.dtype)
    base = (
        BASE
        + portfolio.issuer[context.issuer]
        + portfolio.merchant[context.merchant]
        - 0.25 * amount
        - 0.35 * abroad
        - 0.5 * (context.funding == PREPAID)
        - 0.45 * context.attempt
        - 0.9 * expired
        + 0.2 * torch.cos(2 * math.pi * (context.hour - 14) / 24)
    )
    effects = portfolio.issuer_flag[context.issuer] + portfolio.merchant_flag[context.merchant]
    effects[:, :5] += torch.stack((0.45 * amount, 0.15 * abroad, 1.2 * expired, -0.3 * abroad, 0.5 * abroad), dim=1)
    return base, effects

"""Card payments: a stream of transactions whose interventions are chosen one payment at a time, its truth known."""

from simulators.payments.context import (
    CATEGORIES,
    FLAGS,
    FUNDINGS,
    INTERACTIONS,
    NUMERICS,
    SCHEMES,
    PaymentContext,
    Sizes,
    dense_mask,
    flag_bits,
)
from simulators.payments.options import Delay, Drift, Fraud, Outage, Retry
from simulators.payments.portfolio import Portfolio
from simulators.payments.world import PaymentNoise, Payments, PaymentState

__all__ = [
    "CATEGORIES",
    "FLAGS",
    "FUNDINGS",
    "INTERACTIONS",
    "NUMERICS",
    "SCHEMES",
    "Delay",
    "Drift",
    "Fraud",
    "Outage",
    "PaymentContext",
    "PaymentNoise",
    "PaymentState",
    "Payments",
    "Portfolio",
    "Retry",
    "Sizes",
    "dense_mask",
    "flag_bits",
]

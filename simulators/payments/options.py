"""What may happen in a payments world beside the base case: drift, delay, retries, fraud, outages; off unless given.

Sources: the simulator of this project; the phenomena (delayed and partial feedback, shifting issuers) are those that
Vangara and Egg (2024, "Contextual bandits in payment processing", arXiv 2412.00569) describe.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from core.errors import InputError

DriftKind = Literal["ornstein_uhlenbeck", "abrupt", "seasonal"]


def _require(owner: str, name: str, value: float, low: float, high: float = math.inf) -> None:
    if not (low <= value <= high and math.isfinite(value)):
        bound = f"between {low:g} and {high:g}" if math.isfinite(high) else f"at least {low:g} and finite"
        raise InputError(f"{owner}.{name} = {value}: must be {bound}")


@dataclass(frozen=True)
class Drift:
    """How issuers change from one generation to the next.

    Attributes:
        kind: ``ornstein_uhlenbeck`` moves every effect d of an intervention at an issuer as
            d0 + return_rate (d - d0) + N(0, scale); ``abrupt`` draws the effects of a share of issuers anew at one
            generation; ``seasonal`` adds amplitude sin(2 pi g / period + phase) to every issuer's approval logit.
        scale: standard deviation of the moves.
        return_rate: what is kept of the distance to the start.
        generation: when the abrupt change comes.
        share: of issuers it meets.
        amplitude: of the season, in logits.
        period: of the season, in generations.
    """

    kind: DriftKind = "ornstein_uhlenbeck"
    scale: float = 0.3
    return_rate: float = 0.9
    generation: int = 6
    share: float = 0.2
    amplitude: float = 0.3
    period: float = 6.0

    def __post_init__(self) -> None:
        if self.kind not in get_args(DriftKind):
            raise InputError(f"drift.kind = {self.kind!r}: must be one of {', '.join(get_args(DriftKind))}")
        _require("drift", "scale", self.scale, 0)
        _require("drift", "return_rate", self.return_rate, 0, 1)
        _require("drift", "generation", self.generation, 1)
        _require("drift", "share", self.share, 0, 1)
        _require("drift", "amplitude", self.amplitude, 0)
        _require("drift", "period", self.period, 1)


@dataclass(frozen=True)
class Delay:
    """When the answer of the bank is known: exp(N(log median, sigma)) hours after the decision, or never.

    Attributes:
        median_hours: of an approval.
        sigma: of its logarithm.
        never: share of answers that never come.
        decline_factor: by how much longer a decline takes; above 1, early labels are biased towards approvals.
    """

    median_hours: float = 6.0
    sigma: float = 1.2
    never: float = 0.02
    decline_factor: float = 1.0

    def __post_init__(self) -> None:
        _require("delay", "median_hours", self.median_hours, 1e-6)
        _require("delay", "sigma", self.sigma, 0)
        _require("delay", "never", self.never, 0, 1)
        _require("delay", "decline_factor", self.decline_factor, 1e-6)


@dataclass(frozen=True)
class Retry:
    """A soft decline may be tried again with other interventions.

    Attributes:
        soft: probability that a decline is soft.
        attempts: retries at most.
        fee: cost of every attempt, EUR.
    """

    soft: float = 0.7
    attempts: int = 4
    fee: float = 0.02

    def __post_init__(self) -> None:
        _require("retry", "soft", self.soft, 0, 1)
        _require("retry", "attempts", self.attempts, 1, 100)
        _require("retry", "fee", self.fee, 0)


@dataclass(frozen=True)
class Fraud:
    """Approved payments that are charged back, with probability sigmoid(intercept + 0.3 la - 1.5 [3-D Secure] + u'_i).

    Attributes:
        intercept: logit of a payment of typical amount without 3-D Secure.
        issuer_scale: standard deviation of the issuer's share u'_i of the logit.
        cost: of a chargeback, in amounts.
    """

    intercept: float = -5.5
    issuer_scale: float = 0.5
    cost: float = 1.2

    def __post_init__(self) -> None:
        _require("fraud", "intercept", self.intercept, -50, 50)
        _require("fraud", "issuer_scale", self.issuer_scale, 0)
        _require("fraud", "cost", self.cost, 0)


@dataclass(frozen=True)
class Outage:
    """Issuers that fail for a while in a generation: the technical success is multiplied by ``factor``.

    Attributes:
        rate: probability that an issuer has one in a generation.
        hours: how long it lasts.
        factor: of the technical success.
    """

    rate: float = 0.05
    hours: float = 12.0
    factor: float = 0.1

    def __post_init__(self) -> None:
        _require("outage", "rate", self.rate, 0, 1)
        _require("outage", "hours", self.hours, 0)
        _require("outage", "factor", self.factor, 0, 1)

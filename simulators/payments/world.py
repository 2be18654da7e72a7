"""The stream of payments as a batched state machine: contexts in, interventions chosen, the bank's answer out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, Space
from torch import Tensor

from core.errors import InputError
from core.simulation import Step, Variable
from simulators.payments.approval import TYPICAL_LOG_AMOUNT, approval
from simulators.payments.context import CATEGORIES, NUMERICS, PaymentContext, Sizes, dense_mask
from simulators.payments.options import Delay, Drift, Fraud, Outage, Retry
from simulators.payments.portfolio import Portfolio, draw_issuer_flag, draw_portfolio

RewardKind = Literal["approval", "net_value"]
DENSE_FLAGS = 8
"""With more interventions the actions are no longer listed: an action is then its flags."""
SCA_AMOUNT = 250.0
UPDATE_DAYS = 250.0
LIMITS = {
    "log_amount": (0.0, 9.0),
    "cross_border": (0.0, 1.0),
    "hour": (0.0, 24.0),
    "expiry_days": (-20.0, 1400.0),
    "token_available": (0.0, 1.0),
    "stored": (0.0, 1.0),
    "attempt": (0.0, 110.0),
}
UNITS = {"log_amount": "ln EUR", "hour": "h", "expiry_days": "d"}


@dataclass(frozen=True)
class PaymentState(PaymentContext):
    """Payments that wait for a decision, each column ``(n,)``.

    Attributes:
        allowed: int64 bit field, bit f set where intervention f may be on.
        forced: int64 bit field, bit f set where it must be on (3-D Secure, by law).
        time: hours since the generation began.
        retries: retries so far.
    """

    allowed: Tensor
    forced: Tensor
    time: Tensor
    retries: Tensor

    def take(self, index: Tensor | slice) -> PaymentState:
        """The payments that an index, a slice or a mask selects."""
        return PaymentState(**{f.name: getattr(self, f.name)[index] for f in fields(self)})


@dataclass(frozen=True)
class PaymentNoise:
    """All that is random in an answer, each ``(n,)``: uniforms, and the normal of the delay."""

    approval: Tensor
    delay: Tensor
    never: Tensor
    soft: Tensor
    fraud: Tensor


@dataclass(frozen=True)
class Payments:
    """A payment processor's stream; ``n`` payments are ``n`` copies, and one step answers them.

    Without ``retry`` every copy ends with the answer. With it, a soft decline stays for another attempt, and the action
    after the last of the K combinations gives up. The truth is known: ``probabilities`` gives P(x, a) of every action.

    Attributes:
        seed: of the world: its issuers, merchants and countries.
        sizes: how many of each.
        heterogeneity: spread h of the effects between issuers and merchants.
        reward: ``approval`` is 1 for a yes; ``net_value`` is amount * approved - fees - chargebacks, in EUR.
        drift: how issuers change when ``drifted`` is called.
        delay: of the answer; None answers at once.
        retry: of soft declines; None has none.
        fraud: chargebacks; counted in ``net_value``.
        outage: of issuers.
        duration: hours of a generation, over which its payments are spread.
        dtype: of the numbers.
        generation: which one this is.
        portfolio: the world's parameters as they are now; drawn from ``seed`` if None.
        down: ``(I,)`` hour at which an issuer's outage begins, infinite for none; drawn by ``drifted``.

    Raises:
        InputError: an option out of its range, or retries with more than 8 interventions.
    """

    seed: int = 0
    sizes: Sizes = field(default_factory=Sizes)
    heterogeneity: float = 0.9
    reward: RewardKind = "approval"
    drift: Drift | None = None
    delay: Delay | None = None
    retry: Retry | None = None
    fraud: Fraud | None = None
    outage: Outage | None = None
    duration: float = 168.0
    dtype: torch.dtype = torch.float64
    generation: int = 0
    portfolio: Portfolio = field(default=None, repr=False)  # type: ignore[assignment]
    down: Tensor | None = field(default=None, repr=False)

    agents = 1

    def __post_init__(self) -> None:
        if not 0 <= self.heterogeneity < math.inf:
            raise InputError(f"heterogeneity = {self.heterogeneity}: must be at least 0 and finite")
        if not 0 < self.duration < math.inf:
            raise InputError(f"duration = {self.duration}: must be greater than 0 hours and finite")
        if self.reward not in get_args(RewardKind):
            raise InputError(f"reward = {self.reward!r}: must be approval or net_value")
        if self.retry is not None and self.sizes.flags > DENSE_FLAGS:
            raise InputError(f"retry: takes at most {DENSE_FLAGS} interventions, here are {self.sizes.flags}")
        if self.portfolio is None:
            drawn = draw_portfolio(self.seed, self.sizes, self.heterogeneity).to("cpu", self.dtype)
            object.__setattr__(self, "portfolio", drawn)

    @cached_property
    def observation_space(self) -> Dict:
        """The columns of ``PaymentContext``."""
        spaces: dict[str, Space[Any]] = {name: Discrete(n) for name, n in self.sizes.levels.items()}
        number = np.float64 if self.dtype == torch.float64 else np.float32
        return Dict(spaces | {name: Box(low, high, (1,), number) for name, (low, high) in LIMITS.items()})

    @cached_property
    def action_space(self) -> Discrete | MultiBinary:
        """Combinations of interventions, and giving up where there are retries; the flags themselves beyond 8."""
        if self.sizes.flags > DENSE_FLAGS:
            return MultiBinary(self.sizes.flags)
        return Discrete(self.sizes.actions + (self.retry is not None))

    @cached_property
    def variables(self) -> Mapping[str, Variable]:
        """What a roll-out records."""
        columns = {name: Variable((), UNITS.get(name, "1"), name.replace("_", " ")) for name in CATEGORIES + NUMERICS}
        flags = ("flag",) if self.sizes.flags > DENSE_FLAGS else ()
        return columns | {
            "action": Variable(flags, "1", "interventions, bit by bit"),
            "probability": Variable((), "1", "true probability of approval"),
            "approved": Variable((), "1", "the bank said yes"),
            "delay": Variable((), "h", "hours until the answer is known"),
            "reward": Variable((), "1" if self.reward == "approval" and self.retry is None else "EUR", "reward"),
        }

    def on(self, device: torch.device | str) -> Payments:
        """The same world with its parameters on ``device``."""
        down = None if self.down is None else self.down.to(device)
        return replace(self, portfolio=self.portfolio.to(device, self.dtype), down=down)

    def reset(self, batch: int, generator: torch.Generator) -> PaymentState:
        """Draw ``batch`` payments; the generator's device must be that of the world (``on``)."""
        p, device = self.portfolio, generator.device

        def uniform() -> Tensor:
            return torch.rand(batch, generator=generator, dtype=self.dtype, device=device)

        def drawn(cdf: Tensor) -> Tensor:
            return torch.searchsorted(cdf, uniform()).clamp(max=len(cdf) - 1)

        issuer, merchant = drawn(p.issuer_cdf), drawn(p.merchant_cdf)
        scheme, funding, interaction = (
            drawn(torch.tensor(cdf, dtype=self.dtype, device=device))
            for cdf in ((0.5, 0.9, 1), (0.45, 0.92, 1), (0.62, 0.95, 1))
        )
        country = p.issuer_country[issuer]
        normal = torch.randn(batch, generator=generator, dtype=self.dtype, device=device)
        hour, expiry = 24 * uniform(), 1420 * uniform() - 20
        token = (uniform() < 0.65) & (scheme < 2)
        stored = (uniform() < 0.2) | (interaction == 1)
        # Attempts are geometric with success 0.85: its distribution function is inverted, three retries at most.
        attempt = torch.floor(torch.log1p(-uniform()) / math.log(0.15)).clamp(max=3)
        context = PaymentContext(
            issuer=issuer,
            merchant=merchant,
            country=country,
            scheme=scheme,
            funding=funding,
            interaction=interaction,
            log_amount=(p.log_amount[merchant] + 0.9 * normal).clamp(0, 9),
            cross_border=(p.merchant_country[merchant] != country).to(self.dtype),
            hour=hour,
            expiry_days=expiry,
            token_available=token.to(self.dtype),
            stored=stored.to(self.dtype),
            attempt=attempt,
        )
        time = self.duration * uniform()
        allowed, forced = self._availability(context)
        return PaymentState(
            **context.columns(), allowed=allowed, forced=forced, time=time, retries=torch.zeros_like(issuer)
        )

    def _availability(self, x: PaymentContext) -> tuple[Tensor, Tensor]:
        """The bit fields of the interventions that may be on, and of those that must."""
        p = self.portfolio
        ecom, moto = x.interaction == 0, x.interaction == 2
        may = [
            ~moto,
            x.token_available > 0,
            (x.stored > 0) & (x.expiry_days < UPDATE_DAYS),
            x.scheme < 2,
            p.route[x.merchant, x.country],
            *p.offers[x.merchant, 5:].unbind(1),
        ]
        allowed = _bit_field(torch.stack(may, dim=1))
        forced = (ecom & p.sca[x.country] & (x.log_amount > math.log(SCA_AMOUNT))).long()
        return allowed, forced

    def noise(self, batch: int, generator: torch.Generator) -> PaymentNoise:
        """Draw what is random in ``batch`` answers."""
        shape: dict[str, Any] = {"dtype": self.dtype, "device": generator.device, "generator": generator}
        approval, never, soft, fraud = (torch.rand(batch, **shape) for _ in range(4))
        return PaymentNoise(approval, torch.randn(batch, **shape), never, soft, fraud)

    def probabilities(self, state: PaymentState) -> Tensor:
        """``(n, K)`` true probability of approval of every action, available or not."""
        return approval(self.portfolio, state, self._technical(state))

    def probability(self, state: PaymentState, action: Tensor) -> Tensor:
        """``(n,)`` true probability of approval of the action ids ``(n,)``."""
        return approval(self.portfolio, state, self._technical(state), action)

    def _technical(self, state: PaymentState) -> Tensor:
        """``(n,)`` factor of the technical success."""
        if self.outage is None or self.down is None:
            return torch.ones_like(state.log_amount)
        since = state.time - self.down[state.issuer]
        down = (since >= 0) & (since < self.outage.hours)
        return torch.ones_like(since).masked_fill(down, self.outage.factor)

    def step(self, state: PaymentState, action: Tensor, noise: PaymentNoise) -> Step:
        """The bank's answers.

        Args:
            state: n payments.
            action: ``(n,)`` action ids, the last of the space gives up (with retries); or ``(n, F)`` flags.
            noise: of n answers.

        Returns:
            Step with info ``probability``, ``approved``, ``delay`` (hours, infinite for never) and ``chargeback``, all
            ``(n,)``.

        Raises:
            InputError: an action of another shape, or one that the payment does not have (its row is named).
        """
        action, gave_up = self._ids(state, action)
        probability = torch.where(gave_up, 0.0, self.probability(state, action))
        approved = noise.approval < probability
        amount = torch.exp(state.log_amount)
        value = approved.to(self.dtype)
        charged = torch.zeros_like(approved)
        if self.fraud is not None:
            charged = approved & (noise.fraud < self.chargeback_probability(state, action))
        if self.reward == "net_value" or self.retry is not None:
            value = amount * value - (self.retry.fee if self.retry else 0.0) * (~gave_up).to(self.dtype)
            if self.reward == "net_value" and self.fraud is not None:
                value = value - self.fraud.cost * amount * charged
        following, terminated = state, torch.ones_like(approved)
        if self.retry is not None:
            again = ~approved & ~gave_up & (noise.soft < self.retry.soft) & (state.retries < self.retry.attempts)
            step = again.to(self.dtype)
            following = replace(state, attempt=state.attempt + step, retries=state.retries + again)
            terminated = ~again
        info = {
            "probability": probability,
            "approved": approved,
            "delay": self._delay(approved, noise),
            "chargeback": charged,
        }
        return Step(following, value, terminated, info)

    def chargeback_probability(self, state: PaymentState, action: Tensor) -> Tensor:
        """``(n,)`` probability that an approved payment is charged back.

        Raises:
            InputError: the world has no fraud.
        """
        if self.fraud is None:
            raise InputError("fraud: is off in this world")
        threeds = (action & 1).to(self.dtype)
        issuer = self.fraud.issuer_scale * self.portfolio.fraud[state.issuer]
        la = state.log_amount - TYPICAL_LOG_AMOUNT
        return torch.sigmoid(self.fraud.intercept + 0.3 * la - 1.5 * threeds + issuer)

    def _ids(self, state: PaymentState, action: Tensor) -> tuple[Tensor, Tensor]:
        """Action ids and whether the processor gives up, checked against what is available."""
        flags = (len(state), *(self.action_space.shape or ()))
        if action.shape not in ((len(state),), flags):
            raise InputError(f"action of shape {tuple(action.shape)}: must be {flags}")
        if action.ndim == 2:
            action = _bit_field(action)
        gave_up = (action == self.sizes.actions) & (self.retry is not None)
        outside = (action & ~(state.allowed | state.forced) != 0) | (action & state.forced != state.forced)
        refused = (outside | (action < 0) | (action >= self.sizes.actions)) & ~gave_up
        if bool(refused.any()):
            row = int(refused.nonzero()[0])
            raise InputError(
                f"action[{row}] = {int(action[row])}: not available to this payment, whose interventions allowed are "
                f"{int(state.allowed[row]):b} and forced are {int(state.forced[row]):b} (bit 0 last)"
            )
        return torch.where(gave_up, 0, action), gave_up

    def _delay(self, approved: Tensor, noise: PaymentNoise) -> Tensor:
        """Hours until the answers are known."""
        if self.delay is None:
            return torch.zeros_like(noise.delay)
        hours = self.delay.median_hours * torch.exp(self.delay.sigma * noise.delay)
        hours = torch.where(approved, hours, self.delay.decline_factor * hours)
        return torch.where(noise.never < self.delay.never, math.inf, hours)

    def observe(self, state: PaymentState, noise: PaymentNoise | None = None) -> dict[str, Tensor]:
        """The columns: categories ``(n,)`` int64, numbers ``(n, 1)``."""
        numbers = {name: getattr(state, name).unsqueeze(-1) for name in NUMERICS}
        return {name: getattr(state, name) for name in CATEGORIES} | numbers

    def action_mask(self, state: PaymentState) -> Tensor:
        """``(n, K)`` bool, with giving up as last column under retries; ``(n, F)`` int8 beyond 8 interventions.

        The latter is gymnasium's mask of ``MultiBinary``: 0 must be off, 1 must be on, 2 is free.
        """
        if self.sizes.flags > DENSE_FLAGS:
            flags = torch.arange(self.sizes.flags, device=state.allowed.device)
            may, must = (field[:, None] >> flags & 1 for field in (state.allowed | state.forced, state.forced))
            return (2 * may - must).to(torch.int8)
        mask = dense_mask(state.allowed, state.forced, self.sizes.flags)
        if self.retry is None:
            return mask
        return torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)

    def drifted(self, generation: int, generator: torch.Generator) -> Payments:
        """The world of the next generation, its issuers changed as ``drift`` says and its outages drawn.

        Args:
            generation: its number, one more than that of this world.
            generator: of the changes; on the CPU, so that they are the same on every device.
        """
        issuer, flag = self.portfolio.issuer, self.portfolio.issuer_flag
        device = issuer.device
        changed = {"portfolio": self.portfolio}
        if self.drift is not None:
            origin = draw_portfolio(self.seed, self.sizes, self.heterogeneity).to("cpu", torch.float64)
            moved, shifted = _moved(self.drift, origin, flag.cpu().double(), generation, generator, self.heterogeneity)
            as_here: dict[str, Any] = {"device": device, "dtype": self.dtype}
            changed = {"portfolio": self.portfolio.with_effects(shifted.to(**as_here), moved.to(**as_here))}
        if self.outage is not None:
            start = self.duration * torch.rand(self.sizes.issuers, generator=generator, dtype=torch.float64)
            fails = torch.rand(self.sizes.issuers, generator=generator, dtype=torch.float64) < self.outage.rate
            changed["down"] = torch.where(fails, start, math.inf).to(device=device, dtype=self.dtype)  # type: ignore[assignment]
        return replace(self, generation=generation, **changed)  # type: ignore[arg-type]


def _bit_field(flags: Tensor) -> Tensor:
    """``(n,)`` int64 whose bit f is column f of ``flags (n, F)``; CUDA has no product of integer matrices."""
    return (flags.long() << torch.arange(flags.shape[1], device=flags.device)).sum(1)


def _moved(
    drift: Drift,
    origin: Portfolio,
    flag: Tensor,
    generation: int,
    generator: torch.Generator,
    heterogeneity: float,
) -> tuple[Tensor, Tensor]:
    """The issuers' effects ``(I, F)`` and logits ``(I,)`` of a generation, from those of the one before."""
    count, flags = flag.shape
    if drift.kind == "seasonal":
        season = torch.sin(2 * math.pi * generation / drift.period + origin.phase)
        return flag, origin.issuer + drift.amplitude * season
    if drift.kind == "ornstein_uhlenbeck":
        moves = drift.scale * torch.randn(count, flags, generator=generator, dtype=torch.float64)
        return origin.issuer_flag + drift.return_rate * (flag - origin.issuer_flag) + moves, origin.issuer
    if generation != drift.generation:
        return flag, origin.issuer
    chosen = torch.randperm(count, generator=generator)[: round(drift.share * count)]
    anew = draw_issuer_flag(count, Sizes(count, flags=flags), heterogeneity, generator)
    moved = flag.clone()
    moved[chosen] = anew[chosen]
    return moved, origin.issuer

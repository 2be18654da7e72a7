"""What is known of a payment before it is decided, and how interventions combine to actions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from core.errors import InputError

CATEGORIES = ("issuer", "merchant", "country", "scheme", "funding", "interaction")
NUMERICS = ("log_amount", "cross_border", "hour", "expiry_days", "token_available", "stored", "attempt")
SCHEMES = ("visa", "mc", "local")
FUNDINGS = ("credit", "debit", "prepaid")
INTERACTIONS = ("ecom", "subscription", "moto")
MAX_FLAGS = 10
FLAGS = ("threeds", "token", "update", "format", "route", *(f"flag{f}" for f in range(5, MAX_FLAGS)))
"""The interventions; bit f of an action id says whether intervention f is on."""


@dataclass(frozen=True)
class Sizes:
    """How many of everything there are.

    Attributes:
        issuers: banks.
        merchants: shops.
        countries: of banks and shops.
        flags: interventions F; there are 2^F actions.

    Raises:
        InputError: a size out of its range.
    """

    issuers: int = 120
    merchants: int = 40
    countries: int = 10
    flags: int = 5

    def __post_init__(self) -> None:
        limits = {
            "issuers": (1, 10**6),
            "merchants": (1, 10**7),
            "countries": (1, 1000),
            "flags": (5, MAX_FLAGS),
        }
        for name, (low, high) in limits.items():
            if not low <= getattr(self, name) <= high:
                raise InputError(f"{name} = {getattr(self, name)}: must be between {low} and {high}")

    @property
    def actions(self) -> int:
        """Number of combinations of interventions."""
        return int(2**self.flags)

    @property
    def levels(self) -> dict[str, int]:
        """Number of levels of each category."""
        ids = {"issuer": self.issuers, "merchant": self.merchants, "country": self.countries}
        return ids | {"scheme": len(SCHEMES), "funding": len(FUNDINGS), "interaction": len(INTERACTIONS)}


@dataclass(frozen=True)
class PaymentContext:
    """The columns of n payments, each ``(n,)``: six categories (int64) and seven numbers (floating point).

    Attributes:
        issuer: bank of the card.
        merchant: shop.
        country: of the issuer.
        scheme: index into ``SCHEMES``.
        funding: index into ``FUNDINGS``.
        interaction: index into ``INTERACTIONS``.
        log_amount: natural logarithm of the amount in EUR.
        cross_border: 1 where the shop's country is another.
        hour: local time, 0 to 24.
        expiry_days: days until the card expires, negative after it.
        token_available: 1 where a network token exists.
        stored: 1 where the card is on file.
        attempt: declined attempts before this one.
    """

    issuer: Tensor
    merchant: Tensor
    country: Tensor
    scheme: Tensor
    funding: Tensor
    interaction: Tensor
    log_amount: Tensor
    cross_border: Tensor
    hour: Tensor
    expiry_days: Tensor
    token_available: Tensor
    stored: Tensor
    attempt: Tensor

    def __len__(self) -> int:
        return len(self.issuer)

    def columns(self) -> dict[str, Tensor]:
        """The columns by name; those alone, of a subclass too."""
        return {f.name: getattr(self, f.name) for f in fields(PaymentContext)}

    def take(self, index: Tensor | slice) -> PaymentContext:
        """The payments that an index, a slice or a mask selects."""
        return PaymentContext(**{name: column[index] for name, column in self.columns().items()})

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> PaymentContext:
        """The same payments on another device, their numbers in another precision."""
        moved = {name: getattr(self, name).to(device) for name in CATEGORIES}
        moved |= {name: getattr(self, name).to(device=device, dtype=dtype) for name in NUMERICS}
        return PaymentContext(**moved)

    @staticmethod
    def cat(parts: Sequence[PaymentContext]) -> PaymentContext:
        """The payments of all parts, in order."""
        return PaymentContext(
            **{f.name: torch.cat([getattr(p, f.name) for p in parts]) for f in fields(PaymentContext)}
        )


def flag_bits(flags: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float64) -> Tensor:
    """``(2^F, F)`` of 0 and 1: which interventions each action turns on."""
    actions = torch.arange(2**flags, device=device)
    return (actions[:, None] >> torch.arange(flags, device=device) & 1).to(dtype)


def dense_mask(allowed: Tensor, forced: Tensor, flags: int) -> Tensor:
    """``(n, 2^F)`` bool: actions that turn on all forced interventions and none that is not allowed.

    Args:
        allowed: ``(n,)`` int64, bit f set where intervention f may be on.
        forced: ``(n,)`` int64, bit f set where it must be on; those count as allowed.
        flags: F.
    """
    actions = torch.arange(2**flags, device=allowed.device)
    within = actions & ~(allowed | forced)[:, None] == 0
    return within & (actions & forced[:, None] == forced[:, None])

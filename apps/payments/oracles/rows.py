"""The rows an oracle learns from, and the numbers and levels that it sees of a payment."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from core.errors import InputError
from simulators.payments.context import CATEGORIES, NUMERICS, PaymentContext, Sizes

FEATURES = (
    "log_amount",
    "log_amount_squared",
    "cross_border",
    "expired",
    "stored",
    "attempt",
    "cosine_hour",
    "sine_hour",
)


@dataclass(frozen=True)
class Rows:
    """Answered payments, each column ``(n,)``.

    Attributes:
        context: what was known before the decision.
        action: int64, the action that was taken.
        reward: in [0, 1], 1 for approved.
        weight: of the row in the loss, at least 0; 1 each if not given.
    """

    context: PaymentContext
    action: Tensor
    reward: Tensor
    weight: Tensor | None = None

    def __len__(self) -> int:
        return len(self.action)

    def take(self, index: Tensor | slice) -> Rows:
        """The rows that an index, a slice or a mask selects."""
        weight = None if self.weight is None else self.weight[index]
        return Rows(self.context.take(index), self.action[index], self.reward[index], weight)

    @staticmethod
    def cat(parts: Sequence[Rows]) -> Rows:
        """The rows of all parts, in order; a part without weights counts 1 a row."""
        weight = None
        if any(part.weight is not None for part in parts):
            weight = torch.cat([p.reward.new_ones(len(p)) if p.weight is None else p.weight for p in parts])
        context = PaymentContext.cat([part.context for part in parts])
        return Rows(context, torch.cat([p.action for p in parts]), torch.cat([p.reward for p in parts]), weight)

    def check(self, sizes: Sizes, *, binary: str = "") -> None:
        """Refuse rows that no oracle can learn from.

        Args:
            sizes: of the portfolio.
            binary: name of an oracle that takes no reward between 0 and 1, if there is one.

        Raises:
            InputError: columns of different length, a number that is not finite, an unknown action, a reward outside
                [0, 1] or a negative weight; column, row and value are named.
        """
        check_finite(self.context)
        reward, action = self.reward, self.action
        rewards = f"one of 0, 1 ({binary} predicts a class)" if binary else "in [0, 1]"
        allowed = (reward == 0) | (reward == 1) if binary else (reward >= 0) & (reward <= 1)
        columns = [
            ("reward", reward, allowed, rewards),
            ("action", action, (action >= 0) & (action < sizes.actions), f"in [0, {sizes.actions - 1}]"),
        ]
        if self.weight is not None:
            weight = self.weight
            columns.append(("weight", weight, (weight >= 0) & (weight < math.inf), "at least 0 and finite"))
        for name, column, permitted, limits in columns:
            if len(column) != len(self.context):
                raise InputError(f"{name}: has {len(column)} rows, the context has {len(self.context)}")
            if not bool(permitted.all()):
                row = int(permitted.logical_not().nonzero()[0])
                raise InputError(f"{name}[{row}] is {column[row].item()}, must be {limits}")


def check_finite(context: PaymentContext) -> None:
    """Refuse a number that is NaN or infinite.

    Raises:
        InputError: there is one; its column and row are named.
    """
    # One sum tells whether any is there, with a single wait for the device; the search is only for the message.
    if math.isfinite(sum(getattr(context, name).sum(dtype=torch.float64) for name in NUMERICS)):
        return
    for name in NUMERICS:
        column = getattr(context, name)
        refused = column.isfinite().logical_not().nonzero()
        if len(refused):
            row = int(refused[0])
            raise InputError(f"{name}[{row}] is {column[row].item()}, every feature must be finite")


def numeric_features(context: PaymentContext, dtype: torch.dtype = torch.float64) -> Tensor:
    """``(8, n)``, the ``FEATURES``: la = (log amount - 3.6) / 1.2, its square, the flags, and the hour on a circle."""
    amount = context.log_amount.to(dtype).sub(3.6).div(1.2)
    angle = context.hour.to(dtype).sub(14).mul(2 * math.pi / 24)
    columns = (
        amount,
        amount.square(),
        context.cross_border,
        context.expiry_days < 0,
        context.stored,
        context.attempt,
        angle.cos(),
        angle.sin(),
    )
    return torch.stack([column.to(dtype) for column in columns])


def level_codes(context: PaymentContext, sizes: Sizes) -> dict[str, Tensor]:
    """Each category's level ``(n,)``; one that the portfolio does not have becomes the number of its levels."""
    codes = {}
    for name, levels in sizes.levels.items():
        column = getattr(context, name)
        codes[name] = torch.where((column < 0) | (column >= levels), levels, column)
    return codes


def unknown_counts(context: PaymentContext, sizes: Sizes) -> dict[str, int]:
    """How many payments have a level, of each category, that the portfolio does not have."""
    codes = level_codes(context, sizes)
    return {name: int((codes[name] == sizes.levels[name]).sum()) for name in CATEGORIES}

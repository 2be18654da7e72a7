"""Refusals that name the first row that is wrong; nothing but a minimum and a maximum is computed while all is well."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from core.errors import InputError


def refuse_rows(field: str, values: Tensor, right: Tensor, allowed: str, first_row: int = 0) -> None:
    """Refuse ``values`` (n, ...) where ``right`` (n, ...) is false; rows count from ``first_row``.

    Raises:
        InputError: some value is not right; the first row that has one is named.
    """
    if bool(right.all()):
        return
    index = torch.nonzero(~right)[0].tolist()
    column = "".join(f", column {i}" for i in index[1:])
    found = values[tuple(index)].item()
    raise InputError(f"{field}: row {first_row + index[0]}{column} is {found}, allowed is {allowed}")


def refuse_outside(
    field: str, values: Tensor, low: float, high: float, *, above: bool = False, hint: str = "", first_row: int = 0
) -> None:
    """Refuse values that are not finite or not in [low, high], or (low, high] if ``above``.

    Raises:
        InputError: there is one; its row is named.
    """
    if not values.numel():
        return
    least, most = extremes(values)
    if (low < least if above else low <= least) and most <= high and math.isfinite(least) and math.isfinite(most):
        return
    right = torch.isfinite(values) & ((values > low) if above else (values >= low)) & (values <= high)
    allowed = f"{'(' if above else '['}{low:g}, {high:g}]" if math.isfinite(high - low) else "finite"
    refuse_rows(field, values, right, allowed + hint, first_row)


def extremes(values: Tensor) -> tuple[float, float]:
    """Smallest and largest of some values, NaN if one of them is."""
    least, most = torch.aminmax(values)
    return least.item(), most.item()


def as_tensor(values: ArrayLike | Tensor) -> Tensor:
    """``values`` as a tensor; an array that can be written shares its memory."""
    if isinstance(values, Tensor):
        return values.detach()
    return torch.from_numpy(np.require(values, requirements=["W", "C"]))

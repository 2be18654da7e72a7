"""Prediction intervals from past errors: split conformal prediction, one lead time at a time."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from core.errors import InputError


def conformal_half_width(errors: Tensor, level: float) -> Tensor:
    """Half width of the intervals ``(H, D)`` of absolute errors ``(n, H, D)``, NaN where an error is unknown.

    Of n known errors it is the ceil((n + 1) level)-th smallest: a new error that is exchangeable with them is at most
    that large with probability ``level`` or more (Vovk, Gammerman and Shafer 2005; Lei et al. 2018, J. Am. Stat.
    Assoc. 113, 1094, theorem 2.1). Infinite where n is too small. An error that is infinite counts as any other.

    Raises:
        InputError: a level outside (0, 1).
    """
    if not 0 < level < 1:
        raise InputError(f"level = {level:g}: must be above 0 and below 1")
    known = ~errors.isnan()
    count = known.sum(0)
    # Unknown errors sort behind all others, and no rank reaches them.
    ordered = torch.where(known, errors, torch.inf).sort(0).values
    # The product is rounded so that, say, 20 of 19 + 1 at a level of 0.95 are 19 and not 20.
    rank = ((count + 1) * level - 1e-9).ceil().long()
    found = ordered.gather(0, (rank - 1).clamp(0, len(errors) - 1)[None])[0]
    return torch.where(rank <= count, found, torch.inf)


def fewest_errors(level: float) -> int:
    """Errors that an interval of this level needs."""
    return math.ceil(level / (1 - level) - 1e-9)


def coverage(errors: Tensor, level: float) -> Tensor:
    """Share of the later half of errors ``(n, H, D)`` that intervals of the earlier half hold, ``(n - n // 2,)``.

    The mean over lead times and channels, of each row of the later half; NaN where the earlier half is too small or
    nothing is known.
    """
    half = len(errors) // 2
    width = conformal_half_width(errors[:half], level) if half else torch.full_like(errors[0], torch.inf)
    later = errors[half:]
    known = width.isfinite() & ~later.isnan()
    held = ((later <= width) & known).flatten(1).sum(1)
    return held / known.flatten(1).sum(1)

"""Learning rates and shares as functions of the number of the update, from 0 on."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Mapping

from core.errors import InputError

Schedule = Callable[[int], float]


def constant(rate: float) -> Schedule:
    """The same rate throughout."""
    return lambda update: rate


def cosine(start: float, end: float, updates: int) -> Schedule:
    """Half a cosine from ``start`` at update 0 to ``end`` at update ``updates``, and ``end`` after it.

    Raises:
        InputError: no updates.
    """
    if updates < 1:
        raise InputError(f"cosine: updates {updates}; allowed: at least 1")
    return lambda update: end + (start - end) * (1 + math.cos(math.pi * min(update / updates, 1.0))) / 2


def linear(start: float, end: float, updates: int) -> Schedule:
    """A straight line from ``start`` at update 0 to ``end`` at update ``updates``, and ``end`` after it.

    Raises:
        InputError: no updates.
    """
    if updates < 1:
        raise InputError(f"linear: updates {updates}; allowed: at least 1")
    return lambda update: start + (end - start) * min(update / updates, 1.0)


def steps(start: float, changes: Mapping[int, float]) -> Schedule:
    """``start``, and from each update that ``changes`` names on the rate it gives.

    Raises:
        InputError: a change before update 0.
    """
    at = sorted(changes)
    if at and at[0] < 0:
        raise InputError(f"steps: a change at update {at[0]}; allowed: 0 or later")
    rates = [start, *(changes[update] for update in at)]
    return lambda update: rates[bisect.bisect_right(at, update)]

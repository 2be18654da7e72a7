"""Records of runs: their numbers, the instants that a statistic uses, and how its result is labelled."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from core.errors import InputError

Numbers = NDArray[np.float64]
Record = ArrayLike | Tensor


def as_numbers(values: Record) -> Numbers:
    """``values`` as a float64 array, from any device."""
    return np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values, dtype=np.float64)


def within(time: Record, start: float = -np.inf, stop: float = np.inf) -> slice:
    """The instants of [start, stop) among increasing times (T,).

    Raises:
        InputError: there is none.
    """
    times = as_numbers(time)
    first, last = np.searchsorted(times, (start, stop))
    if first >= last:
        held = f"the record runs from {times[0]:g} to {times[-1]:g}" if len(times) else "the record is empty"
        raise InputError(f"time window [{start:g}, {stop:g}): holds no instant, {held}")
    return slice(int(first), int(last))


def spacing(time: Record, at_least: int = 2) -> float:
    """The interval between instants (T,) that are equally spaced.

    Raises:
        InputError: fewer than ``at_least`` instants, or unequal or non-increasing ones.
    """
    times = as_numbers(time)
    if len(times) < max(at_least, 2):
        raise InputError(f"time: has {len(times)} instant(s), at least {max(at_least, 2)} are needed")
    steps = np.diff(times)
    if not (steps.min() > 0 and np.ptp(steps) <= 1e-3 * steps.mean()):
        raise InputError(f"time: steps from {steps.min():g} to {steps.max():g}, they must be equal and above 0")
    return float((times[-1] - times[0]) / len(steps))


def described(long_name: str, units: str = "1") -> dict[str, str]:
    """Attributes of a variable; the flow is non-dimensional, hence the unit 1."""
    return {"units": units, "long_name": long_name}


def runs(count: int) -> tuple[str, NDArray[np.int64], dict[str, str]]:
    """The coordinate ``start`` of that many runs."""
    return "start", np.arange(count), described("run")

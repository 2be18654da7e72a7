"""CPU seconds of this process, with pauses, and medians with their range."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager


class Clock:
    """Counts the CPU seconds of one process that are not spent in ``paused``."""

    def __init__(self) -> None:
        self._started, self._paused = time.process_time(), 0.0

    @property
    def seconds(self) -> float:
        """CPU seconds so far."""
        return time.process_time() - self._started - self._paused

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time in this block does not count."""
        started = time.process_time()
        try:
            yield
        finally:
            self._paused += time.process_time() - started


def rates(work: Callable[[], int], repeats: int = 5) -> list[float]:
    """Units of work per CPU second in each of several repetitions, after one that does not count."""
    work()
    found = []
    for _ in range(repeats):
        clock = Clock()
        units = work()
        found.append(units / clock.seconds)
    return found


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Median and range."""
    low, middle, high = (f"{x:,.{digits}g}" if x < 1e4 else f"{x:,.0f}" for x in _three(values))
    return f"{middle} ({low} to {high})"


def _three(values: Sequence[float]) -> tuple[float, float, float]:
    return min(values), statistics.median(values), max(values)

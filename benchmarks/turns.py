"""Several works timed in turns, so that whatever else the machine does slows all of them alike, and their ratios."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch

from benchmarks.clock import Clock


def milliseconds(
    works: Mapping[str, Callable[[], object]], repeats: int, *, calls: int = 1, device: str = "cpu"
) -> dict[str, list[float]]:
    """Milliseconds a call of each work in each repetition, after one that does not count; the order turns each time.

    Args:
        works: what is timed.
        repeats: turns.
        calls: calls of each work in a turn.
        device: on ``cpu`` CPU time is taken, on ``cuda`` wall time until the device is done.
    """
    found: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(repeats + 1):
        for name in list(works)[:: 1 if turn % 2 else -1]:
            took = _wall(works[name], calls) if device == "cuda" else _cpu(works[name], calls)
            if turn:
                found[name].append(1000 * took / calls)
    return found


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """Ratio of the medians, and the range of the ratios turn by turn."""
    turns = [a / b for a, b in zip(ours, theirs, strict=True)]
    return f"{statistics.median(ours) / statistics.median(theirs):.3g} ({min(turns):.3g} to {max(turns):.3g}) x"


def _cpu(work: Callable[[], object], calls: int) -> float:
    clock = Clock()
    for _ in range(calls):
        work()
    return clock.seconds


def _wall(work: Callable[[], object], calls: int) -> float:
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(calls):
        work()
    torch.cuda.synchronize()
    return time.perf_counter() - started

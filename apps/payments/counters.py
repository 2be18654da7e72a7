"""What a service counts, as Prometheus reads it."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable
from itertools import accumulate
from threading import Lock

PREFIX = "szilard_payments_"
SECONDS = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
"""Upper edges of the latency histogram."""
COUNTERS = {
    "decisions": "Payments decided and logged.",
    "duplicate_decisions": "Payments asked for again and answered from the log.",
    "conflicts": "Requests refused because a transaction came again with another content.",
    "unknown_categories": "Levels that the policy's oracle does not know, by category.",
    "rewards": "Rewards logged.",
    "duplicate_rewards": "Rewards whose decision already had one.",
    "late_rewards": "Rewards after the horizon.",
    "early_rewards": "Rewards before their decision: clocks differ.",
    "unknown_rewards": "Rewards whose decision is not in the log.",
    "refused_requests": "Requests refused for their input.",
    "failed_requests": "Requests that the log could not hold.",
}


class Counters:
    """Counts by name and label, and a histogram of latencies."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str]] = Counter({(name, ""): 0 for name in COUNTERS})
        self._latencies: dict[str, list[int]] = {}
        self._sums: dict[str, float] = {}
        self._gauges: dict[str, tuple[str, Callable[[], float]]] = {}
        self._lock = Lock()

    def add(self, name: str, count: int = 1, label: str = "") -> None:
        """Count; ``label`` is text such as ``category="issuer"``."""
        if count:
            with self._lock:
                self._counts[name, label] += count

    def observe(self, label: str, seconds: float) -> None:
        """Count a latency."""
        with self._lock:
            self._latencies.setdefault(label, [0] * (len(SECONDS) + 1))[bisect_left(SECONDS, seconds)] += 1
            self._sums[label] = self._sums.get(label, 0.0) + seconds

    def gauge(self, name: str, description: str, read: Callable[[], float]) -> None:
        """Show a number that is read when it is asked for."""
        self._gauges[name] = description, read

    def __getitem__(self, name: str) -> int:
        """The count over all labels."""
        return sum(count for (counted, _), count in self._counts.items() if counted == name)

    def text(self) -> str:
        """All of it in Prometheus' text format 0.0.4."""
        lines = []
        for name, description in COUNTERS.items():
            lines += [f"# HELP {PREFIX}{name}_total {description}", f"# TYPE {PREFIX}{name}_total counter"]
            counts = {label: count for (counted, label), count in sorted(self._counts.items()) if counted == name}
            if len(counts) > 1:
                del counts[""]  # what has labels is not counted without one
            lines += [
                f"{PREFIX}{name}_total{f'{{{label}}}' if label else ''} {count}" for label, count in counts.items()
            ]
        for name, (description, read) in self._gauges.items():
            lines += [
                f"# HELP {PREFIX}{name} {description}",
                f"# TYPE {PREFIX}{name} gauge",
                f"{PREFIX}{name} {read()}",
            ]
        name = f"{PREFIX}request_seconds"
        lines += [f"# HELP {name} From a request's arrival to its answer.", f"# TYPE {name} histogram"]
        for label, cells in sorted(self._latencies.items()):
            for edge, count in zip([*map(str, SECONDS), "+Inf"], accumulate(cells), strict=True):
                lines.append(f'{name}_bucket{{{label},le="{edge}"}} {count}')
            lines += [f"{name}_sum{{{label}}} {self._sums[label]}", f"{name}_count{{{label}}} {sum(cells)}"]
        return "\n".join(lines) + "\n"

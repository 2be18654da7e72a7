"""The paper's tuning grid: 51 x 51 points, 100 replicates, 200 years, 52 million environment steps."""

from __future__ import annotations

from apps.fishery import model, tune
from benchmarks.clock import Clock, spread


def main() -> None:
    """Print the CPU seconds of one core."""
    for rule in ("constant_mortality", "constant_escapement"):
        seconds = []
        for seed in range(3):
            clock = Clock()
            tune(model(3), rule, seed=seed)
            seconds.append(clock.seconds)
        print(f"  {rule:<22} {spread(seconds)} CPU s (target 5)")

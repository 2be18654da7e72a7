"""Speed against named peers, as ratios measured in one run: ``make bench``, or ``python -m benchmarks simulator``."""

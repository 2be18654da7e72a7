"""Whether beliefs are right as often as they say."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from apps.crs.evaluation import LISTED
from apps.crs.evidence import Evidence
from apps.crs.figures.appearance import GREY, styles
from core.stats import proportion_interval

BINS = 10
ACCEPTED = 4


def has_beliefs(evidence: Evidence) -> bool:
    """Whether any method has a belief."""
    return bool(_believers(evidence))


def calibration(evidence: Evidence) -> Figure:
    """How often a list holds the target, against the belief that it does, in bins of equal number."""
    problem = evidence.problems[0]
    figure = Figure(figsize=(5.5, 5), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1)
    style = styles(evidence.methods)
    for method in _believers(evidence):
        believed, held = [], []
        for data in evidence.of(problem, method).values():
            listed = data["action"].values == LISTED
            believed.append(data["confidence"].values[listed])
            held.append(data["answer"].values[listed] == ACCEPTED)
        order = np.argsort(np.concatenate(believed), kind="stable")
        for part in np.array_split(order, BINS):
            if len(part):
                mean = np.concatenate(believed)[part].mean()
                found = proportion_interval(int(np.concatenate(held)[part].sum()), len(part))
                error = [[found.mean - found.low], [found.high - found.mean]]
                axes.errorbar([mean], [found.mean], yerr=error, fmt="o", color=style[method][0], capsize=3)
        axes.plot([], [], "o", color=style[method][0], label=method)
    axes.set(
        xlabel="belief that the list holds the target", ylabel="share of lists that do", xlim=(0, 1), ylim=(0, 1.02)
    )
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def _believers(evidence: Evidence) -> list[str]:
    first = evidence.problems[0]
    return [
        m
        for m in evidence.methods
        if any(bool(np.isfinite(data["confidence"].values).any()) for data in evidence.of(first, m).values())
    ]

"""How often and how soon dialogues succeed."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from apps.crs.evidence import Evidence
from apps.crs.figures.appearance import GREY, styles
from apps.crs.metrics import success_by, success_curve
from core.stats import clustered_difference

BASELINE = "MaxEntropy"


def compared(evidence: Evidence) -> Figure:
    """Average turns and success side by side, a row a method."""
    problem, methods = evidence.problems[0], evidence.methods
    figure = Figure(figsize=(9, 1.2 + 0.4 * len(methods)), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    success = evidence.success(problem)
    for axes, measure, label in zip(panels, ("AT", success), ("average turns", success), strict=True):
        for place, method in enumerate(methods):
            found = evidence.interval(problem, method, measure)
            error = [[found.mean - found.low], [found.high - found.mean]]
            colour = styles(methods)[method][0]
            axes.errorbar([found.mean], [place], xerr=error, fmt="o", color=colour, capsize=3)
            for values in evidence.values(problem, method, measure).values():
                axes.plot([values.mean()], [place], "|", color=GREY, markersize=9, alpha=0.7)
        axes.set_xlabel(label)
        axes.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(range(len(methods)), methods)
    panels[0].invert_yaxis()
    return figure


def success_by_turn(evidence: Evidence) -> Figure:
    """SR@t against t, a line a method."""
    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axes = figure.subplots()
    problem = evidence.problems[0]
    turns = np.arange(1, evidence.last(problem) + 1)
    for method, (colour, dash) in styles(evidence.methods).items():
        curve = np.mean([success_curve(data) for data in evidence.of(problem, method).values()], axis=0)
        axes.plot(turns, curve, dash, color=colour, label=method, marker="o", markersize=3)
    axes.set(xlabel="turn t", ylabel="SR@t", ylim=(0, 1.02), xlim=(0.8, turns[-1] + 0.2))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", fontsize=8, ncols=4)
    return figure


def relative_success(evidence: Evidence) -> Figure:
    """SR@t less that of the baseline, with bands."""
    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axes = figure.subplots()
    problem = evidence.problems[0]
    baseline = BASELINE if BASELINE in evidence.methods else evidence.methods[0]
    turns = np.arange(1, evidence.last(problem) + 1)
    for method, (colour, dash) in styles(evidence.methods).items():
        if method == baseline:
            continue
        found = [_gap(evidence, problem, method, baseline, int(t)) for t in turns]
        axes.plot(turns, [mean for mean, _, _ in found], dash, color=colour, label=method)
        axes.fill_between(turns, [low for _, low, _ in found], [high for _, _, high in found], color=colour, alpha=0.15)
    axes.axhline(0, color=GREY, linewidth=1)
    axes.set(xlabel="turn t", ylabel=f"SR@t less that of {baseline}", xlim=(0.8, turns[-1] + 0.2))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", fontsize=8, ncols=4)
    return figure


def _gap(evidence: Evidence, problem: str, method: str, baseline: str, turn: int) -> tuple[float, float, float]:
    one = {seed: success_by(data, turn) for seed, data in evidence.of(problem, method).items()}
    other = {seed: success_by(data, turn) for seed, data in evidence.of(problem, baseline).items()}
    pairs = [(one[s], other[s]) for s in set(one) & set(other)] if len(one) == len(other) else []
    if not pairs:
        pairs = [(a, next(iter(other.values()))) for a in one.values()]
    found = clustered_difference(np.stack([a - b for a, b in pairs]), resamples=1000)
    return found.mean, found.low, found.high

"""Valid prediction times: of every system by method, by rank, against training cost and against training length."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure as Drawing

from apps.chaos.evidence import Evidence
from apps.chaos.figures.appearance import LYAPUNOV_TIMES, legend, styles
from apps.chaos.table import median_interval
from core.stats import average_ranks

LINEAR_BELOW = 0.1
"""Lyapunov times below which the axis is linear: some forecasts hold for no sample."""
VALID = f"valid time V1 ({LYAPUNOV_TIMES})"


def swarm(evidence: Evidence) -> Drawing:
    """Every system as a dot, the median with its interval, methods from the best median down."""
    values = {name: evidence.by_system(name) for name in evidence.methods}
    order = sorted(values, key=lambda name: np.nan_to_num(evidence.median(name), nan=-1.0))
    drawing = Drawing(figsize=(9, 0.42 * len(order) + 1.6), layout="constrained")
    axes = drawing.subplots()
    look = styles(evidence)
    for place, name in enumerate(order):
        known = values[name][np.isfinite(values[name])]
        jitter = np.random.default_rng(0).uniform(-0.22, 0.22, len(known))
        axes.scatter(known, place + jitter, s=14, color=look[name]["color"], alpha=0.55, lw=0)
        if len(known) > 1:
            found = median_interval(known)
            axes.errorbar(
                found.mean,
                place,
                xerr=[[found.mean - found.low], [found.high - found.mean]],
                fmt="D",
                color="black",
                ms=5,
                capsize=3,
                lw=1.4,
            )
    axes.set_xscale("symlog", linthresh=LINEAR_BELOW)
    ticks = [0, 0.1, 0.3, 1, 3, 10, 30]
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axes.set_yticks(range(len(order)), order)
    axes.set(xlabel=VALID, xlim=(-0.02, None))
    axes.grid(axis="x", alpha=0.3)
    return drawing


def critical_difference(evidence: Evidence) -> Drawing:
    """Mean ranks; a bar is the critical difference (Nemenyi): its method is not told apart from those it reaches."""
    scores = np.stack([evidence.by_system(name) for name in evidence.methods])
    scores = scores[:, np.isfinite(scores).any(0)]
    ranks = average_ranks(scores, higher_is_better=True)
    names = list(evidence.methods)
    order = np.argsort(ranks.ranks)
    drawing = Drawing(figsize=(8, 0.36 * len(names) + 1.5), layout="constrained")
    axes = drawing.subplots()
    for place, index in enumerate(order[::-1]):
        axes.plot(ranks.ranks[index], place, "o", color="black", ms=6, zorder=3)
        axes.plot(
            [ranks.ranks[index], ranks.ranks[index] + ranks.critical_difference], [place, place], color="0.6", lw=3
        )
    axes.axvline(ranks.ranks[order[0]] + ranks.critical_difference, color="#d55e00", ls="--", lw=1.2)
    axes.set_yticks(range(len(names)), [names[i] for i in order[::-1]])
    axes.set(xlabel=f"mean rank by valid time, 1 is best (critical difference {ranks.critical_difference:.2f})")
    axes.grid(axis="x", alpha=0.3)
    return drawing


def cost(evidence: Evidence) -> Drawing:
    """Median valid time against seconds of training of a series."""
    drawing = Drawing(figsize=(8, 5), layout="constrained")
    axes = drawing.subplots()
    for name, style in styles(evidence).items():
        known = evidence.by_system(name)
        known = known[np.isfinite(known)]
        seconds = float(evidence.methods[name]["fit_seconds"].mean("replicate").median())
        if len(known) < 2 or not seconds > 0:
            continue
        found = median_interval(known)
        axes.errorbar(
            seconds,
            found.mean,
            yerr=[[found.mean - found.low], [found.high - found.mean]],
            fmt="o",
            color=style["color"],
            capsize=3,
            lw=1.2,
            ms=6,
        )
        axes.annotate(name, (seconds, found.mean), xytext=(6, 5), textcoords="offset points", fontsize=9)
    axes.set(xscale="log", xlabel="training of one series (s, wall, amortised over a group)", ylabel=f"{VALID}, median")
    axes.margins(x=0.15)
    # A median of zero must be seen.
    axes.set_ylim(-0.03 * axes.get_ylim()[1], None)
    axes.grid(alpha=0.3)
    return drawing


def training_length(collected: Sequence[Evidence], lengths: Sequence[int]) -> Drawing:
    """Median valid time against the training length, of the methods that every scenario has."""
    drawing = Drawing(figsize=(8, 5), layout="constrained")
    axes = drawing.subplots()
    order = np.argsort(lengths)
    shared = [
        m
        for m in collected[0].methods
        if all(m in e.methods and np.isfinite(e.by_system(m)).sum() > 1 for e in collected)
    ]
    look = styles(collected[0])
    for name in shared:
        found = [median_interval(v[np.isfinite(v)]) for v in (collected[i].by_system(name) for i in order)]
        at = np.array(lengths)[order]
        axes.plot(at, [f.mean for f in found], marker="o", label=name, lw=1.8, **look[name])
        axes.fill_between(
            at, [f.low for f in found], [f.high for f in found], color=look[name]["color"], alpha=0.12, lw=0
        )
    axes.set(xscale="log", xlabel="training samples", ylabel=f"{VALID}, median", ylim=(0, None))
    axes.set_xticks(sorted(lengths), [f"{n:g}" for n in sorted(lengths)])
    axes.set_xticks([], minor=True)
    axes.grid(alpha=0.3)
    legend(drawing, axes)
    return drawing

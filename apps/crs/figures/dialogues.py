"""What happens within dialogues."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

from apps.crs.evaluation import LISTED, OVER
from apps.crs.evidence import Evidence, Numbers
from apps.crs.figures.appearance import styles
from core.stats import mean_interval

FIFTHS = 5


def kinds_of_turn(evidence: Evidence) -> Figure:
    """A heat map: share of recommendations, turn by method."""
    problem, methods = evidence.problems[0], evidence.methods
    shares = np.full((len(methods), evidence.last(problem)), np.nan)
    for row, method in enumerate(methods):
        action = np.concatenate([data["action"].values for data in evidence.of(problem, method).values()])
        going = action != OVER
        enough = going.mean(0) >= 0.01
        shares[row, enough] = ((action == LISTED).sum(0) / np.maximum(going.sum(0), 1))[enough]
    figure = Figure(figsize=(9, 1.4 + 0.38 * len(methods)), layout="constrained")
    axes = figure.subplots()
    axes.set_facecolor("#cccccc")
    image = axes.imshow(shares, vmin=0, vmax=1, aspect="auto", cmap="viridis")
    axes.set_xticks(range(shares.shape[1]), [str(turn + 1) for turn in range(shares.shape[1])])
    axes.set_yticks(range(len(methods)), methods)
    axes.set_xlabel("turn")
    figure.colorbar(image, ax=axes, label="share of recommendations")
    return figure


def candidates_left(evidence: Evidence) -> Figure:
    """Median number of candidates against the turn."""
    problem = evidence.problems[0]
    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axes = figure.subplots()
    for method, (colour, dash) in styles(evidence.methods).items():
        seeds = evidence.of(problem, method).values()
        left = np.concatenate([data["candidates"].values for data in seeds]).astype(float)
        over = np.concatenate([data["action"].values for data in seeds]) == OVER
        left[over] = np.nan
        there = (~over).mean(0) >= 0.01
        turns = np.flatnonzero(there) + 1
        median = np.nanmedian(left[:, there], axis=0)
        axes.plot(turns, median, dash, color=colour, label=method, marker="o", markersize=3)
    axes.set_yscale("log")
    axes.yaxis.set_minor_locator(LogLocator(subs=(2, 3, 5)))
    for formatted in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        formatted("{x:g}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="turn", ylabel="candidates left (items)")
    axes.grid(alpha=0.3, which="both")
    figure.legend(loc="outside lower center", fontsize=8, ncols=4)
    return figure


def popularity(evidence: Evidence) -> Figure:
    """Average turns by fifths of the targets' popularity."""
    problem = evidence.problems[0]
    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axes = figure.subplots()
    for place, (method, (colour, _)) in enumerate(styles(evidence.methods).items()):
        seeds = list(evidence.of(problem, method).values())
        turns = np.mean([data["turns"].values for data in seeds], axis=0)
        for fifth, members in enumerate(_fifths(seeds[0]["popularity"].values.astype(float))):
            found = mean_interval(turns[members])
            at = fifth + 0.75 * ((place + 0.5) / len(evidence.methods) - 0.5)
            error = [[found.mean - found.low], [found.high - found.mean]]
            label = method if fifth == 0 else None
            axes.errorbar([at], [found.mean], yerr=error, fmt="o", color=colour, markersize=4, capsize=2, label=label)
    axes.set_xticks(range(FIFTHS), ["least popular", *["" for _ in range(FIFTHS - 2)], "most popular"])
    axes.set(ylabel="average turns", xlabel="fifth of the targets by popularity")
    axes.grid(axis="y", alpha=0.3)
    figure.legend(loc="outside lower center", fontsize=8, ncols=4)
    return figure


def _fifths(values: Numbers) -> list[np.ndarray]:
    """Indices of the dialogues in each fifth; ties are broken by their order."""
    return np.array_split(np.argsort(values, kind="stable"), FIFTHS)

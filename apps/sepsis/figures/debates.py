"""Judges and debates: accuracy, the features that are shown, calibration."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure as Drawing
from numpy.typing import NDArray

from apps.sepsis.evidence import Evidence, interval
from apps.sepsis.figures.appearance import COLOURS, GREY, point, words
from apps.sepsis.matches import SETTINGS
from apps.sepsis.table import STRATEGIES
from simulators.sepsis.features import LEVELS, STATE

MOST_SHOWN = 20
FEWEST_PAIRS = 20
"""Pairs below which a bin of the calibration is not drawn."""


def accuracies(evidence: Evidence) -> Drawing:
    """Accuracy of the judge by who argues and in which setting."""
    names = evidence.strategies
    drawing = Drawing(figsize=(9.4, 4.8), layout="constrained")
    axes = drawing.subplots()
    drawn = set()
    for j, setting in enumerate(SETTINGS):
        for i, name in enumerate(names):
            if (parts := evidence.of_strategy(name, "correct", setting=setting)) is not None:
                point(axes, i + 0.16 * (j - 1), interval(parts), COLOURS[j], "os^D"[j])
                drawn.add(setting)
        if setting in drawn:
            axes.plot([], [], "os^D"[j], color=COLOURS[j], label=setting)
    for name, label, style in (("random", "random features", ":"), ("full", "whole state", "--")):
        mean = 100 * float(np.mean([data[name].values.mean() for data in evidence.prepared.values()]))
        axes.axhline(mean, color=GREY, linewidth=1, linestyle=style, label=label)
    words(axes, [STRATEGIES.get(name, name) for name in names])
    axes.set_ylabel("the judge sides with the logged action (%)")
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return drawing


def shown_features(evidence: Evidence) -> Drawing:
    """Share of the debates that show a feature, by level of each drug of the logged action."""
    counts = np.sum([data["shown"].values for data in evidence.debates.values()], axis=0)
    return feature_map(counts, _debates(evidence), "logged")


def feature_map(counts: NDArray[np.float64], debates: int, action: str) -> Drawing:
    """Share of the debates that show a feature, by level of each drug; the features that are shown most.

    Under each level stands the number of its debates.

    Args:
        counts: ``(44, 25)`` debates that show the feature, by action.
        debates: in all.
        action: whose, in a word.
    """
    by_action = counts.reshape(len(STATE), LEVELS, LEVELS)
    items = counts.sum() / max(debates, 1)
    order = counts.sum(1).argsort()[::-1][:MOST_SHOWN]
    drawing = Drawing(figsize=(8.4, 6.4), layout="constrained")
    grid = drawing.subplots(1, 2, sharey=True)
    for axes, (drug, axis) in zip(grid, (("fluid", 2), ("vasopressor", 1)), strict=True):
        table = by_action.sum(axis)
        held = table.sum(0) / max(items, 1e-9)
        # A level that nobody gave stays white.
        share = np.where(held > 0, 100 * table[order] / np.maximum(held, 1e-9), np.nan)
        image = axes.imshow(share, aspect="auto", cmap="viridis", vmin=0)
        axes.set_xlabel(f"{drug} level of the {action} action\n(below it, debates)")
        axes.set_xticks(range(LEVELS), [f"{level}\n{number:,.0f}" for level, number in enumerate(held)], fontsize=8)
        drawing.colorbar(image, ax=axes, label="share of the debates (%)")
    grid[0].set_yticks(range(len(order)), [STATE[i] for i in order])
    return drawing


def _debates(evidence: Evidence) -> int:
    return sum(data.sizes["pair"] for data in evidence.debates.values())


def judge_calibration(evidence: Evidence) -> Drawing:
    """Accuracy against confidence, a line a seed."""
    drawing = Drawing(figsize=(4.4, 4.2), layout="constrained")
    axes = drawing.subplots()
    axes.plot([50, 100], [50, 100], color=GREY, linewidth=1, linestyle=":")
    for i, (seed, data) in enumerate(evidence.prepared.items()):
        kept = data["count"].values >= FEWEST_PAIRS
        error = 100 * float(data.attrs["calibration_error"])
        axes.plot(
            100 * data["confidence"].values[kept],
            100 * data["accuracy"].values[kept],
            "o-",
            color=COLOURS[i % len(COLOURS)],
            label=f"seed {seed} (mean error {error:.1f} points)",
        )
    axes.set(xlabel="probability that the judge gives its choice (%)", ylabel="the logged action was its choice (%)")
    axes.legend(fontsize=8)
    return drawing

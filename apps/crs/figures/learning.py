"""Learning curves."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from apps.crs.evidence import Evidence
from apps.crs.figures.appearance import styles

PANELS = (("look_turns", "average turns"), ("look_success", "success"), ("look_earned", "mean return"))


def has_looks(evidence: Evidence) -> bool:
    """Whether anything was trained."""
    return bool(_trained(evidence))


def learning_curves(evidence: Evidence) -> Figure:
    """Turns, success and return on the held-out dialogues against training dialogues."""
    problem = evidence.problems[0]
    figure = Figure(figsize=(12, 4), layout="constrained")
    panels = figure.subplots(1, len(PANELS))
    style = styles(evidence.methods)
    for axes, (name, label) in zip(panels, PANELS, strict=True):
        for method in _trained(evidence):
            colour = style[method][0]
            curves = []
            for data in evidence.of(problem, method).values():
                dialogues, values = data["look_dialogues"].values, data[name].values
                best = int(np.argmin(data["look_loss"].values))
                axes.plot(dialogues, values, color=colour, linewidth=0.8, alpha=0.5)
                axes.plot(dialogues[best], values[best], "o", mfc="none", color=colour)
                curves.append((dialogues, values))
            if len({len(values) for _, values in curves}) == 1:
                middle = [np.mean(part, axis=0) for part in zip(*curves, strict=True)]
                axes.plot(*middle, color=colour, linewidth=2, label=method)
        axes.set(xlabel="training dialogues", ylabel=label)
        axes.grid(alpha=0.3)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", fontsize=8, ncols=6)
    return figure


def _trained(evidence: Evidence) -> list[str]:
    first = evidence.problems[0]
    return [m for m in evidence.methods if all("look_loss" in data for data in evidence.of(first, m).values())]

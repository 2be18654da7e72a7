"""The matrix of a transfer: what was trained where, and how it does elsewhere."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure as Drawing

from core.study import Figure, Row

METRIC = "spectrum error"


def transfer_matrix(table: Sequence[Row], scenarios: Sequence[str]) -> Figure:
    """The spectrum errors of all methods in all scenarios, as a heat map."""
    rows = [row for row in table if row.metric == METRIC]
    methods = list(dict.fromkeys(_method(row) for row in rows))
    caption = (
        "Spectrum error (decades; below it its 95 % half-width) of every method in every flow; 'from' names the flow "
        "in which agents were trained or a constant was tuned. Empty: not simulated there, or blown up."
    )
    return Figure("transfer", caption, lambda: _draw(rows, methods, list(scenarios)))


def _method(row: Row) -> str:
    """Without the constant that was tuned here: a closure is one line of the matrix."""
    return re.sub(r" \([^)]*\)$", "", row.method)


def _draw(rows: Sequence[Row], methods: list[str], scenarios: list[str]) -> Drawing:
    values, halves = (np.full((len(methods), len(scenarios)), np.nan) for _ in range(2))
    for row in rows:
        if row.mean is not None and row.low is not None:
            place = methods.index(_method(row)), scenarios.index(row.scenario)
            values[place], halves[place] = row.mean, row.mean - row.low
    drawing = Drawing(figsize=(2.6 + 1.3 * len(scenarios), 1.4 + 0.42 * len(methods)), layout="constrained")
    axes = drawing.subplots()
    image = axes.imshow(values, cmap="viridis_r", vmin=0.0, aspect="auto")
    middle = np.nanmax(values) / 2
    for i, j in np.argwhere(np.isfinite(values)):
        text = f"{values[i, j]:.3f}\n±{halves[i, j]:.3f}"
        colour = "white" if values[i, j] > middle else "black"
        axes.text(j, i, text, ha="center", va="center", color=colour, fontsize=7)
    axes.set_xticks(range(len(scenarios)), scenarios, rotation=20, ha="right")
    axes.set_yticks(range(len(methods)), methods)
    axes.set(xlabel="simulated in", ylabel="closure")
    drawing.colorbar(image, ax=axes, label="spectrum error (decades)")
    return drawing

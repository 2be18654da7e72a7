"""Colours and names that all figures share."""

from __future__ import annotations

from matplotlib.axes import Axes

from core.stats import Interval

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#8c564b")
"""Told apart with any colour vision (Okabe and Ito 2008)."""
GREY = "#666666"


def point(axes: Axes, x: float, i: Interval, colour: str, marker: str = "o", scale: float = 100.0) -> None:
    """A mean with its interval."""
    error = [[scale * (i.mean - i.low)], [scale * (i.high - i.mean)]]
    axes.errorbar([x], [scale * i.mean], yerr=error, fmt=marker, color=colour, capsize=3, markersize=6)


def words(axes: Axes, labels: list[str]) -> None:
    """Labels of a categorical axis, turned where they are long."""
    turned = max(map(len, labels), default=0) > 9
    axes.set_xticks(range(len(labels)), labels, rotation=35 if turned else 0, ha="right" if turned else "center")
    axes.set_xlim(-0.6, max(len(labels), 1) - 0.4)

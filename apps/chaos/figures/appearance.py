"""What is alike in every figure: the colour of a method, legends and axes."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing

from apps.chaos.evidence import Evidence

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#5e3c99", "#8c564b", "#7f7f7f", "black")
"""The first told apart with any colour vision (Okabe and Ito 2008); methods take them in the order of the study."""
DASHES: tuple[Any, ...] = ("-", "--", "-.", ":")
"""One for each turn through the palette, so that colour never tells a method alone."""
TRUTH = "black"
LYAPUNOV_TIMES = "Lyapunov times"


def styles(evidence: Evidence) -> dict[str, dict[str, Any]]:
    """Colour and line of each method of a scenario."""
    looks = {
        name: {"color": PALETTE[i % len(PALETTE)], "ls": DASHES[(i // len(PALETTE) + i % 2) % len(DASHES)]}
        for i, name in enumerate(evidence.everyone or evidence.methods)
    }
    return {name: looks[name] for name in evidence.methods}


def legend(drawing: Drawing, axes: Axes) -> None:
    """The labels of a panel, beside all of them."""
    handles, labels = axes.get_legend_handles_labels()
    drawing.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=9)

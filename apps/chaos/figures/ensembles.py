"""Calibration of ensemble forecasts: ranks of the truth, and spread against error."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure as Drawing

from apps.chaos.evidence import Evidence
from apps.chaos.figures.appearance import LYAPUNOV_TIMES, styles


def calibration(evidence: Evidence, members: dict[str, int]) -> Drawing:
    """Rank histogram and growth of spread and error, a row a method."""
    drawing = Drawing(figsize=(10, 3 * len(members) + 0.3), layout="constrained")
    panels = drawing.subplots(len(members), 2, squeeze=False)
    look = styles(evidence)
    for (left, right), (name, count) in zip(panels, members.items(), strict=True):
        data = evidence.methods[name]
        rank = data["rank"].values
        rank = rank[np.isfinite(rank)]
        share = np.histogram(rank, bins=np.arange(count + 2) - 0.5)[0] / max(len(rank), 1)
        left.bar(range(count + 1), share, color=look[name]["color"], width=0.9)
        left.axhline(1 / (count + 1), color="black", lw=1, ls="--")
        left.set(title=name, xlabel="rank of the truth among the members", ylabel="share")
        rate = evidence.rate.values
        axis = np.geomspace(2, int(data["lead"].max()), 60) * np.nanmedian(rate)
        for quantity, dash in (("error", "-"), ("spread", "--")):
            values = evidence.curve(name, quantity, axis)
            with np.errstate(invalid="ignore"):
                right.plot(axis, np.nanmedian(values, 0), ls=dash, color=look[name]["color"], lw=1.8, label=quantity)
        right.set(
            xscale="log", yscale="log", xlabel=f"horizon ({LYAPUNOV_TIMES})", ylabel="standard deviations of the truth"
        )
        right.legend(frameon=False)
        right.grid(alpha=0.3)
    return drawing

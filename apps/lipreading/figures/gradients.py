"""Signal, noise and direction of gradients."""

from __future__ import annotations

import math

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from apps.lipreading.figures.appearance import COLOURS, GREY
from apps.lipreading.gradients import jackknife, standard_error

PANELS = (
    ("snr", "signal-to-noise ratio of one repeat"),
    ("cosine", "cosine with the reference"),
    ("one_repeat", "cosine of one repeat"),
)


def signal_and_direction(data: xr.Dataset) -> Figure:
    """The three numbers of each estimator, with 1.96 jackknife standard errors."""
    names = [str(name) for name in data["method"].values]
    found = [jackknife(data, name) for name in names]
    figure = Figure(figsize=(12, 0.36 * len(names) + 1.6), layout="constrained")
    panels = figure.subplots(1, len(PANELS), sharey=True)
    for colour, axes, (value, label) in zip(COLOURS, panels, PANELS, strict=False):
        for place, (whole, left) in enumerate(found):
            mean = getattr(whole, value)
            values = [getattr(x, value) for x in left]
            if not math.isfinite(mean) or not np.isfinite(values).all():
                continue
            axes.errorbar(mean, place, xerr=1.96 * standard_error(values), fmt="o", color=colour, capsize=3)
        axes.set(xlabel=label, yticks=range(len(names)), yticklabels=names)
        axes.grid(alpha=0.3)
    panels[0].set_xscale("symlog", linthresh=0.05)
    panels[0].set_xlim(left=0)
    panels[0].set_xticks([0, 0.05, 0.1, 0.3, 1, 3], ["0", "0.05", "0.1", "0.3", "1", "3"])
    panels[1].axvline(1, color=GREY, linewidth=0.8)
    panels[0].invert_yaxis()
    return figure

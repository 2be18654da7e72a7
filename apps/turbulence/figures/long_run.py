"""Whether long simulations with the agents stay where the flow belongs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.figure import Figure as Drawing

from apps.turbulence.figures.appearance import RESOLVED, Entry, labelled
from simulators.turbulence.diagnostics.long_run import ENSTROPHY_RANGE

HIGHEST = 3.0
"""Multiple of the reference's mean at which the axes end: a simulation that blows up leaves them."""


def long_run(reference: xr.Dataset, arms: Sequence[Entry]) -> Drawing:
    """Energy and enstrophy of every simulation, a column an arm, over the range of the reference's snapshots."""
    drawing = Drawing(figsize=(1.5 + 5.5 * len(arms), 5.6), layout="constrained")
    panels = drawing.subplots(2, len(arms), sharex="col", sharey="row", squeeze=False)
    for row, name in zip(panels, ("energy", "enstrophy"), strict=True):
        known = reference[name].values
        bounds = known.mean() * np.array(ENSTROPHY_RANGE) if name == "enstrophy" else np.empty(0)
        for axes, arm in zip(row, arms, strict=True):
            axes.axhspan(known.min(), known.max(), color="0.85", lw=0, label="range of the reference's snapshots")
            axes.axhline(known.mean(), color=RESOLVED, lw=1.2, label="mean of the reference")
            for bound in bounds:
                label = f"{ENSTROPHY_RANGE[0]:g} and {ENSTROPHY_RANGE[1]:g} times its mean"
                axes.axhline(bound, color="0.4", lw=0.9, ls=":", label=label)
            for part in arm.parts:
                axes.plot(part["time"], part[name].T, color=arm.colour, lw=0.7, alpha=0.6, label=f"{arm.label}")
            axes.grid(alpha=0.3)
        seen = np.concatenate([known, bounds, *(part[name].values.ravel() for arm in arms for part in arm.parts)])
        seen = seen[np.isfinite(seen)]
        row[0].set_ylim(0.8 * seen.min(), min(1.1 * seen.max(), HIGHEST * known.mean()))
        row[0].set_ylabel(name)
    for axes, arm in zip(panels[0], arms, strict=True):
        axes.set_title(arm.label, fontsize=9)
    for axes in panels[1]:
        axes.set_xlabel("time")
    found = labelled(panels[1])
    drawing.legend([*found.values()], [*found], loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return drawing


def blown_up(arms: Sequence[Entry]) -> str:
    """How many long simulations did not stay finite, in a sentence."""
    lost, whole = 0, 0
    for part in (part for arm in arms for part in arm.parts):
        series = part["enstrophy"].isel(time=-1).values
        lost, whole = lost + int((~np.isfinite(series)).sum()), whole + series.size
    return f"{lost} of {whole} blew up; their lines end there." if lost else f"All {whole} stay finite."

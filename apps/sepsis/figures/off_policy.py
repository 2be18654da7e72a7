"""Estimates from a log, and how few patients carry them."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure as Drawing

from apps.sepsis.figures.appearance import COLOURS, GREY, words
from apps.sepsis.off_policy import OffPolicyReport

FLAGGED = "#c00000"


def estimates(report: OffPolicyReport) -> Drawing:
    """Each policy's estimates with intervals, hollow and red where nothing is identified, and the truth as a line."""
    drawing = Drawing(figsize=(1.2 + 3.0 * len(report.policies), 4.0), layout="constrained")
    grid = drawing.subplots(1, len(report.policies), sharey=True, squeeze=False)[0]
    for axes, policy in zip(grid, report.policies, strict=True):
        for i, e in enumerate(policy.estimates):
            if not np.isfinite([e.value, e.low, e.high]).all():
                continue
            flagged = bool(policy.flag(e))
            colour = FLAGGED if flagged else COLOURS[0]
            error = np.maximum([[e.value - e.low], [e.high - e.value]], 0)
            fill = "none" if flagged else colour
            axes.errorbar([i], [e.value], yerr=error, fmt="o", color=colour, capsize=3, markerfacecolor=fill)
        axes.axhline(report.logged.mean, color=GREY, linewidth=1, linestyle="--", label="clinician, as logged")
        if policy.truth is not None:
            axes.axhspan(policy.truth.low, policy.truth.high, color=COLOURS[2], alpha=0.25, linewidth=0)
            axes.axhline(policy.truth.mean, color=COLOURS[2], linewidth=1.5, label="truth")
        axes.set_title(policy.name, fontsize=10)
        axes.set_ylim(-1.15, 1.15)  # an outcome is +1 or -1; IS and DR may leave this range
        words(axes, [e.name for e in policy.estimates])
    grid[0].set_ylabel("mean discounted outcome")
    grid[-1].legend(fontsize=8, loc="lower right")
    return drawing


def overlap(report: OffPolicyReport) -> Drawing:
    """Share of all weight that the patients of largest weight carry; on the diagonal policy and log are the same."""
    drawing = Drawing(figsize=(5.2, 4.2), layout="constrained")
    axes = drawing.subplots()
    axes.plot([0, 100], [0, 100], color=GREY, linewidth=1, linestyle=":")
    for i, policy in enumerate(report.policies):
        log = policy.log_weights.double().numpy()
        weights = np.sort(np.exp(log - log.max()))[::-1] if np.isfinite(log.max()) else np.ones_like(log)
        carried = 100 * np.concatenate([[0], weights.cumsum() / weights.sum()])
        ess = weights.sum() ** 2 / (weights**2).sum()
        label = f"{policy.name}: {ess:.1f} of {len(log)} patients"
        axes.plot(np.linspace(0, 100, len(carried)), carried, color=COLOURS[i % len(COLOURS)], label=label)
    axes.set(xlabel="test patients, those of largest weight first (%)", ylabel="share of all weight (%)")
    axes.legend(fontsize=8, title="effective sample size", title_fontsize=8)
    return drawing

"""Methods against each other: over budgets, subject by subject, and beside the best that could have been done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from apps.mri.figures.appearance import COLOURS, main_metric, marker, ranked
from apps.mri.figures.layout import ActionLayout
from apps.mri.methods import NAMES
from core.stats import Interval, mean_interval, paired_difference, proportion_interval

_LABELS = {"mae": "MAE", "psnr": "PSNR (dB)", "ssim": "SSIM"}
_RESAMPLES = 1000

ByBudget = Mapping[int, Mapping[str, xr.Dataset]]
"""The datasets of the methods, for each budget."""


def subject_means(data: xr.Dataset, metric: str) -> NDArray[np.float64]:
    """A metric (subject,), averaged over the seeds."""
    values: NDArray[np.float64] = data[metric].mean("seed").values.astype(float)
    return values


def error_bar(axes: Axes, interval: Interval, y: float, method: str, *, filled: bool = True) -> None:
    """A mean with its interval, lying, at height ``y``; caps are taller than the mark, which would hide a short one."""
    axes.errorbar(
        interval.mean,
        y,
        xerr=[[interval.mean - interval.low], [interval.high - interval.mean]],
        fmt=marker(method),
        color="black",
        mfc=COLOURS[method] if filled else "white",
        mec=COLOURS[method],
        mew=0.9,
        ms=4,
        capsize=4.5,
        lw=0.9,
        barsabove=True,
        zorder=3,
    )


def in_percent(share: Interval) -> Interval:
    """A share, in percent."""
    return replace(share, mean=100 * share.mean, low=100 * share.low, high=100 * share.high)


def budget_curves(found: ByBudget, layout: ActionLayout, methods: Sequence[str]) -> Drawing:
    """MAE, PSNR and SSIM against the actions acquired, with 95 % bands; acceleration on the upper axis."""
    drawing = Drawing(figsize=(9, 3.9), layout="constrained")
    for axes, (metric, label) in zip(drawing.subplots(1, 3), _LABELS.items(), strict=True):
        for method in methods:
            budgets = [b for b in sorted(found) if method in found[b]]
            means = [mean_interval(subject_means(found[b][method], metric), resamples=_RESAMPLES) for b in budgets]
            colour, first = COLOURS[method], method == "ads"
            axes.fill_between(budgets, [m.low for m in means], [m.high for m in means], color=colour, alpha=0.18, lw=0)
            axes.plot(
                budgets,
                [m.mean for m in means],
                color=colour,
                marker=marker(method),
                ms=5,
                lw=2.2 if first else 1.3,
                zorder=4 if first else 3,
                label=NAMES[method] if metric == "mae" else None,
            )
        axes.set_xticks(sorted(found))
        axes.set(xlabel=f"{layout.noun}s acquired", ylabel=label)
        axes.grid(alpha=0.3)
        top = axes.secondary_xaxis("top")
        top.set_xticks(sorted(found), [f"{layout.actions / b:.3g}×" for b in sorted(found)], fontsize=8)
        top.set_xlabel("acceleration", fontsize=9)
    drawing.legend(loc="outside lower center", ncol=min(len(methods), 5), fontsize=8.5, frameon=False)
    return drawing


def violins(found: ByBudget, layout: ActionLayout, methods: Sequence[str]) -> Drawing:
    """Distribution of the MAE over the subjects, for each budget and method; quartiles and mean."""
    drawing = Drawing(figsize=(9, 4), layout="constrained")
    axes = drawing.subplots()
    step = 0.82 / len(methods)
    for i, method in enumerate(methods):
        for group, budget in enumerate(sorted(found)):
            if method not in found[budget]:
                continue
            values = subject_means(found[budget][method], "mae")
            x = group + (i - (len(methods) - 1) / 2) * step
            _violin(axes, values, x, 0.92 * step, COLOURS[method])
        axes.bar(0, 0, color=COLOURS[method], alpha=0.6, label=NAMES[method])
    names = [f"{b} ({layout.actions / b:.3g}×)" for b in sorted(found)]
    axes.set_xticks(range(len(names)), names)
    axes.set(xlabel=f"{layout.noun}s acquired (acceleration)", ylabel="MAE of a subject")
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", alpha=0.3)
    drawing.legend(loc="outside lower center", ncol=min(len(methods), 5), fontsize=8.5, frameon=False)
    return drawing


def _violin(axes: Axes, values: NDArray[np.float64], x: float, width: float, colour: str) -> None:
    """The middle 95 % as a density, the others as dots: a density of few far ones is thinner than can be seen."""
    low, high = np.quantile(values, 0.025, method="lower"), np.quantile(values, 0.975, method="higher")
    middle = (values >= low) & (values <= high)
    if high > low:
        shape: Any = axes.violinplot(values[middle], [x], widths=width, showextrema=False)
        shape["bodies"][0].set(facecolor=colour, edgecolor=colour, lw=0.8, alpha=0.6)
    far = values[~middle]
    axes.plot(np.full(len(far), x), far, ls="", marker=".", ms=4, color=colour, mew=0)
    axes.plot([x, x], np.quantile(values, (0.25, 0.75)), color="black", lw=1.5)
    axes.plot(x, values.mean(), marker="o", color="white", mec="black", ms=4.5)


def gains(found: Mapping[str, xr.Dataset], operator: str) -> Drawing:
    """By how much ADS is better than each rival, subject by subject, and on how many subjects."""
    main = main_metric(operator)
    rivals = [m for m in ranked(found, operator) if m != "ads"]
    drawing = Drawing(figsize=(9, 1.1 + 0.31 * len(rivals)), layout="constrained")
    left, middle, right = drawing.subplots(1, 3, sharey=True, width_ratios=[1.5, 1.5, 1])
    for y, rival in enumerate(rivals):
        for axes, metric in ((left, main), (middle, "ssim")):
            ours, theirs = subject_means(found["ads"], metric), subject_means(found[rival], metric)
            pair = (theirs, ours) if metric == "mae" else (ours, theirs)
            error_bar(axes, paired_difference(*pair, resamples=_RESAMPLES), y, rival)
            if metric == main and (differ := int((ours != theirs).sum())):
                error_bar(right, in_percent(proportion_interval(int((pair[0] > pair[1]).sum()), differ)), y, rival)
            elif metric == main:
                right.text(50, y, "equal on all", ha="center", va="center", fontsize=8, backgroundcolor="white")
    left.set_yticks(range(len(rivals)), [NAMES[m] for m in rivals])
    left.set_ylim(len(rivals) - 0.5, -0.5)
    left.set_xlabel(f"gain of ADS in {_LABELS[main]}")
    middle.set_xlabel("gain of ADS in SSIM")
    right.set(xlabel=f"ADS has the better {main.upper()}\n(% of subjects that differ)", xlim=(-6, 106))
    for axes, at in ((left, 0), (middle, 0), (right, 50)):
        axes.axvline(at, color=COLOURS["ads"], lw=1.2, zorder=1)
        axes.grid(axis="x", alpha=0.3)
        axes.xaxis.set_major_locator(MaxNLocator(5))
    return drawing


def regret(found: Sequence[xr.Dataset]) -> Drawing:
    """NMSE above that of the best mask of each subject: means with intervals, and every subject."""
    data = xr.concat(found, "subject")
    best = data["nmse_best"].values
    errors = {str(m): row - best for m, row in zip(data["method"].values, data["nmse"].values, strict=True)}
    methods = sorted(errors, key=lambda m: float(errors[m].mean()))
    drawing = Drawing(figsize=(9, 1.3 + 0.33 * (len(methods) + 1)), layout="constrained")
    axes = drawing.subplots()
    luck = np.random.default_rng(0)
    greedy = data["nmse_greedy"].values - best
    rows = [
        ("clairvoyant greedy", greedy, "0.4", "d"),
        *((NAMES[m], errors[m], COLOURS[m], marker(m)) for m in methods),
    ]
    for y, (_, values, colour, mark) in enumerate(rows):
        shift = luck.uniform(-0.25, 0.25, len(values))
        axes.plot(values, y + shift, ls="", marker=".", ms=6, color=colour, alpha=0.5, mew=0)
        mean = mean_interval(values, resamples=_RESAMPLES)
        bar = [[mean.mean - mean.low], [mean.high - mean.mean]]
        axes.errorbar(mean.mean, y, xerr=bar, fmt=mark, color="black", mfc=colour, ms=7, capsize=3, zorder=3)
    axes.set_yticks(range(len(rows)), [row[0] for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    largest = max(float(np.quantile(values, 0.99)) for _, values, _, _ in rows)
    axes.set(xlabel="regret: NMSE above that of the subject's best mask", xlim=(-0.03 * largest, 1.05 * largest))
    axes.grid(axis="x", alpha=0.3)
    return drawing


def stops(found: Mapping[str, xr.Dataset], layout: ActionLayout) -> Drawing:
    """Where the stop rule ended each subject, and what the image was worth then, beside ADS with its full budget."""
    data = found["ads_stop"]
    used = data["actions"].values.ravel()
    drawing = Drawing(figsize=(9, 3.6), layout="constrained")
    left, right = drawing.subplots(1, 2)
    edges = np.arange(used.min() - 0.5, used.max() + 1.5, max(1, round((np.ptp(used) + 1) / 30)))
    left.hist(used, bins=edges, color=COLOURS["ads_stop"], edgecolor="white", lw=0.5)
    left.axvline(used.mean(), color="black", lw=1.2, ls="--", label=f"mean {used.mean():.1f}")
    left.set(xlabel=f"{layout.noun}s acquired", ylabel="acquisitions")
    left.yaxis.set_major_locator(MaxNLocator(integer=True))
    for method, mark in (("ads_stop", "o"), ("ads", "x")):
        if method in found:
            points = (found[method][name].values.ravel() for name in ("actions", "psnr"))
            right.plot(*points, ls="", marker=mark, ms=4, color=COLOURS[method], alpha=0.7, label=NAMES[method])
    right.set(xlabel=f"{layout.noun}s acquired", ylabel="PSNR of a subject (dB)")
    most = max(int(found[method]["actions"].max()) for method in ("ads_stop", "ads") if method in found)
    for axes in (left, right):
        axes.set_xlim(used.min() - 1, most + 1)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8.5, frameon=False)
        top = axes.secondary_xaxis("top")
        ticks = np.unique(np.linspace(used.min(), most, 5).round())
        top.set_xticks(ticks, [f"{layout.actions / t:.3g}×" for t in ticks], fontsize=8)
        top.set_xlabel("acceleration", fontsize=9)
    return drawing

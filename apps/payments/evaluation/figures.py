"""The pictures of an evaluation: every estimate, the weights behind it, the segments, the reward model."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.figure import Figure as Drawing

from apps.payments.evaluation.runs import discoveries
from apps.payments.metrics import BASIS_POINTS, PROPENSITY_EDGES, WEIGHT_EDGES
from core.study import Figure

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f")
BIASED = ("clipped_ips", "dm")
"""By the clip and by the model: their intervals tell of sampling alone."""
MARKERS = "os^Dv<>"


def of_evaluation(data: xr.Dataset, deciding: str, method: str) -> list[Figure]:
    """Every picture that the data allow; the estimator and interval that decide are named."""
    n = f"{int(data.attrs['rows']):,} rows"
    figures = [
        Figure(
            "estimates",
            "Value of each policy by every estimator with 95 % intervals by the delta method; the dotted line and "
            f"band are the mean reward of the log itself. {n}.",
            lambda: estimates(data),
        ),
        Figure(
            "intervals",
            f"The estimate by {deciding} with every interval that its assumptions allow. {n}.",
            lambda: intervals(data, deciding),
        ),
    ]
    if "weight_counts" in data:
        figures.append(
            Figure(
                "weights",
                f"Left: share of the log whose importance weight exceeds w. Right: the logged propensities. {n}.",
                lambda: weights(data),
            )
        )
        if data["calibration"].values[0].sum() > 0:
            figures.append(
                Figure(
                    "reward_model",
                    f"Predicted against observed reward of the cross-fitted reward model on the logged actions. {n}.",
                    lambda: reward_model(data),
                )
            )
    if "segment" in data.dims:
        figures.append(
            Figure(
                "segments",
                f"Difference by segment from what the claims compare with ({deciding}, 95 % {method} intervals). "
                "Filled: found at a false-discovery rate of 5 % over segments (Benjamini and Hochberg).",
                lambda: segments(data, deciding, method),
            )
        )
    return figures


def estimates(data: xr.Dataset) -> Drawing:
    """A panel a policy, a row an estimator."""
    policies, names = data["policy"].values, data["estimator"].values
    mean, low, high = data["logged"].values
    drawing = Drawing(figsize=(3.6 * len(policies) + 1.6, 1.3 + 0.36 * len(names)), layout="constrained")
    panels = np.atleast_1d(drawing.subplots(1, len(policies), sharey=True))
    for axes, policy, colour in zip(panels, policies, _cycle(COLOURS), strict=False):
        for row, name in enumerate(names):
            middle, lower, upper = data["value"].sel(policy=policy, estimator=name, interval="normal").values
            if np.isfinite(middle):
                ends = [[100 * (middle - lower)], [100 * (upper - middle)]]
                axes.errorbar(100 * middle, row, xerr=ends, fmt="o", color=colour, capsize=3, ms=5)
        if f"own_rate_{policy}" in data:
            middle, lower, upper = 100 * data[f"own_rate_{policy}"].values
            axes.errorbar(
                middle, len(names), xerr=[[middle - lower], [upper - middle]], fmt="*", color="black", capsize=3
            )
        axes.axvspan(100 * low, 100 * high, color="black", alpha=0.08, lw=0)
        axes.axvline(100 * mean, color="black", lw=1, ls=":")
        axes.set(title=f"{policy} ({data['verdict'].sel(policy=policy).item()})", xlabel="value (% rewarded)")
        axes.grid(axis="x", alpha=0.3)
    shown = [f"{name} (biased)" if name in BIASED else str(name) for name in names]
    labels = [*shown, "on its own log"] if any(str(name).startswith("own_rate_") for name in data) else shown
    panels[0].set_yticks(range(len(labels)), labels)
    panels[0].invert_yaxis()
    return drawing


def intervals(data: xr.Dataset, deciding: str) -> Drawing:
    """A row an interval method, a colour a policy."""
    policies, methods = data["policy"].values, data["interval"].values
    drawing = Drawing(figsize=(8, 1.4 + 0.3 * len(methods) * len(policies)), layout="constrained")
    axes = drawing.subplots()
    row, ticks = 0, []
    for method in methods:
        for policy, colour, marker in zip(policies, _cycle(COLOURS), _cycle(MARKERS), strict=False):
            middle, low, high = data["value"].sel(policy=policy, estimator=deciding, interval=method).values
            if not np.isfinite(middle):
                continue
            ends = [[100 * (middle - low)], [100 * (high - middle)]]
            axes.errorbar(100 * middle, row, xerr=ends, fmt=marker, color=colour, capsize=3, ms=5)
            ticks.append(f"{policy}, {method}")
            row += 1
    axes.set_yticks(range(row), ticks)
    axes.invert_yaxis()
    axes.axvline(100 * float(data["logged"][0]), color="black", lw=1, ls=":", label="mean reward of the log")
    axes.legend(frameon=False, fontsize=9)
    axes.set_xlabel(f"value by {deciding} (% rewarded)")
    axes.grid(axis="x", alpha=0.3)
    return drawing


def weights(data: xr.Dataset) -> Drawing:
    """Tails of the weights, and the propensities."""
    drawing = Drawing(figsize=(9.5, 4), layout="constrained")
    left, right = drawing.subplots(1, 2)
    edges = 10.0**WEIGHT_EDGES
    for policy, colour in zip(data["policy"].values, _cycle(COLOURS), strict=False):
        counts = data["weight_counts"].sel(policy=policy).values
        above = counts[::-1].cumsum()[::-1] / counts.sum()
        left.step(edges[:-1][above > 0], above[above > 0], where="post", color=colour, lw=1.6, label=policy)
    left.set(xscale="log", yscale="log", xlabel="importance weight w", ylabel="share of the log above w")
    left.legend(frameon=False, fontsize=9)
    counts = data["propensity_counts"].values
    right.stairs(100 * counts / counts.sum(), 10.0**PROPENSITY_EDGES, color="#7f7f7f", fill=True)
    right.set(xscale="log", xlabel="propensity of the logged action", ylabel="share of the log (%)")
    shown = 10.0 ** PROPENSITY_EDGES[:-1][counts > 0]
    right.set_xlim(shown.min() / 2, 1.5)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    return drawing


def reward_model(data: xr.Dataset) -> Drawing:
    """Reliability diagram of the reward model."""
    drawing = Drawing(figsize=(5.2, 4.6), layout="constrained")
    axes = drawing.subplots()
    count, predicted, rewarded = data["calibration"].values
    shown = count > 0
    x, y = predicted[shown] / count[shown], rewarded[shown] / count[shown]
    error = 1.96 * np.sqrt(y * (1 - y) / count[shown])
    axes.errorbar(x, y, yerr=error, fmt="o", color="#0072b2", capsize=2, ms=4)
    axes.axline((0, 0), slope=1, color="black", lw=0.8, ls=":")
    axes.set(xlabel="predicted reward", ylabel="observed reward (95 % normal interval)")
    axes.grid(alpha=0.3)
    return drawing


def segments(data: xr.Dataset, deciding: str, method: str) -> Drawing:
    """A row a segment, a panel a policy."""
    policies, names = data["policy"].values, data["segment"].values
    drawing = Drawing(figsize=(3.6 * len(policies) + 2, 1.2 + 0.3 * len(names)), layout="constrained")
    panels = np.atleast_1d(drawing.subplots(1, len(policies), sharey=True))
    for axes, policy, colour in zip(panels, policies, _cycle(COLOURS), strict=False):
        at = data.sel(policy=policy, estimator=deciding, interval=method)
        found = discoveries(at)
        for row in range(len(names)):
            middle, low, high = BASIS_POINTS * at["segment_difference"].isel(segment=row).values
            fill = colour if found[row] else "white"
            ends = [[middle - low], [high - middle]]
            axes.errorbar(middle, row, xerr=ends, fmt="o", color=colour, mfc=fill, capsize=3, ms=5)
        axes.axvline(0, color="black", lw=0.8)
        axes.set(title=policy, xlabel="difference (bps)")
        axes.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(range(len(names)), names)
    panels[0].invert_yaxis()
    return drawing


def _cycle(values: tuple[str, ...] | str) -> list[str]:
    return list(values) * 10

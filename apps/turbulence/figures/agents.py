"""What the agents have learned: their coefficients, where they set them, and how they came there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure as Drawing

from apps.turbulence.figures.appearance import Entry, labelled
from apps.turbulence.figures.fields import common_start, last_vorticity, picture, scale_end
from apps.turbulence.metrics import Numbers, finite

MOST_SEEDS = 4
"""Training seeds whose fields are drawn."""
BINS = 60
GROUPS = 12
"""Equally full bins of |grad omega| in which quantiles of c are taken."""
COEFFICIENT = "PuOr_r"
"""Colour map of coefficients."""
_FEWEST = 1e-12

_EFFECTIVE: dict[str, tuple[int, str]] = {
    "leith": (3, r"effective $C_L = \mathrm{sign}(c)\,|c|^{1/3}$"),
    "smagorinsky": (2, r"effective $C_S = \mathrm{sign}(c)\,|c|^{1/2}$"),
}
"""Power of the constant that c stands for, and its name, by ``action``."""


def coefficients_and_gradients(arm: Entry) -> tuple[Numbers, Numbers]:
    """Coefficient c and |grad omega| at every point of the last fields that are finite, each ``(points,)``."""
    c, gradient = (
        np.concatenate([part[name].values[finite(part).values].ravel() for part in arm.parts])
        for name in ("coefficient", "gradient")
    )
    known = np.isfinite(c) & (gradient > _FEWEST)
    return c[known].astype(np.float64), gradient[known].astype(np.float64)


def coefficient_density(arm: Entry) -> Drawing:
    """Joint density of c and |grad omega|, and the distribution of c beside it."""
    c, gradient = coefficients_and_gradients(arm)
    drawing = Drawing(figsize=(8.6, 4.8), layout="constrained")
    left, right = drawing.subplots(1, 2, sharey=True, width_ratios=(3, 1))
    x = np.geomspace(*_ends(np.quantile(gradient, 0.002), gradient.max()), BINS + 1)
    y = np.linspace(*_ends(c.min(), c.max()), BINS + 1)
    counts = np.histogram2d(gradient, c, (x, y))[0].T
    shown = left.pcolormesh(x, y, np.where(counts > 0, counts, np.nan), norm=LogNorm(1, counts.max() + 1), cmap="Blues")
    low, middle, high, place = _quantiles(gradient, c)
    for end, label in ((low, "10 and 90 %"), (high, None)):
        left.plot(place, end, color=arm.colour, lw=1.3, ls="--", label=label)
    left.plot(place, middle, color=arm.colour, lw=2, marker="o", ms=3.5, label="median")
    left.set(xscale="log", xlabel=r"$|\nabla\omega|$", ylabel="coefficient $c$", xlim=(x[0], x[-1]))
    left.legend(frameon=False, fontsize=9, loc="upper left")
    drawing.colorbar(shown, ax=left, location="top", label="points", shrink=0.6, aspect=30)
    right.hist(c, y, orientation="horizontal", color=arm.colour, alpha=0.6, density=True)
    right.axhline(c.mean(), color="black", lw=1.2, label="mean")
    right.set_xlabel("density of $c$")
    right.legend(frameon=False, fontsize=9)
    for axes in (left, right):
        axes.axhline(0, color="black", lw=0.8, ls=":")
        axes.grid(alpha=0.3)
    _effective(right, arm.parts[0])
    return drawing


def _ends(low: float, high: float) -> tuple[float, float]:
    """Limits that are apart, also of values that are all the same."""
    return (
        (low, high) if high - low > 1e-6 * abs(high) else (low - 0.1 * abs(low) - 1e-4, high + 0.1 * abs(high) + 1e-4)
    )


def _quantiles(gradient: Numbers, c: Numbers) -> Numbers:
    """10 %, 50 % and 90 % of c, and the median gradient, in equally full bins, ``(4, bins)``."""
    groups = np.array_split(np.argsort(gradient), min(GROUPS, len(gradient)))
    return np.array([[*np.quantile(c[g], (0.1, 0.5, 0.9)), np.median(gradient[g])] for g in groups]).T


def _effective(axes: Axes, found: xr.Dataset) -> None:
    """The constant that c stands for, on the right; nothing where the action is not known."""
    if found.attrs.get("action") not in _EFFECTIVE:
        return
    power, label = _EFFECTIVE[found.attrs["action"]]

    def constant(c: Any) -> Any:
        return np.sign(c) * np.abs(c) ** (1 / power)

    def coefficient(constant: Any) -> Any:
        return np.sign(constant) * np.abs(constant) ** power

    second = axes.secondary_yaxis("right", functions=(constant, coefficient))
    ends = constant(np.asarray(axes.get_ylim()))
    step = next(step for step in (0.01, 0.02, 0.05, 0.1, 0.2) if np.ptp(ends) < 10 * step)
    ticks = np.arange(-10, 11) * step
    # Near 0 a large constant is a small c: labels there would lie on each other.
    apart = np.ptp(axes.get_ylim()) / 22
    kept: list[float] = []
    for tick in sorted(ticks[(ticks >= ends[0]) & (ticks <= ends[1])], key=lambda t: -abs(t)):
        if all(abs(coefficient(tick) - coefficient(other)) >= apart for other in kept):
            kept.append(tick)
    second.set_yticks(sorted(kept), [f"{tick:.2f}" for tick in sorted(kept)])
    second.set_ylabel(label)


def coefficient_fields(arm: Entry, sigma: float) -> Drawing:
    """Vorticity above the coefficients that the agents set there, a column a training seed, from one start."""
    parts = arm.parts[:MOST_SEEDS]
    place = common_start([Entry(arm.kind, arm.label, (part,), arm.colour) for part in parts])
    drawing = Drawing(figsize=(2.6 * len(parts) + 1.6, 5.2), layout="constrained")
    panels = drawing.subplots(2, len(parts), sharex=True, sharey=True, squeeze=False)
    vorticity = [last_vorticity(part, place, sigma) for part in parts]
    c = [
        np.where(np.isfinite(omega), part["coefficient"].isel(start=place).transpose("x", "y").values, np.nan)
        for part, omega in zip(parts, vorticity, strict=True)
    ]
    for row, fields, cmap, label in (
        (panels[0], vorticity, "RdBu_r", r"vorticity $\omega/\sigma$"),
        (panels[1], c, COEFFICIENT, "coefficient $c$"),
    ):
        limit = scale_end(fields)
        for axes, field in zip(row, fields, strict=True):
            shown = picture(axes, field, limit, cmap)
        row[0].set_ylabel(r"$y/\pi$")
        drawing.colorbar(shown, ax=row, extend="both", label=label)
    for seed, axes in enumerate(panels[0]):
        axes.set_title(f"{arm.label}, training seed {seed}", fontsize=9)
    for axes in panels[1]:
        axes.set_xlabel(r"$x/\pi$")
    return drawing


def learning_curves(arms: Sequence[Entry]) -> Drawing:
    """Score against solver steps, a panel an arm, a thin line a training seed and the mean over them."""
    drawing = Drawing(figsize=(1.0 + 4.6 * len(arms), 3.9), layout="constrained")
    panels = drawing.subplots(1, len(arms), squeeze=False)[0]
    for axes, arm in zip(panels, arms, strict=True):
        curves = [(part["steps"].values, part["score"].values) for part in arm.parts]
        for steps, score in curves:
            axes.plot(steps, score, color=arm.colour, lw=0.9, alpha=0.6, label="training seeds")
        if len(curves) > 1:
            shortest = min(len(score) for _, score in curves)
            mean = np.mean([score[:shortest] for _, score in curves], axis=0)
            axes.plot(curves[0][0][:shortest], mean, color=arm.colour, lw=2.2, label="mean")
        axes.set(xlabel="solver steps", ylabel="mean score of an action", title=arm.label)
        axes.ticklabel_format(axis="x", scilimits=(-3, 4))
        axes.grid(alpha=0.3)
        found = labelled([axes])
        axes.legend([*found.values()], [*found], frameon=False, fontsize=9, loc="lower right")
    return drawing


def described(arm: Entry) -> str:
    """Mean coefficient and share of negative ones, in a sentence; empty if every simulation blew up."""
    c, _ = coefficients_and_gradients(arm)
    return f"Mean c = {c.mean():.2g}; {100 * (c < 0).mean():.0f} % are negative." if len(c) else ""

"""The pictures of the payments study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from numpy.typing import NDArray

from apps.payments.measures import SEGMENTS
from apps.payments.metrics import BASIS_POINTS, PROPENSITY_EDGES, WEIGHT_EDGES
from core.stats import paired_t_test, t_interval
from core.study import Figure

Found = Mapping[str, xr.Dataset]

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#8c564b", "#111111", "#bcbd22")
"""One an arm, in the order of the study; the first told apart with any colour vision (Okabe and Ito 2008)."""
MARKERS = "os^Dv<>Pph*"
VALUE_RANGE = 5.0
"""Percentage points below the best arm beyond which an arm is not drawn: the others would be flat."""


class Palette:
    """The same colour and marker for an arm in every figure."""

    def __init__(self, arms: Sequence[str]) -> None:
        self._place = {arm: i for i, arm in enumerate(arms)}

    def colour(self, arm: str) -> str:
        """Of the arm's lines."""
        return COLOURS[self._place[arm] % len(COLOURS)]

    def marker(self, arm: str) -> str:
        """Of its points."""
        return MARKERS[self._place[arm] % len(MARKERS)]


def of_scenario(scenario: str, found: Found, tuned: Found, baseline: str) -> list[Figure]:
    """Every picture of one scenario."""
    n = next(iter(found.values())).sizes["world"]
    worlds = f"{n} worlds; bands and bars are 95 % Student intervals over worlds"
    palette = Palette(list(found))
    figures = [
        Figure(
            f"{scenario}_online_value",
            f"{scenario}: true approval rate of the policy deployed in each generation after the first, which is "
            f"uniform, and its difference from that of {baseline} in the same worlds. {worlds}. Arms far below are "
            f"left out.",
            lambda: online_values(found, palette, baseline),
        ),
        Figure(
            f"{scenario}_model",
            f"{scenario}: what the log of each generation teaches: error of the model trained on it, and entropy of "
            f"the policy that logged it. {worlds}.",
            lambda: generations(
                found,
                palette,
                [
                    ("mse_uniform", 1e4, r"model error on all actions ($10^{-4}$)"),
                    ("entropy", 1, "entropy of the deployed policy (nat)"),
                ],
            ),
        ),
        Figure(
            f"{scenario}_phase",
            f"{scenario}: a model's error against that of the next generation's model, generations 1 and later, one "
            "line a world. Points far from the diagonal on both sides are an oscillation of period two.",
            lambda: phase(found, palette),
        ),
        Figure(
            f"{scenario}_reliability",
            f"{scenario}: predicted against observed approval on uniform decisions, models of the last generation, 15 "
            f"bins of equal mass, mean over {n} worlds.",
            lambda: reliability(found, palette),
        ),
        Figure(
            f"{scenario}_propensities",
            f"{scenario}: propensities in the logs of generations 1 and later, all worlds.",
            lambda: propensities(found, palette),
        ),
        Figure(
            f"{scenario}_weights",
            f"{scenario}: share of the log whose importance weight for the next policy exceeds w, last generation, "
            f"mean over {n} worlds. The heavier the tail, the less an off-policy estimate is worth.",
            lambda: weight_tails(found, palette),
        ),
    ]
    if len(found) > 1:
        best = max((arm for arm in found if arm != baseline), key=lambda arm: _late_value(found[arm]).mean())
        figures.append(
            Figure(
                f"{scenario}_segments",
                f"{scenario}: uplift of {best} (the best arm) over {baseline} by segment, generations 1 and later. "
                f"{worlds}; not adjusted for the number of segments.",
                lambda: forest(found[best], found[baseline], best, baseline),
            )
        )
    if tuned:
        figures.append(
            Figure(
                f"{scenario}_tuning",
                f"{scenario}: mean online value of every number that was tried, on the tuning worlds; the circle is "
                "what was chosen.",
                lambda: sweeps(tuned, palette),
            )
        )
    return figures


def _late_value(data: xr.Dataset) -> NDArray[np.float64]:
    values: NDArray[np.float64] = data["value"].isel(generation=slice(1, None)).mean("generation").values
    return values


def _band(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean and interval over worlds of ``(worlds, generations)``, as ``(3, generations)``."""
    intervals = [t_interval(column) for column in values.T]
    return np.array([[i.mean, i.low, i.high] for i in intervals]).T


def online_values(found: Found, palette: Palette, baseline: str) -> Drawing:
    """Online value by generation, and its paired difference from the baseline; arms far below are left out."""
    values = {arm: 100 * data["value"].transpose("world", "generation").values[:, 1:] for arm, data in found.items()}
    best = max(v.mean() for v in values.values())
    near = {arm: v for arm, v in values.items() if v.mean() > best - VALUE_RANGE}
    drawing = Drawing(figsize=(9.5, 7.4), layout="constrained")
    above, below = drawing.subplots(2, 1, sharex=True)
    for arm, v in near.items():
        _line(above, v, palette, arm)
        if arm != baseline:
            _line(below, 100 * (v - values[baseline]), palette, arm)
    above.set_ylabel("online value (% approved)")
    below.set_ylabel(f"online value - {baseline} (bps)")
    below.axhline(0, color="black", lw=0.8)
    below.set_xlabel("generation")
    for axes in (above, below):
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
    _legend(drawing, above)
    return drawing


def _line(axes: Axes, values: NDArray[np.float64], palette: Palette, arm: str, first: int = 1) -> None:
    """Mean over worlds with its band, of ``(worlds, generations)`` from generation ``first`` on."""
    middle, low, high = _band(values)
    x = np.arange(first, first + len(middle))
    axes.plot(x, middle, color=palette.colour(arm), marker=palette.marker(arm), ms=4.5, lw=1.6, label=arm)
    axes.fill_between(x, low, high, color=palette.colour(arm), alpha=0.12, lw=0)


def generations(found: Found, palette: Palette, series: Sequence[tuple[str, float, str]]) -> Drawing:
    """Series by generation with bands over worlds, a panel a series: its name, factor and label."""
    drawing = Drawing(figsize=(9.5, 1.2 + 3.6 * len(series)), layout="constrained")
    panels = np.atleast_1d(drawing.subplots(len(series), 1, sharex=True))
    for axes, (name, factor, label) in zip(panels, series, strict=True):
        for arm, data in found.items():
            if not np.isfinite(data[name]).all():
                continue
            _line(axes, factor * data[name].transpose("world", "generation").values, palette, arm, first=0)
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
    panels[-1].set_xlabel("generation")
    _legend(drawing, panels[0])
    return drawing


def _legend(drawing: Drawing, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    drawing.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=9)


def phase(found: Found, palette: Palette) -> Drawing:
    """MSE of generation g against that of g + 1, a panel an arm, one line a world."""
    columns = min(4, len(found))
    rows = -(-len(found) // columns)
    drawing = Drawing(figsize=(2.7 * columns + 0.6, 2.7 * rows + 0.5), layout="constrained")
    grid = np.atleast_1d(drawing.subplots(rows, columns, sharex=True, sharey=True)).ravel()
    for axes, (arm, data) in zip(grid, found.items(), strict=False):
        series = 1e4 * data["mse_uniform"].transpose("world", "generation").values[:, 1:]
        for world in series:
            axes.plot(world[:-1], world[1:], color=palette.colour(arm), marker="o", ms=2.5, lw=0.6, alpha=0.6)
        axes.set_title(arm, fontsize=9)
        axes.axline((0, 0), slope=1, color="black", lw=0.8, ls=":")
        axes.grid(alpha=0.3)
    for axes in grid[len(found) :]:
        axes.set_axis_off()
    drawing.supxlabel(r"model error of a generation ($10^{-4}$)", fontsize=10)
    drawing.supylabel(r"of the next ($10^{-4}$)", fontsize=10)
    return drawing


def reliability(found: Found, palette: Palette) -> Drawing:
    """Reliability diagrams of the last models."""
    drawing = Drawing(figsize=(7.5, 5), layout="constrained")
    axes = drawing.subplots()
    lowest = 1.0
    for arm, data in found.items():
        last = data.isel(generation=-1).mean("world")
        x, y = last["reliability_predicted"].values, last["reliability_observed"].values
        axes.plot(x, y, color=palette.colour(arm), marker=palette.marker(arm), ms=5, lw=1.2, label=arm)
        lowest = min(lowest, np.nanmin(x), np.nanmin(y))
    axes.axline((1, 1), slope=1, color="black", lw=0.8, ls=":")
    axes.set(xlabel="predicted approval probability", ylabel="observed share of approvals")
    axes.set(xlim=(lowest - 0.02, 1.01), ylim=(lowest - 0.02, 1.01))
    axes.grid(alpha=0.3)
    _legend(drawing, axes)
    return drawing


def propensities(found: Found, palette: Palette) -> Drawing:
    """Histograms of logged propensities on a logarithmic axis."""
    drawing = Drawing(figsize=(8.5, 4.2), layout="constrained")
    axes = drawing.subplots()
    for arm, data in found.items():
        counts = data["propensity_counts"].isel(generation=slice(1, None)).sum(("generation", "world")).values
        axes.stairs(100 * counts / counts.sum(), 10.0**PROPENSITY_EDGES, color=palette.colour(arm), lw=1.6, label=arm)
    axes.set(xscale="log", xlabel="propensity of the logged action", ylabel="share of decisions (%)")
    axes.set(yscale="log", ylim=(1e-3, 110))
    axes.grid(alpha=0.3)
    _legend(drawing, axes)
    return drawing


def weight_tails(found: Found, palette: Palette) -> Drawing:
    """Complementary distribution of importance weights, both axes logarithmic."""
    drawing = Drawing(figsize=(8.5, 4.2), layout="constrained")
    axes = drawing.subplots()
    edges = 10.0 ** WEIGHT_EDGES[:-1]
    for arm, data in found.items():
        mass = data["weight_mass"].isel(generation=-1).mean("world").values
        above = mass[::-1].cumsum()[::-1]
        shown = above > 1e-7
        axes.step(edges[shown], above[shown], where="post", color=palette.colour(arm), lw=1.6, label=arm)
    axes.set(xscale="log", yscale="log", ylim=(1e-6, 1.5))
    axes.set(xlabel="importance weight w of the next policy", ylabel="share of the log above w")
    axes.grid(alpha=0.3)
    _legend(drawing, axes)
    return drawing


def forest(data: xr.Dataset, baseline: xr.Dataset, arm: str, rival: str) -> Drawing:
    """Uplift by segment with intervals over worlds, the whole stream last."""
    drawing = Drawing(figsize=(7.5, 1.1 + 0.32 * (len(SEGMENTS) + 1)), layout="constrained")
    axes = drawing.subplots()
    names = [*SEGMENTS, "all payments"]
    for place, name in enumerate(names):
        ours, theirs = (_of_segment(d, name) for d in (data, baseline))
        known = np.isfinite(ours) & np.isfinite(theirs)
        if known.sum() < 2:
            continue
        i = paired_t_test(ours[known], theirs[known])
        whole = name == names[-1]
        axes.errorbar(
            BASIS_POINTS * i.mean,
            place,
            xerr=[[BASIS_POINTS * (i.mean - i.low)], [BASIS_POINTS * (i.high - i.mean)]],
            fmt="D" if whole else "o",
            color="#d55e00" if whole else "#0072b2",
            ms=6,
            capsize=3,
        )
    axes.axvline(0, color="black", lw=0.8)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel(f"online value of {arm} minus {rival} (bps)")
    axes.grid(axis="x", alpha=0.3)
    return drawing


def _of_segment(data: xr.Dataset, name: str) -> NDArray[np.float64]:
    if name not in SEGMENTS:
        return _late_value(data)
    part = data["segment_value"].sel(segment=name).isel(generation=slice(1, None))
    values: NDArray[np.float64] = part.mean("generation").values
    return values


def sweeps(tuned: Found, palette: Palette) -> Drawing:
    """Online value of every tried number, a panel an arm."""
    columns = min(3, len(tuned))
    rows = -(-len(tuned) // columns)
    drawing = Drawing(figsize=(3.3 * columns + 0.4, 2.6 * rows + 0.4), layout="constrained")
    grid = np.atleast_1d(drawing.subplots(rows, columns, sharey=True)).ravel()
    for axes, (arm, data) in zip(grid, tuned.items(), strict=False):
        x = data["setting"].values
        for world in data["value"].values.T:
            axes.plot(x, 100 * world, color=palette.colour(arm), lw=0.8, alpha=0.4)
        mean = 100 * data["value"].mean("world")
        axes.plot(x, mean, color=palette.colour(arm), marker=".", lw=1.8)
        chosen = float(data["chosen"])
        axes.plot(chosen, mean.sel(setting=chosen), "o", mfc="none", color="black", ms=11)
        axes.set(xscale="log", title=arm, xlabel=data.attrs["parameter"])
        axes.set_xticks(x, [f"{value:g}" for value in x], fontsize=8, rotation=45)
        axes.set_xticks([], minor=True)
        axes.grid(alpha=0.3)
    for axes in grid[len(tuned) :]:
        axes.set_axis_off()
    drawing.supylabel("online value (% approved)", fontsize=10)
    return drawing

"""The pictures of the fishery study."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import xarray as xr
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing

from apps.fishery.surplus_production import SurplusProductionFit
from apps.fishery.surplus_production_figure import plot_fit
from core.stats import clustered_difference, mean_interval, proportion_interval
from core.study import Figure
from simulators.fishery import FixedPointDiagram

Found = Mapping[str, Sequence[xr.Dataset]]

NAMES = {
    "unharvested": "no harvest",
    "constant_mortality": "constant mortality",
    "constant_mortality_0.95": "95 % of constant mortality",
    "constant_mortality_0.9": "90 % of constant mortality",
    "constant_mortality_0.8": "80 % of constant mortality",
    "constant_escapement": "constant escapement",
    "precautionary_ramp": "precautionary ramp",
    "dynamic_programming": "exact, stationary",
    "dynamic_programming_time_aware": "exact, time-aware",
    "poor_model": "exact for a logistic model",
    "ppo": "PPO",
    "ppo_sampled": "PPO, sampled actions",
    "ppo_gp": "PPO + Gaussian process",
}
_COLOURS = {
    "unharvested": "#7f7f7f",
    "constant_mortality": "#1f4e9c",
    "constant_mortality_0.95": "#4f7fc4",
    "constant_mortality_0.9": "#86aadd",
    "constant_mortality_0.8": "#bcd2f0",
    "constant_escapement": "#2a9d4a",
    "precautionary_ramp": "#8c6d1f",
    "dynamic_programming": "#111111",
    "dynamic_programming_time_aware": "#8e44ad",
    "poor_model": "#e377c2",
    "ppo": "#d62728",
    "ppo_sampled": "#ff9896",
    "ppo_gp": "#ff7f0e",
}
"""The same colour for a method in every figure; related methods share a hue."""

_DASHES = {"constant_escapement": (0, (6, 3)), "dynamic_programming_time_aware": (0, (1, 2)), "ppo_gp": (0, (4, 2))}
"""Dashes for lines that lie on top of others."""

SPECIES_COLOURS = ("#0072b2", "#d55e00", "#009e73")
"""Blue, vermilion, green: told apart with any colour vision (Okabe and Ito 2008)."""


def _pooled(data: Sequence[xr.Dataset], name: str) -> np.ndarray:
    return np.stack([d[name].values.astype(float) for d in data])


def _mean(data: Sequence[xr.Dataset], name: str) -> tuple[float, float, float]:
    values = _pooled(data, name)
    if len(values) > 1:
        interval = clustered_difference(values, resamples=1000)
    elif name == "survived":
        interval = proportion_interval(int(values.sum()), values.size)
    else:
        interval = mean_interval(values[0], resamples=1000)
    return interval.mean, interval.low, interval.high


def _errorbar(axes: Axes, x: tuple[float, float, float], y: float, colour: str) -> None:
    axes.errorbar(
        x[0],
        y,
        xerr=[[x[0] - x[1]], [x[2] - x[0]]],
        fmt="o",
        color="black",
        mfc=colour,
        ms=6,
        capsize=3,
        lw=1.2,
        zorder=3,
    )


def returns(scenario: str, found: Found) -> Drawing:
    """Return and survival of each method: distribution over episodes, mean and 95 % interval."""
    methods = list(found)
    drawing = Drawing(figsize=(9, 1.2 + 0.42 * len(methods)), layout="constrained")
    left, right = drawing.subplots(1, 2, sharey=True, width_ratios=[2.2, 1])
    for i, method in enumerate(methods):
        values, colour = _pooled(found[method], "return").ravel(), _COLOURS[method]
        if np.ptp(values) > 0:
            body = left.violinplot(values, [i], orientation="horizontal", widths=0.8, showextrema=False)["bodies"][0]
            body.set(facecolor=colour, alpha=0.45)
        _errorbar(left, _mean(found[method], "return"), i, colour)
        share = _mean(found[method], "survived")
        _errorbar(right, tuple(100 * x for x in share), i, colour)  # type: ignore[arg-type]
    left.set_yticks(range(len(methods)), [NAMES[m] for m in methods])
    left.invert_yaxis()
    ends = np.concatenate([np.quantile(_pooled(data, "return"), (0.005, 0.995)) for data in found.values()])
    margin = 0.05 * (ends.max() - ends.min())
    left.set_xlim(ends.min() - margin, ends.max() + margin)
    left.set(xlabel="return of an episode (harvest in units of K, less extinction penalty)", title=scenario)
    right.set(xlabel="episodes without extinction (%)", xlim=(-4, 104))
    for axes in (left, right):
        axes.grid(axis="x", alpha=0.3)
    return drawing


def time_series(scenario: str, found: Found, methods: Sequence[str]) -> Drawing:
    """Median and quantile bands of the populations over the episodes still alive, one column a method."""
    first = found[methods[0]][0]
    species = first["species"].values.tolist()
    size = (1 + 2.6 * len(methods), 0.9 + 1.7 * len(species))
    drawing = Drawing(figsize=size, layout="constrained")
    grid = drawing.subplots(len(species), len(methods), sharex=True, sharey="row", squeeze=False)
    for column, method in enumerate(methods):
        data = found[method][0]
        bands = data["population_quantile"]
        for row, name in enumerate(species):
            axes, colour = grid[row, column], SPECIES_COLOURS[row]
            year = data["time"].values
            level = {q: bands.sel(quantile=q, species=name).values for q in (0.05, 0.25, 0.5, 0.75, 0.95)}
            axes.fill_between(year, level[0.05], level[0.95], color=colour, alpha=0.2, lw=0)
            axes.fill_between(year, level[0.25], level[0.75], color=colour, alpha=0.35, lw=0)
            axes.plot(year, level[0.5], color=colour, lw=1.2)
            axes.grid(alpha=0.3)
            if column == 0:
                axes.set_ylabel(f"{name} (K)")
        share = 100 * float(data["survived"].mean())
        grid[0, column].set_title(f"{NAMES[method]}\n{share:.0f} % survive", fontsize=9)
        grid[-1, column].set_xlabel("year")
    for axes in grid[:, 0]:
        axes.set_ylim(bottom=0)  # once all are drawn: the axes of a row are shared
    drawing.suptitle(f"{scenario}: populations; median, 50 % and 90 % of the episodes still alive", fontsize=10)
    return drawing


def policy_maps(scenario: str, found: Found, methods: Sequence[str]) -> Drawing:
    """Mortality along the population: one panel a method in three-species worlds, all in one otherwise."""
    first = found[methods[0]][0]
    fleet = first["harvested"].values.tolist()
    if first.sizes["slice_predator"] == 1:
        drawing = Drawing(figsize=(7, 4), layout="constrained")
        axes = drawing.subplots()
        for method in methods:
            slices = found[method][0]["slice_mortality"]
            axes.plot(
                slices["slice_population"],
                slices[0, :, 0],
                label=NAMES[method],
                color=_COLOURS[method],
                lw=2,
                ls=_DASHES.get(method, "-"),
                zorder=3 if method in _DASHES else 2,
            )
        axes.set(xlabel="population X (K)", ylabel="mortality (share harvested)", ylim=(-0.03, 1.03), title=scenario)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, frameon=False)
        return drawing
    drawing = Drawing(figsize=(1 + 2.7 * len(methods), 0.9 + 2.1 * len(fleet)), layout="constrained")
    grid = drawing.subplots(len(fleet), len(methods), sharex=True, sharey=True, squeeze=False)
    for column, method in enumerate(methods):
        slices = found[method][0]["slice_mortality"]
        for row, name in enumerate(fleet):
            axes = grid[row, column]
            for k, predator in enumerate(slices["slice_predator"].values):
                colour = colormaps["viridis"](0.15 + 0.35 * k)
                axes.plot(slices["slice_population"], slices[row, :, k], color=colour, label=f"Z = {predator:g} K")
            axes.grid(alpha=0.3)
            axes.set_ylim(-0.03, 1.03)
            axes.set_xlabel(f"{name} (K)")
            if column == 0:
                axes.set_ylabel(f"mortality of {name}")
        grid[0, column].set_title(NAMES[method], fontsize=9)
    grid[0, -1].legend(fontsize=7, frameon=False)
    drawing.suptitle(f"{scenario}: policies; the other prey stands at 0.45 K", fontsize=10)
    return drawing


def trade_off(scenario: str, found: Found) -> Drawing:
    """Return against survival; the fractions of constant mortality joined by a line."""
    drawing = Drawing(figsize=(8.2, 4.6), layout="constrained")
    axes = drawing.subplots()
    points = {m: (_mean(data, "survived"), _mean(data, "return")) for m, data in found.items()}
    line = sorted((100 * s[0], r[0]) for m, (s, r) in points.items() if m.startswith("constant_mortality"))
    axes.plot(*zip(*line, strict=True), color="0.5", lw=1, ls="--", zorder=1) if len(line) > 1 else None
    for method, (share, gain) in points.items():
        x = [100 * v for v in share]
        axes.errorbar(
            x[0],
            gain[0],
            xerr=[[x[0] - x[1]], [x[2] - x[0]]],
            yerr=[[gain[0] - gain[1]], [gain[2] - gain[0]]],
            fmt="o",
            ms=7,
            color=_COLOURS[method],
            mec="black",
            ecolor="0.4",
            capsize=2,
            label=NAMES[method],
        )
    axes.set(xlabel="episodes without extinction (%)", ylabel="return of an episode (K)", title=scenario)
    axes.grid(alpha=0.3)
    drawing.legend(loc="outside right upper", fontsize=8, frameon=False)
    return drawing


def tuning(scenario: str, tuned: Mapping[str, xr.Dataset]) -> Drawing:
    """Mean return over the tuning grid of each rule, with the point that was chosen."""
    drawing = Drawing(figsize=(0.6 + 4.2 * len(tuned), 3.8), layout="constrained")
    panels = drawing.subplots(1, len(tuned), squeeze=False)[0]
    for axes, (method, data) in zip(panels, tuned.items(), strict=True):
        mean = data["mean_return"]
        names = [str(d).removesuffix("_axis") for d in mean.dims]
        best = [float(data[n]) for n in names]
        if mean.ndim == 1:
            axes.plot(mean[mean.dims[0]], mean, color="0.2")
            axes.axvline(best[0], color="#d55e00", lw=1)
            axes.set(xlabel=_axis(names[0]), ylabel="mean return (K)")
        else:
            top = float(np.nanmax(mean))
            floor = max(float(np.nanmin(mean)), 0.0)
            x, y = mean[mean.dims[0]].values, mean[mean.dims[1]].values
            image = axes.pcolormesh(x, y, mean.values.T, cmap="viridis", vmin=floor, vmax=top, rasterized=True)
            axes.contour(x, y, mean.values.T, levels=[0.95 * top], colors="white", linewidths=1)
            axes.plot(*best, marker="*", color="#d55e00", mec="white", ms=13)
            axes.set(xlabel=_axis(names[0]), ylabel=_axis(names[1]))
            drawing.colorbar(image, ax=axes, label="mean return (K)", shrink=0.85)
        axes.set_title(NAMES[method], fontsize=10)
    drawing.suptitle(f"{scenario}: tuning grids", fontsize=10)
    return drawing


def _axis(name: str) -> str:
    symbol, _, species = name.partition("_")
    words = {
        "mortality": f"mortality of {species}",
        "escapement": f"escapement of {species} (K)",
        "y2": f"mortality of {species} above x2",
        "x1": "limit x1 (K)",
        "x2": "trigger x2 (K)",
    }
    return words[symbol]


def learning_curves(scenario: str, data: Sequence[xr.Dataset]) -> Drawing:
    """Return of the training episodes, with sampled actions, one line a seed."""
    drawing = Drawing(figsize=(7, 3.6), layout="constrained")
    axes = drawing.subplots()
    for seed, d in enumerate(data):
        axes.plot(d["timesteps"] / 1000, d["training_return"], label=f"seed {seed}", lw=1.3)
    axes.set(xlabel="environment steps (thousands)", ylabel="return of training episodes (K)", title=f"{scenario}: PPO")
    top = max(float(d["training_return"].max()) for d in data)
    axes.set_ylim(bottom=max(axes.get_ylim()[0], -1.2 * abs(top)))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, frameon=False)
    return drawing


def fixed_point_diagram(diagram: FixedPointDiagram, beta_H: float) -> Drawing:
    """Equilibria of Model 1 against predation, with its own predation marked."""
    drawing = Drawing(figsize=(7, 4.2), layout="constrained")
    axes = drawing.subplots()
    for stable, style in ((True, "-"), (False, "--")):
        shown = np.where(diagram.stable == stable, diagram.population, np.nan)
        axes.plot(diagram.beta_H, shown, style, color=SPECIES_COLOURS[0], label="stable" if stable else "unstable")
    axes.axvline(beta_H, color="0.4", lw=1, ls=":", label=f"this model, {beta_H:g} K/year")
    for tipping in diagram.tipping_points:
        axes.axvline(tipping, color=SPECIES_COLOURS[1], lw=1, label=f"tipping point, {tipping:.3f} K/year")
    axes.set(xlabel="predation beta_H (K/year)", ylabel="equilibrium population (K)")
    axes.set(xlim=(0, 1.6 * max((*diagram.tipping_points, beta_H))), ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, frameon=False)
    return drawing


def of_scenario(scenario: str, found: Found, tuned: Mapping[str, xr.Dataset]) -> list[Figure]:
    """The figures of one scenario."""
    n = next(iter(found.values()))[0].sizes["rep"]
    shown = ("unharvested", "constant_mortality", "constant_escapement", "dynamic_programming", "poor_model", "ppo")
    series = [m for m in shown if m in found] or list(found)[:4]
    maps = [m for m in found if m not in ("unharvested", "ppo_sampled") and "_0." not in m]
    episodes = f"{n} episodes"

    def figure(name: str, caption: str, draw: Callable[[], Drawing]) -> Figure:
        return Figure(f"{scenario}_{name}", f"{scenario}: {caption}", draw)

    drawn = [
        figure(
            "returns",
            f"Return and survival over {episodes}: distribution (shade; the outermost half per cent may lie beyond the "
            "frame), mean and 95 % interval.",
            lambda: returns(scenario, found),
        ),
        figure(
            "trade_off",
            f"Mean return against the share of {episodes} without extinction, with 95 % intervals.",
            lambda: trade_off(scenario, found),
        ),
        figure(
            "time_series",
            f"Populations under each method: median and quantiles over {episodes} (those still alive; first seed).",
            lambda: time_series(scenario, found, series),
        ),
    ]
    if maps:
        drawn.append(
            figure(
                "policies",
                "Mortality that each rule sets along the population (learned rules: first seed).",
                lambda: policy_maps(scenario, found, maps),
            )
        )
    rules = {m: t for m, t in tuned.items() if "_0." not in m}
    if rules:
        replicates = next(iter(rules.values())).sizes["replicate"]
        drawn.append(
            figure(
                "tuning",
                f"Mean return over {replicates} common replicates at each grid point; the mark is the chosen "
                "point, the white line 95 % of the best.",
                lambda: tuning(scenario, rules),
            )
        )
    if "ppo" in found:
        drawn.append(
            figure(
                "learning",
                "Mean return of the last 100 training episodes, actions sampled.",
                lambda: learning_curves(scenario, found["ppo"]),
            )
        )
    return drawn


def of_fit(scenario: str, fit: SurplusProductionFit) -> Figure:
    """The figure of a stock's fit, with residuals and intervals."""
    return Figure(
        f"{scenario}_fit",
        f"Surplus-production fit of {fit.stock.name}: observed and fitted index, biomass, residuals, catch and MSY.",
        lambda: plot_fit(fit.stock, fit),
    )

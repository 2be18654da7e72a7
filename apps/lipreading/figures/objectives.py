"""What objectives make of a reader."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from apps.lipreading.evidence import Evidence, over_seeds, rate
from apps.lipreading.figures.appearance import GREY, colours
from core.sequence.entropy import fit_entropy_law

LOOKS = (("look_greedy", "CER, greedy"), ("look_sampled", "CER, sampled"))
COMPARED = ("CER", "CER sampled", "WER", "exact")


def error_by_update(evidence: Evidence, experiment: str) -> Figure:
    """Error rates of validation clips against updates, mean and range over seeds."""
    methods = evidence.methods(experiment)
    style = colours(methods)
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    for axes, (name, label) in zip(figure.subplots(1, 2), LOOKS, strict=True):
        for method in methods:
            seeds = list(evidence.forks[experiment, method].values())
            # A guard ends the seeds at different updates.
            common = min(data.sizes["look"] for data in seeds)
            updates = seeds[0]["look_update"].values[:common]
            values = np.stack([data[name].values[:common] for data in seeds])
            axes.plot(updates, values.mean(0), color=style[method], label=method)
            axes.fill_between(updates, values.min(0), values.max(0), color=style[method], alpha=0.12, linewidth=0)
        axes.set(xlabel="updates after the fork", ylabel=f"{label} (validation)")
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", fontsize=8, ncols=4)
    return figure


def differences(evidence: Evidence, experiment: str) -> Figure:
    """Paired differences from the first objective, a panel a measure."""
    first, *others = evidence.methods(experiment)
    style = colours(evidence.methods(experiment))
    figure = Figure(figsize=(13, 0.4 * len(others) + 1.6), layout="constrained")
    panels = figure.subplots(1, len(COMPARED), sharey=True)
    for axes, measure in zip(panels, COMPARED, strict=True):
        for place, method in enumerate(others):
            found = evidence.difference(experiment, method, first, measure)
            axes.errorbar(
                found.mean,
                place,
                xerr=[[found.mean - found.low], [found.high - found.mean]],
                fmt="o",
                color=style[method],
                capsize=3,
            )
            seeds = evidence.differences(experiment, method, first, measure)
            axes.plot(seeds, np.full(len(seeds), place + 0.22), ".", color=style[method], markersize=3, alpha=0.7)
        axes.axvline(0, color=GREY, linewidth=0.8)
        axes.set(xlabel=f"{measure} less {first}", yticks=range(len(others)), yticklabels=others)
        axes.grid(alpha=0.3, axis="x")
        axes.locator_params(axis="x", nbins=5)
    panels[0].invert_yaxis()
    return figure


def weights(evidence: Evidence, experiment: str) -> Figure:
    """Error rates of sampled validation transcripts by weight of the policy loss, the chosen ones ringed."""
    named = {method: found for (name, method), found in evidence.trials.items() if name == experiment}
    style = colours(evidence.methods(experiment))
    figure = Figure(figsize=(6, 4.2), layout="constrained")
    axes = figure.subplots()
    for method, found in named.items():
        x = sorted(found)
        axes.plot(x, [found[w] for w in x], ".-", color=style[method], label=method)
        chosen = evidence.weight(experiment, method)
        axes.plot(chosen, found[chosen], "o", mfc="none", markersize=11, color=style[method])
    axes.set(xscale="log", xlabel="weight of the policy loss", ylabel="CER, sampled (validation, one fork each)")
    ticks = sorted({w for found in named.values() for w in found})
    axes.set_xticks(ticks, [f"{w:g}" for w in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def kernels(evidence: Evidence, experiment: str) -> dict[tuple[int, int], str]:
    """Methods of plain windows by kernel and stride."""
    found: dict[tuple[int, int], str] = {}
    for method in evidence.methods(experiment):
        data = next(iter(evidence.forks[experiment, method].values()))
        if "kernel" in data.attrs:
            found.setdefault((int(data.attrs["kernel"]), int(data.attrs["stride"])), method)
    return found


def windows(evidence: Evidence, experiment: str) -> Figure:
    """Error rates by kernel and stride."""
    named = kernels(evidence, experiment)
    ks, ss = sorted({k for k, _ in named}), sorted({s for _, s in named})
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    for axes, measure in zip(figure.subplots(1, 2), ("CER", "CER sampled"), strict=True):
        values = np.full((len(ss), len(ks)), np.nan)
        for (k, s), method in named.items():
            rates = [rate(data, measure) for data in evidence.forks[experiment, method].values()]
            values[ss.index(s), ks.index(k)] = over_seeds(rates).mean
        image = axes.imshow(values, cmap="viridis_r", aspect="auto")
        middle = (np.nanmin(values) + np.nanmax(values)) / 2
        for (row, column), value in np.ndenumerate(values):
            if np.isfinite(value):
                # The largest values have the darkest cells.
                colour = "white" if value > middle else "black"
                axes.text(column, row, f"{value:.4f}", ha="center", va="center", color=colour, fontsize=8)
        axes.set(xlabel="kernel k", ylabel="stride s", title=measure)
        axes.set_xticks(range(len(ks)), ks)
        axes.set_yticks(range(len(ss)), ss)
        figure.colorbar(image, ax=axes, label=f"{measure}, mean over seeds")
    return figure


def entropy_and_reward(evidence: Evidence, experiment: str) -> Figure:
    """Reward of the sampled transcripts against the entropy of the policy, a dot each ten updates."""
    methods = with_entropy(evidence, experiment)
    style = colours(evidence.methods(experiment))
    figure = Figure(figsize=(6.5, 4.5), layout="constrained")
    axes = figure.subplots()
    for method in methods:
        seeds = list(evidence.forks[experiment, method].values())
        h = np.stack([data["entropy"].values for data in seeds]).mean(0)
        r = np.stack([data["reward"].values for data in seeds]).mean(0)
        law = fit_entropy_law(h, r, blocks=10)
        n = len(h) // 10 * 10
        axes.plot(*(x[:n].reshape(-1, 10).mean(1) for x in (h, r)), ".", color=style[method], markersize=4)
        line = np.linspace(h.min(), h.max(), 50)
        axes.plot(line, law.b - law.a * np.exp(line), color=style[method])
        axes.plot([], [], ".-", color=style[method], label=f"{method}: a {law.a:.3g}, b {law.b:.3g}, R² {law.r2:.2f}")
    axes.set(xlabel="entropy of a symbol (nat)", ylabel="reward of a sampled transcript")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def with_entropy(evidence: Evidence, experiment: str) -> list[str]:
    """Methods whose reward is 1 - CER of a transcript, so that they can share an axis.

    REINFORCE's of single symbols is over the length of the reference once more.
    """
    return [
        method
        for method in evidence.methods(experiment)
        if all(
            data.attrs.get("reward") == "dense"
            and "kernel" in data.attrs
            and len(data["entropy"]) >= 10
            and bool(np.isfinite(data["entropy"].values).all())
            for data in evidence.forks[experiment, method].values()
        )
    ]

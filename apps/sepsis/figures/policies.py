"""Policies: survival, preference, verdicts, actions and doses."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing

from apps.sepsis.evidence import Evidence, interval
from apps.sepsis.figures.appearance import COLOURS, GREY, point, words
from core.stats import nested_ratio, proportion_interval
from core.study import Undecided
from simulators.sepsis.features import ACTIONS, LEVELS

VERDICTS = ((-1, "baseline preferred", "#d55e00"), (0, "same action", "#bbbbbb"), (1, "policy preferred", "#0072b2"))


def _arms(evidence: Evidence, learner: str) -> list[str]:
    return [arm for name, arm in evidence.trained if name == learner]


def _colour(evidence: Evidence, arm: str) -> str:
    """The same for an arm of every learner."""
    names = list(dict.fromkeys(name for _, name in evidence.trained))
    return COLOURS[names.index(arm) % len(COLOURS)]


def _above(evidence: Evidence, learner: str) -> list[str]:
    return [arm for arm in _arms(evidence, learner) if arm != "lambda 0"]


def _panels(shown: dict[str, list[str]]) -> tuple[Drawing, list[Axes]]:
    """A panel for each learner, as wide as the number of things shown there."""
    widths = [max(len(names), 2) for names in shown.values()]
    drawing = Drawing(figsize=(2.2 + 0.9 * sum(widths), 4.2), layout="constrained")
    grid = drawing.subplots(1, len(shown), sharey=True, squeeze=False, width_ratios=widths)[0]
    for axes, learner in zip(grid, shown, strict=True):
        axes.set_title(f"{learner} learner")
    return drawing, list(grid)


def survivals(evidence: Evidence, learners: tuple[str, ...]) -> Drawing:
    """Survival by arm, a panel a learner."""
    shown = {learner: _arms(evidence, learner) for learner in learners}
    drawing, grid = _panels(shown)
    for axes, (learner, arms) in zip(grid, shown.items(), strict=True):
        for i, arm in enumerate(arms):
            values = evidence.survival(learner, arm)
            axes.plot([i - 0.18] * len(values), [100 * x.mean() for x in values], ".", color=GREY, markersize=4)
            point(axes, i, nested_ratio(values), _colour(evidence, arm))
        with suppress(Undecided):
            mean = 100 * float(np.mean([x.mean() for x in evidence.physician()]))
            axes.axhline(mean, color=GREY, linewidth=1, linestyle="--", label="physician")
        words(axes, arms)
    grid[0].set_ylabel("survival (%)")
    if grid[-1].get_legend_handles_labels()[0]:
        grid[-1].legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return drawing


def learning_curves(evidence: Evidence, learners: tuple[str, ...]) -> Drawing:
    """Survival by gradient steps, a panel a learner."""
    drawing, grid = _panels({learner: 4 * ["look"] for learner in learners})
    for axes, learner in zip(grid, learners, strict=True):
        for arm in _arms(evidence, learner):
            found = list(evidence.trained[learner, arm].values())
            updates = found[0]["updates"].values
            curves = [100 * data["survival_so_far"].values for data in found]
            for curve in curves:
                axes.plot(updates, curve, color=_colour(evidence, arm), linewidth=0.6, alpha=0.5)
            axes.plot(updates, np.mean(curves, 0), "o-", color=_colour(evidence, arm), markersize=3, label=arm)
        axes.set_xlabel("gradient steps of each network")
        axes.legend(fontsize=8)
    grid[0].set_ylabel("survival (%)")
    return drawing


def preferences(evidence: Evidence, learners: tuple[str, ...]) -> Drawing:
    """Preference over lambda 0 by arm, after a debate and by the full judge."""
    shown = {learner: [*_above(evidence, learner), "cloned clinician"] for learner in learners}
    drawing, grid = _panels(shown)
    kinds = (("by_debate", "after a debate", "#0072b2", -0.1), ("by_full_judge", "whole state", "#d55e00", 0.1))
    for axes, (learner, names) in zip(grid, shown.items(), strict=True):
        for by, label, colour, shift in kinds:
            for i, arm in enumerate(names[:-1]):
                with suppress(Undecided):
                    point(axes, i + shift, interval(evidence.preference(learner, arm, by)), colour)
            with suppress(Undecided):
                cloned = interval(evidence.preference_of(learner, "clinician", by))
                point(axes, len(names) - 1 + shift, cloned, colour, "s")
            axes.plot([], [], "o", color=colour, label=label)
        axes.axhline(50, color=GREY, linewidth=1, linestyle=":")
        words(axes, names)
    grid[0].set_ylabel("preferred to lambda 0 (%)")
    grid[-1].legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return drawing


def verdicts(evidence: Evidence, learners: tuple[str, ...]) -> Drawing:
    """Shares of all test steps, stacked."""
    shown = {learner: _above(evidence, learner) for learner in learners}
    drawing, grid = _panels(shown)
    for axes, (learner, arms) in zip(grid, shown.items(), strict=True):
        bottom = np.zeros(len(arms))
        for value, label, colour in VERDICTS:
            shares = np.array([_share(evidence, learner, arm, value) for arm in arms])
            axes.bar(range(len(arms)), shares, bottom=bottom, color=colour, label=label, width=0.65)
            for i, (share, start) in enumerate(zip(shares, bottom, strict=True)):
                if share > 6:
                    axes.text(i, start + share / 2, f"{share:.0f}", ha="center", va="center", fontsize=8)
            bottom += shares
        words(axes, arms)
    grid[0].set_ylabel("test steps (%)")
    grid[-1].legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return drawing


def _share(evidence: Evidence, learner: str, arm: str, value: int) -> float:
    baseline = evidence.policy(learner, "lambda 0")
    shares = []
    for seed, data in evidence.policy(learner, arm).items():
        same = data["action"].values == baseline[seed]["action"].values
        chosen = same if value == 0 else ~same & (data["by_debate"].values == value)
        shares.append(100 * chosen.mean())
    return float(np.mean(shares))


def action_maps(evidence: Evidence, learner: str) -> Drawing:
    """Fluid by vasopressor level, the clinician and up to three policies."""
    counts = {"clinician": np.sum([data["actions"].values for data in evidence.prepared.values()], axis=0)}
    arms = _arms(evidence, learner)
    shown = [arm for arm in ("lambda 0", "debate 0.5", "state 0.5") if arm in arms] or arms[:3]
    for arm in shown:
        chosen = [data["action"].values for data in evidence.trained[learner, arm].values()]
        counts[arm] = np.bincount(np.concatenate(chosen), minlength=ACTIONS)
    drawing = Drawing(figsize=(3.0 * len(counts) + 1, 3.4), layout="constrained")
    grid = drawing.subplots(1, len(counts), sharey=True, squeeze=False)[0]
    shares = {name: 100 * count.reshape(LEVELS, LEVELS) / count.sum() for name, count in counts.items()}
    top = max(share.max() for share in shares.values())
    for axes, (name, share) in zip(grid, shares.items(), strict=True):
        image = axes.imshow(share, origin="lower", cmap="Blues", vmin=0, vmax=top)
        for fluid, vaso in np.ndindex(LEVELS, LEVELS):
            colour = "white" if share[fluid, vaso] > 0.6 * top else "black"
            axes.text(vaso, fluid, f"{share[fluid, vaso]:.0f}", ha="center", va="center", fontsize=7, color=colour)
        axes.set(title=name, xlabel="vasopressor level", xticks=range(LEVELS), yticks=range(LEVELS))
    grid[0].set_ylabel("fluid level")
    drawing.colorbar(image, ax=list(grid), label="share of the test steps (%)")
    return drawing


def dose_excesses(evidence: Evidence, learner: str) -> Drawing:
    """Mortality by clinician dose less policy dose, a panel a drug."""
    arms = _arms(evidence, learner)
    shown = [arm for arm in ("lambda 0", "debate 0.5", "state 0.5") if arm in arms] or arms[:3]
    drawing = Drawing(figsize=(9.6, 3.8), layout="constrained")
    for axes, drug in zip(drawing.subplots(1, 2, sharey=True), ("fluid", "vasopressor"), strict=True):
        for i, arm in enumerate(shown):
            found = list(evidence.trained[learner, arm].values())
            deaths = np.sum([data[f"deaths_{drug}"].values for data in found], axis=0)
            patients = np.sum([data[f"patients_{drug}"].values for data in found], axis=0)
            centres = found[0][f"excess_{drug}"]
            step = float(centres[1] - centres[0])
            for centre, died, n in zip(centres.values, deaths, patients, strict=True):
                if n:
                    share = proportion_interval(int(died), int(n))
                    point(axes, centre + 0.12 * (i - 1) * step, share, COLOURS[i])
            axes.plot([], [], "o", color=COLOURS[i], label=arm)
        axes.axvline(0, color=GREY, linewidth=1, linestyle=":")
        axes.set_xlim(float(centres[0]) - step / 2, float(centres[-1]) + step / 2)
        axes.set_xlabel(f"{centres.attrs['long_name']} ({centres.attrs['units']})")
    drawing.axes[0].set_ylabel("mortality (%)")
    drawing.axes[0].legend(fontsize=8)
    return drawing

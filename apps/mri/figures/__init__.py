"""The figures of the MRI study: which are drawn of which results, and what they show."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
import xarray as xr
from matplotlib.figure import Figure as Drawing

from apps.mri.figures.acquisition import acquisition_picture
from apps.mri.figures.animation import Snapshot, acquisition_gif
from apps.mri.figures.appearance import most_telling
from apps.mri.figures.calibration import calibration
from apps.mri.figures.comparison import budget_curves, gains, regret, stops, violins
from apps.mri.figures.layout import ActionLayout
from apps.mri.figures.masks import TILES, masks, waterfall
from apps.mri.figures.reconstruction import STD_TOP, measured_pixels_differ, panels, typical_and_hardest
from apps.mri.methods import NAMES
from core.study import Figure

__all__ = ["Snapshot", "acquisition_gif", "acquisition_picture", "of_budgets", "of_scenario"]

Found = Mapping[str, xr.Dataset]
"""The dataset (seed, subject, ...) of each method."""
_SHOWN = 4


class Compared(Protocol):
    """What the figures read of a scenario's settings."""

    @property
    def budget(self) -> int:
        """Actions, the initial ones included."""

    @property
    def operator(self) -> str:
        """What one action measures."""

    def model_dump_json(self, *, include: set[str]) -> str:
        """Settings as text."""


def of_scenario(scenario: str, operator: str, found: Found, regrets: Sequence[xr.Dataset] = ()) -> list[Figure]:
    """The figures of one scenario.

    Args:
        scenario: its name.
        operator: what one action measures.
        found: the dataset of each method.
        regrets: the shards of its regret run, where there is one.
    """
    layout = _layout(operator, found)
    shown = most_telling(found, operator, _SHOWN)
    first = found[shown[0]]
    subjects = typical_and_hardest(first, shown[0])
    seeds, n, kept = first.sizes["seed"], first.sizes["subject"], first.sizes["recorded"]
    over = f"{n} subjects" + (f" x {seeds} seeds" if seeds > 1 else "")

    def rule(count: int) -> str:
        which = " and ".join(("median", "lowest")[:count])
        return f"{which} PSNR of {NAMES[shown[0]]} among the {kept} recorded of {n} subjects (first seed)"

    def figure(name: str, caption: str, draw: Callable[[], Drawing]) -> Figure:
        return Figure(f"{scenario}_{name}", f"{scenario}: {caption}", draw)

    differ = ""
    if operator == "pixels" and any(measured_pixels_differ(found[m]) for m in shown):
        differ = " Measured samples guide the particles and were not put in: particles differ at measured pixels too."
    marks = {"pixels": "dots: pixels acquired", "kspace_points": "black: points acquired"}
    drawn = [
        figure(
            "reconstructions",
            f"Images as they are looked at, absolute errors and standard deviations of the particles, each on one "
            f"scale (that of the deviations ends at their {100 * STD_TOP:g} % quantile); "
            f"{marks.get(operator, f'black: {layout.noun}s acquired')}. Shown: {rule(len(subjects))}." + differ,
            lambda: panels(found, layout, shown, subjects),
        ),
        figure(
            "masks",
            f"How often each {layout.noun} is taken over {over}."
            if layout.planar
            else f"Masks of {over}, one a row, sorted (black: acquired), and above them the share of subjects in which "
            f"each {layout.noun} is taken.",
            lambda: masks(found, layout),
        ),
    ]
    if first.sizes["acquisition"] and np.isfinite(first["line_entropy"].values).all():
        steps = f"up to {TILES} acquisition steps" if layout.planar else "each acquisition step"
        drawn.append(
            figure(
                "scores",
                f"What {NAMES[shown[0]]} saw when it chose: score of every {layout.noun} at {steps} as a "
                f"share of the largest of that step; {rule(1 if layout.planar else len(subjects))}. "
                "Vermilion: taken at this step; grey: held before.",
                lambda: waterfall(first, layout, subjects),
            )
        )
    if any("std" in data for data in found.values()):
        drawn.append(
            figure(
                "calibration",
                f"Left: mean absolute error in 12 equally full bins of the particles' standard deviation. Right: share "
                "of pixels within the nominal 50 % (open) and 90 % (filled) intervals, mean and 95 % interval over "
                f"{kept} recorded subjects. Pixels "
                "that measured samples leave no spread are not counted.",
                lambda: calibration(found, shown),
            )
        )
    if "ads_stop" in found:
        drawn.append(
            figure(
                "stop",
                f"Where the stop rule ended {over}, and the PSNR that they had then.",
                lambda: stops(found, layout),
            )
        )
    if regrets:
        drawn.append(
            figure(
                "regret",
                f"NMSE above that of the best mask of each of {n} subjects, all reconstructed by the exact posterior "
                "mean: subjects, mean and 95 % interval. The clairvoyant knows the image and adds the best action.",
                lambda: regret(regrets),
            )
        )
    return drawn


def of_budgets(comparisons: Mapping[str, Compared], found: Mapping[str, Found]) -> list[Figure]:
    """Figures of scenarios that differ in their budget only, and paired gains of those that stand alone.

    Args:
        comparisons: settings of each scenario.
        found: dataset of each scenario and method.
    """
    families: dict[str, list[str]] = {}
    same = {"images", "operator", "snr", "coils", "prior", "sampling", "subjects"}
    for scenario, settings in comparisons.items():
        families.setdefault(settings.model_dump_json(include=same), []).append(scenario)
    drawn: list[Figure] = []
    for members in families.values():
        budgets = {comparisons[scenario].budget: found[scenario] for scenario in members}
        if len(members) == len(budgets) > 1:
            drawn += _of_family(members, comparisons[members[0]].operator, budgets)
        else:
            drawn += [f for scenario in members for f in _alone(scenario, comparisons[scenario].operator, found)]
    return drawn


def _of_family(members: Sequence[str], operator: str, budgets: Mapping[int, Found]) -> list[Figure]:
    same = itertools.takewhile(lambda letters: len(set(letters)) == 1, zip(*members, strict=False))
    name = "".join(letters[0] for letters in same).rstrip("0123456789").removesuffix("_B").rstrip("_") or members[0]
    densest = budgets[max(budgets)]
    layout = _layout(operator, densest)
    n = next(iter(densest.values())).sizes["subject"]
    methods = [m for m in densest if m in most_telling(densest, operator, 7)]
    drawn = [
        Figure(
            f"{name}_budgets",
            f"{name}: MAE, PSNR and SSIM against the {layout.noun}s acquired; mean and 95 % bootstrap band over {n} "
            "subjects. All methods met the same subjects: differences are surer than the bands.",
            lambda: budget_curves(budgets, layout, methods),
        )
    ]
    if operator in ("pixels", "columns"):
        drawn.append(
            Figure(
                f"{name}_errors",
                f"{name}: distribution of the MAE over {n} subjects for each budget and method: the middle 95 % as "
                "a density, the others as dots, with quartiles (bar) and mean (mark).",
                lambda: violins(budgets, layout, methods),
            )
        )
    return drawn


def _alone(scenario: str, operator: str, found: Mapping[str, Found]) -> list[Figure]:
    data = found[scenario]
    if "ads" not in data or len(data) < 2:
        return []
    n = data["ads"].sizes["subject"]
    caption = (
        f"{scenario}: gain of ADS over each rival, subject by subject (right of the line ADS is better), and the share "
        f"of subjects in which it is, ties left out; 95 % intervals over {n} subjects."
    )
    return [Figure(f"{scenario}_gains", caption, lambda: gains(data, operator))]


def _layout(operator: str, found: Found) -> ActionLayout:
    sizes = next(iter(found.values())).sizes
    return ActionLayout(operator, (sizes["y"], sizes["x"]))

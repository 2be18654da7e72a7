"""The figures of the turbulence study: which are drawn of which results, and what they show."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import xarray as xr
from matplotlib.figure import Figure as Drawing

from apps.turbulence.claims import Evidence
from apps.turbulence.figures.agents import (
    coefficient_density,
    coefficient_fields,
    coefficients_and_gradients,
    described,
    learning_curves,
)
from apps.turbulence.figures.appearance import (
    Entry,
    arms_of,
    closures_of,
    headline,
    lost_sentence,
    only_with,
    resolved_of,
    starts_sentence,
)
from apps.turbulence.figures.distribution import distribution
from apps.turbulence.figures.extremes import BLOCK, RESAMPLES, return_curves, with_extremes
from apps.turbulence.figures.fields import common_start, vorticity_fields
from apps.turbulence.figures.jets import hovmoeller, profiles
from apps.turbulence.figures.long_run import blown_up, long_run
from apps.turbulence.figures.spectra import spectra
from apps.turbulence.figures.transfer import transfer_matrix
from apps.turbulence.figures.transfers import transfer_spectra
from apps.turbulence.figures.tuning import tuning
from apps.turbulence.metrics import finite
from core.study import Figure

__all__ = ["of_scenario", "transfer_matrix"]

_ONE_EACH = "Of several variants of a closure the tuned one is drawn, else that with the smallest spectrum error."


def of_scenario(
    scenario: str, evidence: Evidence, learned: Mapping[str, Sequence[xr.Dataset]], truth: xr.Dataset | None = None
) -> list[Figure]:
    """The figures of one scenario, as far as there is something to draw.

    Args:
        scenario: its name.
        evidence: reference, closures and tuning.
        learned: an evaluation a training seed, of every arm.
        truth: the resolved flow, where it was simulated.
    """
    page = _Page(scenario, evidence, arms_of(learned), None if truth is None else resolved_of(truth))
    return [*page.flow(), *page.statistics(), *page.learned(), *page.jets(), *page.extremes(), *page.long_run()]


class _Page:
    """What is drawn, chosen once."""

    def __init__(self, scenario: str, evidence: Evidence, arms: list[Entry], truth: Entry | None) -> None:
        self.scenario, self.evidence, self.arms, self.truth = scenario, evidence, arms, truth
        self.main = headline(evidence, arms)
        self.entries = [*closures_of(evidence), *arms]
        self.resolved = [] if truth is None else [truth]

    def figure(self, name: str, caption: str, draw: Callable[[], Drawing]) -> Figure:
        return Figure(f"{self.scenario}_{name}", f"{self.scenario}: {caption}", draw)

    def flow(self) -> list[Figure]:
        main, reference = self.main, self.evidence.reference
        part = main[0].parts[0]
        start = part["start"].values[common_start(main)]
        times = sorted({float(e.parts[0]["time"][-1]) for e in main})
        when = " to ".join(f"{t:g}" for t in (times if len(times) < 2 else (times[0], times[-1])))
        caption = (
            f"Vorticity: the reference's first snapshot on the coarse grid, and the flow at the end of the simulations "
            f"from start {start} (t = {when}; one simulation each, agents of the first training seed). Unit: sigma, "
            "standard deviation of the reference's; above each field its own. Flows of equal statistics differ in "
            "detail: the fields show texture, not agreement."
        )
        return [self.figure("fields", caption, lambda: vorticity_fields(reference, main))]

    def statistics(self) -> list[Figure]:
        evidence, reference, entries = self.evidence, self.evidence.reference, self.entries
        starts, seen = starts_sentence(entries), starts_sentence([*entries, *self.resolved])
        count = reference.sizes["snapshot"]
        window = entries[0].parts[0].attrs
        span = f"over t = {window['discard']:g} to {window['until']:g}"
        kept = int(reference["points"])
        found = [
            self.figure(
                "spectra",
                f"Time-mean spectra of enstrophy and energy {span}, mean of those along x and y, and their ratio to "
                f"the reference's (mean of {count} snapshots; grey: its 95 % bootstrap interval over them). {starts} "
                f"{_ONE_EACH}",
                lambda: spectra(reference, entries, evidence.band),
            )
        ]
        if evidence.training:
            found.append(
                self.figure(
                    "tuning",
                    "Spectrum error against the constant, from the training starts, which choose it, and from the "
                    "evaluation starts; bars: 95 % bootstrap intervals over starts. Lines across: the agents from the "
                    f"evaluation starts, with their bands. {starts} A constant with which every simulation blew up has "
                    "no mark.",
                    lambda: tuning(evidence, self.arms),
                )
            )
        found.append(
            self.figure(
                "distribution",
                f"Left: distribution of the vorticity {span}, all points, times and simulations together, in standard "
                f"deviations sigma of the reference ({kept} values of {count} snapshots). Right: how often |omega| "
                f"exceeds q sigma. {seen} The reference has no band here. {_ONE_EACH}",
                lambda: distribution(reference, [*entries, *self.resolved]),
            )
        )
        modelled = [e for e in entries if e.kind != "none"]
        if modelled:
            found.append(
                self.figure(
                    "transfers",
                    f"What the closures take from the resolved flow {span}: enstrophy and energy by angle-averaged "
                    f"wavenumber (below 0 they give), and the share of points that gain enstrophy. {starts} "
                    f"{_ONE_EACH}",
                    lambda: transfer_spectra(modelled),
                )
            )
        return found

    def learned(self) -> list[Figure]:
        sigma, found = float(self.evidence.reference["sigma"]), []
        for arm in only_with("coefficient", self.arms):
            if not len(coefficients_and_gradients(arm)[0]):
                continue
            found += [self._density(arm), self._fields(arm, sigma)]
        curves = only_with("score", self.arms)
        if curves:
            seeds = " or ".join(str(n) for n in sorted({len(arm.parts) for arm in curves}))
            found.append(
                self.figure(
                    "learning",
                    f"Learning curves of {seeds} training seeds: mean score of an action (the reward before its "
                    "offset) against solver steps of a single flow. No interval: the lines are all there is.",
                    lambda: learning_curves(curves),
                )
            )
        return found

    def _density(self, arm: Entry) -> Figure:
        caption = (
            f"Coefficient c of {arm.label} against the vorticity gradient, at every point of the last fields of "
            f"{arm.simulations} simulations; median and 10 to 90 % of the points in equally full bins, and the "
            f"distribution of c. {described(arm)}{_lost_at_the_end(arm)}"
        )
        return self.figure(f"{arm.label}_coefficient", caption, lambda: coefficient_density(arm))

    def _fields(self, arm: Entry, sigma: float) -> Figure:
        caption = (
            f"The last vorticity of a simulation with {arm.label} and, below it, the coefficient c that the agents set "
            "there, one start for each training seed. Below 0 the closure gives back to the flow."
        )
        return self.figure(f"{arm.label}_fields", caption, lambda: coefficient_fields(arm, sigma))

    def jets(self) -> list[Figure]:
        entries = [e for e in only_with("zonal", [*self.resolved, *self.main]) if e.lost < e.simulations]
        if not entries:
            return []
        return [
            self.figure(
                "jets_time",
                "Zonal-mean velocity u(y, t) of one simulation each, the first that stays finite; dotted: where the "
                "statistics begin.",
                lambda: hovmoeller(entries),
            ),
            self.figure(
                "jets_profiles",
                "Mean profile of the zonal velocity, and its first two empirical orthogonal functions with their share "
                f"of the variance, over all starts and training seeds. {starts_sentence(entries)}",
                lambda: profiles(entries),
            ),
        ]

    def extremes(self) -> list[Figure]:
        wanted = [*self.resolved, *self.main]
        entries = with_extremes(wanted)
        if not entries:
            return []
        none = next((e for e in entries if e.kind == "none"), None)
        truth = self.truth if self.truth in entries else None
        gap = ""
        if none is not None and truth is not None and len(entries) > 2:
            gap = (
                " Right: share of the distance from none to the resolved flow that is closed (1: all of it; the axis "
                "ends at -1.5)."
            )
        runs = ", ".join(f"{e.label} {e.simulations - e.lost}" for e in entries)
        caption = (
            f"The largest |omega| in the box that is exceeded once in a period, from an extreme-value distribution of "
            f"maxima over {BLOCK:g} time units (dots). Simulations: {runs}. Bands: 95 % intervals of {RESAMPLES} "
            f"bootstrap resamples of simulations and blocks.{gap}{lost_sentence(wanted)}"
        )
        return [
            self.figure("extremes", caption, lambda: return_curves(self.evidence.reference, entries, none, truth)),
        ]

    def long_run(self) -> list[Figure]:
        if not self.arms:
            return []
        caption = (
            f"Energy and enstrophy of every simulation with the agents, all starts and training seeds. "
            f"{blown_up(self.arms)} Grey: from the smallest to the largest of the reference's "
            f"{self.evidence.reference.sizes['snapshot']} snapshots."
        )
        return [self.figure("long_run", caption, lambda: long_run(self.evidence.reference, self.arms))]


def _lost_at_the_end(arm: Entry) -> str:
    lost = sum(int((~finite(part)).sum()) for part in arm.parts)
    return f" Left out because they blew up: {lost} of {arm.simulations} simulations." if lost else ""

"""The claims of the turbulence study, and how each is decided.

The error of a start is that of its time-mean spectrum, the mean over training seeds of the agents and over realisations
of a closure. Flows forget their starts, so that differences are unpaired.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, get_args

import numpy as np
import xarray as xr

from apps.turbulence.metrics import (
    Band,
    Numbers,
    chosen,
    spectrum_errors,
    tail_counts,
    tail_distance,
)
from apps.turbulence.runs import ClosureSettings
from core.seeds import stream
from core.stats import proportion_interval, welch_test
from core.study import Claim, Undecided, adjusted
from simulators.turbulence.diagnostics import long_run_summary

ClaimId = Literal[
    "smarl_beats_none",
    "smarl_beats_dynamic_leith",
    "smarl_beats_dynamic_smagorinsky",
    "smarl_within_quarter_of_tuned_constant",
    "smarl_stable_long_run",
    "smarl_tail_error_no_worse",
]
CLAIMS: tuple[ClaimId, ...] = get_args(ClaimId)
DYNAMIC_LEITH, DYNAMIC_SMAGORINSKY = ("dleith",), ("dsmag", "dsmag_tensor")
"""The closures of a family, of which claims take the one with the smallest error."""
LEVEL = 0.01
"""Of the tests against a rival, one-sided."""
MARGIN = 1.25
"""How much worse than the tuned constant the agents may be."""
TAIL_MARGIN = 0.2
"""Decades by which the tail may be worse."""
DRIFT_LIMIT = 0.1
"""Share of the mean energy by which the ensemble's may change in 100 time units."""
RESAMPLES = 4000
FEWEST_SAMPLES = 8
"""Of a long simulation, so that its second half has a slope."""


@dataclass(frozen=True)
class Evidence:
    """Results of one scenario.

    Attributes:
        reference: its statistics.
        closures: settings and evaluations of every closure, one a realisation, constants along ``constant``.
        training: one from the training starts, of closures with several constants.
        policies: of the first arm that learns, one evaluation a training seed.
        arm: its name.
        band: of the reference spectrum.
        long: how long the policies were simulated.
    """

    reference: xr.Dataset
    closures: Mapping[str, tuple[ClosureSettings, Sequence[xr.Dataset]]]
    training: Mapping[str, xr.Dataset]
    policies: Sequence[xr.Dataset]
    arm: str
    band: Band
    long: float

    def place(self, name: str) -> int:
        """The place of a closure's constant: the one that the training starts choose."""
        return chosen(self.training[name], self.reference, self.band) if name in self.training else 0

    def evaluated(self, name: str) -> list[xr.Dataset]:
        """A closure with its chosen constant, one evaluation a realisation."""
        return [found.isel(constant=self.place(name)) for found in self.closures[name][1]]

    def errors(self, name: str) -> Numbers:
        """Spectrum errors of a closure, mean over realisations, ``(start,)``."""
        return self._errors(self.evaluated(name)).mean(0)

    def _errors(self, evaluations: Sequence[xr.Dataset]) -> Numbers:
        found = [spectrum_errors(data, self.reference, self.band).values for data in evaluations]
        return np.asarray(found, dtype=np.float64)

    def learned(self) -> Numbers:
        """Spectrum errors of the policies, ``(seed, start)``.

        Raises:
            Undecided: nothing was trained.
        """
        if not self.policies:
            raise Undecided("not decided here: the first scenario trains no agents")
        return self._errors(self.policies)

    def best(self, kinds: Sequence[str]) -> str:
        """The closure of these kinds with the smallest mean error; one that blew up only if all did.

        Raises:
            Undecided: there is none.
        """
        names = [name for name, (settings, _) in self.closures.items() if settings.closure in kinds]
        if not names:
            raise Undecided(f"not decided here: the first scenario has none of {', '.join(kinds)}")
        errors = [self.errors(name).mean() for name in names]
        return names[int(np.argmin(np.where(np.isfinite(errors), errors, np.inf)))]

    def oracle(self) -> str:
        """The tuned constant that does best from the training starts.

        Raises:
            Undecided: no closure is tuned.
        """
        if not self.training:
            raise Undecided("not decided here: no closure of the first scenario has several constants to choose from")

        def error(name: str) -> float:
            errors = spectrum_errors(self.training[name], self.reference, self.band).isel(constant=self.place(name))
            mean = float(errors.mean("start", skipna=False))
            return mean if np.isfinite(mean) else np.inf

        return min(self.training, key=error)


def decide(evidence: Evidence, ids: Sequence[ClaimId] = CLAIMS) -> list[Claim]:
    """Decide the claims; the p-values of the rivals are adjusted together by Holm's method."""
    claims = []
    for name in ids:
        try:
            claims.append(_DECISIONS[name](evidence))
        except Undecided as missing:
            claims.append(Claim(name, STATEMENTS[name], None, str(missing)))
    return [c if c.p is None else replace(c, holds=bool(c.holds and c.p < LEVEL)) for c in adjusted(claims)]


def _beats(evidence: Evidence, name: ClaimId, kinds: tuple[str, ...]) -> Claim:
    ours, rival = evidence.learned(), evidence.best(kinds)
    theirs = evidence.errors(rival)
    test = f"Welch, one-sided p < {LEVEL} (Holm), and every training seed's mean below the rival's; 95 % interval"
    if not np.isfinite(ours).all():
        return Claim(name, STATEMENTS[name], False, "a simulation with the agents blew up", n=ours.size, test=test)
    alive = np.isfinite(theirs)
    lost = f"; {rival} blew up from {int((~alive).sum())} of {alive.size} starts" if not alive.all() else ""
    if alive.sum() < 2:
        reason = f"{evidence.arm} {ours.mean():.3f} decades{lost}, the agents from none"
        return Claim(name, STATEMENTS[name], True, reason, n=theirs.size, test=test)
    theirs = theirs[alive]
    gap = welch_test(ours.mean(0), theirs)
    assert gap.p is not None
    p = gap.p / 2 if gap.mean < 0 else 1 - gap.p / 2
    ahead = ours.mean(1) < theirs.mean()
    reason = (
        f"{evidence.arm} {ours.mean():.3f}, {rival} {theirs.mean():.3f} decades; {int(ahead.sum())} of {len(ahead)} "
        f"training seeds ahead{lost}"
    )
    held = bool(ahead.all())
    return Claim(name, STATEMENTS[name], held, reason, gap.mean, gap.low, gap.high, theirs.size, p, test)


def _within(evidence: Evidence, name: ClaimId) -> Claim:
    ours, oracle = evidence.learned().mean(0), evidence.oracle()
    theirs = evidence.errors(oracle)
    test = "difference to 1.25 times the tuned constant's error at most 0; 95 % Welch interval, which does not decide"
    if not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
        return Claim(name, STATEMENTS[name], False, "a simulation blew up", n=ours.size, test=test)
    gap = welch_test(ours, MARGIN * theirs)
    constant = float(evidence.evaluated(oracle)[0]["constant"])
    reason = f"{evidence.arm} {ours.mean():.3f}, {oracle} with {constant:g} {theirs.mean():.3f} decades"
    return Claim(
        name, STATEMENTS[name], bool(gap.mean <= 0), reason, gap.mean, gap.low, gap.high, ours.size, None, test
    )


def _stable(evidence: Evidence, name: ClaimId) -> Claim:
    if not evidence.policies or evidence.long <= 0:
        raise Undecided("not decided here: the first scenario has no long simulation of trained agents")
    if evidence.policies[0].sizes["time"] < FEWEST_SAMPLES:
        raise Undecided(f"not decided here: the long simulations have fewer than {FEWEST_SAMPLES} samples")
    found = _long_run(evidence.policies, evidence)
    passed = np.asarray(found["passed"].values)
    share = proportion_interval(int(passed.sum()), len(passed), exact=True)
    test = (
        f"every run finite with 0.5 to 2 times the reference's enstrophy, and the ensemble's energy within "
        f"{100 * DRIFT_LIMIT:g} % in 100 time units, all over the second half; share of runs that pass with its 95 % "
        "Clopper-Pearson interval"
    )
    if not found["finite"].any():
        reason = f"all {len(passed)} runs blew up"
        return Claim(name, STATEMENTS[name], False, reason, share.mean, share.low, share.high, len(passed), None, test)
    ratio, drift = found["enstrophy_ratio"].values, np.abs(found["drift"].values)
    together, uncertain = (100 * float(found[name]) for name in ("ensemble_drift", "ensemble_drift_error"))
    single = 100 * float((found["energy_slope_error"] / found["energy_slope"] * found["drift"]).mean())
    reason = (
        f"{int(passed.sum())} of {len(passed)} runs to T = {evidence.long:g} pass; enstrophy {np.nanmin(ratio):.2f} to "
        f"{np.nanmax(ratio):.2f} of the reference's; in 100 time units the ensemble's energy changes by "
        f"{together:.1f} % (standard error {uncertain:.1f} %); {int((drift >= DRIFT_LIMIT).sum())} single runs change "
        f"by 10 % or more, where chance has a standard error of {single:.1f} %"
        f"{_beside(evidence)}"
    )
    held = bool(passed.all()) and abs(together) < 100 * DRIFT_LIMIT
    return Claim(name, STATEMENTS[name], held, reason, share.mean, share.low, share.high, len(passed), None, test)


def _beside(evidence: Evidence) -> str:
    """How the closures fare that were simulated as long."""
    told = ""
    for name, (settings, _) in evidence.closures.items():
        if settings.long:
            found = _long_run(evidence.evaluated(name), evidence)
            single = int((np.abs(found["drift"].values) >= DRIFT_LIMIT).sum())
            told += (
                f"; {name}: {int(found['passed'].sum())} of {found.sizes['start']} pass, ensemble "
                f"{100 * float(found['ensemble_drift']):.1f} %, {single} single runs 10 % or more"
            )
    return told


def _long_run(evaluations: Sequence[xr.Dataset], evidence: Evidence) -> xr.Dataset:
    """The stability of all simulations of several evaluations."""
    time = evaluations[0]["time"].values
    energy, enstrophy = (np.concatenate([data[v].values for data in evaluations]) for v in ("energy", "enstrophy"))
    return long_run_summary(energy, enstrophy, time, float(evidence.reference["enstrophy"].mean()))


def _tail(evidence: Evidence, name: ClaimId) -> Claim:
    learned = evidence.learned()
    rivals = [evidence.best(kinds) for kinds in (DYNAMIC_LEITH, DYNAMIC_SMAGORINSKY)]
    test = (
        f"upper 95 % bootstrap bound (starts, and training seeds or realisations) at most {TAIL_MARGIN} decades; it is "
        "the upper end of the 90 % interval"
    )
    # What blew up has counted only what came before, which is no tail to compare with.
    if not np.isfinite(learned).all():
        return Claim(name, STATEMENTS[name], False, "a simulation with the agents blew up", n=learned.size, test=test)
    rivals = [rival for rival in rivals if np.isfinite(evidence.errors(rival)).all()]
    if not rivals:
        reason = "every dynamic model blew up, the agents never"
        return Claim(name, STATEMENTS[name], True, reason, n=learned.size, test=test)
    ours = _tail_counts(evidence.policies)
    theirs = [_tail_counts(evidence.evaluated(rival)) for rival in rivals]

    def distance(exceeded: Numbers, points: Numbers) -> float:
        return abs(float(tail_distance(exceeded.sum(), points.sum(), evidence.reference)))

    best = [distance(*counts) for counts in theirs]
    found = distance(*ours) - min(best)
    generator = np.random.default_rng(stream(0, "tail claim"))

    def resampled(counts: tuple[Numbers, Numbers]) -> float:
        rows, columns = counts[0].shape
        place = generator.integers(rows, size=(rows, 1)), generator.integers(columns, size=columns)
        return distance(counts[0][place], counts[1][place])

    drawn = np.array([resampled(ours) - min(map(resampled, theirs)) for _ in range(RESAMPLES)])
    low, upper = (float(end) for end in np.quantile(drawn, [0.05, 0.95]))
    told = ", ".join(f"{rival} {value:.2f}" for rival, value in zip(rivals, best, strict=True))
    reason = f"{evidence.arm} {distance(*ours):.2f}, {told} decades; upper 95 % bound of the difference {upper:.2f}"
    held = upper <= TAIL_MARGIN
    return Claim(name, STATEMENTS[name], held, reason, found, low, upper, ours[0].size, None, test)


def _tail_counts(evaluations: Sequence[xr.Dataset]) -> tuple[Numbers, Numbers]:
    """Values in the tail and values in all, each ``(evaluation, start)``."""
    exceeded, points = zip(*map(tail_counts, evaluations), strict=True)
    return np.stack(exceeded), np.stack(points)


STATEMENTS: dict[ClaimId, str] = {
    "smarl_beats_none": "The agents' enstrophy spectrum is nearer to the reference's than without a closure (decades)",
    "smarl_beats_dynamic_leith": "It is nearer than that of the dynamic Leith model with its better clip (decades)",
    "smarl_beats_dynamic_smagorinsky": (
        "It is nearer than that of the dynamic Smagorinsky model with its better clip (decades)"
    ),
    "smarl_within_quarter_of_tuned_constant": (
        "Its error is at most a quarter larger than that of the best constant, tuned on the training starts (decades)"
    ),
    "smarl_stable_long_run": (
        "Every long simulation with the agents stays finite, with the reference's enstrophy within a factor 2 and "
        "without drift of the energy (share of simulations)"
    ),
    "smarl_tail_error_no_worse": (
        "The tail P(|omega| > 3 sigma) is no further from the reference's than that of the better dynamic model "
        "(decades)"
    ),
}

_DECISIONS: dict[ClaimId, Callable[[Evidence], Claim]] = {
    "smarl_beats_none": partial(_beats, name="smarl_beats_none", kinds=("none",)),
    "smarl_beats_dynamic_leith": partial(_beats, name="smarl_beats_dynamic_leith", kinds=DYNAMIC_LEITH),
    "smarl_beats_dynamic_smagorinsky": partial(
        _beats, name="smarl_beats_dynamic_smagorinsky", kinds=DYNAMIC_SMAGORINSKY
    ),
    "smarl_within_quarter_of_tuned_constant": partial(_within, name="smarl_within_quarter_of_tuned_constant"),
    "smarl_stable_long_run": partial(_stable, name="smarl_stable_long_run"),
    "smarl_tail_error_no_worse": partial(_tail, name="smarl_tail_error_no_worse"),
}

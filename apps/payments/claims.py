"""The claims of the payments study, and how each is decided from one number a world.

All arms of a world meet the same payments and the same luck, so differences are paired; intervals are Student's over
worlds. What is claimed is claimed of this simulator.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.stats import spearmanr

from apps.payments.metrics import BASIS_POINTS as BPS
from apps.payments.runs import online_value
from apps.payments.scenario import Arm
from apps.payments.series import lag_one_autocorrelation, order_test, swing
from core.stats import Interval, paired_t_test, t_interval
from core.study import Claim, Undecided, Verdict, decide_claims

OSCILLATION_P = 0.01

ClaimId = Literal[
    "igw_beats_uniform_exploration",
    "igw_beats_tuned_epsilon",
    "second_generation_degrades",
    "oscillation_under_short_memory",
    "longer_memory_removes_oscillation",
    "grouping_beats_flat_igw",
    "narrow_logs_teach_worse",
]
CLAIMS: tuple[ClaimId, ...] = get_args(ClaimId)[:5]
"""Those of the study of exploration and memory; the others belong to studies of their own."""

Numbers = NDArray[np.float64]


def _defined(found: Numbers, what: str) -> Numbers:
    if not np.isfinite(found).all():
        raise Undecided(f"not decided here: {what} has generations without a model, or the same model in all of them")
    return found


@dataclass(frozen=True)
class Evidence:
    """Results of the arms of one scenario along ``world``.

    Attributes:
        found: by arm.
        arms: their settings.
        permutations: draws of the test of oscillation.
    """

    found: Mapping[str, xr.Dataset]
    arms: Mapping[str, Arm]
    permutations: int

    def arm(self, rule: str, window: int | None = None, *, tuned: bool = False) -> str:
        """The first arm of that rule and window, with or without a tuned number.

        Raises:
            Undecided: there is none.
        """
        for name, arm in self.arms.items():
            if arm.exploration.rule == rule and window in (None, arm.window) and (arm.tune is not None) == tuned:
                return name
        wanted = f"{rule}{' with a tuned number' if tuned else ''}{f' of window {window}' if window else ''}"
        raise Undecided(f"not decided here: the first scenario has no arm {wanted}")

    def value(self, arm: str) -> Numbers:
        """Mean online value from generation 1 on, a world each."""
        return np.asarray(online_value(self.found[arm]).values, dtype=np.float64)

    def degradation(self, arm: str) -> Numbers:
        """Online value of generation 1 minus that of generation 2, a world each."""
        value = self.found[arm]["value"].transpose("world", "generation").values
        return np.asarray(value[:, 1] - value[:, 2], dtype=np.float64)

    def errors(self, arm: str) -> Numbers:
        """Realizability error of the models trained after generation 1 and later ``(worlds, generations)``."""
        series = self.found[arm]["mse_uniform"].transpose("world", "generation").values
        return np.asarray(series[:, 1:], dtype=np.float64)

    def oscillation(self, arm: str) -> Numbers:
        """Lag-1 autocorrelation of ``errors``, a world each.

        Raises:
            Undecided: a world has none.
        """
        return _defined(lag_one_autocorrelation(self.errors(arm)), arm)

    def value_swing(self, arm: str) -> Numbers:
        """Mean |V(g+1) - V(g)| over g >= 2, a world each."""
        value = self.found[arm]["value"].transpose("world", "generation").values
        return swing(value[:, 2:])


def decide(evidence: Evidence, ids: tuple[ClaimId, ...] = CLAIMS) -> list[Claim]:
    """Decide the claims; p-values are adjusted over the family by Holm's method."""
    return decide_claims(_DECISIONS, ids, evidence)


def _verdict(
    holds: bool, reason: str, of: Interval, test: str = "paired differences, lower end above 0", scale: float = BPS
) -> Verdict:
    shown = replace(of, mean=scale * of.mean, low=scale * of.low, high=scale * of.high)
    return Verdict(holds, reason, shown, f"95 % Student interval over worlds of {test}; p two-sided against 0, Holm")


def _bps(i: Interval) -> str:
    return f"{BPS * i.mean:.0f} [{BPS * i.low:.0f}, {BPS * i.high:.0f}] bps"


def _ahead(evidence: Evidence, arm: str, rival: str) -> tuple[Interval, str]:
    ours, theirs = evidence.value(arm), evidence.value(rival)
    gain = paired_t_test(ours, theirs)
    return gain, f"{_bps(gain)}, ahead in {int((ours > theirs).sum())} of {gain.n} worlds"


def _beats_slice(evidence: Evidence) -> Verdict:
    gain, told = _ahead(evidence, evidence.arm("igw", 1, tuned=True), evidence.arm("epsilon_slice", tuned=True))
    return _verdict(gain.low > 0, told, gain)


def _beats_epsilon(evidence: Evidence) -> Verdict:
    gain, told = _ahead(evidence, evidence.arm("igw", 1, tuned=True), evidence.arm("epsilon", 1, tuned=True))
    reason = f"window 1: {told}"
    with suppress(Undecided):
        longer = _ahead(evidence, evidence.arm("igw", 3, tuned=True), evidence.arm("epsilon", 3, tuned=True))
        reason += f"; window 3: {longer[1]}"
    return _verdict(gain.low > 0, reason, gain)


def _degrades(evidence: Evidence) -> Verdict:
    igw, uniform = evidence.arm("igw", 1), evidence.arm("uniform")
    loss = paired_t_test(evidence.degradation(igw), evidence.degradation(uniform))
    approvals, auc = (evidence.found[igw][name].mean("world").values for name in ("approvals", "auc"))
    reason = (
        f"{_bps(loss)}; from generation 0 to 1 the approvals in the log go from {approvals[0]:.3f} to "
        f"{approvals[1]:.3f} and the AUC of the model trained on it from {auc[0]:.3f} to {auc[1]:.3f}"
    )
    return _verdict(loss.low > 0, reason, loss)


def _oscillates(evidence: Evidence) -> Verdict:
    igw, uniform = evidence.arm("igw", 1), evidence.arm("uniform")
    own, null = evidence.oscillation(igw), evidence.oscillation(uniform)
    gap = paired_t_test(own, null)
    p = order_test(evidence.errors(igw), draws=evidence.permutations)
    reason = (
        f"difference {gap.mean:.2f} [{gap.low:.2f}, {gap.high:.2f}] (IGW {own.mean():.2f}, uniform {null.mean():.2f}); "
        f"order permuted within worlds: p = {p:.4f}"
    )
    test = f"paired differences, upper end below 0, and permutation p < {OSCILLATION_P}"
    return _verdict(gap.high < 0 and p < OSCILLATION_P, reason, gap, test, 1.0)


def _removed(evidence: Evidence) -> Verdict:
    short, long = evidence.arm("igw", 1), evidence.arm("igw", 3)
    rise = paired_t_test(evidence.oscillation(long), evidence.oscillation(short))
    swings = evidence.value_swing(short), evidence.value_swing(long)
    calm = paired_t_test(*swings)
    told = _ahead(evidence, long, short)[1]
    reason = (
        f"the autocorrelation rises by {rise.mean:.2f} [{rise.low:.2f}, {rise.high:.2f}]; the online value swings by "
        f"{BPS * swings[0].mean():.0f} bps, then by {BPS * swings[1].mean():.0f}: {_bps(calm)} less; it rises by {told}"
    )
    test = "paired differences, lower ends of autocorrelation and swing above 0"
    return _verdict(rise.low > 0 and calm.low > 0, reason, rise, test, 1.0)


def _grouping(evidence: Evidence) -> Verdict:
    gain, told = _ahead(evidence, evidence.arm("grouped_igw", tuned=True), evidence.arm("igw", tuned=True))
    return _verdict(gain.low > 0, told, gain)


def _narrow_logs(evidence: Evidence) -> Verdict:
    def series(name: str) -> Numbers:
        found = [data[name].transpose("world", "generation").values for data in evidence.found.values()]
        # Generation 0 is the same log in every arm: it would be counted as often as there are arms.
        return np.concatenate([values[:, 1:] for values in found], axis=1)

    # Arms and generations of a world together: it is logs that are compared, whichever rule left them.
    entropy, error = series("entropy"), series("mse_uniform")
    ranks = np.array([spearmanr(a, b).statistic for a, b in zip(entropy, error, strict=True)])
    found = t_interval(_defined(ranks, "a world"))
    reason = f"rank correlation {found.mean:.2f} [{found.low:.2f}, {found.high:.2f}] over the logs of a world"
    return _verdict(found.high < 0, reason, found, "rank correlations, upper end below 0", 1.0)


_DECISIONS: dict[ClaimId, tuple[str, Callable[[Evidence], Verdict]]] = {
    "igw_beats_uniform_exploration": (
        "Tuned IGW earns a higher online value than a tuned slice of uniform exploration (window 1; bps)",
        _beats_slice,
    ),
    "igw_beats_tuned_epsilon": (
        "Tuned IGW earns a higher online value than tuned epsilon-greedy that learns from all rows (window 1; bps)",
        _beats_epsilon,
    ),
    "second_generation_degrades": (
        "The second learned generation of IGW earns less than the first, more so than under uniform decisions (bps)",
        _degrades,
    ),
    "oscillation_under_short_memory": (
        "Under IGW with a memory of one generation the models' realizability error alternates: its lag-1 "
        "autocorrelation is below that under uniform decisions",
        _oscillates,
    ),
    "longer_memory_removes_oscillation": (
        "A memory of three generations removes the oscillation: the autocorrelation rises and the online value "
        "swings less",
        _removed,
    ),
    "grouping_beats_flat_igw": (
        "With 256 actions, tuned IGW over groups of actions earns a higher online value than tuned IGW over actions "
        "(bps)",
        _grouping,
    ),
    "narrow_logs_teach_worse": (
        "The less a policy explores, the larger the realizability error of the model that is trained on its log: rank "
        "correlation between the entropy of the policy and that error",
        _narrow_logs,
    ),
}

"""The claims of the study, and how each is decided."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Literal, get_args

import numpy as np
import torch
from scipy import stats

from apps.lipreading.evidence import Evidence, rate, tempered_rates
from apps.lipreading.gradients import jackknife, standard_error
from apps.lipreading.metrics import Errors, corpus_rate
from core.stats import Interval, clustered_difference, t_interval
from core.study import Claim, Config, Undecided, Verdict, decide_claims

LEAST_COSINE = 0.8
"""Of the true gradients of PCPG and of the reference."""
SMALLEST_GAIN, GREEDY_LOSS = 0.07, 0.001
"""Share of the error rate that must go when sampled, and error rate that may be lost when the best symbol is taken."""
QUARTER = 0.25
ONE_SIDED = 0.90
"""Level of the two-sided interval whose upper end is that of a one-sided 95 % one."""

ClaimId = Literal[
    "pcpg_gradient_snr_at_least_double",
    "pcpg_beats_reinforce_sampled",
    "pcpg_beats_reinforce_greedy",
    "pcpg_group_beats_cross_entropy_sampled",
    "grid_s1_cer_below_quarter",
]
CLAIMS: tuple[ClaimId, ...] = get_args(ClaimId)


class Roles(Config):
    """What the claims are about, by name."""

    fork: str = "mini"
    """The experiment in which objectives are compared."""
    cross_entropy: str = "cross-entropy"
    """Its control."""
    reinforce: str = "REINFORCE"
    """What PCPG is held against."""
    pcpg: str = "PCPG"
    """Without a baseline."""
    group: str = "PCPG, group"
    """With the mean of the other transcripts of a clip as baseline."""
    reinforce_gradient: str = "REINFORCE"
    """The estimator that PCPG's is held against."""
    pcpg_gradient: str = "PCPG k5 s2"
    """PCPG's estimator."""
    rloo: str = "RLOO"
    """The plain policy gradient with the same baseline, told beside it; the last of the estimators, their reference."""
    corpus: str = "GRID s1"
    """The experiment on recordings."""


def decide(evidence: Evidence, roles: Roles, ids: tuple[ClaimId, ...] = CLAIMS) -> list[Claim]:
    """Decide the claims."""
    return decide_claims(_DECISIONS, ids, evidence, roles)


def _signal(evidence: Evidence, roles: Roles) -> Verdict:
    if roles.fork not in evidence.gradients:
        raise Undecided(evidence.absent.get(roles.fork, f"the study has no gradients of {roles.fork}"))
    data = evidence.gradients[roles.fork]
    names = [str(name) for name in data["method"].values]
    for name in (roles.pcpg_gradient, roles.reinforce_gradient):
        if name not in names:
            raise Undecided(f"the study has no gradients of {name}")
    if names[-1] != roles.rloo:
        # Cosines are with the last one, which would be PCPG's with itself were that PCPG.
        raise Undecided(f"the reference of the gradients is {names[-1]}; the claim is about {roles.rloo}")
    ours, ours_left = jackknife(data, roles.pcpg_gradient)
    theirs, theirs_left = jackknife(data, roles.reinforce_gradient)
    repeats = len(ours_left)
    unclear = "a signal is not told from noise; more repeats are needed"
    # Not by min(), which lets a NaN through.
    if not (ours.snr > 0 and theirs.snr > 0):
        raise Undecided(unclear)
    difference = math.log(ours.snr / theirs.snr)
    left = [
        math.log(a.snr / b.snr) if min(a.snr, b.snr) > 0 else np.nan
        for a, b in zip(ours_left, theirs_left, strict=True)
    ]
    wide = float(stats.t.ppf(0.975, repeats - 1)) * standard_error(left)
    if not (math.isfinite(wide) and math.isfinite(ours.cosine)):
        raise Undecided(unclear)
    interval = Interval(difference, difference - wide, difference + wide, repeats)
    reason = (
        f"SNR {ours.snr:.3f} against {theirs.snr:.3f}; cosine with the reference {ours.cosine:.2f} and "
        f"{theirs.cosine:.2f}; of one repeat {ours.one_repeat:.2f} and {theirs.one_repeat:.2f}"
    )
    holds = interval.low > math.log(2) and ours.cosine >= LEAST_COSINE and ours.one_repeat > theirs.one_repeat
    test = (
        f"log of the ratio, 95 % jackknife interval over repeats: lower end above log 2 = {math.log(2):.3f}, cosine at "
        f"least {LEAST_COSINE:g}, cosine of one repeat above REINFORCE's"
    )
    return Verdict(holds, reason, interval, test)


def _beats(evidence: Evidence, roles: Roles, measure: str) -> Verdict:
    one, other = roles.pcpg, roles.reinforce
    found = _one_sided(evidence.difference(roles.fork, one, other, measure, ONE_SIDED))
    reason = (
        f"{measure} {_mean(evidence, roles.fork, one, measure)} against {_mean(evidence, roles.fork, other, measure)}, "
        f"each at its own weight ({evidence.weight(roles.fork, one):g}, {evidence.weight(roles.fork, other):g})"
        f"{_at_equal_weight(evidence, roles, measure)}"
    )
    test = "paired by seed, one-sided 95 % t interval: upper end below 0; the lower end is the other one-sided one"
    return Verdict(found.high < 0, reason, found, test)


def _at_equal_weight(evidence: Evidence, roles: Roles, measure: str) -> str:
    """The same difference between both methods at one fixed weight, where the study has them by these names."""
    names = evidence.methods(roles.fork)
    for suffix in [name.removeprefix(roles.pcpg) for name in names if name.startswith(f"{roles.pcpg} at ")]:
        if f"{roles.reinforce}{suffix}" in names:
            one, other = f"{roles.pcpg}{suffix}", f"{roles.reinforce}{suffix}"
            return f"; both{suffix}: {_number(evidence.difference(roles.fork, one, other, measure, ONE_SIDED))}"
    return ""


def _group(evidence: Evidence, roles: Roles) -> Verdict:
    one, other = roles.group, roles.cross_entropy
    base = float(np.mean(list(evidence.values(roles.fork, other, "CER sampled").values())))
    if base == 0:
        raise Undecided(f"{other} makes no error, of which a share could go")
    found = _scaled(evidence.difference(roles.fork, one, other, "CER sampled", ONE_SIDED), base)
    greedy = evidence.difference(roles.fork, one, other, "CER")
    margin = evidence.differences(roles.fork, one, other, "CER sampled") + SMALLEST_GAIN * base
    found = replace(found, p=_one_sided(t_interval(margin)).p)
    reason = (
        f"CER sampled {_mean(evidence, roles.fork, one, 'CER sampled')} against "
        f"{_mean(evidence, roles.fork, other, 'CER sampled')}; greedy difference {_number(greedy)}"
        f"{_over_speakers(evidence, roles, base)}{_without_training(evidence, roles)}"
    )
    test = (
        f"difference over the mean of cross-entropy, paired by seed, one-sided 95 % t interval: upper end below "
        f"-{SMALLEST_GAIN:g}, and greedy difference at most {GREEDY_LOSS:g}; p: of the margin"
    )
    return Verdict(found.high < -SMALLEST_GAIN and greedy.mean <= GREEDY_LOSS, reason, found, test)


def _over_speakers(evidence: Evidence, roles: Roles, base: float) -> str:
    """The same difference with the spread over test speakers."""
    by_speaker = evidence.differences_by_speaker(roles.fork, roles.group, roles.cross_entropy) / base
    if by_speaker.shape[1] < 2:
        return ""
    return f"; over seeds and speakers {_number(clustered_difference(by_speaker, level=ONE_SIDED))}"


def _without_training(evidence: Evidence, roles: Roles) -> str:
    """What a lower temperature makes of the reader that both started from, and what RLOO does."""
    data = evidence.readings[roles.fork]
    told = ""
    if "tempered_edits" in data:
        rates = tempered_rates(data)
        told = "; the reader without further training: " + ", ".join(
            f"{rates[t]:.4f} at T {t:g}" for t in (0.8, 0.7) if t in rates
        )
    if roles.rloo in evidence.methods(roles.fork):
        told += f"; {roles.rloo} {_mean(evidence, roles.fork, roles.rloo, 'CER sampled')}"
    return told


def _grid(evidence: Evidence, roles: Roles) -> Verdict:
    if roles.corpus not in evidence.readings:
        raise Undecided(evidence.absent.get(roles.corpus, f"the study has no experiment {roles.corpus}"))
    data = evidence.readings[roles.corpus]
    edits, characters = (
        torch.from_numpy(data[name].values.astype(np.int64)) for name in ("greedy_edits", "characters")
    )
    found = corpus_rate(Errors(edits, characters))
    moved = replace(found, mean=found.mean - QUARTER, low=found.low - QUARTER, high=found.high - QUARTER)
    reason = f"CER {_number(found)} in {found.n} sentences of a speaker seen in training, WER {rate(data, 'WER'):.3f}"
    test = f"CER less {QUARTER:g}, 95 % bootstrap interval over sentences: upper end below 0"
    return Verdict(moved.high < 0, reason, moved, test)


def _one_sided(i: Interval) -> Interval:
    """With the p-value of the mean being below 0."""
    assert i.p is not None
    return replace(i, p=i.p / 2 if i.mean < 0 else 1 - i.p / 2)


def _scaled(i: Interval, by: float) -> Interval:
    return replace(i, mean=i.mean / by, low=i.low / by, high=i.high / by)


def _mean(evidence: Evidence, experiment: str, method: str, measure: str) -> str:
    return _number(evidence.interval(experiment, method, measure))


def _number(i: Interval) -> str:
    return f"{i.mean:.4f} [{i.low:.4f}, {i.high:.4f}]"


_DECISIONS: dict[ClaimId, tuple[str, Callable[[Evidence, Roles], Verdict]]] = {
    "pcpg_gradient_snr_at_least_double": (
        f"The gradient of PCPG has at least twice the signal-to-noise ratio of REINFORCE's, at a cosine of at least "
        f"{LEAST_COSINE:g} with that of RLOO",
        _signal,
    ),
    "pcpg_beats_reinforce_sampled": (
        "PCPG ends with a smaller error rate of sampled transcripts than REINFORCE, each at its own validated weight",
        lambda evidence, roles: _beats(evidence, roles, "CER sampled"),
    ),
    "pcpg_beats_reinforce_greedy": (
        "PCPG ends with a smaller error rate of the most probable symbols than REINFORCE, each at its own weight",
        lambda evidence, roles: _beats(evidence, roles, "CER"),
    ),
    "pcpg_group_beats_cross_entropy_sampled": (
        f"PCPG with a group baseline takes at least {SMALLEST_GAIN:.0%} off the error rate of sampled transcripts that "
        "cross-entropy reaches with as many updates",
        _group,
    ),
    "grid_s1_cer_below_quarter": (
        f"On recordings of GRID's first speaker the error rate of characters is below {QUARTER:g}",
        _grid,
    ),
}

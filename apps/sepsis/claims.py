"""The claims of the sepsis study, and how each is decided.

Every difference is the mean over seeds, each of which draws its own patients, judge and networks; the interval is a
bootstrap that draws seeds, then patients within them. What is claimed is claimed of the simulator.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Literal, get_args

from apps.sepsis.evidence import Evidence, Numbers, Parts, difference, interval, preference_difference
from core.stats import Interval
from core.study import Claim, Undecided, Verdict, decide_claims

PLAIN, CONSERVATIVE = "plain", "conservative"
DEBATE, STATE, BASELINE = "debate 0.5", "state 0.5", "lambda 0"
"""The headline is lambda = 0.5."""
LOSS = 0.03
"""Survival that a policy may lose and still count as no worse."""
STATE_SURVIVAL, STATE_PREFERENCE = 0.05, 0.10
"""What the state-based reward may gain and still count as no better."""
TEST = "95 % bootstrap interval over seeds, then patients"
ABOVE = f"{TEST}; lower end above 0"

ClaimId = Literal[
    "debate_policy_preferred",
    "debate_policy_survives_no_worse",
    "state_judge_no_better",
    "alternating_debate_resists_refutation",
    "chosen_evidence_beats_random",
]
CLAIMS: tuple[ClaimId, ...] = get_args(ClaimId)


def decide(evidence: Evidence, ids: tuple[ClaimId, ...] = CLAIMS) -> list[Claim]:
    """Decide the claims; p-values of those against 0 are adjusted over the family by Holm's method."""
    return decide_claims(_DECISIONS, ids, evidence)


def _preferred(evidence: Evidence) -> Verdict:
    won, differing = evidence.preference(PLAIN, DEBATE)
    own = interval((won, differing))
    cloned = interval(evidence.preference_of(PLAIN, "clinician"))
    reason = (
        f"preferred at {_share(own)} of the steps where they differ (by seed {_by_seed((won, differing))}), the cloned"
        f" clinician at {_share(cloned)}{_beside(evidence, lambda e: _share(interval(e)))}"
    )
    imitated = preference_difference((won, differing), evidence.preference_of(PLAIN, "clinician"))
    reason += f"; less the cloned clinician {_number(imitated)}"
    ahead = interval(([w - 0.5 * d for w, d in zip(won, differing, strict=True)], differing))
    test = f"{TEST}; share less 0.5: lower end above 0, and the cloned clinician's share below the policy's"
    return Verdict(ahead.low > 0 and cloned.mean < own.mean, reason, ahead, test)


def _survives(evidence: Evidence) -> Verdict:
    own, base = evidence.survival(PLAIN, DEBATE), evidence.survival(PLAIN, BASELINE)
    found = difference(own, base)
    try:
        beside = _number(difference(evidence.survival(CONSERVATIVE, DEBATE), evidence.survival(CONSERVATIVE, BASELINE)))
    except Undecided:
        beside = ""
    reason = f"by seed {_means(own)} against {_means(base)}" + (f"; conservative learner: {beside}" if beside else "")
    with suppress(Undecided):
        reason += f"; less the physician's {_number(difference(own, evidence.physician()))}"
    return Verdict(found.low > -LOSS, reason, replace(found, p=None), f"{TEST}; lower end above -{LOSS:g}")


def _state_no_better(evidence: Evidence) -> Verdict:
    lived = difference(evidence.survival(PLAIN, STATE), evidence.survival(PLAIN, DEBATE))
    full = [evidence.preference(PLAIN, arm, "by_full_judge") for arm in (STATE, DEBATE)]
    liked = preference_difference(full[0], full[1])
    reason = f"state less debate: survival {_number(lived)}, preference by the full judge {_number(liked)}"
    slack = STATE_SURVIVAL - lived.high, STATE_PREFERENCE - liked.high
    # Of the two comparisons the one nearer to its margin is shown.
    shown, what = (lived, "survival") if slack[0] <= slack[1] else (liked, "preference")
    test = (
        f"{TEST}; upper ends below {STATE_SURVIVAL:g} (survival) and {STATE_PREFERENCE:g} (preference); shown: {what}"
    )
    return Verdict(min(slack) > 0, reason, replace(shown, p=None), test)


def _resists(evidence: Evidence) -> Verdict:
    turns, upfront = evidence.correct("lookahead", "itself"), evidence.correct("precommit_first_order", "refuted")
    gap = interval(evidence.by_patient([a - b for a, b in zip(turns, upfront, strict=True)]))
    held, refuted = (_share(interval(evidence.by_patient(x))) for x in (turns, upfront))
    reason = f"accuracy {held} alternating, {refuted} precommitted and then refuted"
    with suppress(Undecided):
        first = _share(interval(evidence.by_patient(evidence.correct("lookahead_first", "itself"))))
        reason += f"; alternating with the advocate always first, so that the refuter has the last word, {first}"
    return Verdict(gap.low > 0, reason, gap, ABOVE)


def _beats_random(evidence: Evidence) -> Verdict:
    chosen, drawn = evidence.correct("lookahead", "itself"), evidence.random()
    gap = interval(evidence.by_patient([a - b for a, b in zip(chosen, drawn, strict=True)]))
    told = [_share(interval(evidence.by_patient(x))) for x in (chosen, drawn)]
    reason = f"accuracy {told[0]} after a debate, {told[1]} with random features"
    return Verdict(gap.low > 0, reason, gap, ABOVE)


def _beside(evidence: Evidence, told: Callable[[Parts], str]) -> str:
    """The same of the conservative learner."""
    try:
        return f"; with the conservative learner {told(evidence.preference(CONSERVATIVE, DEBATE))}"
    except Undecided:
        return ""


def _by_seed(parts: Parts) -> str:
    return ", ".join(f"{top.sum() / bottom.sum():.2f}" for top, bottom in zip(*parts, strict=True))


def _means(values: list[Numbers]) -> str:
    return ", ".join(f"{x.mean():.3f}" for x in values)


def _share(i: Interval) -> str:
    return f"{100 * i.mean:.1f} % [{100 * i.low:.1f}, {100 * i.high:.1f}]"


def _number(i: Interval) -> str:
    return f"{i.mean:.3f} [{i.low:.3f}, {i.high:.3f}]"


_DECISIONS: dict[ClaimId, tuple[str, Callable[[Evidence], Verdict]]] = {
    "debate_policy_preferred": (
        "Where the policy with the debate reward (lambda 0.5) and the one without differ, the judge prefers the "
        "former's action after a debate more often than not",
        _preferred,
    ),
    "debate_policy_survives_no_worse": (
        f"The patients of the policy with the debate reward (lambda 0.5) survive no worse than those of the policy "
        f"without (margin {LOSS:g})",
        _survives,
    ),
    "state_judge_no_better": (
        f"A reward from a judge that sees the whole state is no better than that from six debated features: in "
        f"survival (margin {STATE_SURVIVAL:g}) and in the full judge's own eyes (margin {STATE_PREFERENCE:g})",
        _state_no_better,
    ),
    "alternating_debate_resists_refutation": (
        "Evidence laid down in turns convinces the judge of the logged action more often than evidence laid down first "
        "and then refuted, with the same number of items for the refuter",
        _resists,
    ),
    "chosen_evidence_beats_random": (
        "After a debate the judge sides with the logged action more often than when shown as many random features",
        _beats_random,
    ),
}

"""The claims of the study, and how each is decided."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal, get_args

from apps.crs.evidence import Evidence
from core.stats import Interval
from core.study import Claim, Config, Undecided, Verdict, decide_claims

FEWER = -0.4
"""Turns that a trained policy must save."""
SUCCESS_MARGIN, TURNS_MARGIN = 0.01, 0.25
"""Success and turns that may be lost and still count as none."""
AGREEMENT = 1e-4
"""Nats by which two computations of expected free energy may differ."""
TEST = "95 % bootstrap interval over seeds, then dialogues"

ClaimId = Literal[
    "dqn_asks_fewer_turns_than_max_entropy",
    "dqn_succeeds_as_often",
    "unicorn_reaches_max_entropy",
    "active_inference_closed_form_equals_pymdp",
    "belief_dqn_reaches_active_inference",
]
CLAIMS: tuple[ClaimId, ...] = get_args(ClaimId)


class Roles(Config):
    """Which methods the claims are about, by name."""

    dqn: str = "DQN"
    """The trained compact policy."""
    belief: str = "belief DQN"
    """The same with a Bayesian's posterior."""
    unicorn: str = "UNICORN"
    """The graph policy."""
    max_entropy: str = "MaxEntropy"
    """What it is held against."""
    threshold: str = "Threshold"
    """The tuned rule, told beside it."""
    greedy: str = "AbsGreedy"
    """Likewise."""
    active_inference: str = "ActiveInference"
    """What the belief DQN is held against."""


def decide(evidence: Evidence, roles: Roles, ids: tuple[ClaimId, ...] = CLAIMS) -> list[Claim]:
    """Decide the claims on the first problem."""
    return decide_claims(_DECISIONS, ids, evidence, roles)


def _fewer_turns(evidence: Evidence, roles: Roles) -> Verdict:
    problem = evidence.problems[0]
    found = evidence.difference(problem, roles.dqn, roles.max_entropy, "AT")
    succeeds = _as_often(evidence, roles)
    reason = (
        f"AT {_mean(evidence, roles.dqn, 'AT')} against {_mean(evidence, roles.max_entropy, 'AT')}"
        f"{_beside(evidence, roles, 'AT')}; success as often: {'yes' if succeeds.holds else 'no'}"
    )
    test = f"{TEST}: mean at most {FEWER:g}, upper end below 0, and dqn_succeeds_as_often holds"
    return Verdict(found.mean <= FEWER and found.high < 0 and succeeds.holds, reason, found, test)


def _as_often(evidence: Evidence, roles: Roles) -> Verdict:
    problem = evidence.problems[0]
    success = evidence.success(problem)
    found = evidence.difference(problem, roles.dqn, roles.max_entropy, success)
    reason = (
        f"{success} {_mean(evidence, roles.dqn, success)} against {_mean(evidence, roles.max_entropy, success)}"
        f"{_beside(evidence, roles, success)}"
    )
    test = f"{TEST}: lower end above -{SUCCESS_MARGIN:g}"
    return Verdict(found.low > -SUCCESS_MARGIN, reason, replace(found, p=None), test)


def _beside(evidence: Evidence, roles: Roles, measure: str) -> str:
    """The same difference for the rules without training."""
    told = ""
    for name in (roles.threshold, roles.greedy):
        try:
            found = evidence.difference(evidence.problems[0], name, roles.max_entropy, measure)
        except Undecided:
            continue
        told += f"; {name} less {roles.max_entropy}: {_number(found)}"
    return told


def _reaches(one: str, other: str, evidence: Evidence) -> Verdict:
    """Turns no more and success no less, within the margins; the difference nearer to its margin is shown."""
    problem = evidence.problems[0]
    success = evidence.success(problem)
    turns, often = (evidence.difference(problem, one, other, measure) for measure in ("AT", success))
    holds = turns.high < TURNS_MARGIN and often.low > -SUCCESS_MARGIN
    seeds = len(evidence.of(problem, one))
    reason = f"{one} less {other}: AT {_number(turns)}, {success} {_number(often)}; {seeds} trained"
    over = (turns.high / TURNS_MARGIN, -often.low / SUCCESS_MARGIN)
    shown, what = (turns, "AT") if over[0] >= over[1] else (often, success)
    test = (
        f"{TEST}: AT upper end below {TURNS_MARGIN:g} and {success} lower end above -{SUCCESS_MARGIN:g}; shown: {what}"
    )
    return Verdict(holds, reason, replace(shown, p=None), test)


def _unicorn(evidence: Evidence, roles: Roles) -> Verdict:
    return _reaches(roles.unicorn, roles.max_entropy, evidence)


def _belief(evidence: Evidence, roles: Roles) -> Verdict:
    return _reaches(roles.belief, roles.active_inference, evidence)


def _equals_pymdp(evidence: Evidence, roles: Roles) -> Verdict:
    if evidence.gap is None:
        raise Undecided("the study does not compare them (agreement)")
    gap = evidence.gap["gap"].values
    if not len(gap):
        raise Undecided(str(evidence.gap.attrs.get("reason", "nothing was compared")))
    most = float(gap.max())
    interval = Interval(most, 0.0, most, len(gap))
    test = f"largest absolute difference at most {AGREEMENT:g} nats"
    return Verdict(most <= AGREEMENT, f"largest difference {most:.2g} nats in {len(gap)} numbers", interval, test)


def _mean(evidence: Evidence, method: str, measure: str) -> str:
    return _number(evidence.interval(evidence.problems[0], method, measure))


def _number(i: Interval) -> str:
    return f"{i.mean:.3f} [{i.low:.3f}, {i.high:.3f}]"


_DECISIONS: dict[ClaimId, tuple[str, Callable[[Evidence, Roles], Verdict]]] = {
    "dqn_asks_fewer_turns_than_max_entropy": (
        f"The trained compact DQN needs at least {-FEWER:g} turns fewer than asking by maximum entropy, at no loss of "
        "success",
        _fewer_turns,
    ),
    "dqn_succeeds_as_often": (
        f"The trained compact DQN succeeds as often as asking by maximum entropy (margin {SUCCESS_MARGIN:g})",
        _as_often,
    ),
    "unicorn_reaches_max_entropy": (
        f"UNICORN reaches maximum entropy in turns (margin {TURNS_MARGIN:g}) and success (margin {SUCCESS_MARGIN:g})",
        _unicorn,
    ),
    "active_inference_closed_form_equals_pymdp": (
        f"The closed form of expected free energy equals pymdp's to {AGREEMENT:g} nats in every action, turn and "
        "dialogue",
        _equals_pymdp,
    ),
    "belief_dqn_reaches_active_inference": (
        f"A DQN that sees a Bayesian's posterior reaches active inference in turns (margin {TURNS_MARGIN:g}) and "
        f"success (margin {SUCCESS_MARGIN:g})",
        _belief,
    ),
}

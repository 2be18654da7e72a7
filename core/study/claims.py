"""What a study sets out to test, and how its results decide it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from core.stats import Interval, holm

Name = TypeVar("Name", bound=str)


class Undecided(Exception):
    """The results do not hold what a question needs; the message says what."""


@dataclass(frozen=True)
class Claim:
    """What the study set out to test, stated before it ran, and what came of it.

    Attributes:
        id: short name, the same in every run of the study.
        statement: the claim in a sentence.
        holds: the verdict; None where it was not decided here, which ``reason`` explains, and never counts as held.
        reason: why, in a sentence.
        difference: the comparison that decides, with its interval ``low`` to ``high`` over ``n`` replicates.
        p: p-value, adjusted where a family is tested.
        test: name and level of the test or interval.
    """

    id: str
    statement: str
    holds: bool | None
    reason: str = ""
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    p: float | None = None
    test: str = ""


@dataclass(frozen=True)
class Verdict:
    """What came of a claim: the fields of ``Claim``, with the comparison as an interval."""

    holds: bool
    reason: str
    interval: Interval
    test: str


def decide_claims(
    decisions: Mapping[Name, tuple[str, Callable[..., Verdict]]], ids: Iterable[Name], *evidence: Any
) -> list[Claim]:
    """Decide claims; the p-values of those that have one are adjusted over the family by Holm's method.

    Args:
        decisions: the statement of each claim, and what decides it, which raises ``Undecided`` if it cannot.
        ids: which claims.
        evidence: what every decision is given.
    """
    claims = []
    for name in ids:
        statement, decision = decisions[name]
        try:
            found = decision(*evidence)
        except Undecided as missing:
            claims.append(Claim(name, statement, None, str(missing)))
            continue
        i = found.interval
        claims.append(Claim(name, statement, found.holds, found.reason, i.mean, i.low, i.high, i.n, i.p, found.test))
    return adjusted(claims)


def adjusted(claims: Sequence[Claim]) -> list[Claim]:
    """The claims, their p-values adjusted over the family of those that have one (Holm 1979)."""
    found = list(claims)
    tested = [(i, claim.p) for i, claim in enumerate(claims) if claim.p is not None]
    if tested:
        places, p = zip(*tested, strict=True)
        for i, value in zip(places, holm(p).tolist(), strict=True):
            found[i] = replace(found[i], p=value)
    return found

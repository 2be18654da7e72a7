import pytest

from core.stats import Interval
from core.study import Claim, Undecided, Verdict, adjusted, decide_claims


def verdict(mean, p=None):
    return Verdict(mean > 0, f"mean {mean}", Interval(mean, mean - 1, mean + 1, 5, p=p), "a test")


def absent(*_):
    raise Undecided("the study has no such method")


DECISIONS = {
    "first": ("The first is ahead", lambda x: verdict(x, 0.01)),
    "second": ("The second is ahead", lambda x: verdict(-x, 0.04)),
    "open": ("Nobody knows", absent),
    "untested": ("No p-value", verdict),
}


def test_claims_come_in_the_order_asked_for_with_what_decided_them():
    claims = decide_claims(DECISIONS, ("untested", "open", "second"), 2.0)
    assert claims == [
        Claim("untested", "No p-value", True, "mean 2.0", 2.0, 1.0, 3.0, 5, None, "a test"),
        Claim("open", "Nobody knows", None, "the study has no such method"),
        Claim("second", "The second is ahead", False, "mean -2.0", -2.0, -3.0, -1.0, 5, 0.04, "a test"),
    ]


def test_p_values_are_adjusted_over_the_decided_claims_alone():
    claims = decide_claims(DECISIONS, DECISIONS, 1.0)
    assert [claim.p for claim in claims] == pytest.approx([0.02, 0.04, None, None])


def test_other_errors_are_not_taken_for_an_open_question():
    with pytest.raises(ZeroDivisionError):
        decide_claims({"broken": ("", lambda: 1 / 0)}, ["broken"])


def test_nothing_to_adjust():
    assert adjusted([Claim("a", "", None)]) == [Claim("a", "", None)]

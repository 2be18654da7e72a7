"""Claims are decided by the differences they name, and by nothing that is not there."""

import numpy as np
import pytest
import xarray as xr

from apps.crs.claims import CLAIMS, Roles, decide
from apps.crs.evidence import Evidence
from apps.crs.runs import gaps
from apps.crs.table import rows_of
from core.study import Undecided

N = 400


def played(turns: np.ndarray, rank: np.ndarray) -> xr.Dataset:
    return xr.Dataset(
        {
            "turns": ("dialogue", turns),
            "rank": ("dialogue", rank),
            "return": ("dialogue", np.where(rank > 0, 0.7, -1.0)),
            "action": (("dialogue", "turn"), np.zeros((len(turns), 15), dtype=np.int8)),
        }
    )


def dialogues(mean: float, failures: int, seed: int) -> xr.Dataset:
    """Paired by seed: the same noise around another mean, the first ``failures`` of them lost."""
    noise = np.random.default_rng(seed).integers(-1, 2, N)
    turns = np.clip(np.round(mean + noise), 1, 15)
    rank = np.ones(N, dtype=int)
    turns[:failures], rank[:failures] = 15, 0
    return played(turns, rank)


def evidence(**methods: tuple[float, int]) -> Evidence:
    found = {
        ("p", name.replace("_", " ")): {seed: dialogues(*of, seed) for seed in range(3)} for name, of in methods.items()
    }
    return Evidence(["p"], [name for _, name in found], found)


def verdicts(given: Evidence, **roles: str) -> dict[str, bool | None]:
    return {claim.id: claim.holds for claim in decide(given, Roles(**roles))}


@pytest.mark.parametrize(
    ("turns", "failures", "fewer", "often"),
    [
        (4, 0, True, True),
        (6, 0, False, True),  # no turn is saved
        (4, 20, False, False),  # turns saved by giving up on success do not count
    ],
)
def test_fewer_turns_count_only_with_success(turns, failures, fewer, often):
    found = verdicts(evidence(MaxEntropy=(6, 0), DQN=(turns, failures)))
    assert found["dqn_asks_fewer_turns_than_max_entropy"] is fewer
    assert found["dqn_succeeds_as_often"] is often


def test_what_is_absent_is_not_decided():
    claims = decide(evidence(MaxEntropy=(6, 0)), Roles())
    assert [claim.id for claim in claims] == list(CLAIMS)
    assert all(claim.holds is None for claim in claims)
    assert all("no method" in claim.reason or "agreement" in claim.reason for claim in claims)


@pytest.mark.parametrize(("gap", "holds"), [([1e-6, 5e-5], True), ([1e-6, 2e-4], False), ([], None)])
def test_agreement_is_the_largest_gap(gap, holds):
    given = evidence(MaxEntropy=(6, 0))
    data = xr.Dataset({"gap": ("number", np.array(gap, dtype=float))}, attrs={"reason": "pymdp is not installed"})
    found = {c.id: c for c in decide(Evidence(given.problems, given.methods, given.played, data), Roles())}
    claim = found["active_inference_closed_form_equals_pymdp"]
    assert claim.holds is holds
    if gap:
        assert (claim.difference, claim.low, claim.high, claim.n) == (max(gap), 0.0, max(gap), len(gap))
    else:
        assert claim.reason == "pymdp is not installed"


def test_a_number_that_one_side_lacks_is_a_difference():
    nan = np.nan
    sides = {"closed_form": [0.5, nan, 0.25, nan], "pymdp": [0.5, nan, nan, 1.0]}
    compared = xr.Dataset({name: ("action", np.array(values)) for name, values in sides.items()})
    compared["difference"] = abs(compared["closed_form"] - compared["pymdp"])
    assert gaps(compared).tolist() == [0.0, np.inf, np.inf]


def test_one_training_stands_against_all():
    given = evidence(MaxEntropy=(6, 0), UNICORN=(6, 0))
    one = {**given.played, ("p", "UNICORN"): {0: dialogues(6, 0, 0)}}
    single = Evidence(given.problems, given.methods, one)
    assert verdicts(single)["unicorn_reaches_max_entropy"] is True
    found = single.difference("p", "UNICORN", "MaxEntropy", "AT")
    expected = np.mean([one["p", "UNICORN"][0]["turns"] - one["p", "MaxEntropy"][s]["turns"] for s in range(3)])
    assert found.mean == pytest.approx(expected)


def test_differences_are_of_the_same_dialogues():
    given = evidence(MaxEntropy=(6, 0), DQN=(5, 0))
    found = given.difference("p", "DQN", "MaxEntropy", "AT")
    # The noise is common, so that the difference has none.
    assert (found.mean, found.low, found.high) == (-1.0, -1.0, -1.0)
    with pytest.raises(Undecided, match="no method EAR"):
        given.difference("p", "EAR", "MaxEntropy", "AT")


def test_the_table_has_every_method_with_its_interval():
    given = evidence(MaxEntropy=(6, 0), Threshold=(5, 2))
    rows = rows_of(given)
    shown = {(row.method, row.metric): row for row in rows}
    assert shown["Threshold", "success"].mean == pytest.approx(1 - 2 / N)
    assert shown["MaxEntropy", "AT less Threshold"].mean == pytest.approx(
        given.difference("p", "MaxEntropy", "Threshold", "AT").mean
    )
    for row in rows:
        if row.metric != "trainings":
            assert row.low <= row.mean <= row.high
            assert row.n == N

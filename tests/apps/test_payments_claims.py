"""The claims, decided from evidence that is made up: both ways, and open where an arm or a series is missing."""

from dataclasses import replace

import numpy as np
import pytest
import xarray as xr

from apps.payments.claims import CLAIMS, Evidence, decide
from apps.payments.series import order_test
from apps.payments.study import PaymentsStudy
from core.stats import holm, paired_t_test, t_interval
from core.study.loading import load_values
from tests.apps.payments_cases import arm

WORLDS, GENERATIONS = 8, 13
EPSILON = {"tune": {"parameter": "epsilon", "grid": (0.1, 0.2)}}
GAMMA = {"tune": {"parameter": "gamma", "grid": (100.0, 200.0)}}
ARMS = (
    arm("uniform"),
    arm("epsilon_slice", name="slice_tuned", **EPSILON),
    arm("epsilon", name="epsilon_tuned", **EPSILON),
    arm("epsilon", 3, name="epsilon_tuned_memory3", **EPSILON),
    arm("igw", name="igw_tuned", **GAMMA),
    arm("igw", 3, name="igw_tuned_memory3", **GAMMA),
    arm("igw", name="igw_3000", gamma=3000.0),
    arm("igw", 3, name="igw_3000_memory3", gamma=3000.0),
)
TURNS = np.where(np.arange(GENERATIONS) % 2, 1.0, -1.0)
TURNS[0] = 0.0


def series(arms, level=0.9, turns=0.0, error_turns=0.0, seed=0):
    """An arm's results: levels with noise, which turn from generation to generation by so much."""
    rng = np.random.default_rng([seed, arms])
    value = level + turns * TURNS + rng.normal(0, 1e-4, (WORLDS, GENERATIONS))
    error = 0.01 + error_turns * TURNS + rng.normal(0, 1e-4, (WORLDS, GENERATIONS))
    dims, flat = ("world", "generation"), np.tile(0.5 + 0.01 * np.arange(GENERATIONS), (WORLDS, 1))
    data = {"value": value, "mse_uniform": error, "approvals": flat, "auc": 1 - flat, "entropy": flat}
    return xr.Dataset({name: (dims, x) for name, x in data.items()}, {"world": np.arange(WORLDS)})


def evidence(arms=ARMS, **more):
    """Flat series of all arms; ``name={...}`` says what is different of an arm."""
    found = {a.name: series(i, **more.get(a.name, {})) for i, a in enumerate(arms)}
    return Evidence(found, {a.name: a for a in arms}, 999)


def decided(given, name):
    (claim,) = decide(given, (name,))
    assert claim.id == name
    return claim


@pytest.mark.parametrize(
    ("claim", "ours", "rival"),
    [
        ("igw_beats_uniform_exploration", "igw_tuned", "slice_tuned"),
        ("igw_beats_tuned_epsilon", "igw_tuned", "epsilon_tuned"),
        ("grouping_beats_flat_igw", "grouped_tuned", "igw_tuned"),
    ],
)
def test_a_rule_beats_another_if_the_near_end_of_the_paired_interval_is_above_0(claim, ours, rival):
    arms = (*ARMS, arm("grouped_igw", name="grouped_tuned", **GAMMA))
    for gain, holds in ((0.01, True), (-0.01, False), (0.0, False)):
        given = evidence(arms, **{ours: {"level": 0.9 + gain}})
        found = decided(given, claim)
        assert found.holds is holds
        # From generation 1 on, and by hand.
        means = [given.found[name]["value"].values[:, 1:].mean(1) for name in (ours, rival)]
        expected = paired_t_test(*means)
        in_bps = [1e4 * number for number in (expected.mean, expected.low, expected.high)]
        assert [found.difference, found.low, found.high] == pytest.approx(in_bps)
        assert (found.n, found.p) == (WORLDS, pytest.approx(expected.p))
        assert f"ahead in {int((means[0] > means[1]).sum())} of 8 worlds" in found.reason
        assert "95 %" in found.test


def test_luck_that_worlds_share_is_taken_out():
    given = evidence(igw_tuned={"level": 0.9005})
    shared = xr.DataArray(np.linspace(-0.1, 0.1, WORLDS), dims="world")
    shifted = {name: data.assign(value=data["value"] + shared) for name, data in given.found.items()}
    assert decided(replace(given, found=shifted), "igw_beats_tuned_epsilon").holds


def test_igw_may_lose_to_a_tuned_epsilon_and_then_says_so_with_the_longer_window_beside_it():
    given = evidence(epsilon_tuned={"level": 0.902}, igw_tuned_memory3={"level": 0.903})
    found = decided(given, "igw_beats_tuned_epsilon")
    assert found.holds is False
    assert found.high < 0
    assert found.reason.startswith("window 1: -20 [")
    assert "ahead in 0 of 8 worlds; window 3: 30 [" in found.reason
    # The longer window alone decides nothing, nor does its absence.
    short = [a for a in ARMS if a.window == 1]
    found = decided(evidence(tuple(short), igw_tuned={"level": 0.91}), "igw_beats_tuned_epsilon")
    assert found.holds is True
    assert "window 3" not in found.reason


def test_degradation_is_from_generation_1_to_2_and_beyond_that_of_uniform_decisions():
    name = "second_generation_degrades"
    assert decided(evidence(igw_3000={"turns": 0.01}), name).holds is True
    found = decided(evidence(igw_3000={"turns": 0.01}), name)
    assert found.difference == pytest.approx(200, abs=2)  # 0.91 less 0.89, in basis points
    assert "approvals in the log go from 0.500 to 0.510" in found.reason
    assert "AUC of the model trained on it from 0.500 to 0.490" in found.reason
    assert decided(evidence(igw_3000={"turns": -0.01}), name).holds is False
    assert decided(evidence(igw_3000={"turns": 0.01}, uniform={"turns": 0.01}), name).holds is False


def test_oscillation_must_be_below_that_of_uniform_decisions_and_in_order():
    name = "oscillation_under_short_memory"
    given = evidence(igw_3000={"error_turns": 0.002})
    found = decided(given, name)
    assert found.holds is True
    assert found.high < 0
    assert found.difference < -0.5
    assert "order permuted within worlds: p = 0.0010" in found.reason
    assert found.test.startswith("95 % Student interval")
    assert "below 0, and permutation p < 0.01" in found.test
    # Where uniform decisions alternate as well, there is nothing to explain.
    assert decided(evidence(igw_3000={"error_turns": 0.002}, uniform={"error_turns": 0.002}), name).holds is False
    # A rising error has an autocorrelation above that of noise.
    rising = given.found["igw_3000"]["mse_uniform"] * 0 + np.arange(GENERATIONS)
    found = decided(_with(given, "igw_3000", mse_uniform=rising), name)
    assert found.holds is False
    assert found.low > 0


def test_a_lower_autocorrelation_without_order_is_not_enough():
    # Uniform decisions drift, IGW's errors are noise: the difference is far below 0, and the order says nothing.
    given = evidence()
    trend = given.found["uniform"]["mse_uniform"] + 0.01 * xr.DataArray(np.arange(GENERATIONS), dims="generation")
    given = _with(given, "uniform", mse_uniform=trend)
    found = decided(given, "oscillation_under_short_memory")
    assert found.high < 0
    assert order_test(given.errors("igw_3000"), draws=999) > 0.01
    assert found.holds is False


def test_a_longer_memory_must_raise_the_autocorrelation_and_calm_the_value():
    name = "longer_memory_removes_oscillation"
    short = {"error_turns": 0.002, "turns": 0.005}
    assert decided(evidence(igw_3000=short), name).holds is True
    found = decided(evidence(igw_3000=short), name)
    assert found.low > 0
    assert "the online value swings by 100 bps, then by 1" in found.reason
    # Overlapping windows alone raise it: with as much swing it is no removal.
    assert decided(evidence(igw_3000=short, igw_3000_memory3={"turns": 0.005}), name).holds is False
    assert decided(evidence(igw_3000={"turns": 0.005}), name).holds is False
    assert decided(evidence(igw_3000_memory3=short), name).holds is False


def test_the_first_generations_are_no_part_of_swing_and_oscillation():
    given = evidence()
    data = given.found["igw_3000"]
    value, error = data["value"].values.copy(), data["mse_uniform"].values.copy()
    value[:, :2] += 1
    error[:, 0] += 1
    changed = _with(given, "igw_3000", value=value, mse_uniform=error)
    np.testing.assert_array_equal(changed.value_swing("igw_3000"), given.value_swing("igw_3000"))
    np.testing.assert_array_equal(changed.oscillation("igw_3000"), given.oscillation("igw_3000"))


def test_narrow_logs_teach_worse_if_ranks_of_entropy_and_error_disagree():
    name = "narrow_logs_teach_worse"
    rng = np.random.default_rng(1)
    given = evidence(ARMS[:2])
    shape = (WORLDS, GENERATIONS)
    entropy = {name: rng.uniform(0, 2, shape) for name in given.found}
    for slope, holds in ((-1, True), (1, False), (0, False)):
        for arm_ in given.found:
            error = 0.02 + 0.004 * slope * entropy[arm_] + rng.normal(0, 0.003, shape)
            given = _with(given, arm_, entropy=entropy[arm_], mse_uniform=error)
        found = decided(given, name)
        assert found.holds is holds
        assert slope == 0 or np.sign(found.difference) == slope
        assert -1 <= found.low <= found.high <= 1


def _with(given, name, **columns):
    """The evidence with columns of one arm replaced."""
    data = given.found[name].assign({k: (("world", "generation"), np.asarray(x)) for k, x in columns.items()})
    return replace(given, found=given.found | {name: data})


# ---- the family, and what is left open


def test_p_values_are_those_of_the_intervals_adjusted_over_the_family():
    given = evidence(igw_tuned={"level": 0.9001}, igw_3000={"turns": 0.0001, "error_turns": 1e-4})
    together = decide(given)
    alone = [decided(given, name).p for name in CLAIMS]
    assert [claim.id for claim in together] == list(CLAIMS)
    np.testing.assert_allclose([claim.p for claim in together], holm(alone))
    assert any(claim.p > p for claim, p in zip(together, alone, strict=True))
    # A claim that is open is no member of the family.
    fewer = replace(given, arms={k: a for k, a in given.arms.items() if k != "slice_tuned"})
    adjusted = decide(fewer)
    assert adjusted[0].p is None
    np.testing.assert_allclose([c.p for c in adjusted[1:]], holm(alone[1:]))


@pytest.mark.parametrize(
    ("claim", "without", "missing"),
    [
        ("igw_beats_uniform_exploration", "igw_tuned", "igw with a tuned number of window 1"),
        ("igw_beats_uniform_exploration", "slice_tuned", "epsilon_slice with a tuned number"),
        ("igw_beats_tuned_epsilon", "epsilon_tuned", "epsilon with a tuned number of window 1"),
        ("second_generation_degrades", "uniform", "uniform"),
        ("oscillation_under_short_memory", "igw_3000", "igw of window 1"),
        ("longer_memory_removes_oscillation", "igw_3000_memory3", "igw of window 3"),
        ("grouping_beats_flat_igw", "uniform", "grouped_igw with a tuned number"),
    ],
)
def test_without_an_arm_a_claim_is_open_and_names_it(claim, without, missing):
    found = decided(evidence(tuple(a for a in ARMS if a.name != without)), claim)
    assert found.holds is None
    assert found.reason == f"not decided here: the first scenario has no arm {missing}"
    assert found.statement
    assert (found.difference, found.low, found.high, found.p, found.n) == (None,) * 5


def test_where_a_series_has_no_order_the_claim_is_open_and_the_others_are_not():
    given = evidence(igw_tuned={"level": 0.91})
    gaps = given.found["igw_3000"]["mse_uniform"].values.copy()
    gaps[2, :3] = np.nan  # no model could be fitted in one world
    for errors in (gaps, np.full((WORLDS, GENERATIONS), 0.1)):
        claims = {claim.id: claim for claim in decide(_with(given, "igw_3000", mse_uniform=errors))}
        for name in ("oscillation_under_short_memory", "longer_memory_removes_oscillation"):
            assert claims[name].holds is None
            assert claims[name].reason.startswith("not decided here: igw_3000 has generations without a model")
        assert claims["igw_beats_tuned_epsilon"].holds is True
    constant = _with(evidence(ARMS[:1]), "uniform", entropy=np.ones((WORLDS, GENERATIONS)))
    assert decided(constant, "narrow_logs_teach_worse").holds is None


def test_two_worlds_that_agree_decide_little():
    given = evidence(igw_tuned={"level": 0.9003})
    few = replace(given, found={name: data.isel(world=slice(0, 2)) for name, data in given.found.items()})
    found = decided(few, "igw_beats_tuned_epsilon")
    values = [few.value(name) for name in ("igw_tuned", "epsilon_tuned")]
    assert found.low == pytest.approx(1e4 * t_interval(values[0] - values[1]).low)
    assert found.n == 2


def test_the_order_of_worlds_and_dims_is_of_no_account():
    given = evidence(igw_3000={"error_turns": 0.002, "turns": 0.005})
    turned = {name: data.transpose("generation", "world") for name, data in given.found.items()}
    for one, two in zip(decide(given), decide(replace(given, found=turned)), strict=True):
        assert one == two


def test_a_study_names_the_claims_that_it_decides():
    base = ["study=s", "scenarios=[{name: base, arms: [{name: u, exploration: {rule: uniform}}]}]"]
    assert load_values(PaymentsStudy, base).claims == CLAIMS
    assert load_values(PaymentsStudy, [*base, "claims=[]"]).claims == ()
    assert len(CLAIMS) == 5

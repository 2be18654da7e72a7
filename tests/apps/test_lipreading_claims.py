"""Claims are decided by the numbers they name, and stay open where these are absent."""

import math
from dataclasses import replace

import numpy as np
import pytest
import xarray as xr

from apps.lipreading.claims import CLAIMS, Roles, decide
from apps.lipreading.evidence import Evidence, rate
from apps.lipreading.figures.objectives import with_entropy
from apps.lipreading.runs import chosen_weight
from apps.lipreading.table import START, edge_notes, last_slope, notes_of, rows_of
from core.stats import t_interval
from core.study import Undecided
from simulators.lips import alphabet

N, CHARACTERS, WORDS = 100, 20, 3
SAMPLED, GREEDY = "pcpg_beats_reinforce_sampled", "pcpg_beats_reinforce_greedy"
GROUP, SIGNAL, CORPUS = (
    "pcpg_group_beats_cross_entropy_sampled",
    "pcpg_gradient_snr_at_least_double",
    "grid_s1_cer_below_quarter",
)
SEEDS = range(5)


def read(greedy, sampled, word=0, **attributes):
    """Clips with so many edits of greedy and sampled transcripts, of 20 characters each."""
    greedy, sampled = np.asarray(greedy), np.asarray(sampled)
    count = len(greedy)
    tokens, _ = alphabet.encode(["a one now"] * count)
    # Written as said: what is counted stands in the columns.
    columns = {name: (("utterance", "symbol"), tokens.numpy()) for name in ("reference", "greedy", "sampled")}
    numbers = {
        "greedy_edits": greedy,
        "sampled_edits": sampled,
        "greedy_word_edits": np.full(count, word),
        "sampled_word_edits": np.full(count, word),
        "characters": np.full(count, CHARACTERS),
        "words": np.full(count, WORDS),
        "speaker": np.arange(count) % 4,
    }
    columns |= {name: (("utterance",), value) for name, value in numbers.items()}
    return xr.Dataset(columns, attrs={"weight": 1.0} | attributes)


def total(share):
    """Edits of the clips that add up to a share of the characters."""
    edits = np.zeros(N, dtype=int)
    edits[: round(share * CHARACTERS * N) % N] += 1
    return edits + round(share * CHARACTERS * N) // N


def forks(sampled, greedy=0.1, spread=0.005, weight=1.0):
    """One dataset a seed: error rates around a mean, the noise of a seed common to all methods."""
    noise = spread * np.linspace(-1, 1, len(SEEDS))
    return {s: read(total(greedy + noise[s]), total(sampled + noise[s]), weight=weight) for s in SEEDS}


def evidence(**methods):
    """A fork study in which each method has a sampled and a greedy error rate."""
    found = {("mini", name.replace("_", " ")): forks(*rates) for name, rates in methods.items()}
    return Evidence(["mini"], {"mini": read(total(0.1), total(0.2))}, found, grammars={"mini": None})


def verdict(given, name, roles=None):
    return next(claim for claim in decide(given, roles or Roles()) if claim.id == name)


ROLES = Roles(group="group", cross_entropy="CE")


# ---- differences between objectives


@pytest.mark.parametrize(
    ("ours", "theirs", "sampled", "greedy"),
    [
        ((0.15, 0.1), (0.16, 0.11), True, True),
        ((0.16, 0.11), (0.15, 0.1), False, False),
        ((0.15, 0.1), (0.15, 0.1), False, False),
        ((0.14, 0.11), (0.15, 0.1), True, False),
    ],
)
def test_pcpg_beats_reinforce_where_its_error_is_smaller(ours, theirs, sampled, greedy):
    given = evidence(PCPG=ours, REINFORCE=theirs)
    for name, holds, place in ((SAMPLED, sampled, 0), (GREEDY, greedy, 1)):
        claim = verdict(given, name)
        assert claim.holds is holds
        assert claim.difference == pytest.approx(ours[place] - theirs[place], abs=1e-9)
        assert claim.n == len(SEEDS)
        assert "one-sided 95 % t interval" in claim.test


def test_a_difference_within_the_noise_of_the_seeds_does_not_count():
    ours = {s: read(total(0.1), total(0.15 + x)) for s, x in zip(SEEDS, (0.01, -0.03, 0.02, -0.02, 0.01), strict=True)}
    theirs = {s: read(total(0.1), total(0.151)) for s in SEEDS}
    given = Evidence(["mini"], {}, {("mini", "PCPG"): ours, ("mini", "REINFORCE"): theirs})
    claim = verdict(given, SAMPLED)
    assert claim.difference < 0 < claim.high
    assert claim.holds is False
    d = [rate(ours[s], "CER sampled") - rate(theirs[s], "CER sampled") for s in SEEDS]
    expected = t_interval(np.array(d), level=0.9)
    assert (claim.low, claim.high) == pytest.approx((expected.low, expected.high))
    # The upper end is below 0 exactly where the one-sided test rejects at 5 %.
    assert expected.p is not None
    alone = decide(given, Roles(), (SAMPLED,))[0]
    assert alone.p == pytest.approx(expected.p / 2)


def test_rows_at_one_weight_are_told_beside():
    given = evidence(PCPG=(0.15,), REINFORCE=(0.16,), PCPG_at_weight_4=(0.14, 0.1), REINFORCE_at_weight_4=(0.18, 0.1))
    assert "both at weight 4: -0.0400 [" in verdict(given, SAMPLED).reason
    given = evidence(PCPG=(0.15,), REINFORCE=(0.16,), PCPG_at_weight_4=(0.14, 0.1))
    assert "at weight 4" not in verdict(given, SAMPLED).reason


@pytest.mark.parametrize(
    ("group", "holds"),
    [
        ((0.16, 0.1), True),  # a fifth less, no greedy loss
        ((0.19, 0.1), False),  # 5 %, where 7 % is asked
        ((0.16, 0.1005), True),  # within what greedy transcripts may lose
        ((0.16, 0.102), False),  # not within it
        ((0.21, 0.1), False),
    ],
)
def test_the_group_must_gain_a_share_and_lose_no_greedy_reading(group, holds):
    claim = verdict(evidence(CE=(0.2, 0.1), group=group), GROUP, ROLES)
    assert claim.holds is holds
    assert claim.difference == pytest.approx((group[0] - 0.2) / 0.2, abs=1e-9)


def test_the_share_of_no_error_is_not_decided():
    claim = verdict(evidence(CE=(0.005, 0.1), group=(0.005, 0.1)), GROUP, ROLES)
    assert claim.holds is False
    perfect = {("mini", name): {s: read(total(0.0), total(0.0)) for s in SEEDS} for name in ("CE", "group")}
    claim = verdict(Evidence(["mini"], {}, perfect), GROUP, ROLES)
    assert claim.holds is None
    assert "makes no error" in claim.reason


# ---- gradients


def gradients(**methods):
    """Gradients with a signal of length 1 along an axis of 40, and noise; the reference stands last."""
    repeats, size = 120, 40
    rng = np.random.default_rng(3)
    g = {}
    for name, (snr, angle) in methods.items():
        mean = np.zeros(size)
        mean[:2] = math.cos(angle), math.sin(angle)
        g[name.replace("_", " ")] = mean + rng.normal(size=(repeats, size)) / math.sqrt(snr * size)
    stacked = np.stack(list(g.values()))
    dims = ("method", "repeat", "other")
    return xr.Dataset(
        {"own": (dims, stacked @ stacked.swapaxes(1, 2)), "shared": (dims, stacked @ stacked[-1].T)},
        coords={"method": list(g)},
    )


def of_gradients(**methods):
    return Evidence(["mini"], {}, gradients={"mini": gradients(**methods)})


@pytest.mark.parametrize(
    ("ours", "theirs", "holds"),
    [
        ((2.0, 0.0), (0.2, 0.0), True),
        ((0.3, 0.0), (0.25, 0.0), False),  # not double
        ((2.0, 1.2), (0.2, 0.0), False),  # points elsewhere
        ((0.2, 0.0), (2.0, 0.0), False),
    ],
)
def test_the_gradient_needs_signal_and_direction(ours, theirs, holds):
    given = of_gradients(REINFORCE=theirs, PCPG_k5_s2=ours, RLOO=(3.0, 0.0))
    claim = verdict(given, SIGNAL)
    assert claim.holds is holds
    assert claim.n == 120
    assert claim.difference == pytest.approx(math.log(ours[0] / theirs[0]), abs=0.8)
    assert claim.low < claim.difference < claim.high


def test_the_reference_of_the_claim_stands_last():
    # PCPG's cosine with itself is 1, wherever it points.
    claim = verdict(of_gradients(RLOO=(3.0, 0.0), REINFORCE=(0.2, 0.0), PCPG_k5_s2=(2.0, 1.2)), SIGNAL)
    assert claim.holds is None
    assert claim.reason == "the reference of the gradients is PCPG k5 s2; the claim is about RLOO"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("silent", [0, 1, 2])
def test_a_gradient_that_is_nothing_leaves_the_others_in_the_table(silent):
    data = gradients(REINFORCE=(0.2, 0.0), PCPG_k5_s2=(2.0, 0.0), RLOO=(3.0, 0.0))
    data["own"][silent] = data["shared"][silent] = 0
    if silent == 2:
        data["shared"][:] = 0
    given = replace(evidence(CE=(0.2, 0.1)), gradients={"mini": data})
    claim = verdict(given, SIGNAL)
    assert claim.holds is None
    assert "more repeats" in claim.reason
    rows = {(row.method, row.metric): row.mean for row in rows_of(given)}
    names = list(data["method"].values)
    assert [rows[name, "SNR"] is None for name in names] == [i == silent for i in range(3)]
    assert notes_of(given)


@pytest.mark.parametrize("noisy", [0, 1, 2])
def test_a_gradient_of_noise_alone_is_not_decided(noisy):
    data = gradients(REINFORCE=(2.0, 0.0), PCPG_k5_s2=(2.0, 0.0), RLOO=(2.0, 0.0))
    data["own"][noisy] = np.eye(120) - 0.01  # the repeats point away from each other
    claim = verdict(Evidence(["mini"], {}, gradients={"mini": data}), SIGNAL)
    assert claim.holds is None
    assert "more repeats" in claim.reason


# ---- recordings


@pytest.mark.parametrize(("error", "holds"), [(0.18, True), (0.249, False), (0.3, False)])
def test_recordings_must_be_read_below_a_quarter_with_certainty(error, holds):
    # Half of the clips without an error, so that sentences differ.
    edits = np.zeros(92, dtype=int)
    edits[::2] = round(2 * error * CHARACTERS)
    given = Evidence(["GRID s1"], {"GRID s1": read(edits, edits, word=1)})
    claim = verdict(given, CORPUS)
    assert claim.holds is holds
    assert claim.difference == pytest.approx(edits.sum() / (92 * CHARACTERS) - 0.25)
    assert claim.low < claim.difference < claim.high
    assert claim.n == 92
    assert "WER 0.333" in claim.reason


# ---- what is not there


def test_what_is_absent_is_not_decided():
    claims = decide(evidence(other=(0.2, 0.1)), Roles())
    assert [claim.id for claim in claims] == list(CLAIMS)
    assert all(claim.holds is None for claim in claims)
    said = {claim.id: claim.reason for claim in claims}
    assert said[SIGNAL] == "the study has no gradients of mini"
    assert said[SAMPLED] == "the study has no method PCPG in mini"
    assert said[GROUP].startswith("the study has no method")
    assert said[CORPUS] == "the study has no experiment GRID s1"
    assert all(claim.statement for claim in claims)


def test_the_reason_for_an_absent_corpus_is_passed_on():
    given = Evidence([], {}, absent={"GRID s1": "no folder", "mini": "no such disk"})
    said = {claim.id: (claim.holds, claim.reason) for claim in decide(given, Roles())}
    assert said[CORPUS] == (None, "no folder")
    assert {said[name] for name in (SIGNAL, SAMPLED, GREEDY, GROUP)} == {(None, "no such disk")}


def test_an_estimator_that_is_absent_is_named():
    claim = verdict(of_gradients(REINFORCE=(1.0, 0.0), RLOO=(1.0, 0.0)), SIGNAL)
    assert (claim.holds, claim.reason) == (None, "the study has no gradients of PCPG k5 s2")


def test_one_seed_decides_nothing():
    given = evidence(PCPG=(0.1,), REINFORCE=(0.2,))
    one = Evidence(["mini"], given.readings, {key: {0: seeds[0]} for key, seeds in given.forks.items()})
    claim = verdict(one, SAMPLED)
    assert claim.holds is None
    assert claim.reason == "PCPG and REINFORCE have 1 seeds in common; at least 2 are needed"


def test_only_the_claims_that_are_asked_for_are_decided():
    assert [claim.id for claim in decide(evidence(), Roles(), (CORPUS, SAMPLED))] == [CORPUS, SAMPLED]
    assert decide(evidence(), Roles(), ()) == []


# ---- the numbers behind them


def test_rates_are_of_all_clips_together():
    data = read([0, 0, 10], [1, 2, 3], word=1)
    data["characters"][:] = [1, 4, 15]
    assert rate(data, "CER") == 10 / 20
    assert rate(data, "CER sampled") == 6 / 20
    assert rate(data, "exact") == pytest.approx(2 / 3)
    assert rate(data, "WER") == rate(data, "WER sampled") == pytest.approx(1 / 3)


def test_differences_are_paired_by_seed():
    given = evidence(PCPG=(0.15, 0.1, 0.03), REINFORCE=(0.16, 0.1, 0.03))
    found = given.difference("mini", "PCPG", "REINFORCE", "CER sampled")
    assert found.high - found.low < 1e-9, "the noise of a seed is common"
    alone = given.interval("mini", "PCPG", "CER sampled")
    assert alone.high - alone.low > 0.04
    some = {**given.forks, ("mini", "PCPG"): {s: given.forks["mini", "PCPG"][s] for s in (1, 3, 4)}}
    assert Evidence(["mini"], {}, some).difference("mini", "PCPG", "REINFORCE", "CER").n == 3
    with pytest.raises(Undecided, match="no method GRPO in mini"):
        given.values("mini", "GRPO", "CER")


def test_the_chosen_weight_is_that_of_the_smallest_error():
    trials = [read(total(0.1), total(x), weight=w) for w, x in ((4.0, 0.2), (1.0, 0.15), (2.0, 0.18))]
    assert chosen_weight(trials) == 1.0
    equal = [read(total(0.1), total(0.15), weight=w) for w in (4.0, 1.6, 2.5)]
    assert chosen_weight(equal) == 1.6
    # All edits over all characters, not the mean of the clips' rates.
    long = read([0, 0], [3, 0], weight=8.0)
    long["characters"][:] = [100, 1]
    assert chosen_weight([long, read([0, 0], [1, 1], weight=9.0)]) == 8.0


def test_the_table_has_every_method_with_its_interval():
    given = evidence(CE=(0.2, 0.1), PCPG=(0.15, 0.1))
    rows = {(row.method, row.metric): row for row in rows_of(given)}
    assert rows["PCPG", "CER sampled"].mean == pytest.approx(0.15)
    assert rows["PCPG", "CER sampled"].low < 0.15 < rows["PCPG", "CER sampled"].high
    assert rows["PCPG", "CER sampled less CE"].mean == pytest.approx(-0.05)
    assert ("CE", "CER less CE") not in rows
    assert rows["PCPG", "weight"].mean == 1.0
    assert rows[START, "CER"].low <= rows[START, "CER"].mean <= rows[START, "CER"].high


def test_one_seed_has_a_mean_and_no_interval():
    given = evidence(CE=(0.2, 0.1), PCPG=(0.15, 0.1))
    one = Evidence(["mini"], given.readings, {key: {0: seeds[0]} for key, seeds in given.forks.items()})
    rows = {(row.method, row.metric): row for row in rows_of(one)}
    assert (rows["PCPG", "CER"].low, rows["PCPG", "CER"].n) == (None, 1)
    assert not any("less" in metric for _, metric in rows)


def test_notes_warn_where_the_reader_was_still_learning():
    given = evidence(CE=(0.2, 0.1))
    seen = given.readings["mini"]
    for rates, learning in (([0.2, 0.19], True), ([0.2, 0.199], False)):
        looked = seen.assign(look_update=("look", [300, 600]), look_greedy=("look", rates))
        assert last_slope(looked) == (300, pytest.approx(1 - rates[1] / rates[0]))
        notes = notes_of(Evidence(["mini"], {"mini": looked}, given.forks))
        assert any("still improving" in note for note in notes) is learning
    assert last_slope(seen) is None
    never = seen.assign(look_update=("look", [300, 600]), look_greedy=("look", [0.0, 0.0]))
    assert last_slope(never) is None


def test_notes_tell_weights_at_the_edge_of_what_was_tried():
    given = evidence(CE=(0.2, 0.1), inner=(0.2, 0.1), edge=(0.2, 0.1))
    tried = {("mini", "inner"): {0.5: 0.3, 1.0: 0.2, 2.0: 0.3}, ("mini", "edge"): {1.0: 0.2, 2.0: 0.3}}
    (note,) = edge_notes(replace(given, trials=tried))
    assert "edge (1)" in note
    assert "inner" not in note
    assert edge_notes(given) == []


def test_only_rewards_that_are_accuracies_share_the_axis_of_entropies():
    seeds = {0: forks(0.2)[0].assign(entropy=("update", np.linspace(0.2, 0.1, 12))).assign_attrs(reward="dense")}
    windowed = {0: seeds[0].assign_attrs(kernel=5, stride=2)}
    given = Evidence(["mini"], {}, {("mini", "to go"): seeds, ("mini", "PCPG"): windowed})
    assert with_entropy(given, "mini") == ["PCPG"]

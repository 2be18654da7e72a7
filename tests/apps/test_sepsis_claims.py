"""Claims and table from results that are made up: both ways, at the margins, and open where runs are missing."""

from dataclasses import replace

import numpy as np
import pytest

from apps.sepsis import evidence as comparisons
from apps.sepsis.claims import CLAIMS, decide
from apps.sepsis.evidence import difference, interval, per_patient, preference_difference
from apps.sepsis.settings import Arm
from apps.sepsis.table import doubts, rows_of
from core.stats import holm, nested_ratio
from tests.apps.sepsis_evidence import ARMS, PATIENTS, SUBJECTS, evidence

LEARNERS = ("plain", "conservative")
DEBATE, STATE = ("plain", "debate 0.5"), ("plain", "state 0.5")


@pytest.fixture(autouse=True)
def _fewer_resamples(monkeypatch):
    """A thousand are enough to tell these effects apart."""

    def quick(*given, **options):
        return nested_ratio(*given, **options | {"resamples": 1000})

    monkeypatch.setattr(comparisons, "nested_ratio", quick)
    monkeypatch.setattr("apps.sepsis.table.nested_ratio", quick)


def decided(given, name):
    (claim,) = decide(given, (name,))
    assert claim.id == name
    assert "\n" not in claim.reason
    return claim


# ---- each claim, both ways


@pytest.mark.parametrize(
    ("share", "cloned", "holds"),
    [
        (0.8, 0.6, True),
        (0.8, 0.95, False),  # imitation alone pleases the judge more
        (0.5, 0.3, False),
        (0.2, 0.1, False),
    ],
)
def test_a_preferred_policy_wins_most_differing_steps_and_more_than_the_cloned_clinician(share, cloned, holds):
    given = evidence(effects={DEBATE: {"preferred": share}}, cloned=cloned)
    found = decided(given, "debate_policy_preferred")
    assert found.holds is holds
    won = [
        float((d["by_debate"].values > 0).sum() / (d["action"].values != 0).sum())
        for d in given.trained[DEBATE].values()
    ]
    assert found.difference == pytest.approx(np.mean(won) - 0.5)
    assert found.low < found.difference < found.high
    assert found.n == 3 * PATIENTS
    assert ", ".join(f"{x:.2f}" for x in won) in found.reason
    assert "with the conservative learner" in found.reason


def test_steps_at_which_both_do_the_same_decide_nothing():
    found = [
        decided(evidence(effects={DEBATE: {"preferred": 1.0, "differs": d}}), "debate_policy_preferred")
        for d in (0.1, 0.9)
    ]
    assert [f.difference for f in found] == [0.5, 0.5]
    silent = decided(evidence(effects={DEBATE: {"differs": 0.0}}), "debate_policy_preferred")
    assert silent.holds is None
    assert silent.reason == "not decided here: the two policies agree at every step"


@pytest.mark.parametrize(("loss", "holds"), [(-0.05, True), (0.0, True), (0.02, True), (0.04, False), (0.2, False)])
def test_survival_may_fall_by_less_than_the_margin(loss, holds):
    given = evidence(effects={DEBATE: {"survival": 0.8 - loss}})
    found = decided(given, "debate_policy_survives_no_worse")
    assert found.holds is holds
    assert found.difference == pytest.approx(-loss, abs=0.003)
    assert found.n == 3 * SUBJECTS
    assert found.p is None
    assert "less the physician's" in found.reason


def test_an_interval_that_reaches_over_the_margin_is_not_no_worse():
    given = evidence(effects={DEBATE: {"survival": 0.8}})
    spread = dict(given.trained)
    spread[DEBATE] = {
        s: d.assign(survival=d["survival"] + shift)
        for (s, d), shift in zip(spread[DEBATE].items(), (-0.2, 0, 0.2), strict=True)
    }
    found = decided(replace(given, trained=spread), "debate_policy_survives_no_worse")
    assert found.difference > -0.03 > found.low
    assert found.holds is False


@pytest.mark.parametrize(
    ("survival", "preferred", "holds"),
    [(0.80, 0.6, True), (0.83, 0.6, True), (0.87, 0.6, False), (0.80, 0.9, False), (0.5, 0.2, True)],
)
def test_the_whole_state_must_gain_less_than_both_margins(survival, preferred, holds):
    given = evidence(effects={DEBATE: {"by_full": 0.6}, STATE: {"by_full": preferred, "survival": survival}})
    found = decided(given, "state_judge_no_better")
    assert found.holds is holds
    nearer = preferred - 0.6 if preferred > 0.6 else survival - 0.8  # the comparison that decides is shown
    assert found.difference == pytest.approx(nearer, abs=0.02)
    assert found.p is None


@pytest.mark.parametrize(("turns", "upfront", "holds"), [(0.9, 0.6, True), (0.6, 0.9, False), (0.7, 0.7, False)])
def test_turns_resist_refutation_if_the_pairs_say_so(turns, upfront, holds):
    accuracy = {("lookahead", "itself"): turns, ("precommit_first_order", "refuted"): upfront}
    given = evidence(accuracy=accuracy)
    found = decided(given, "alternating_debate_resists_refutation")
    assert found.holds is holds
    pairs = [d["correct"] for d in given.debates.values()]
    gaps = [
        c.sel(strategy="lookahead", setting="itself") - c.sel(strategy="precommit_first_order", setting="refuted")
        for c in pairs
    ]
    assert found.difference == pytest.approx(np.mean([float(g.mean()) for g in gaps]), abs=1e-6)


@pytest.mark.parametrize(("chosen", "random", "holds"), [(0.8, 0.6, True), (0.6, 0.8, False), (0.7, 0.7, False)])
def test_chosen_evidence_beats_random_evidence_if_the_pairs_say_so(chosen, random, holds):
    given = evidence(accuracy={("lookahead", "itself"): chosen}, random=random)
    found = decided(given, "chosen_evidence_beats_random")
    assert found.holds is holds
    assert found.difference == pytest.approx(chosen - random, abs=0.06)


# ---- what cannot be decided


def test_records_decide_nothing_about_survival():
    claims = decide(evidence(simulated=False, effects={DEBATE: {"preferred": 0.9}}))
    verdicts = {c.id: c.holds for c in claims}
    assert verdicts["debate_policy_survives_no_worse"] is None
    assert verdicts["state_judge_no_better"] is None
    assert verdicts["debate_policy_preferred"] is True
    for claim in claims:
        if claim.holds is None:
            assert claim.reason == "not decided here: the survival of other treatments is known in a simulator alone"
            assert (claim.difference, claim.p) == (None, None)


def test_absent_arms_leave_their_claims_open_and_the_others_decided():
    arms = tuple(arm for arm in ARMS if arm.name != "state 0.5" and arm.learner == "plain")
    claims = {c.id: c for c in decide(evidence(arms=arms))}
    assert claims["state_judge_no_better"].holds is None
    assert claims["state_judge_no_better"].reason.endswith("no arm state 0.5 of the learner plain")
    assert sum(c.holds is None for c in claims.values()) == 1
    assert "conservative" not in claims["debate_policy_preferred"].reason
    (alone,) = decide(evidence(arms=(Arm(lam=0),)), ("debate_policy_preferred",))
    assert alone.holds is None


# ---- intervals


def test_p_values_are_adjusted_over_the_claims_that_are_tested():
    given = evidence(
        effects={DEBATE: {"preferred": 0.56}},
        accuracy={("lookahead", "itself"): 0.65, ("precommit_first_order", "refuted"): 0.62},
    )
    alone = {name: decided(given, name).p for name in CLAIMS}
    together = {claim.id: claim.p for claim in decide(given)}
    tested = [name for name in CLAIMS if alone[name] is not None]
    assert len(tested) == 3
    assert [together[name] for name in tested] == pytest.approx(holm([alone[name] for name in tested]).tolist())
    assert max(together[name] - alone[name] for name in tested) > 0


def test_the_steps_of_a_patient_are_one_unit():
    rng = np.random.default_rng(0)
    fate = rng.random((2, PATIENTS)) < 0.6
    one = [per_patient(np.arange(PATIENTS), f.astype(float), np.ones(PATIENTS)) for f in fate]
    # Ten steps with one fate tell no more than one step.
    ten = [
        per_patient(np.repeat(np.arange(PATIENTS), 10), np.repeat(f, 10).astype(float), np.ones(10 * PATIENTS))
        for f in fate
    ]
    few, many = (interval(([a for a, _ in x], [b for _, b in x])) for x in (one, ten))
    assert [few.mean, few.low, few.high] == pytest.approx([many.mean, many.low, many.high])
    assert few.n == many.n == 2 * PATIENTS
    # Ten independent steps do.
    free = [
        per_patient(
            np.repeat(np.arange(PATIENTS), 10), (rng.random(10 * PATIENTS) < 0.6).astype(float), np.ones(10 * PATIENTS)
        )
        for _ in fate
    ]
    loose = interval(([a for a, _ in free], [b for _, b in free]))
    assert loose.high - loose.low < 0.6 * (few.high - few.low)


def test_patients_are_told_apart_by_their_number_and_counted_where_they_appear():
    patient = np.array([7, 3, 7, 900, 3])
    top, bottom = per_patient(patient, np.array([1.0, 0, 1, 1, 1]), np.array([1.0, 1, 1, 1, 2]))
    assert top.tolist() == [1, 2, 1]
    assert bottom.tolist() == [3, 2, 1]


def test_seeds_weigh_the_same_whatever_their_number_of_steps():
    parts = [np.ones(10), np.zeros(1000)], [np.ones(10), np.ones(1000)]
    assert interval(parts).mean == pytest.approx(0.5)


def test_luck_that_subjects_have_in_common_is_taken_out():
    rng = np.random.default_rng(1)
    luck = rng.normal(0, 0.3, 200)
    found = difference([luck + 0.01 + rng.normal(0, 1e-3, 200)] * 3, [luck] * 3)
    assert 0.009 < found.low < found.high < 0.011


def shares(seed, seeds=3, n=50):
    """Two policies' won and differing steps, correlated through the patients."""
    rng = np.random.default_rng(seed)
    all_a, all_b = rng.integers(1, 9, (2, seeds, n)).astype(float)
    skill = rng.beta(4, 2, (seeds, n))
    won_a, won_b = (
        rng.binomial(all_a.astype(int), skill).astype(float),
        rng.binomial(all_b.astype(int), 0.9 * skill).astype(float),
    )
    return (list(won_a), list(all_a)), (list(won_b), list(all_b))


def test_the_difference_of_two_shares_is_that_of_a_bootstrap_that_draws_patients_of_both_together():
    a, b = shares(2)
    found = preference_difference(a, b)
    ratios = [[top.sum() / bottom.sum() for top, bottom in zip(*x, strict=True)] for x in (a, b)]
    assert found.mean == pytest.approx(np.mean(ratios[0]) - np.mean(ratios[1]))
    rng = np.random.default_rng(3)
    drawn = np.empty(3000)
    for i in range(len(drawn)):
        gaps = []
        for seed in rng.integers(3, size=3):
            rows = rng.integers(50, size=50)
            gaps.append(
                a[0][seed][rows].sum() / a[1][seed][rows].sum() - b[0][seed][rows].sum() / b[1][seed][rows].sum()
            )
        drawn[i] = np.mean(gaps)
    width = found.high - found.low
    assert np.quantile(drawn, 0.025) == pytest.approx(found.low, abs=0.1 * width)
    assert np.quantile(drawn, 0.975) == pytest.approx(found.high, abs=0.1 * width)
    # A share does not differ from itself, and the other way round it is the negative.
    same = preference_difference(a, a)
    assert [same.mean, same.low, same.high] == pytest.approx([0, 0, 0], abs=1e-12)
    assert preference_difference(b, a).mean == pytest.approx(-found.mean)


# ---- the table


def table(given, learners=LEARNERS):
    rows = rows_of(given, learners)
    found = {(r.scenario, r.method, r.metric): r for r in rows}
    assert len(found) == len(rows)
    for row in rows:
        assert np.isfinite(row.mean)
        if row.low is not None:
            assert row.low <= row.mean + 1e-9
            assert row.mean <= row.high + 1e-9
    return found


def test_the_table_has_every_policy_with_intervals():
    given = evidence(effects={DEBATE: {"preferred": 0.8, "survival": 0.85}})
    rows = table(given)
    for learner, arm in given.trained:
        assert rows[learner, arm, "survival"].n == 3 * SUBJECTS
        assert rows[learner, arm, "aligned decisions"].n == 3 * PATIENTS
        assert rows[learner, arm, "survival less physician"].n == 3 * SUBJECTS
        compared = (learner, arm, "preferred to lambda 0 after a debate") in rows
        assert compared == ((learner, arm, "survival less lambda 0") in rows) == (arm != "lambda 0")
        assert rows[learner, arm, "clipped targets"].mean == pytest.approx(10)
    one = rows["plain", "debate 0.5", "survival less lambda 0"]
    (claim,) = decide(given, ("debate_policy_survives_no_worse",))
    assert [one.mean, one.low, one.high] == pytest.approx([100 * x for x in (claim.difference, claim.low, claim.high)])
    for who in ("cloned clinician", "logged actions"):
        assert rows["plain", who, "preferred to lambda 0 by the full judge"].n == 3 * PATIENTS
    parts = [rows["plain", "debate 0.5", m].mean for m in ("baseline preferred", "equal actions", "policy preferred")]
    assert sum(parts) == pytest.approx(100)
    for method in ("random features", "whole state", "true behaviour"):
        assert rows["judge", method, "accuracy"].n == 3 * PATIENTS


def test_the_split_of_all_steps_is_counted_step_by_step():
    given = evidence()
    rows = table(given)
    shares = []
    for data in given.trained[DEBATE].values():
        differs = data["action"].values != 0
        shares.append([np.mean(differs & (data["by_debate"].values == v)) for v in (-1, 1)] + [np.mean(~differs)])
    for value, metric in zip(
        np.mean(shares, 0), ("baseline preferred", "policy preferred", "equal actions"), strict=True
    ):
        assert rows["plain", "debate 0.5", metric].mean == pytest.approx(100 * value)


def test_trained_debaters_are_averaged_over_the_seeds_where_they_took_part():
    given = evidence(learned=("ppo_maxmin",), accuracy={("ppo_maxmin", "confused"): 0.9})
    rows = table(given)
    row = rows["debate", "PPO maxmin", "accuracy, confused"]
    assert row.n == PATIENTS
    first = given.debates[0]["correct"].sel(strategy="ppo_maxmin", setting="confused")
    assert row.mean == pytest.approx(100 * float(first.mean()))
    assert rows["debate", "one-step search", "accuracy, itself"].n == 3 * PATIENTS
    assert ("debate", "one-step search", "accuracy, confused") not in rows
    assert not any(method.startswith("precommitted") and metric.endswith("itself") for _, method, metric in rows)


@pytest.mark.parametrize(("floored", "told"), [(3, 0), (4, 1)])
def test_behaviour_probabilities_that_were_raised_too_often_are_told(floored, told):
    found = evidence(seeds=2)
    for of_arm in found.trained.values():
        of_arm[1]["estimate_floored"] = ("estimator", [floored, 0])
    lines = doubts(found)
    assert len(lines) == told
    assert all(line.startswith("off-policy estimates, seed 1:") for line in lines)


def test_records_have_no_survival_in_the_table():
    rows = table(evidence(simulated=False))
    assert not any("survival" in metric for _, _, metric in rows)
    assert ("judge", "true behaviour", "accuracy") not in rows
    assert ("plain", "debate 0.5", "preferred to lambda 0 after a debate") in rows


def test_one_seed_and_one_learner_are_enough():
    arms = tuple(arm for arm in ARMS if arm.learner == "plain")
    rows = table(evidence(seeds=1, arms=arms), ("plain",))
    assert rows["plain", "debate 0.5", "survival"].n == SUBJECTS
    assert {scenario for scenario, _, _ in rows} == {"judge", "debate", "plain"}

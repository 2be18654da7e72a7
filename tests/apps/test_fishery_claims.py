"""The claims, decided on made-up returns whose verdict is known."""

import numpy as np
import pytest
import xarray as xr

from apps.fishery.claims import CLAIMS, Evidence, decide
from apps.fishery.study import FisheryStudy
from core.study import Results

N = 400
LUCK = np.random.default_rng(0).standard_normal(N)


def episodes(mean, survival=1.0, spread=1.0, seed=1):
    """Returns with common luck, and a share of survivors."""
    own = np.random.default_rng(seed).standard_normal(N)
    survived = np.arange(N) < round(survival * N)
    return xr.Dataset({"return": ("rep", mean + 5 * LUCK + spread * own), "survived": ("rep", survived)})


def claim(name, results):
    (decided,) = decide(Evidence(results, 1000), (name,))
    assert decided.id == name
    return decided


def model3(gains, survival=0.9):
    """Model 3 with PPO at these gains over constant mortality, one a seed."""
    return {
        (3, "constant_mortality"): [episodes(60.0, 0.85, seed=50)],
        (3, "constant_escapement"): [episodes(45.0, 0.5, seed=51)],
        (3, "ppo"): [episodes(60.0 + gain, survival, seed=k) for k, gain in enumerate(gains)],
    }


@pytest.mark.parametrize(
    ("gains", "holds"),
    [((3, 3, 3), True), ((3, 3, 0), True), ((3, 0, 0), False), ((1.2, 1.2, 1.2), False), ((3,), True)],
)
def test_constant_mortality_must_be_beaten_in_two_thirds_of_the_seeds(gains, holds):
    decided = claim("ppo_beats_constant_mortality", model3(gains))
    assert decided.holds is holds
    assert decided.difference == pytest.approx(np.mean(gains), abs=0.2)
    assert decided.low < decided.difference < decided.high
    assert decided.n == N
    assert "Holm" in decided.test


def test_the_margin_of_the_mean_is_not_enough_without_its_interval():
    """Each seed leads by 3 on average, but with episodes so different that zero is not excluded."""
    noisy, base = model3((3, 3, 3)), 60 + 5 * LUCK
    noisy[3, "constant_mortality"] = [xr.Dataset({"return": ("rep", base)})]
    wild = np.where(np.arange(N) % 2, 100.0, -100.0)
    noisy[3, "ppo"] = [xr.Dataset({"return": ("rep", base + 3 + wild)})] * 3
    decided = claim("ppo_beats_constant_mortality", noisy)
    assert decided.difference == pytest.approx(3)
    assert decided.low < 0
    assert decided.holds is False


@pytest.mark.parametrize(("gains", "holds"), [((0, 0, 0), True), ((0, 0, -6), False)])
def test_escapement_must_be_beaten_in_every_seed(gains, holds):
    assert claim("ppo_beats_escapement", model3(gains)).holds is holds


@pytest.mark.parametrize(("survival", "holds"), [(0.85, True), (0.845, False), (0.9, True), (0.8, False)])
def test_survival_is_not_inferior_beyond_one_point(survival, holds):
    """Equal shares pass; half a point less does not once its interval reaches beyond one point."""
    decided = claim("ppo_survives_at_least_as_often", model3((0, 0, 0), survival))
    assert decided.holds is holds
    assert decided.p is None


def model1(exact=1.69, escapement=1.68, mortality=0.35, poor=-11.0, ppo=0.1):
    values = {"dynamic_programming": exact, "constant_escapement": escapement, "constant_mortality": mortality}
    found = {(1, m): [episodes(v, spread=0.1, seed=k)] for k, (m, v) in enumerate(values.items())}
    found[1, "poor_model"] = [episodes(poor, spread=0.1, seed=9)]
    found[1, "ppo"] = [episodes(ppo, spread=0.1, seed=20 + k) for k in range(3)]
    return found


@pytest.mark.parametrize(
    ("changes", "holds"), [({}, True), ({"exact": 1.8}, False), ({"exact": 1.56}, False), ({"mortality": 0.8}, False)]
)
def test_equivalence_needs_the_whole_interval_inside(changes, holds):
    decided = claim("dp_equals_escapement_model1", model1(**changes))
    assert decided.holds is holds
    assert decided.p is None
    assert (decided.low > -0.05 and decided.high < 0.05) or not holds


@pytest.mark.parametrize(("changes", "holds"), [({}, True), ({"poor": 0.5}, False), ({"ppo": -12.0}, False)])
def test_the_poor_model_must_lose_to_both_and_the_closer_rival_is_reported(changes, holds):
    decided = claim("poor_model_loses_model1", model1(**changes))
    assert decided.holds is holds
    gaps = {**{"poor": -11.0, "ppo": 0.1}, **changes}
    assert decided.difference == pytest.approx(gaps["ppo"] - gaps["poor"], abs=0.05)


def test_what_is_absent_is_not_decided_and_does_not_hold():
    for decided in decide(Evidence({}, 1000)):
        assert decided.holds is None
        assert "the study has no" in decided.reason
    assert [c.id for c in decide(Evidence({}, 1000))] == list(CLAIMS)


def test_p_values_of_the_family_are_adjusted():
    results = model3((3, 3, 3)) | model1()
    together = {c.id: c.p for c in decide(Evidence(results, 1000))}
    alone = claim("ppo_beats_constant_mortality", results).p
    assert together["ppo_beats_constant_mortality"] == pytest.approx(3 * alone)


def tiny(tmp_path, **scenario):
    """A study of rules alone, in this process."""
    methods = ["constant_mortality", "constant_escapement", "dynamic_programming"]
    data = {
        "study": "tiny",
        "evaluation": {"replicates": 30, "record": 2, "resamples": 200},
        "scenarios": [{"name": "one", "methods": methods, "tuning": {"replicates": 10, "points": 11}, **scenario}],
        "claims": ["dp_equals_escapement_model1"],
    }
    study = FisheryStudy.model_validate(data)
    return study, study.run(tmp_path / "out", workers=0, quiet=True)


def test_a_claim_about_the_papers_model_is_not_decided_on_another(tmp_path):
    study, summary = tiny(tmp_path, model=1)
    assert summary.claims[0].holds is not None
    assert isinstance(Results(tmp_path / "out", study.runs()), Results)
    for k, other in enumerate(({"horizon": 20}, {"parameters": {"r": 0.9}})):
        _, summary = tiny(tmp_path / str(k), model=1, **other)
        assert summary.claims[0].holds is None


def test_learned_policies_are_trained_once_and_first():
    study = FisheryStudy.load("paper")
    runs = study.runs()
    trainings = [run.learned.hash for run in runs[:20]]
    assert len(set(trainings)) == 20  # no worker of twenty waits for another's training
    assert len({run.learned.hash for run in runs if run.learned}) == 20

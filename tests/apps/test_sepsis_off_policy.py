"""Truth beside estimates: what new patients would have come to, and when nothing may be ranked."""

import math

import numpy as np
import pytest
import torch

from apps.sepsis.estimates import EstimateSettings, logged_outcome
from apps.sepsis.judge import JudgeEnsemble, JudgeSettings, calibration, calibration_error, load_judge, train_ensemble
from apps.sepsis.judging import logged_pairs, together
from apps.sepsis.off_policy import OffPolicyReport, PolicyEstimates
from apps.sepsis.outcomes import true_outcome, true_survival
from apps.sepsis.preferences import Preferences
from core.errors import InputError
from core.offline import Estimate
from core.stats import Interval
from simulators.sepsis import Physician, Sepsis44, icusepsis, simulate_cohort, survival
from simulators.sepsis.icusepsis import HiddenPolicy, ICUSepsis44
from simulators.sepsis.survival import discounted_outcome

COHORT = simulate_cohort(Sepsis44(), 60, seed=1)


def test_without_discount_the_outcome_is_twice_the_survival_less_one():
    lived = survival(Sepsis44(), Physician(), 200, 3)
    assert torch.allclose(discounted_outcome(Sepsis44(), Physician(), 200, 3), 2 * lived - 1)


@pytest.mark.parametrize("gamma", [0.9, 0.99])
def test_the_expected_outcome_is_that_of_patients_who_live_and_die(gamma):
    logged = simulate_cohort(Sepsis44(), 3000, seed=5, record_truth=False)
    seen = gamma ** (logged.lengths - 1).double() * logged.outcome.double()
    expected = discounted_outcome(Sepsis44(), Physician(), 3000, 6, gamma)
    error = math.hypot(float(seen.std()), float(expected.std())) / math.sqrt(3000)
    assert abs(float(seen.mean() - expected.mean())) < 4 * error


def test_outcomes_of_the_chain_are_exact_on_average():
    chain = ICUSepsis44()
    policy = HiddenPolicy(chain.dynamics.clinician)
    outcome = icusepsis.discounted_outcome(chain, policy, 2000, 0)
    assert set(outcome.unique().tolist()) == {-1.0, 1.0}
    exact, _ = chain.policy_value(chain.dynamics.clinician)
    assert abs(float(outcome.mean()) - (2 * exact - 1)) < 4 * float(outcome.std()) / math.sqrt(2000)
    assert torch.equal(icusepsis.discounted_outcome(chain, policy, 50, 0, 0.5).sign(), outcome[:0].new_tensor(
        icusepsis.discounted_outcome(chain, policy, 50, 0).tolist()))  # fmt: skip


def test_a_greedy_policy_has_the_same_truth_by_either_way():
    def always(state):
        return torch.full((len(state),), 7)

    lived = true_survival(COHORT, always, 100)
    certain = true_outcome(COHORT, lambda state: torch.eye(25)[always(state)], 100, 1.0)
    assert torch.allclose(certain, 2 * lived - 1)
    records = COHORT.take(torch.arange(10))
    object.__setattr__(records, "origin", {"source": "mimic_sepsis", "synthetic": False})
    with pytest.raises(InputError, match="not simulated"):
        true_survival(records, always, 10)


def test_the_clinicians_own_outcome_is_the_mean_of_the_test_patients():
    test = COHORT.subset("test")
    assert logged_outcome(COHORT, 1.0).mean == pytest.approx(float(test.outcome.mean()))


def estimate(name, value, verdict="identifiable", floored=0):
    return Estimate(name, value, value - 0.1, value + 0.1, 50.0, 0.1, 60, floored, verdict)


def report(*policies, truth=(None, None)):
    found = [
        PolicyEstimates(
            f"p{i}", tuple(estimates), torch.zeros(60), None if t is None else Interval(t, t - 0.1, t + 0.1, 9)
        )
        for i, (estimates, t) in enumerate(zip(policies, truth, strict=True))
    ]
    settings = EstimateSettings(estimators=("WIS", "WDR", "FQE"))
    return OffPolicyReport(tuple(found), Interval(0.5, 0.4, 0.6, 60), settings, steps=800)


def test_policies_are_ranked_by_truth_else_by_an_estimate_else_not_at_all():
    low, high = [estimate("WIS", 0.9), estimate("WDR", 0.1)], [estimate("WIS", 0.1), estimate("WDR", 0.9)]
    assert report(low, high).order.endswith("p1 > p0")
    assert report(low, high).order.startswith("by WDR")
    assert report(low, high, truth=(0.8, 0.2)).order.endswith("p0 > p1")
    lost = [estimate("WIS", 0.1, "not identifiable"), estimate("WDR", 0.9, "not identifiable")]
    assert report(low, lost).order.startswith("not ranked")
    assert [line.split(":")[0] for line in report(low, lost).flags] == ["p1"]
    model = [estimate("FQE", 0.3, "model alone")]
    assert report(model, model).order.startswith("not ranked: needs one of WDR")
    assert report(model, model).flags == []


@pytest.mark.parametrize(("floored", "flagged"), [(8, False), (9, True)])
def test_a_clinician_who_is_often_given_next_to_no_probability_is_flagged(floored, flagged):
    found = [estimate("WIS", 0.5, floored=floored)]
    assert [line.split(":")[0] for line in report(found, found).flags] == ["clinician"] * flagged


def test_several_judges_are_read_again_as_they_were(tmp_path):
    pairs = logged_pairs(COHORT, "train", "random", 0, at_most=200)
    assert len(pairs) == 200
    ensemble = train_ensemble(pairs, JudgeSettings(epochs=1, hidden=8), 0, members=2)
    ensemble.save(tmp_path)
    again = load_judge(tmp_path, 6)
    assert isinstance(again, JudgeEnsemble)
    every = torch.ones_like(pairs.state, dtype=torch.bool)
    assert torch.equal(
        again.score(pairs.state, every, pairs.preferred), ensemble.score(pairs.state, every, pairs.preferred)
    )
    with pytest.raises(InputError, match="items is 6; needed here: 4"):
        load_judge(tmp_path, 4)
    with pytest.raises(InputError, match="holds no judge"):
        load_judge(tmp_path.parent)


class Sure:
    """A judge that prefers the higher action, always with the same probability."""

    items = 6

    def score(self, state, mask, action):
        return action.float()

    def preference(self, state, mask, first, second):
        return torch.where(first > second, 0.83, 0.17)


def test_the_calibration_error_has_an_interval_around_it():
    generator = torch.Generator().manual_seed(0)
    right = torch.rand(4000, generator=generator) < 0.7
    low, high = torch.zeros(4000, dtype=torch.int64), torch.ones(4000, dtype=torch.int64)
    pairs = Preferences(
        torch.zeros(4000, 44),
        torch.where(right, high, low),
        torch.where(right, low, high),
        torch.arange(4000) // 10,
        torch.zeros(4000, dtype=torch.int64),
        torch.ones(4000),
    )
    found = calibration_error(Sure(), pairs, generator)
    assert found.mean == pytest.approx(calibration(Sure(), pairs, generator).error)
    assert found.mean == pytest.approx(abs(0.83 - float(right.float().mean())), abs=1e-6)
    assert found.low < 0.13 < found.high
    assert found.n == 400
    spread = 2 * 1.96 * math.sqrt(0.7 * 0.3 / 4000)
    assert found.high - found.low == pytest.approx(spread, rel=0.2)
    with pytest.raises(InputError, match="at least 2"):
        calibration_error(Sure(), pairs.take(torch.arange(5)), generator)


def test_pairs_that_are_joined_keep_what_was_cited():
    pairs = logged_pairs(COHORT, "train", "offset", 0)
    one, two = pairs.take(torch.arange(3)), pairs.take(torch.arange(3, 5))
    cited = Preferences(*(getattr(one, n) for n in ("state", "preferred", "rejected", "patient", "step", "label")),
                        torch.eye(44, dtype=torch.bool)[:3])  # fmt: skip
    both = together(cited, two)
    assert len(both) == 5
    assert both.evidence is not None
    assert np.array_equal(both.evidence.sum(1), [1, 1, 1, 0, 0])
    assert together(one, two).evidence is None

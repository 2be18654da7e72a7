"""Policies learned from a cohort, the clinician, what is measured of them, and what the log alone can tell."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from apps.sepsis.clinician import train_clinician
from apps.sepsis.estimates import EstimateSettings, as_dataset, estimate
from apps.sepsis.metrics import action_counts, dose_excess, evidence_counts
from apps.sepsis.policies import FILE, LearnedPolicy, train_policy
from apps.sepsis.rewards import environment_reward
from apps.sepsis.settings import ClinicianSettings, Learner, PolicySettings
from core.checkpoint import Checkpoint
from core.errors import InputError
from core.offline import OfflineDQN, dqn
from core.offline.losses import conservative_gap
from simulators.sepsis.features import ACTIONS, FLUID_ML, INDEX, STATE, VASOPRESSOR, fluid_level
from tests.apps.sepsis_cohorts import small_cohort

PLAIN = Learner(name="plain")
TINY = {"nets": 2, "updates": 30, "hidden": (8,), "heads": 4, "batch": 32, "learning_rate": 1e-2, "tau": 0.1}


WAYS = ("lam", "checkpoint", "progress", "watch", "looks")


def trained(cohort, learner=PLAIN, *, reward=None, **options):
    paid = environment_reward(cohort) if reward is None else reward
    ways = {name: options.pop(name) for name in WAYS if name in options}
    return train_policy(cohort, paid, PolicySettings(**TINY | options), learner, 0, **ways)


def weights(policy):
    return torch.cat([x.flatten() for model in policy.models for x in model.q_net.state_dict().values()])


def seeded(seed):
    return torch.Generator().manual_seed(seed)


# ---- learned policies


@pytest.mark.parametrize("units", [True, False])
@pytest.mark.parametrize("learner", [PLAIN, Learner(name="conservative", alpha=1.0)])
def test_a_saved_policy_chooses_as_before(tmp_path, units, learner):
    cohort = small_cohort(units=units)
    policy, _ = trained(cohort, learner)
    policy.save(tmp_path / "policy")
    loaded = LearnedPolicy.load(tmp_path / "policy")
    state = torch.randn(200, len(STATE), generator=seeded(1))
    assert len(policy.greedy(state).unique()) > 1
    assert torch.equal(loaded.greedy(state), policy.greedy(state))
    assert torch.equal(loaded.probabilities(state, 0.5), policy.probabilities(state, 0.5))
    raw = torch.rand(200, len(STATE), generator=seeded(2)) * 10
    assert torch.equal(loaded(raw), policy(raw))


def test_called_with_units_a_policy_normalises_them():
    cohort = small_cohort()
    policy, _ = trained(cohort)
    assert torch.equal(policy(cohort.raw[cohort.mask]), policy.greedy(cohort.steps().state))
    without, _ = trained(small_cohort(units=False))
    state = cohort.steps().state
    assert torch.equal(without(state), without.greedy(state))


def test_a_policy_for_other_features_or_none_at_all_is_refused(tmp_path):
    trained(small_cohort(), nets=1, updates=1)[0].save(tmp_path)
    record = json.loads((tmp_path / FILE).read_text())
    (tmp_path / FILE).write_text(json.dumps(record | {"features": "0123456789abcdef"}))
    with pytest.raises(InputError, match="made for another list of features; allowed: ") as refused:
        LearnedPolicy.load(tmp_path)
    assert "\n" not in str(refused.value)
    with pytest.raises(InputError, match="nowhere"):
        LearnedPolicy.load(tmp_path / "nowhere")


@pytest.mark.parametrize("prioritized", [True, False])
def test_killed_and_resumed_equals_uninterrupted_bit_for_bit(tmp_path, monkeypatch, prioritized):
    class Killed(Exception):
        pass

    told, seen = [], []

    def die(done, what):
        told.append(done)
        # Both networks have had their first half, the second network ten updates of its other one.
        if done > 0.75 + 0.25 / 2:
            raise Killed

    monkeypatch.setattr(Checkpoint, "due", property(lambda kept: kept.path is not None))
    monkeypatch.setattr(dqn, "_CHUNK", 10)
    cohort = small_cohort()
    options = {"prioritized": prioritized, "q_bound": 0.1, "n_steps": 2, "updates": 60, "looks": 2}
    whole, clipped = trained(cohort, **options)
    with pytest.raises(Killed):
        trained(cohort, checkpoint=tmp_path, progress=die, **options)
    told.clear()
    resumed, clipped_again = trained(
        cohort,
        checkpoint=tmp_path,
        progress=lambda done, what: told.append(done),
        watch=lambda policy, updates: seen.append((updates, weights(policy))),
        **options,
    )
    # What was done is read; the ten updates that are left are made.
    assert told == [1.0]
    assert torch.equal(weights(resumed), weights(whole))
    assert clipped_again == clipped > 0
    # What is looked at on the way is what it was.
    first = []
    trained(cohort, watch=lambda policy, updates: first.append((updates, weights(policy))), **options)
    assert [updates for updates, _ in seen] == [updates for updates, _ in first] == [30, 60]
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(seen, first, strict=True))


def test_looking_at_the_training_changes_nothing(tmp_path):
    cohort = small_cohort()
    plain, clipped = trained(cohort, q_bound=0.1, n_steps=2)
    watched, clipped_too = trained(cohort, q_bound=0.1, n_steps=2, looks=4, checkpoint=tmp_path)
    assert torch.equal(weights(plain), weights(watched))
    assert clipped == clipped_too > 0


def test_the_value_is_the_mean_of_networks_that_differ():
    policy, _ = trained(small_cohort(), nets=3)
    state = torch.randn(50, len(STATE), generator=seeded(3))
    each = torch.stack([model.q_values(state) for model in policy.models])
    assert each.std(0).min() > 0
    torch.testing.assert_close(policy.q.q_values(state), each.mean(0))
    assert torch.equal(policy.greedy(state), each.mean(0).argmax(1))


def test_probabilities_sum_to_1_and_follow_the_value():
    policy, _ = trained(small_cohort())
    state = torch.randn(50, len(STATE), generator=seeded(4))
    for temperature in (0.1, 1.0, 10.0):
        likely = policy.probabilities(state, temperature)
        assert likely.shape == (50, ACTIONS)
        torch.testing.assert_close(likely.sum(1), torch.ones(50))
        torch.testing.assert_close(likely, torch.softmax(policy.q.q_values(state) / temperature, 1))
        assert torch.equal(likely.argmax(1), policy.greedy(state))


def test_the_conservative_learner_is_the_plain_one_without_its_penalty_and_closes_the_gap_with_it():
    cohort = small_cohort()
    plain, _ = trained(cohort)
    same, _ = trained(cohort, Learner(name="conservative", alpha=0.0))
    assert torch.equal(weights(plain), weights(same))
    careful, _ = trained(cohort, Learner(name="conservative", alpha=10.0))
    learned = cohort.steps(("train", "validation"))
    logged = learned.action[:, None]
    gaps = [conservative_gap(q, q.gather(1, logged)) for q in (p.q.q_values(learned.state) for p in (plain, careful))]
    assert gaps[1] < gaps[0]


def test_a_policy_does_what_it_is_paid_for():
    cohort = small_cohort(120)
    paid = (fluid_level(cohort.action) == 2).float() * cohort.mask
    policy, _ = trained(cohort, reward=paid, nets=1, updates=400, gamma=0.01, hidden=(16,))
    chosen = fluid_level(policy.greedy(cohort.steps("test").state))
    assert (chosen == 2).float().mean() > 0.9


def test_test_patients_teach_nothing():
    cohort = small_cohort()
    test = cohort.split == 2
    other = replace(
        cohort,
        state=torch.where(test[:, None, None], -cohort.state, cohort.state),
        action=torch.where(test[:, None] & cohort.mask, 7, cohort.action),
        outcome=torch.where(test, -cohort.outcome, cohort.outcome),
    )
    assert torch.equal(weights(trained(cohort)[0]), weights(trained(other)[0]))
    # Those of the validation split do.
    moved = replace(cohort, split=torch.where(test, 1, cohort.split))
    assert not torch.equal(weights(trained(cohort)[0]), weights(trained(moved)[0]))


def test_returns_above_lambda_one_half_have_their_own_number_of_steps():
    cohort = small_cohort()
    for lam, steps in ((0.0, 6), (0.5, 6), (0.75, 3), (1.0, 3)):
        policy, _ = trained(cohort, lam=lam, updates=1)
        assert {model.n_steps for model in policy.models} == {steps}


# ---- metrics


def test_dose_excess_counts_deaths_by_what_the_clinician_gave_more():
    cohort = small_cohort(200)
    raw = cohort.raw.clone()
    raw[::5, :, INDEX["SOFA"]] = 16.0  # too sick to be counted
    cohort = replace(cohort, raw=raw)
    chosen = torch.randint(ACTIONS, cohort.mask.shape, generator=seeded(5))
    rows = (cohort.split == 2).nonzero()[:, 0]
    found = dose_excess(cohort, rows, chosen)
    for drug, doses, bins, part in (
        ("fluid", FLUID_ML, 7, lambda a: a // 5),
        ("vasopressor", VASOPRESSOR, 5, lambda a: a % 5),
    ):
        width = 2 * doses[-1] / bins
        patients, deaths = np.zeros(bins, int), np.zeros(bins, int)
        for patient in rows.tolist():
            last = int(cohort.lengths[patient]) - 1
            if raw[patient, last, INDEX["SOFA"]] <= 15:
                given, wanted = (doses[part(int(a[patient, last]))] for a in (cohort.action, chosen))
                place = min(int((given - wanted + doses[-1]) / width), bins - 1)
                patients[place] += 1
                deaths[place] += int(cohort.outcome[patient] < 0)
        np.testing.assert_array_equal(found[f"patients_{drug}"], patients)
        np.testing.assert_array_equal(found[f"deaths_{drug}"], deaths)
        np.testing.assert_allclose(found[f"excess_{drug}"], -doses[-1] + width * (np.arange(bins) + 0.5), atol=1e-12)
        assert found[f"excess_{drug}"].attrs["units"]
    # The same doses are the middle bin, and without units nobody is left out.
    same = dose_excess(replace(cohort, raw=None), rows, cohort.action)
    assert same["patients_fluid"].values.tolist() == [0, 0, 0, len(rows), 0, 0, 0]


def test_actions_and_evidence_are_counted_one_by_one():
    action = torch.randint(ACTIONS, (300,), generator=seeded(6))
    shown = torch.rand(300, len(STATE), generator=seeded(7)) < 0.2
    counts = np.zeros((len(STATE), ACTIONS))
    for row in range(300):
        for feature in shown[row].nonzero()[:, 0].tolist():
            counts[feature, int(action[row])] += 1
    np.testing.assert_array_equal(evidence_counts(shown, action), counts)
    assert action_counts(action.view(30, 10)).tolist() == [int((action == a).sum()) for a in range(ACTIONS)]


# ---- the clinician


@pytest.mark.parametrize("kind", ["cloning", "neighbours"])
def test_the_estimated_clinician_has_probabilities(kind):
    if kind == "neighbours":
        pytest.importorskip("sklearn")
    cohort = small_cohort()
    settings = ClinicianSettings(kind=kind, epochs=2, hidden=(8,), neighbours=10)
    state = cohort.steps("test").state
    likely = train_clinician(cohort, settings, 0).probabilities(state)
    assert likely.shape == (len(state), ACTIONS)
    assert (likely > 0).all()
    torch.testing.assert_close(likely.sum(1), torch.ones(len(state)).to(likely))


@pytest.mark.parametrize("kind", ["cloning", "neighbours"])
def test_the_clinician_is_learned_from_the_training_patients(kind):
    if kind == "neighbours":
        pytest.importorskip("sklearn")
    cohort = small_cohort(150)
    # Fluid follows one feature, without a vasopressor.
    rule = 5 * (cohort.state[..., INDEX["MeanBP"]] > 0).long() * cohort.mask
    cohort = replace(cohort, action=torch.where((cohort.split == 0)[:, None], rule, 24 * cohort.mask))
    settings = ClinicianSettings(
        kind=kind, epochs=30, hidden=(16,), learning_rate=1e-2, weight_decay=0.0, neighbours=15
    )
    clinician, test = train_clinician(cohort, settings, 0), cohort.steps("test")
    wanted = 5 * (test.state[:, INDEX["MeanBP"]] > 0).long()
    found = clinician.probabilities(test.state).argmax(1)
    assert (found == 24).sum() == 0
    if kind == "cloning":
        assert (found == wanted).float().mean() > 0.8


# ---- estimates from the log


def known(cohort):
    """The policy that logged, where it is asked for the test steps."""
    test = cohort.flat(cohort.behaviour, "test")
    return SimpleNamespace(probabilities=lambda state: test, greedy=lambda state: test.argmax(1))


def estimates(cohort, policy, clinician=None, **settings):
    chosen = EstimateSettings(
        **{"estimators": ("IS", "WIS", "PDIS", "WPDIS"), "resamples": 200, "gamma": 1.0} | settings
    )
    return {e.name: e for e in estimate(cohort, policy, clinician, chosen, 0)}


def test_the_policy_that_logged_has_the_mean_outcome_that_was_logged():
    cohort = small_cohort(150)
    test = cohort.subset("test")
    for found in estimates(cohort, known(cohort)).values():
        assert found.value == pytest.approx(float(test.outcome.mean()), abs=1e-6)
        assert found.low <= found.value <= found.high
        assert found.ess == pytest.approx(test.patients, rel=1e-6)
        assert (found.episodes, found.floored, found.verdict) == (test.patients, 0, "identifiable")
    discounted = float((test.outcome * 0.9 ** (test.lengths - 1)).mean())
    assert estimates(cohort, known(cohort), gamma=0.9)["WIS"].value == pytest.approx(discounted, abs=1e-6)


def test_an_estimated_clinician_that_is_right_gives_the_same():
    cohort = small_cohort(150)
    policy = known(cohort)
    record = estimates(cohort, policy, None, clip=None)
    cloned = estimates(cohort, policy, policy, behaviour="estimated", clip=None)
    blind = estimates(replace(cohort, behaviour=None), policy, policy, clip=None)
    for name, found in record.items():
        # Probabilities below 0.01 are raised to it only where they were estimated.
        assert found.floored == 0
        assert cloned[name].floored > 0
        assert cloned[name].value == pytest.approx(found.value, abs=0.02)
        assert blind[name].value == cloned[name].value


@pytest.mark.parametrize("target", ["softmax", "softened"])
def test_a_policy_far_from_the_log_is_not_identifiable(target):
    cohort = small_cohort(150)
    always = torch.nn.functional.one_hot(torch.full((len(cohort.steps("test")),), 3), ACTIONS).double()
    policy = SimpleNamespace(
        probabilities=lambda state: 0.001 / 25 + 0.999 * always, greedy=lambda state: always.argmax(1)
    )
    for found in estimates(cohort, policy, target=target, clip=None).values():
        assert found.verdict == "not identifiable"
        assert found.ess < 30


def test_estimates_without_any_behaviour_policy_are_refused():
    cohort = small_cohort(60)
    policy, _ = trained(cohort, nets=1, updates=1)
    for unknown, settings in ((replace(cohort, behaviour=None), {}), (cohort, {"behaviour": "estimated"})):
        with pytest.raises(InputError) as refused:
            estimates(unknown, policy, **settings)
        assert "behaviour" in str(refused.value)
        assert "\n" not in str(refused.value)


def test_estimators_with_a_model_fit_one_and_all_come_as_one_dataset():
    cohort = small_cohort(60)
    policy, _ = trained(cohort, nets=1, updates=1)
    clinician = train_clinician(cohort, ClinicianSettings(epochs=1, hidden=(8,)), 0)
    names = ("WIS", "DR", "WDR", "FQE")
    found = estimate(cohort, policy, clinician, EstimateSettings(estimators=names, resamples=100, model_updates=5), 0)
    data = as_dataset(found)
    assert data["estimator"].values.tolist() == list(names)
    assert np.isfinite(data["estimate_value"]).all()
    assert (data["estimate_low"] <= data["estimate_high"]).all()
    assert str(data["estimate_verdict"].sel(estimator="FQE").item()) == "model alone"


def test_networks_of_a_policy_are_read_as_what_they_are(tmp_path):
    policy, _ = trained(small_cohort(), Learner(name="conservative", alpha=2.0), updates=1)
    policy.save(tmp_path)
    assert all(isinstance(model, OfflineDQN) for model in LearnedPolicy.load(tmp_path).models)

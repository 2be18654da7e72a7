"""Cohorts: how they are drawn, cut, handed to learners and kept in files."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray as xr

from core.errors import InputError
from core.seeds import stream
from core.simulation import tree
from simulators.sepsis import (
    INDEX,
    SPLITS,
    STATE,
    Cohort,
    Physician,
    Sepsis44,
    check_cohort,
    simulate_cohort,
    split_patients,
    truth_scores,
)
from simulators.sepsis.icusepsis import ICUSepsis44
from simulators.sepsis.icusepsis import simulate_cohort as simulate_icu_cohort

WORLD = Sepsis44()


@pytest.fixture(scope="module")
def cohort():
    return simulate_cohort(WORLD, 600, 1)


@pytest.fixture(scope="module")
def stored(cohort, tmp_path_factory):
    path = tmp_path_factory.mktemp("cohort") / "cohort.nc"
    cohort.save(path)
    return path


def assert_same(first, second):
    for (name, value), (_, other) in zip(tree.named_tensors(first), tree.named_tensors(second), strict=True):
        assert value.dtype == other.dtype, name
        assert torch.equal(value, other), name


# --- simulation ----------------------------------------------------------------------------------------------------


def test_the_record_is_what_the_world_and_the_physician_do(cohort):
    """Every recorded state leads, with the recorded action and the luck of the seed, to the next recorded one."""
    generator = torch.Generator().manual_seed(stream(1, "patients"))
    start = WORLD.reset(cohort.patients, generator)
    assert torch.equal(start.observation, cohort.raw[:, 0])
    for t in range(WORLD.horizon):
        noise, here = WORLD.noise(cohort.patients, generator), cohort.mask[:, t]
        state = WORLD.reset_to(cohort.truth["latent"][here, t], cohort.raw[here, t])
        probabilities = Physician().probabilities(state.observation, state)
        torch.testing.assert_close(probabilities, cohort.behaviour[here, t])
        assert torch.equal(truth_scores(state), cohort.truth["score"][here, t])
        step = WORLD.step(state, cohort.action[here, t], tree.take(noise, here))
        last = cohort.lengths[here] == t + 1
        assert torch.equal(step.terminated, last)
        assert torch.equal(step.reward[last], cohort.outcome[here][last])
        if t + 1 < WORLD.horizon:
            goes_on = ~last
            assert torch.equal(step.state.observation[goes_on], cohort.raw[here, t + 1][goes_on])
            latent = WORLD.latent(step.state)[goes_on]
            assert torch.equal(latent, cohort.truth["latent"][here, t + 1][goes_on])


def test_actions_are_taken_as_often_as_their_probabilities_say():
    cohort = simulate_cohort(WORLD, 3000, 5, record_truth=False)
    taken = torch.nn.functional.one_hot(cohort.steps().action, 25).double()
    expected = cohort.flat(cohort.behaviour).double()
    spread = (expected * (1 - expected)).sum(0).sqrt()
    assert bool(((taken - expected).sum(0).abs() < 4 * spread).all())
    assert not cohort.truth


def test_equal_seeds_give_equal_cohorts_and_the_split_has_its_own():
    first, again, split = (simulate_cohort(WORLD, 80, 3, split_seed=s) for s in (None, 3, 4))
    assert_same(first, again)
    assert torch.equal(first.raw, split.raw)
    assert not torch.equal(first.split, split.split)
    assert not torch.equal(first.raw[:, 0], simulate_cohort(WORLD, 80, 4).raw[:, 0])


def test_another_physician_treats_otherwise():
    def mean_fluid(bias):
        return (simulate_cohort(WORLD, 300, 1, physician=Physician(bias=bias)).steps().action // 5).float().mean()

    assert mean_fluid(1.5) > mean_fluid(0.0) + 0.5


def test_normalisation_is_that_of_the_training_split(cohort):
    train = cohort.steps("train").state
    numbers = [i for name, i in INDEX.items() if name not in ("gender", "mechvent")]
    torch.testing.assert_close(train[:, numbers].mean(0), torch.zeros(42), atol=1e-3, rtol=0)
    torch.testing.assert_close(train[:, numbers].std(0), torch.ones(42), atol=1e-3, rtol=0)
    assert set(train[:, INDEX["gender"]].tolist()) == {-0.5, 0.5}
    found = cohort.normalisation.invert(cohort.steps("test").state)
    torch.testing.assert_close(found, cohort.flat(cohort.raw, "test"), rtol=1e-3, atol=1e-2)


def test_a_simulated_cohort_breaks_none_of_its_rules(cohort):
    check_cohort(cohort, "simulated")
    for name in ("state", "raw", "action", "behaviour"):
        assert bool((getattr(cohort, name)[~cohort.mask] == 0).all())
    assert 0.7 < float((cohort.outcome > 0).float().mean()) < 0.95


# --- parts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", [None, "train", "test", ("train", "validation")])
def test_flat_and_padded_are_inverse_to_each_other(cohort, split):
    values = torch.randn(*cohort.mask.shape, 3, generator=torch.Generator().manual_seed(0))
    flat = cohort.flat(values, split)
    steps = cohort.steps(split)
    assert len(flat) == len(steps)
    assert torch.equal(flat, values[steps.patient, steps.step])
    assert torch.equal(cohort.flat(cohort.state, split), steps.state)
    padded = cohort.padded(flat, split)
    assert torch.equal(cohort.flat(padded, split), flat)
    assert float(padded.abs().sum()) == pytest.approx(float(flat.abs().sum()), rel=1e-5)


def test_the_splits_are_parts_of_the_whole(cohort):
    counts = [len(cohort.steps(name)) for name in SPLITS]
    assert sum(counts) == len(cohort.steps()) == len(cohort.steps(SPLITS)) == int(cohort.mask.sum())
    test = cohort.subset("test")
    assert bool((test.split == 2).all())
    assert torch.equal(test.steps().state, cohort.steps("test").state)
    rows = torch.tensor([5, 3])
    pair = cohort.take(rows)
    assert pair.patients == 2
    assert torch.equal(pair.truth["score"], cohort.truth["score"][rows])


@pytest.mark.parametrize("counts", [(700, 300), (13, 5), (40, 1)])
def test_the_split_keeps_the_shares_of_each_outcome(counts):
    outcome = torch.cat([torch.full((n,), value) for n, value in zip(counts, (1.0, -1.0), strict=True)])
    split = split_patients(outcome, 3)
    for count, value in zip(counts, (1.0, -1.0), strict=True):
        for number, share in enumerate((0.7, 0.15, 0.15)):
            found = int(((split == number) & (outcome == value)).sum())
            assert abs(found - share * count) <= 1
    assert torch.equal(split, split_patients(outcome, 3))
    if min(counts) > 100:
        assert not torch.equal(split, split_patients(outcome, 4))


def test_the_reward_is_the_outcome_once(cohort):
    rewards = cohort.rewards()
    assert torch.equal(rewards.sum(1), cohort.outcome)
    assert bool(((rewards != 0).sum(1) == 1).all())
    last = cohort.lengths[:, None] - 1
    assert torch.equal(rewards.gather(1, last)[:, 0], cohort.outcome)


def test_the_dataset_has_an_episode_a_patient(cohort):
    data = cohort.dataset(cohort.rewards(), ("train", "validation"))
    members = cohort.subset(("train", "validation"))
    assert data.episodes == members.patients
    assert torch.equal(data.episode_returns().float(), members.outcome)
    assert torch.equal(data.lengths, members.lengths)
    assert torch.equal(data.behaviour_probability, members.flat(members.behaviour))
    inner = ~data.terminated
    assert torch.equal(data.next_observations[inner], data.observations[1:][inner[:-1]])
    assert cohort.dataset(cohort.rewards(), behaviour=False).behaviour_probability is None
    assert data.observation_space.contains(data.observations[0].numpy())


# --- files ---------------------------------------------------------------------------------------------------------


def test_a_file_gives_back_every_bit(cohort, stored):
    found = Cohort.load(stored)
    assert_same(found, cohort)
    assert dict(found.origin) == dict(cohort.origin)
    assert found.features == STATE


def test_a_cohort_with_less_knowledge_is_kept_too(cohort, tmp_path):
    bare = replace(cohort, raw=None, behaviour=None, truth={}, normalisation=None, origin={"source": "records"})
    bare.save(tmp_path / "bare.nc")
    found = Cohort.load(tmp_path / "bare.nc")
    assert found.raw is None
    assert found.behaviour is None
    assert found.normalisation is None
    assert_same(found, bare)


def test_the_chain_counted_in_records_gives_the_same_kind_of_cohort(tmp_path):
    cohort = simulate_icu_cohort(ICUSepsis44(), 300, 2)
    check_cohort(cohort, "icusepsis44")
    cohort.save(tmp_path / "icu.nc")
    assert_same(Cohort.load(tmp_path / "icu.nc"), cohort)
    assert torch.equal(cohort.dataset(cohort.rewards()).episode_returns().float(), cohort.outcome)


def test_a_file_describes_itself_and_names_no_patient(stored):
    with xr.open_dataset(stored, engine="h5netcdf") as data:
        assert set(data.coords) == {"feature"}
        assert data["state"].dims == ("patient", "step", "feature")
        assert data["behaviour"].dims == data["truth_score"].dims == ("patient", "step", "choice")
        assert {"source", "synthetic", "normalisation", "split_seed", "feature_hash", "units"} <= set(data.attrs)
        assert data.attrs["source"] == "sepsis44"
        assert data.attrs["synthetic"] == "true"


def tampered(name, place, value):
    def change(data):
        array = data[name].values.copy()
        array[place] = value
        return data.assign({name: (data[name].dims, array)})

    return change


FAULTS = {
    "no variable": (lambda data: data.drop_vars("outcome"), "no variable outcome; a cohort has feature, state"),
    "other order": (
        lambda data: data.assign_coords(feature=[STATE[1], STATE[0], *STATE[2:]]),
        "feature 0 of 44 is mechvent; must be gender of 44",
    ),
    "fewer features": (lambda data: data.isel(feature=slice(43)), "feature 43 of 43 is nothing; must be input_total"),
    "nan": (
        tampered("state", (3, 0, INDEX["HR"]), np.nan),
        "state[patient 3, step 0, HR] = nan; must be finite",
    ),
    "infinite": (tampered("raw", (0, 0, 0), np.inf), "raw[patient 0, step 0, gender] = inf; must be finite"),
    "action": (tampered("action", (4, 0), 25), "action[patient 4, step 0] = 25; must be 0 to 24"),
    "gap": (
        tampered("mask", (2, 1), False),
        "mask[patient 2, step 2] = True; must be true up to the patient's last step",
    ),
    "no step": (tampered("mask", (2,), False), "mask[patient 2] = False; must be true at the first step"),
    "outcome": (tampered("outcome", (1,), 0.0), "outcome[patient 1] = 0.0; must be +1 (survived) or -1 (died)"),
    "split": (tampered("split", (1,), 3), "split[patient 1] = 3; must be 0 (train), 1 (validation) or 2 (test)"),
    "early reward": (
        tampered("reward", (6, 0), 1.0),
        "reward[patient 6, step 0] = 1.0; must be the outcome at the patient's last step",
    ),
    "one outcome": (
        lambda data: data.isel(patient=data["outcome"].values > 0),
        "every outcome is +1; needs survivors and deaths",
    ),
    "one action": (tampered("action", (...,), 5), "every action is 5; needs at least 2 different ones"),
    "probabilities": (
        tampered("behaviour", (0, 0), 0.5),
        "behaviour[patient 0, step 0] = 12.5; must be 25 probabilities that sum to 1",
    ),
    "fractional action": (
        lambda data: data.assign(action=data["action"] + 0.5),
        "action is float64; must be whole numbers",
    ),
    "shape": (
        lambda data: data.assign(outcome=(("patient", "one"), data["outcome"].values[:, None])),
        "outcome has shape (600, 1); must be (600,)",
    ),
    "no patients": (
        lambda data: data.isel(patient=slice(0)),
        "mask has shape (0, 18); must be (patients, steps), each at least 1",
    ),
}


@pytest.mark.parametrize(("change", "message"), FAULTS.values(), ids=FAULTS)
def test_a_file_with_a_fault_is_refused_in_one_line(stored, tmp_path, change, message):
    path = tmp_path / "fault.nc"
    with xr.open_dataset(stored, engine="h5netcdf") as data:
        change(data.load()).to_netcdf(path, engine="h5netcdf")
    with pytest.raises(InputError) as refusal:
        Cohort.load(path)
    assert str(refusal.value).startswith(f"{path}: {message}")
    assert "\n" not in str(refusal.value)


def test_what_is_no_cohort_is_refused(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        Cohort.load(tmp_path / "absent.nc")
    (tmp_path / "text.nc").write_text("traj,step\n")
    with pytest.raises(InputError, match="not a NetCDF file"):
        Cohort.load(tmp_path / "text.nc")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda cohort: simulate_cohort(WORLD, 0, 1), "patients = 0: must be at least 1"),
        (lambda cohort: cohort.steps("all"), "split: 'all'; allowed: train, validation, test"),
        (lambda cohort: cohort.padded(torch.zeros(3)), "values: 3 rows; must be "),
        (lambda cohort: cohort.dataset(torch.zeros(3)), "rewards of shape (3,): must be (600, 18)"),
        (lambda cohort: split_patients(cohort.outcome, 1, (0.7, 0.2, 0.2)), "fractions = (0.7, 0.2, 0.2): must be"),
    ],
)
def test_what_is_impossible_is_refused(cohort, make, message):
    with pytest.raises(InputError) as refusal:
        make(cohort)
    assert str(refusal.value).startswith(message)

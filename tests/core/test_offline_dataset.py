import dataclasses

import numpy as np
import pytest
import torch
import xarray as xr
from gymnasium import spaces

from core.errors import InputError
from core.offline import OfflineDataset, from_minari, to_minari
from tests.core.offline_logs import ragged

LENGTHS = [1, 5, 3, 8, 2]
TENSORS = ("observations", "actions", "rewards", "next_observations", "terminated", "truncated", "episode", "step")


def equal(a, b):
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in TENSORS)


@pytest.mark.parametrize("n", [1, 3, 50])
def test_n_step_transitions_equal_a_loop(n):
    data, gamma = ragged(LENGTHS), 0.9
    found = data.n_step(n, gamma)
    for row in range(len(data)):
        total, m = 0.0, 0
        for m in range(n):
            total += gamma**m * data.rewards[row + m].item()
            if data.terminated[row + m] or data.truncated[row + m]:
                break
        assert found.rewards[row].item() == pytest.approx(total, abs=1e-5)
        assert found.discounts[row].item() == pytest.approx(gamma ** (m + 1))
        assert torch.equal(found.next_observations[row], data.next_observations[row + m])
        assert found.terminated[row] == data.terminated[row + m]
    assert torch.equal(found.extras["order"], torch.arange(len(data)))


def test_returns_are_the_n_step_rewards_of_the_whole_episode():
    data = ragged(LENGTHS)
    assert torch.allclose(data.returns(0.9).float(), data.n_step(max(LENGTHS), 0.9).rewards, atol=1e-5)
    assert torch.equal(data.episode_returns(), data.returns()[data.starts])


def test_padding_is_undone_by_the_mask():
    data = ragged(LENGTHS)
    padded = data.padded(data.observations)
    assert padded.shape == (len(LENGTHS), max(LENGTHS), 2)
    assert torch.equal(padded[data.mask], data.observations)
    assert not padded[~data.mask].any()


def test_windows_stay_within_episodes_and_reach_their_ends():
    data = ragged(LENGTHS)
    windows = data.windows(3, stride=2)
    assert torch.equal(data.episode[windows], data.episode[windows[:, :1]].expand(-1, 3))
    assert torch.equal(windows[:, 1:], windows[:, :-1] + 1)
    ends = {int(e) for e, k in zip(data.ends[data.starts], LENGTHS, strict=True) if k >= 3}
    assert ends <= set(windows[:, -1].tolist())


def test_split_parts_the_episodes():
    data = ragged(LENGTHS * 4)
    first, second = data.split(0.25, torch.Generator().manual_seed(1))
    assert first.episodes == 5
    assert set(first.episode.tolist()).isdisjoint(second.episode.tolist())
    assert sorted([*first.extras["order"].tolist(), *second.extras["order"].tolist()]) == list(range(len(data)))


def test_concat_undoes_taking_episodes():
    data = ragged(LENGTHS)
    parts = [data.take_episodes(torch.tensor([i])) for i in range(data.episodes)]
    joined = OfflineDataset.concat(parts)
    assert equal(joined, data)
    assert torch.equal(joined.behaviour_probability, data.behaviour_probability)


def test_an_episode_drawn_twice_becomes_two():
    drawn = ragged(LENGTHS).take_episodes(torch.tensor([3, 3, 1]))
    assert drawn.lengths.tolist() == [8, 8, 5]


def test_normalised_observations_are_standard_and_a_constant_one_is_finite():
    data = ragged([50, 50])
    seen = torch.cat([data.observations * 7 + 3, torch.full((100, 1), 4.0)], 1)
    data = dataclasses.replace(
        data, observations=seen, next_observations=seen, observation_space=spaces.Box(-np.inf, np.inf, (3,), np.float32)
    )
    standard, scale = data.normalised()
    assert torch.allclose(standard.observations.mean(0), torch.zeros(3), atol=1e-5)
    assert torch.allclose(standard.observations.std(0, correction=0), torch.tensor([1.0, 1.0, 0.0]), atol=1e-3)
    assert torch.allclose(scale.invert(standard.observations), seen, atol=1e-5)


def test_equal_generators_draw_equal_batches():
    data = ragged(LENGTHS)
    a, b = (data.sample(64, torch.Generator().manual_seed(3), n=2) for _ in range(2))
    assert torch.equal(a.extras["order"], b.extras["order"])
    assert torch.equal(a.rewards, data.n_step(2, 0.99).rewards[a.extras["order"]])
    assert torch.equal(data.n_step(2, 0.99).take(a.extras["order"]).rewards, a.rewards)


@pytest.mark.parametrize(
    ("name", "row", "value", "says"),
    [
        ("observations", 2, float("nan"), "observations: row 2 column"),
        ("rewards", 4, float("inf"), "rewards: row 4 is inf"),
        ("actions", 3, 3, r"actions: row 3 is 3, allowed is \[0, 2\]"),
        ("step", 3, 9, "step: row 3 is 9"),
        ("terminated", 3, True, "terminated or truncated: row 3 is True"),
        ("terminated", 5, True, "terminated and truncated: row 5"),
        ("truncated", 5, False, "terminated or truncated: row 5 is False"),
        ("episode", 18, 0, "episode 0 is not in one piece"),
        ("behaviour_probability", 1, 1.5, "behaviour_probability: row 1"),
    ],
)
def test_a_wrong_row_is_named(name, row, value, says):
    data = ragged(LENGTHS)
    changed = getattr(data, name).clone()
    changed[row] = value
    if name == "episode":
        changed[17:] = value
    with pytest.raises(InputError, match=says.replace(" column", ".*column")):
        dataclasses.replace(data, **{name: changed})


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"rewards": torch.zeros(3)}, "observations has shape"),
        ({"action_space": spaces.Box(-1, 1, (2,))}, "behaviour_probability is for Discrete"),
        ({"action_space": spaces.Discrete(3, start=1)}, "starts at 1"),
        ({"terminated": torch.zeros(19)}, "must be bool"),
        ({"actions": torch.zeros(19)}, "needs int64"),
        ({"actions": torch.zeros(19, dtype=torch.int32)}, "actions are torch.int32; a Discrete space needs int64"),
        ({"extras": {"x": torch.zeros(2)}}, r"extras\['x'\]"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(changes, says):
    with pytest.raises(InputError, match=says):
        dataclasses.replace(ragged(LENGTHS), **changes)


def test_the_space_says_whether_actions_are_choices():
    data = dataclasses.replace(
        ragged(LENGTHS),
        action_space=spaces.Box(-1, 1, (1,)),
        actions=torch.zeros(19, 1, dtype=torch.int64),
        behaviour_probability=None,
    )
    assert not data.discrete
    with pytest.raises(InputError, match="needs a Discrete"):
        _ = data.choices
    with pytest.raises(InputError, match="actions: row 0"):
        dataclasses.replace(data, actions=data.actions + 2)


def test_no_steps_are_refused():
    data = ragged(LENGTHS)
    with pytest.raises(InputError, match="no steps"):
        data.take(torch.zeros(0, dtype=torch.int64))


def test_a_rollout_keeps_the_steps_whose_successor_is_known():
    # Copy 0 ends by itself at step 1, copy 1 at the last recorded step, copy 2 goes on.
    alive = np.array([[True, True, False, False], [True] * 4, [True] * 4])
    record = xr.Dataset(
        {
            "x": (("rep", "time"), np.arange(12.0).reshape(3, 4)),
            "action": (("rep", "time"), np.zeros((3, 4), np.int64)),
            "reward": (("rep", "time"), np.ones((3, 4))),
            "alive": (("rep", "time"), alive),
            "terminated": ("rep", np.array([True, True, False])),
        }
    )
    data = OfflineDataset.from_rollout(record, "x", spaces.Box(0, 12, (1,)), spaces.Discrete(2))
    assert data.lengths.tolist() == [2, 4, 3]
    assert data.terminated.nonzero()[:, 0].tolist() == [1, 5]
    assert data.truncated.nonzero()[:, 0].tolist() == [8]
    inner = ~data.terminated
    assert torch.equal(data.next_observations[inner], data.observations[inner] + 1)


def test_minari_gives_back_what_it_was_given(tmp_path, monkeypatch):
    minari = pytest.importorskip("minari")
    pytest.importorskip("PIL")
    data = ragged(LENGTHS)
    about = {"algorithm_name": "random", "author": "nobody", "description": "random numbers"}
    folder = to_minari(data, "szilard/test-v0", tmp_path, metadata={"tq": 0.5}, **about)
    for read in (from_minari(folder), from_minari("szilard/test-v0", tmp_path)):
        assert equal(read, data)
        assert torch.equal(read.behaviour_probability, data.behaviour_probability)
        assert torch.equal(read.extras["order"], data.extras["order"])
        assert (read.observation_space, read.action_space) == (data.observation_space, data.action_space)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    theirs = minari.load_dataset("szilard/test-v0")
    assert theirs.total_steps == len(data)
    assert theirs.storage.metadata["tq"] == 0.5
    with pytest.raises(InputError, match="exists"):
        to_minari(data, "szilard/test-v0", tmp_path, **about)


def test_minari_refuses_observations_that_do_not_follow_each_other(tmp_path):
    pytest.importorskip("minari")
    data = ragged(LENGTHS)
    broken = dataclasses.replace(data, next_observations=data.next_observations.flip(0))
    with pytest.raises(InputError, match="next_observations: row 1 is not the observation of row 2"):
        to_minari(broken, "a-v0", tmp_path, algorithm_name="", author="", description="")
    with pytest.raises(InputError, match="no Minari dataset"):
        from_minari("a-v0", tmp_path)

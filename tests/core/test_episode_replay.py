import numpy as np
import pytest
import torch

from core.errors import InputError
from core.rl.episode_replay import INNER, TERMINATED, TRUNCATED, EpisodeReplayBuffer

GAMMA, SLOTS, ROWS = 0.9, 24, 5


def replay(slots=SLOTS, rows=ROWS, gamma=GAMMA):
    return EpisodeReplayBuffer(slots, rows, (2,), 1, gamma=gamma)


class Diary:
    """What a buffer ought to hold: one dict a step of a row, by row and step, kept for ever."""

    def __init__(self, buffer, seed=0, ends=0.15):
        self.buffer, self.ends = buffer, ends
        self.random = np.random.default_rng(seed)
        self.steps, self.began = {}, np.zeros(buffer.rows, int)

    def draw(self, *shape):
        return torch.from_numpy(self.random.normal(size=(self.buffer.rows, *shape))).float()

    def step(self, kinds=None):
        """One random step, with random ends unless they are given."""
        buffer, t = self.buffer, self.buffer.steps
        obs = torch.tensor([[row, t] for row in range(buffer.rows)]).float()
        rewards, values, final_values = self.draw(), self.draw(), self.draw()
        buffer.add(obs, self.draw(1), rewards, self.draw(1), self.draw(1).exp(), values)
        if kinds is None:
            ended = self.random.random(buffer.rows) < self.ends
            kinds = np.where(ended, self.random.integers(1, 3, buffer.rows), INNER)
        kinds = torch.as_tensor(kinds)
        for row in range(buffer.rows):
            self.steps[row, t] = {
                "reward": float(rewards[row]),
                "value": float(values[row]),
                "ratio": 1.0,
                "kind": int(kinds[row]),
                "final": float(final_values[row]),
                "began": self.began[row],
            }
        if kinds.any():
            buffer.end(kinds == TERMINATED, kinds == TRUNCATED, obs + 0.5, final_values)
        for row in np.flatnonzero(kinds.numpy()):
            self.retrace(row, t)
            self.began[row] = t + 1

    def qret(self, row, t):
        step = self.steps[row, t]
        if step["kind"] == INNER:
            return step["reward"] + GAMMA * self.steps[row, t + 1]["vtbc"]
        return step["reward"] + GAMMA * step["final"] * (step["kind"] == TRUNCATED)

    def retrace(self, row, last):
        for t in range(last, max(self.steps[row, last]["began"], self.buffer.steps - self.buffer.slots) - 1, -1):
            step = self.steps[row, t]
            step["vtbc"] = step["value"] + min(1, step["ratio"]) * (self.qret(row, t) - step["value"])

    def samples(self):
        oldest = max(0, self.buffer.steps - self.buffer.slots)
        return {(row, t) for row, t in self.steps if oldest <= t < self.began[row]}

    def where(self, positions):
        """Row and step of positions, from the observations, which say both."""
        return [(int(row), int(t)) for row, t in self.buffer.take("observations", positions).tolist()]

    def check(self):
        where = sorted(self.samples())
        positions = torch.tensor([row * self.buffer.slots + t % self.buffer.slots for row, t in where])
        assert len(positions) == int(self.buffer.samples.sum())
        assert self.where(positions) == where
        vtbc, qret = self.buffer.targets(positions)
        np.testing.assert_allclose(vtbc, [self.steps[key]["vtbc"] for key in where], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(qret, [self.qret(*key) for key in where], rtol=1e-5, atol=1e-5)


def test_a_new_episode_holds_its_discounted_sums():
    diary = Diary(replay())
    for _ in range(9):
        diary.step([INNER] * ROWS)
    assert int(diary.buffer.samples.sum()) == 0  # it is not over yet
    diary.step([TERMINATED, TRUNCATED, INNER, TERMINATED, TRUNCATED])
    for row in (0, 1, 3, 4):
        steps = [diary.steps[row, t] for t in range(10)]
        total = steps[-1]["final"] if row in (1, 4) else 0.0
        sums = [total := step["reward"] + GAMMA * total for step in reversed(steps)][::-1]
        vtbc, _ = diary.buffer.targets(row * SLOTS + torch.arange(10))
        np.testing.assert_allclose(vtbc, sums, rtol=1e-5, atol=1e-6)


def test_a_truncated_episode_differs_from_a_terminated_one_by_the_value_of_its_end():
    results = []
    for kind in (TERMINATED, TRUNCATED):
        diary = Diary(replay())
        for _ in range(6):
            diary.step([INNER] * ROWS)
        diary.step([kind] * ROWS)
        positions = (torch.arange(ROWS)[:, None] * SLOTS + torch.arange(7)).flatten()
        results.append([x.view(ROWS, 7) for x in diary.buffer.targets(positions)])
    final = torch.tensor([diary.steps[row, 6]["final"] for row in range(ROWS)])
    for terminated, truncated in zip(*results, strict=True):
        expected = final[:, None] * GAMMA ** torch.arange(7, 0, -1)
        torch.testing.assert_close(truncated - terminated, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("ends", [0.05, 0.15, 0.5])
def test_a_full_ring_never_mixes_episodes(ends):
    # Episodes overlap the ring's seam and lose their first steps; with rare ends many are longer than the ring.
    torch.manual_seed(0)
    diary = Diary(replay(), seed=1, ends=ends)
    for t in range(4 * SLOTS):
        diary.step()
        if t < SLOTS // 2 or not diary.samples():
            continue
        positions = diary.buffer.sample(40)
        where = diary.where(positions)
        assert set(where) <= diary.samples()
        values, ratios = torch.randn(40), torch.randn(40).exp()
        values, ratios = (dict(zip(where, x.tolist(), strict=True)) for x in (values, ratios))
        finals = {key: diary.random.normal() for key in values}
        chosen = [torch.tensor([x[key] for key in where]) for x in (values, ratios, finals)]
        diary.buffer.refresh(positions, chosen[0], chosen[1], chosen[1] > 3, chosen[2])
        for key, value in values.items():
            diary.steps[key] |= {"value": value, "ratio": ratios[key], "final": finals[key]}
        for row in range(ROWS):
            sampled = [t for r, t in values if r == row]
            lasts = {diary.steps[row, t]["began"]: t for t in sorted(sampled)}
            for last in lasts.values():
                diary.retrace(row, last)
        diary.check()
        assert int(diary.buffer.far_count) == int(diary.buffer.data["far"].sum())


def test_samples_are_uniform():
    diary = Diary(replay(), seed=2)
    for _ in range(2 * SLOTS + 5):
        diary.step()
    torch.manual_seed(0)
    positions = diary.buffer.sample(200_000)
    where, counts = np.unique(positions, return_counts=True)
    assert len(where) == len(diary.samples())
    expected = 200_000 / len(where)
    assert (((counts - expected) ** 2 / expected).sum() - len(where)) / np.sqrt(2 * len(where)) < 4  # chi squared


def test_the_scale_of_the_rewards_leaves_a_failure_worth_no_reward_ever_after():
    # Rewards of 1 for ever are worth as much as the mean in every scale, and ending is worth 1 / (1 - gamma) less.
    buffer = replay(slots=400, rows=2)
    for t in range(400):
        reward = torch.tensor([1.0, 1.0 + 0.1 * (-1) ** t])
        buffer.add(torch.zeros(2, 2), *(torch.zeros(2, 1), reward, torch.zeros(2, 1), torch.ones(2, 1), torch.zeros(2)))
    buffer.end(torch.tensor([True, False]), torch.tensor([False, True]), torch.zeros(2, 2), torch.zeros(2))
    plain, _ = buffer.targets(torch.arange(400))
    buffer.rescale()
    buffer.retrace_all()
    scaled, _ = buffer.targets(torch.arange(400))
    mean, std = float(buffer.reward_mean), float(buffer.reward_std)
    np.testing.assert_allclose([mean, std], [1.0, 0.1 / np.sqrt(2)], rtol=1e-5)
    np.testing.assert_allclose(scaled * std + mean / (1 - GAMMA), plain, rtol=1e-4)


def test_equal_rewards_are_not_divided_by_nothing():
    buffer = replay(rows=1)
    for _ in range(3):
        buffer.add(
            torch.zeros(1, 2), *(torch.zeros(1, 1), torch.full((1,), 5.0), torch.zeros(1, 1), torch.ones(1, 1)), 0
        )
    buffer.rescale()
    assert (float(buffer.reward_mean), float(buffer.reward_std)) == (5.0, 1.0)


def test_running_episodes_are_cut_as_truncated():
    diary = Diary(replay())
    diary.step([INNER] * ROWS)
    diary.step([TERMINATED] + [INNER] * (ROWS - 1))
    diary.buffer.cut(torch.ones(ROWS, 2), torch.full((ROWS,), 7.0))
    assert diary.buffer.samples.tolist() == [2] * ROWS
    assert diary.buffer.data["ends"][1].tolist() == [TERMINATED] + [TRUNCATED] * (ROWS - 1)
    diary.buffer.cut(torch.ones(ROWS, 2), torch.zeros(ROWS))  # none runs
    assert diary.buffer.data["final_values"][1, 1:].tolist() == [7.0] * (ROWS - 1)


@pytest.mark.parametrize("steps", [10, 3 * SLOTS + 7])
def test_the_memory_round_trips(steps):
    diary = Diary(replay(), seed=3)
    for _ in range(steps):
        diary.step()
    positions = diary.buffer.sample(64)
    diary.buffer.refresh(
        positions, *(torch.zeros(64), torch.ones(64), torch.ones(64, dtype=torch.bool), torch.zeros(64))
    )
    other = replay()
    other.load_tensors(diary.buffer.tensors())
    mine, theirs = diary.buffer.tensors(), other.tensors()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    state = torch.get_rng_state()
    drawn = diary.buffer.sample(64)
    torch.set_rng_state(state)
    assert torch.equal(drawn, other.sample(64))
    with pytest.raises(InputError, match=r"replay memory observations: .*; this model needs"):
        replay(rows=ROWS + 1).load_tensors(mine)
    with pytest.raises(InputError, match="replay memory: absent"):
        other.load_tensors({})


def test_no_slots_are_refused():
    with pytest.raises(InputError, match="slots: 0"):
        replay(slots=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_retrace_agrees_between_devices():
    diary = Diary(replay(), seed=4)
    for _ in range(2 * SLOTS):
        diary.step()
    other = EpisodeReplayBuffer(SLOTS, ROWS, (2,), 1, gamma=GAMMA, device="cuda")
    other.load_tensors(diary.buffer.tensors())
    positions = diary.buffer.sample(64)
    far = torch.zeros(64, dtype=torch.bool)
    values, ratios = torch.randn(64), torch.ones(64)
    values = values[torch.searchsorted(torch.arange(SLOTS * ROWS), positions) % 64]  # equal where positions are
    for buffer in (diary.buffer, other):
        buffer.refresh(*(x.to(buffer.device) for x in (positions, values, ratios, far, values)))
    torch.testing.assert_close(other.data["returns"].cpu(), diary.buffer.data["returns"], rtol=1e-5, atol=1e-5)

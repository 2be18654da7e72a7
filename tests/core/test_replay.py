import numpy as np
import pytest
import torch
from gymnasium import spaces
from scipy import stats
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer

from core.errors import InputError
from core.rl.replay import Priorities, PrioritizedReplayBuffer, SumTree, TensorReplayBuffer

BOX = spaces.Box(-9, 9, (3,), np.float32)
CHOICES = spaces.Discrete(4)
KINDS = (TensorReplayBuffer, ReplayBuffer)


def filled(buffer, steps, seed=0):
    """Random steps by SB3's interface, some of which end an episode by the world and some by a time limit."""
    generator = np.random.default_rng(seed)
    rows = buffer.n_envs
    for _ in range(steps):
        obs, next_obs = generator.normal(size=(2, rows, 3)).astype(np.float32)
        action = generator.integers(4, size=rows)
        done = generator.random(rows) < 0.3
        infos = [{"TimeLimit.truncated": bool(d and generator.random() < 0.5)} for d in done]
        buffer.add(obs, next_obs, action, generator.normal(size=rows).astype(np.float32), done, infos)
    return buffer


def everything(buffer):
    """All transitions of SB3's memory, slot by slot and row by row."""
    slots, rows = buffer.size(), buffer.n_envs
    drawn = np.random.randint
    try:
        np.random.randint = lambda *_, size, **__: np.tile(np.arange(rows), slots)
        return buffer._get_samples(np.repeat(np.arange(slots), rows))
    finally:
        np.random.randint = drawn


@pytest.mark.parametrize("steps", [5, 20, 33], ids=["part", "full", "wrapped"])
def test_transitions_equal_sb3s(steps):
    ours, theirs = (filled(kind(60, BOX, CHOICES, n_envs=3, device="cpu"), steps) for kind in KINDS)
    a, b = ours._get_samples(torch.arange(ours.filled)), everything(theirs)
    assert ours.filled == 3 * min(steps, 20)
    for name in ("observations", "actions", "next_observations", "dones", "rewards"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name
    assert a.discounts is None
    assert 0 < float(a.dones.mean()) < 0.5


@pytest.mark.parametrize("n_steps", [2, 5])
@pytest.mark.parametrize("steps", [7, 20, 33], ids=["part", "full", "wrapped"])
def test_n_step_transitions_equal_sb3s(steps, n_steps):
    kinds = (TensorReplayBuffer, NStepReplayBuffer)
    options = {"n_envs": 3, "device": "cpu", "n_steps": n_steps, "gamma": 0.9}
    ours, theirs = (filled(kind(60, BOX, CHOICES, **options), steps) for kind in kinds)
    a, b = ours._get_samples(torch.arange(ours.filled)), everything(theirs)
    for name in ("observations", "actions", "next_observations", "dones"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name
    torch.testing.assert_close(a.rewards, b.rewards.float())
    torch.testing.assert_close(a.discounts, b.discounts.float())
    assert len(a.discounts.unique()) == n_steps


def test_dict_observations_and_masks_come_back_as_they_went_in():
    space = spaces.Dict({"x": BOX, "k": spaces.Discrete(5), "allowed": spaces.MultiBinary(4)})
    buffer = TensorReplayBuffer(8, space, CHOICES, device="cpu", n_envs=2, masked=True)
    seen = []
    for t in range(3):
        obs = {
            "x": torch.randn(2, 3),
            "k": torch.randint(5, (2,)),
            "allowed": torch.randint(2, (2, 4), dtype=torch.int8),
        }
        following = {key: value + 1 for key, value in obs.items()}
        mask = torch.rand(2, 4) < 0.5
        flags = torch.zeros(2, dtype=torch.bool)
        buffer.add_tensor(obs, following, torch.tensor([t, 3]), torch.ones(2), flags, flags, mask)
        seen.append((obs, following, mask))
    batch = buffer._get_samples(torch.tensor([4, 1]))
    for i, (t, row) in enumerate(((2, 0), (0, 1))):
        for key in space:
            assert torch.equal(batch.observations[key][i].flatten(), seen[t][0][key][row].flatten())
            assert torch.equal(batch.next_observations[key][i].flatten(), seen[t][1][key][row].flatten())
        assert torch.equal(batch.next_masks[i], seen[t][2][row])
    assert batch.actions.flatten().tolist() == [2, 3]
    assert batch.observations["allowed"].dtype == torch.int8


def test_uniform_draws_reach_every_transition_alike():
    buffer = filled(TensorReplayBuffer(60, BOX, CHOICES, n_envs=3, device="cpu"), 15)
    torch.manual_seed(0)
    drawn = buffer.sample(45_000).rewards.flatten()
    counts = drawn.unique(return_counts=True)[1].numpy()
    assert len(counts) == 45
    assert stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize("kind", [TensorReplayBuffer, PrioritizedReplayBuffer])
def test_a_restored_memory_draws_the_same(kind):
    options = {"n_envs": 3, "device": "cpu", "n_steps": 3}
    buffer, other = filled(kind(60, BOX, CHOICES, **options), 33), kind(60, BOX, CHOICES, **options)
    if kind is PrioritizedReplayBuffer:
        buffer.priorities.update(torch.arange(20), torch.linspace(0, 7, 20))
    other.load_state_tensors(buffer.state_tensors())
    samples = []
    for memory in (buffer, other):
        filled(memory, 2, seed=1)
        torch.manual_seed(3)
        samples.append(memory.sample(64))
    for name, value in vars(samples[0]).items():
        held = getattr(samples[1], name)
        assert held is value is None or torch.equal(value, held), name


def test_memories_that_cannot_be_are_refused(monkeypatch):
    with pytest.raises(InputError, match="optimize_memory_usage"):
        TensorReplayBuffer(8, BOX, CHOICES, optimize_memory_usage=True)
    with pytest.raises(InputError, match="n_steps: 0"):
        TensorReplayBuffer(8, BOX, CHOICES, n_steps=0)
    with pytest.raises(InputError, match=r"priority_alpha: 1\.5; allowed: 0 to 1"):
        Priorities(8, alpha=1.5, beta=1)
    with pytest.raises(InputError, match="priority_eps: 0"):
        Priorities(8, alpha=1, beta=1, eps=0)
    with pytest.raises(InputError, match="priority_initial: 0"):
        Priorities(8, alpha=1, beta=1, initial=0)
    buffer = filled(TensorReplayBuffer(60, BOX, CHOICES, n_envs=3, device="cpu"), 5)
    with pytest.raises(InputError, match="replay memory: absent"):
        buffer.load_state_tensors({})
    other = TensorReplayBuffer(60, BOX, CHOICES, n_envs=2, device="cpu")
    with pytest.raises(InputError, match=r"replay memory observations: \(5, 3, 3\); this model needs \(5, 2, 3\)"):
        other.load_state_tensors(buffer.state_tensors())

    def full(*_, **__):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(torch, "zeros", full)
    with pytest.raises(InputError, match="buffer_size: 60 transitions do not fit"):
        TensorReplayBuffer(60, BOX, CHOICES, n_envs=3, device="cpu")


# ---- priorities


@pytest.mark.parametrize("size", [1, 64, 65, 5000])
def test_the_sum_tree_finds_where_the_running_sum_exceeds(size):
    generator = torch.Generator().manual_seed(size)
    tree, numbers = SumTree(size), torch.zeros(size, dtype=torch.float64)
    for _ in range(5):  # a position that stands twice in one call gets the same number twice
        positions = torch.randint(size, (200,), generator=generator)
        values = torch.rand(size, generator=generator, dtype=torch.float64)[positions]
        values = values * (values > 0.3)
        tree.set(positions, values)
        numbers[positions] = values
    tree.set(torch.tensor([0]), torch.ones(1, dtype=torch.float64))
    numbers[0] = 1.0
    assert torch.equal(tree.values, numbers)
    torch.testing.assert_close(tree.total, numbers.sum(), rtol=1e-12, atol=0)
    fractions = torch.rand(2000, generator=generator, dtype=torch.float64)
    expected = torch.searchsorted(numbers.cumsum(0), fractions * numbers.sum(), right=True)
    assert torch.equal(tree.find(fractions), expected)
    edges = tree.find(torch.tensor([0.0, np.nextafter(1.0, 0.0)], dtype=torch.float64))
    assert (numbers[edges] > 0).all()


def test_draws_are_in_proportion_to_the_priorities():
    priorities = Priorities(300, alpha=0.6, beta=1.0, eps=0.01)
    priorities.insert(torch.arange(200))
    errors = torch.linspace(-3, 3, 200)
    priorities.update(torch.arange(200), errors)
    share = (errors.abs().double() + 0.01) ** 0.6
    torch.manual_seed(0)
    positions = torch.cat([priorities.draw(64)[0] for _ in range(1000)])
    counts = torch.bincount(positions, minlength=300)
    assert not counts[200:].any()
    # Stratified draws scatter less than independent ones, of which this is the test.
    assert stats.chisquare(counts[:200], 64_000 * share / share.sum()).pvalue > 1e-3


def test_weights_undo_the_draws():
    # With beta = 1 the weighted mean over prioritised draws is the plain mean over all transitions.
    priorities = Priorities(500, alpha=0.8, beta=1.0)
    errors = torch.randn(500, generator=torch.Generator().manual_seed(0)).exp()
    priorities.update(torch.arange(500), errors)
    torch.manual_seed(1)
    positions, weights = priorities.draw(200_000)
    assert float(weights.max()) == 1.0
    weighted = (weights.double() * errors[positions]).sum() / weights.double().sum()
    assert float(weighted) == pytest.approx(float(errors.mean()), rel=0.01)
    assert float(errors[positions].mean()) > 1.5 * float(errors.mean())
    p = priorities.tree.values[positions]
    published = (500 * p / priorities.tree.total) ** -1.0
    torch.testing.assert_close(weights, (published / published.max()).float())


def test_new_transitions_have_the_largest_priority_so_far():
    priorities = Priorities(10, alpha=1.0, beta=0.5)
    priorities.insert(torch.tensor([0, 1]))
    assert priorities.tree.values[:3].tolist() == [1, 1, 0]
    priorities.update(torch.tensor([0]), torch.tensor([-7.0]))
    priorities.update(torch.tensor([0]), torch.tensor([0.5]))
    priorities.insert(torch.tensor([2]))
    np.testing.assert_allclose(priorities.tree.values[:3], [0.5, 1, 7], atol=1e-5)


def test_the_first_transitions_have_the_priority_that_was_asked_for():
    buffer = filled(PrioritizedReplayBuffer(12, BOX, CHOICES, n_envs=3, device="cpu", alpha=1.0, initial=0.1), 2)
    priorities = buffer.priorities
    assert priorities.tree.values[:6].tolist() == [0.1] * 6
    priorities.update(torch.tensor([0]), torch.tensor([0.5]))
    filled(buffer, 1)
    np.testing.assert_allclose(priorities.tree.values[[0, 5, 6, 8]], [0.5, 0.1, 0.5, 0.5], atol=1e-5)


def test_an_error_that_is_not_finite_spoils_no_draw():
    priorities = Priorities(100, alpha=0.6, beta=0.5)
    priorities.insert(torch.arange(100))
    priorities.update(torch.arange(3), torch.tensor([torch.nan, torch.inf, 5.0]))
    assert priorities.tree.values[:2].tolist() == [1, 1]
    positions, weights = priorities.draw(50)
    assert ((positions >= 0) & (positions < 100)).all()
    assert weights.isfinite().all()


def test_with_alpha_zero_all_are_alike():
    priorities = Priorities(10, alpha=0.0, beta=0.9)
    priorities.update(torch.arange(10), torch.logspace(-5, 5, 10))
    positions, weights = priorities.draw(10)
    assert positions.tolist() == list(range(10))  # one in each tenth
    assert (weights == 1).all()


def test_overwritten_transitions_are_new_again():
    buffer = filled(PrioritizedReplayBuffer(12, BOX, CHOICES, n_envs=3, device="cpu", alpha=1.0), 4)
    buffer.priorities.update(torch.arange(12), torch.full((12,), 1e-3))
    filled(buffer, 1)
    batch = buffer.sample(300)
    assert set(batch.positions[:290].tolist()) == {0, 1, 2}
    assert batch.weights.shape == (300, 1)

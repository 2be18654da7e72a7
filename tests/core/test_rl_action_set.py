"""Networks that score the members of a set: the dueling mean, permutations, masks, learning and files."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from core.errors import InputError
from core.rl import DQN
from core.rl.action_set import ActionSetDueling
from core.simulation import SB3VecEnv, Step
from tests.core.test_ppo import one_thread  # noqa: F401 (a fixture)

CHOICES, FEATURES = 4, 3


@dataclass(frozen=True)
class Shown:
    state: Tensor
    candidates: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Nothing:
    none: Tensor


@dataclass(frozen=True)
class Like:
    """One choice among four candidates, some of them not allowed: it pays state . candidate."""

    agents = 1
    variables = {}  # noqa: RUF012
    action_space = spaces.Discrete(CHOICES)
    observation_space = spaces.Dict(
        {
            "state": spaces.Box(-1, 1, (FEATURES,), np.float32),
            "candidates": spaces.Box(-1, 1, (CHOICES, FEATURES), np.float32),
            "mask": spaces.MultiBinary(CHOICES),
        }
    )

    def reset(self, batch, generator):
        state = 2 * torch.rand(batch, FEATURES, generator=generator) - 1
        candidates = 2 * torch.rand(batch, CHOICES, FEATURES, generator=generator) - 1
        mask = torch.rand(batch, CHOICES, generator=generator) < 0.7
        mask[:, 0] |= ~mask.any(1)
        return Shown(state, candidates, mask)

    def noise(self, batch, generator):
        return Nothing(torch.empty(batch, 0))

    def step(self, state, action, noise):
        chosen = state.candidates[torch.arange(len(action)), action]
        return Step(state, (state.state * chosen).sum(1), torch.ones(len(action), dtype=torch.bool))

    def observe(self, state, noise=None):
        return vars(state)

    def action_mask(self, state):
        return state.mask


def build(seed=0, **options):
    env = SB3VecEnv(Like(), 32, scaled=False, seed=seed)
    options = {
        **{"buffer_size": 8_000, "learning_starts": 320, "batch_size": 64, "train_freq": 1, "gradient_steps": 2},
        **{"learning_rate": 2e-3, "seed": seed, "device": "cpu", "policy_kwargs": {"net_arch": [32]}},
    } | options
    return DQN("ActionSetPolicy", env, **options)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return ActionSetDueling(FEATURES, FEATURES, [8, 5])


@pytest.fixture
def shown():
    return Like().reset(6, torch.Generator().manual_seed(3))


def test_the_mean_over_what_is_allowed_is_taken_off_by_hand():
    net = ActionSetDueling(1, 1, [1])
    with torch.no_grad():
        for weight in net.parameters():
            weight.fill_(1.0)
    # V(s) = relu(s + 1) + 1 and A(s, x) = relu(s + 1 + x) + 1: at s = 1 V = 3, and A = 3, 4, 8 of x = 0, 1, 5.
    q = net(torch.tensor([[1.0]]), torch.tensor([[[0.0], [1.0], [5.0]]]), torch.tensor([[True, True, False]]))
    torch.testing.assert_close(q, torch.tensor([[2.5, 3.5, 7.5]]))
    # Nothing allowed: no division by 0.
    q = net(torch.tensor([[1.0]]), torch.tensor([[[0.0], [1.0], [5.0]]]), torch.zeros(1, 3, dtype=torch.bool))
    torch.testing.assert_close(q, torch.tensor([[6.0, 7.0, 11.0]]))


def test_the_mean_of_the_allowed_values_is_that_of_the_state(net, shown):
    q = net(shown.state, shown.candidates, shown.mask)
    mean = torch.where(shown.mask, q, 0.0).sum(1) / shown.mask.sum(1)
    torch.testing.assert_close(mean, net.value(shown.state).squeeze(1))


def test_the_first_layer_is_one_on_both_together(net, shown):
    joint = torch.cat([net.of_state.weight, net.of_action.weight], 1)
    pairs = torch.cat([shown.state.unsqueeze(1).expand(-1, CHOICES, -1), shown.candidates], 2)
    advantage = net.advantage(pairs @ joint.T + net.of_state.bias).squeeze(2)
    q = net(shown.state, shown.candidates, shown.mask)
    torch.testing.assert_close(q - q[:, :1], advantage - advantage[:, :1])


def test_another_order_of_the_candidates_gives_the_same_values_in_that_order(net, shown):
    order = torch.tensor([2, 0, 3, 1])
    q = net(shown.state, shown.candidates, shown.mask)
    torch.testing.assert_close(net(shown.state, shown.candidates[:, order], shown.mask[:, order]), q[:, order])


def test_what_is_not_allowed_does_not_count(net, shown):
    assert not shown.mask.all()
    other = torch.where(shown.mask.unsqueeze(2), shown.candidates, 9.0)
    q, again = net(shown.state, shown.candidates, shown.mask), net(shown.state, other, shown.mask)
    assert torch.equal(q[shown.mask], again[shown.mask])
    assert not torch.equal(q, again)


def test_it_learns_which_candidate_the_state_likes():
    learner = build().learn(20_000)
    seen = Like().reset(2_000, torch.Generator().manual_seed(99))
    action, _ = learner.predict(vars(seen), deterministic=True, action_masks=seen.mask)
    row = torch.arange(len(action))
    assert seen.mask[row, action].all()
    pay = (seen.state.unsqueeze(1) * seen.candidates).sum(2).masked_fill(~seen.mask, -torch.inf)
    chance = torch.where(seen.mask, pay, 0.0).sum(1) / seen.mask.sum(1)
    earned, best = pay[row, action].mean() - chance.mean(), pay.amax(1).mean() - chance.mean()
    assert earned > 0.9 * best


def test_a_saved_model_chooses_the_same(tmp_path, shown):
    learner = build(gamma=0.9, double=True).learn(1_000)
    learner.save(tmp_path / "model")
    loaded = DQN.load(tmp_path / "model", device="cpu")
    assert torch.equal(learner.q_net(vars(shown)), loaded.q_net(vars(shown)))
    assert loaded.policy_kwargs["net_arch"] == [32]


def space_without(key):
    return spaces.Dict({name: part for name, part in Like.observation_space.items() if name != key})


@pytest.mark.parametrize("key", ["state", "candidates", "mask"])
def test_another_dict_is_refused(key):
    with pytest.raises(InputError, match="allowed: a Dict of state, candidates, mask"):
        DQN.policy_aliases["ActionSetPolicy"](space_without(key), Like.action_space, lambda _: 1e-3)


def test_other_spaces_and_no_hidden_layer_are_refused():
    with pytest.raises(InputError, match="observation_space: Box"):
        DQN.policy_aliases["ActionSetPolicy"](Like.observation_space["state"], Like.action_space, lambda _: 1e-3)
    with pytest.raises(InputError, match="net_arch: empty"):
        build(policy_kwargs={"net_arch": []})

"""REINFORCE: its gradient by hand, known optima, imitation, resuming, and faults."""

import functools
from dataclasses import dataclass

import gymnasium
import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from apps.crs import policy_gradient
from apps.crs.policy_gradient import (
    PolicyGradient,
    PolicyGradientSettings,
    Steps,
    imitation_loss,
    log_probabilities,
    play,
    reinforce_loss,
    returns_to_go,
)
from core.checkpoint import Checkpoint
from core.errors import InputError
from core.rl import TrainingDiverged
from core.simulation.simulator import Step


@dataclass(frozen=True)
class Place:
    at: Tensor


@dataclass(frozen=True)
class Luck:
    uniform: Tensor


class TwoStates:
    """In state 0 action 0 pays ``early`` and ends, 1 leads to state 1; there 1 pays 1, 0 nothing, and all end.

    Action 2 pays 100 wherever it is allowed, which is nowhere.
    """

    agents = 1
    variables: dict = {}  # noqa: RUF012
    observation_space = gymnasium.spaces.Box(0, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(3)

    def __init__(self, early=0.1):
        self.early = early

    def reset(self, batch, generator):
        return Place(torch.zeros(batch, dtype=torch.int64))

    def noise(self, batch, generator):
        return Luck(torch.rand(batch, generator=generator))

    def observe(self, state, noise=None):
        return nn.functional.one_hot(state.at, 2).float()

    def action_mask(self, state):
        return torch.tensor([True, True, False]).expand(len(state.at), 3)

    def step(self, state, action, noise):
        pays = torch.where(state.at == 0, torch.tensor([self.early, 0.0])[action.clamp(max=1)], (action == 1).float())
        pays = torch.where(action == 2, 100.0, pays)
        ends = (state.at == 1) | (action == 0)
        return Step(Place(torch.ones_like(state.at)), pays, ends)


def linear(inputs=2, actions=3, seed=0):
    network = nn.Linear(inputs, actions)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for x in network.parameters():
            x.copy_(0.3 * torch.randn(x.shape, generator=generator))
    return network


def training(settings, world=None, network=None, seed=0, demonstrator=None):
    world = TwoStates() if world is None else world
    network = linear() if network is None else network
    return PolicyGradient(world, network, settings, seed, horizon=2, demonstrator=demonstrator)


def drawn_steps(n=40, seed=1):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(n, 3, generator=generator) < 0.6
    mask[:, 0] = True
    action = torch.rand(n, 3, generator=generator).masked_fill(~mask, -1).argmax(1)
    turn = torch.randint(3, (n,), generator=generator)
    return Steps(torch.rand(n, 2, generator=generator), mask, action, turn, torch.randn(n, generator=generator))


def test_returns_to_go_by_hand():
    rewards = torch.tensor([[1.0, 0.0], [2.0, 0.0], [4.0, 8.0]])
    assert returns_to_go(rewards, 0.5).tolist() == [[3.0, 2.0], [4.0, 4.0], [4.0, 8.0]]


@pytest.mark.parametrize("baseline", ["none", "turn"])
def test_the_gradient_is_that_of_the_formula(baseline):
    # d/dz_k log softmax(z)_a = [k = a] - pi_k, and pi_k = 0 where k is not allowed.
    steps, network, episodes = drawn_steps(), linear(), 7
    reinforce_loss(network, steps, episodes, baseline).backward()
    with torch.no_grad():
        logits = network(steps.seen).double()
        odds = logits.exp() * steps.mask
        pi = odds / odds.sum(1, keepdim=True)
        credit = steps.returns.double().clone()
        if baseline == "turn":
            for t in range(3):
                credit[steps.turn == t] -= steps.returns[steps.turn == t].double().mean()
        score = nn.functional.one_hot(steps.action, 3) - pi
        wanted = -(credit.unsqueeze(1) * score).T @ steps.seen.double() / episodes
    torch.testing.assert_close(network.weight.grad.double(), wanted, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(
        network.bias.grad.double(), -(credit.unsqueeze(1) * score).sum(0) / episodes, atol=1e-6, rtol=1e-5
    )


def test_the_mean_gradient_on_a_bandit_is_that_of_the_expected_reward():
    class Bandit(TwoStates):
        def action_mask(self, state):
            return None

        def step(self, state, action, noise):
            pays = torch.tensor([0.2, 1.0, -0.5])[action]
            return Step(state, pays, torch.ones(len(action), dtype=torch.bool))

    network = linear()
    found = training(PolicyGradientSettings(episodes=200_000, baseline="none"), Bandit(), network)
    found.loss(0).backward()
    pi = network(torch.tensor([1.0, 0.0])).softmax(0).detach()
    value = pi @ torch.tensor([0.2, 1.0, -0.5])
    wanted = pi * (torch.tensor([0.2, 1.0, -0.5]) - value)
    torch.testing.assert_close(-network.bias.grad, wanted, atol=5e-3, rtol=0)


def test_an_episode_is_played_as_the_world_has_it():
    def choose(seen, mask, state):
        # The first half of the first turn's copies ends at once.
        return (torch.arange(len(seen)) >= 2).long() if bool((state.at == 0).all()) else torch.ones(len(seen)).long()

    steps = play(TwoStates(), choose, 5, 2, torch.Generator(), discount=0.5)
    assert steps.turn.tolist() == [0] * 5 + [1] * 3
    assert steps.action.tolist() == [0, 0, 1, 1, 1] + [1] * 3
    torch.testing.assert_close(steps.returns, torch.tensor([0.1, 0.1, 0.5, 0.5, 0.5, 1.0, 1.0, 1.0]))


@pytest.mark.parametrize("baseline", ["none", "turn"])
@pytest.mark.parametrize(("discount", "best"), [(0.7, 1), (0.05, 0)])
def test_it_learns_what_is_best_at_its_discount(baseline, discount, best):
    # From state 0: 0.1 at once, or the discount times 1.
    settings = PolicyGradientSettings(
        updates=200, episodes=64, learning_rate=0.1, discount=discount, baseline=baseline, max_grad_norm=10
    )
    found = training(settings, TwoStates(0.1))
    found.train()
    pi = log_probabilities(found.network, torch.eye(2), torch.tensor([[True, True, False]]).expand(2, 3)).exp()
    assert pi[0, best] > 0.9
    assert pi[:, 2].tolist() == [0, 0]
    if best == 1:
        assert pi[1, 1] > 0.95


def test_pretraining_reproduces_the_rates_of_the_demonstrator():
    generator = torch.Generator().manual_seed(3)

    def choose(seen, mask, state):
        rate = torch.where(state.at == 0, 0.8, 0.3)
        return (torch.rand(len(rate), generator=generator) < rate).long()

    settings = PolicyGradientSettings(demonstrations=4_000, pretraining=400, pretraining_rate=0.03, updates=0)
    found = training(settings, demonstrator=choose)
    found.train()
    pi = log_probabilities(found.network, torch.eye(2), torch.tensor([[True, True, False]]).expand(2, 3)).exp()
    for at in (0, 1):
        of_state = found.decisions.seen[:, at] == 1
        rate = found.decisions.action[of_state].float().mean()
        assert pi[at, 1].item() == pytest.approx(float(rate), abs=0.03)
    # At the frequencies of the decisions the cross-entropy is at its least.
    assert imitation_loss(found.network, found.decisions) < imitation_loss(linear(), found.decisions)


def test_without_a_demonstrator_there_is_no_pretraining():
    settings = PolicyGradientSettings(pretraining=10, updates=5)
    assert training(settings).steps == 5
    assert training(settings.model_copy(update={"demonstrations": 0}), demonstrator=lambda *_: None).steps == 5


QUICK = PolicyGradientSettings(demonstrations=50, pretraining=12, pretraining_batch=16, updates=12, episodes=8)


def always_one(seen, mask, state):
    return torch.ones(len(seen), dtype=torch.int64)


def with_dropout():
    first, last = linear(2, 8, 1), linear(8, 3, 2)
    return nn.Sequential(first, nn.ReLU(), nn.Dropout(0.5), last)


@pytest.mark.parametrize("stop_at", [5, 17])
def test_a_resumed_training_equals_one_that_was_not_interrupted(tmp_path, monkeypatch, stop_at):
    monkeypatch.setattr(policy_gradient, "Checkpoint", functools.partial(Checkpoint, every_seconds=0.0))
    path = tmp_path / "state.safetensors"
    whole = training(QUICK, network=with_dropout(), demonstrator=always_one)
    whole.train()

    def stop(share, message):
        if share >= stop_at / 24:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training(QUICK, network=with_dropout(), demonstrator=always_one).train(checkpoint=path, progress=stop)
    shares = []
    again = training(QUICK, network=with_dropout(), demonstrator=always_one)
    again.train(checkpoint=path, progress=lambda share, message: shares.append(share))
    assert len(shares) < 24
    for name, x in whole.network.state_dict().items():
        assert torch.equal(x, again.network.state_dict()[name]), name
    assert not again.network.training


def test_the_state_of_another_training_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(policy_gradient, "Checkpoint", functools.partial(Checkpoint, every_seconds=0.0))
    path = tmp_path / "state.safetensors"
    training(QUICK).train(checkpoint=path, run="this")
    with pytest.raises(InputError, match=r"state\.safetensors: is the state of another training"):
        training(QUICK).train(checkpoint=path, run="that")
    with pytest.raises(InputError, match="another training"):
        training(QUICK, seed=1).train(checkpoint=path, run="this")
    path.write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"state\.safetensors: not a complete safetensors file"):
        training(QUICK).train(checkpoint=path, run="this")


class Broken(TwoStates):
    """Pays NaN from the eleventh step on."""

    steps = 0

    def step(self, state, action, noise):
        step = super().step(state, action, noise)
        self.steps += 1
        return Step(step.state, step.reward * (float("nan") if self.steps > 10 else 1.0), step.terminated)


def test_a_number_that_is_not_finite_ends_the_training_with_the_last_good_weights():
    settings = PolicyGradientSettings(updates=50, episodes=8)
    found = training(settings, Broken())
    seen = []
    with pytest.raises(TrainingDiverged, match="last good weights restored"):
        found.train(progress=lambda share, message: seen.append(found.network.weight.detach().clone()))
    assert 0 < len(seen) < 50
    assert bool(torch.isfinite(found.network.weight).all())
    # The weights before the last step are the last for which a loss was seen.
    assert torch.equal(found.network.weight, seen[-2] if len(seen) > 1 else linear().weight)


def test_weights_that_overflow_end_it_too():
    found = training(PolicyGradientSettings(updates=5, episodes=8, learning_rate=1e30), network=with_dropout())
    with pytest.raises(TrainingDiverged):
        found.train()
    for name, x in with_dropout().state_dict().items():
        assert torch.equal(found.network.state_dict()[name], x)


@pytest.mark.parametrize(
    "wrong", [{"discount": 0}, {"discount": 1.1}, {"episodes": 0}, {"baseline": "critic"}, {"learning_rate": -1}]
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ValidationError):
        PolicyGradientSettings(**wrong)

"""The debate as a world plays the same game as two debaters who meet, whoever starts and whoever learns."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch
from gymnasium.utils.env_checker import check_env

from apps.sepsis.debate import Position, argue_alone, compare, hold_debate, verdict
from apps.sepsis.debaters import FixedEvidence, LookaheadDebater
from apps.sepsis.game import BOUND, FEATURES, FORFEIT, DebateEnv, DebateGame, view
from apps.sepsis.preferences import Preferences
from core.errors import InputError
from core.simulation import SB3VecEnv, rollout, tree
from simulators.sepsis.features import ACTIONS
from tests.apps.sepsis_judges import TableJudge, pairwise_judge

N = 40


def pairs(n=N, seed=0):
    g = torch.Generator().manual_seed(seed)
    first = torch.randint(ACTIONS, (n,), generator=g)
    second = (first + torch.randint(1, ACTIONS, (n,), generator=g)) % ACTIONS
    zero = torch.zeros(n, dtype=torch.long)
    return Preferences(torch.randn(n, FEATURES, generator=g), first, second, zero, zero, torch.ones(n))


@pytest.fixture
def judge():
    made = pairwise_judge(FEATURES)
    assert made.pair is not None
    return TableJudge(made.weight.float(), made.pair.float())


class Likeliest:
    """Rates items by a fixed function of state and own action, and can be sampled from."""

    def logits(self, position):
        rated = position.state * torch.cos(position.own[:, None] + torch.arange(FEATURES))
        return rated.masked_fill(position.revealed, -torch.inf)

    def choose(self, position):
        return self.logits(position).argmax(1)


def play(game, debater, state):
    """The learner's seat taken by a debater who does not count the turns: final state and every reward."""
    rewards, generator = [], torch.Generator()
    for _ in range(game.moves):
        step = game.step(state, debater.choose(game.position(state)), game.noise(len(state.row), generator))
        state = step.state
        rewards.append(step.reward)
    assert step.terminated.all()
    return state, torch.stack(rewards)


@pytest.mark.parametrize("order", ["alternating", "upfront"])
@pytest.mark.parametrize("role", ["preferred", "rejected"])
@pytest.mark.parametrize("utility", ["sign", "difference", "wins"])
def test_it_is_the_debate_of_two_debaters(judge, order, role, utility):
    p, rows = pairs(), torch.arange(N)
    one, two = LookaheadDebater(judge), Likeliest()
    game = DebateGame(judge, p, rival=two, order=order, role=role, utility=utility)
    starts = torch.arange(N) % 3 > 0
    end, rewards = play(game, one, game.reset_to(rows, starts=starts))
    first, second = (p.preferred, p.rejected) if role == "preferred" else (p.rejected, p.preferred)
    starter = torch.where(starts, 1, 2)
    met = hold_debate(p.state, first, second, one, two, 6, order=order, starter=starter)
    assert torch.equal(end.revealed, met.evidence)
    assert not rewards[:-1].any()
    torch.testing.assert_close(rewards[-1], verdict(judge, met, utility))


def test_alone_it_is_the_argument_of_one_debater(judge):
    p = pairs()
    game = DebateGame(judge, p, items=5, role="preferred")
    end, rewards = play(game, Likeliest(), game.reset_to(torch.arange(N)))
    alone = argue_alone(p.state, p.preferred, p.rejected, Likeliest(), 5)
    assert torch.equal(end.revealed, alone.evidence)
    assert torch.equal(rewards[-1], verdict(judge, alone))


@pytest.mark.parametrize("order", ["alternating", "upfront"])
@pytest.mark.parametrize("starter", ["learner", "rival", "drawn"])
def test_every_debate_takes_the_learners_moves_and_reveals_all_items_once(judge, order, starter):
    game = DebateGame(judge, pairs(), items=8, rival=Likeliest(), order=order, starter=starter)
    g = torch.Generator().manual_seed(1)
    state = game.reset(64, g)
    spoken = {"learner": 0, "rival": 4 if order == "upfront" else 1}
    if starter == "drawn":
        assert set(state.turn.tolist()) == set(spoken.values())
    else:
        assert (state.turn == spoken[starter]).all()
    for k in range(game.moves):
        item = torch.rand(64, FEATURES, generator=g).masked_fill(~game.action_mask(state), -1).argmax(1)
        step = game.step(state, item, game.noise(64, g))
        state = step.state
        assert torch.equal(step.terminated, torch.full((64,), k == 3))
    assert (state.revealed.sum(1) == 8).all()
    assert (state.turn == 8).all()


def test_the_learner_sees_nothing_of_the_rivals_action(judge):
    game = DebateGame(judge, pairs(), role="preferred")
    state = game.reset(9, torch.Generator().manual_seed(0))
    seen = game.observe(state)
    assert torch.equal(seen, game.observe(replace(state, other=(state.other + 3) % ACTIONS)))
    assert seen.shape == (9, 113)
    assert torch.equal(seen[:, 88:].argmax(1), state.own)
    assert view(torch.full((1, FEATURES), 1e9), state.revealed[:1], state.own[:1]).max() == BOUND


def test_swapping_the_roles_changes_the_sign(judge):
    p, g = pairs(), torch.Generator().manual_seed(4)
    evidence = torch.rand(N, FEATURES, generator=g) < 0.2
    one = compare(judge, p.state, evidence, p.preferred, p.rejected)
    assert torch.equal(one, -compare(judge, p.state, evidence, p.rejected, p.preferred))
    assert one.abs().sum() > N / 2


def test_both_roles_and_both_starters_are_drawn_equally(judge):
    p = pairs()
    state = DebateGame(judge, p, rival=Likeliest()).reset(4000, torch.Generator().manual_seed(0))
    for share in (state.starts, state.own == p.preferred[state.row]):
        assert abs(share.float().mean() - 0.5) < 4 * 0.5 / 4000**0.5
    assert torch.bincount(state.row, minlength=N).min() > 50


def test_a_sampled_rival_follows_its_probabilities_and_the_noise(judge):
    p = pairs(1)
    game = DebateGame(judge, p, rival=Likeliest(), starter="rival", role="preferred", sampled=True)
    g, n = torch.Generator().manual_seed(0), 40_000
    noise = game.noise(n, g)
    rows = torch.zeros(n, dtype=torch.long)
    first = game.reset_to(rows, noise=noise).revealed
    assert torch.equal(first, game.reset_to(rows, noise=noise).revealed)
    position = Position(p.state, torch.zeros(1, FEATURES, dtype=torch.bool), p.rejected, p.preferred, 6)
    probability = Likeliest().logits(position).softmax(1)[0]
    error = (probability * (1 - probability) / n).sqrt()
    assert ((first.float().mean(0) - probability).abs() < 5 * error).all()
    with pytest.raises(InputError, match="noise: None"):
        game.reset_to(rows)


def test_a_batch_equals_its_single_debates(judge):
    game = DebateGame(judge, pairs(), rival=LookaheadDebater(judge))
    g = torch.Generator().manual_seed(2)
    state = game.reset(16, g)
    item = game.action_mask(state).long().argmax(1)
    whole = game.step(state, item, game.noise(16, g))
    for i in range(16):
        k = torch.tensor([i])
        alone = game.step(tree.take(state, k), item[k], game.noise(1, g))
        assert torch.equal(alone.state.revealed, whole.state.revealed[k])
        assert torch.equal(alone.reward, whole.reward[k])


def test_a_rivals_lists_belong_to_the_preferences(judge):
    order = torch.stack([torch.arange(i, i + 3) for i in range(N)])
    game = DebateGame(judge, pairs(), rival=FixedEvidence(order), order="upfront", starter="rival")
    state = game.reset(100, torch.Generator().manual_seed(0))
    assert state.revealed.gather(1, order[state.row]).all()
    assert (state.revealed.sum(1) == 3).all()


def test_an_item_that_is_revealed_again_loses_the_debate(judge):
    game = DebateGame(judge, pairs(), utility="difference")
    g = torch.Generator().manual_seed(0)
    step = game.step(game.reset(3, g), torch.tensor([4, 5, 6]), game.noise(3, g))
    step = game.step(step.state, torch.tensor([4, 6, 6]), game.noise(3, g))
    assert step.terminated.tolist() == [True, False, True]
    assert step.reward.tolist() == [FORFEIT, 0.0, FORFEIT]


def test_gymnasium_accepts_it_and_masks_reach_its_learners(judge):
    env = DebateEnv(DebateGame(judge, pairs(), rival=Likeliest()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_env(env, skip_render_check=True)
    _, info = env.reset(seed=3)
    done = False
    while not done:
        item = int(env.action_masks().argmax())
        assert info["action_mask"][item]
        _, reward, done, truncated, info = env.step(item)
    assert reward in (-1.0, 0.0, 1.0)
    assert not truncated


def test_a_roll_out_is_recorded_by_feature(judge):
    game = DebateGame(judge, pairs(), rival=LookaheadDebater(judge), role="preferred", starter="learner")
    found = rollout(game, lambda seen, state: LookaheadDebater(judge).choose(game.position(state)), 3, 20, 0)
    assert dict(found.sizes) == {"rep": 20, "time": 3, "feature": FEATURES}
    assert found.terminated.all()
    assert (found.revealed.sum("feature") == [0, 2, 4]).all()


def test_it_runs_in_the_vector_view(judge):
    env = SB3VecEnv(DebateGame(judge, pairs(), rival=Likeliest()), 32, scaled=False, seed=0)
    env.reset_tensor()
    for k in range(1, 7):
        assert env.episodes.masked
        step = env.step_tensor(env.episodes.action_mask().long().argmax(1))
        assert bool(step.terminated.all()) == (k % 3 == 0)
        assert not step.truncated.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"items": 5, "rival": Likeliest()}, "items: 5; must be an even number"),
        ({"items": 45}, "items: 45"),
        ({"role": "accepted"}, "role: 'accepted'; allowed: preferred, rejected, both"),
        ({"order": "random"}, "order: 'random'; allowed: alternating, upfront"),
        ({"preferences": pairs(0)}, "preferences: none"),
        ({"rival": FixedEvidence(torch.zeros(N, 3)), "sampled": True}, "sampled: FixedEvidence has no probabilities"),
    ],
)
def test_impossible_games_are_refused(judge, options, message):
    with pytest.raises(InputError, match=message):
        DebateGame(judge, **({"preferences": pairs()} | options))

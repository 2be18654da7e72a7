"""A rule's turns as transitions of the choice: which action, what is paid, and what is left out."""

import pytest
import torch

from apps.crs.demonstrations import chosen_by, demonstrations
from apps.crs.embedding import EmbeddingSettings, fit_embeddings
from apps.crs.policies import AbsGreedy, MaxEntropy, OracleAsk, Policy, Threshold
from core.errors import InputError
from core.rl.demonstrations import DemonstrationDQN
from core.simulation import SB3VecEnv, tree
from simulators.crs import selection
from simulators.crs.choice import CandidateChoice
from simulators.crs.conversation import Conversation
from simulators.crs.features import CompactFeatures
from simulators.crs.generated import PRESETS, generate
from simulators.crs.rules import Rules

QUESTIONS = 6


@pytest.fixture(scope="module")
def worlds():
    found = {}
    for question in ("binary", "enumerated", "multi_choice"):
        catalogue = generate(PRESETS["tiny"], 0)
        points = fit_embeddings(catalogue, EmbeddingSettings(method="random", dim=8), 0, device="cpu")
        found[question] = Conversation(catalogue, points, Rules(question=question, list_length=3, max_turns=6))
    return found


def chooser(world, questions=QUESTIONS, items=0):
    return CandidateChoice(world, CompactFeatures(), questions=questions, items=items)


class AsksTheWorst(Policy):
    """Asks, while it may, about the attribute of the smallest entropy that can still be asked about."""

    def __call__(self, observation, state=None):
        value = selection.attribute_values(self.world, observation, selection.shares(self.world, observation))
        least = torch.where(value > -torch.inf, value, torch.inf).min(1)
        asks = selection.ask(self.world, least.indices.unsqueeze(1))
        return torch.where(least.values.isfinite().unsqueeze(1), asks, self.recommend(observation))


@pytest.mark.parametrize("question", ["binary", "enumerated", "multi_choice"])
@pytest.mark.parametrize("items", [0, 3])
def test_a_rule_that_asks_what_is_best_takes_the_first_question(worlds, question, items):
    choice = chooser(worlds[question], items=items)
    held = demonstrations(choice, Threshold(choice.world, 5), 40, 0)
    assert set(held.actions.tolist()) == {0, QUESTIONS}
    assert held.dones.sum() == 40
    # A recommendation that is accepted pays 1 and ends the dialogue; a question does neither.
    accepted = held.rewards == 1
    assert accepted.any()
    assert (held.actions[accepted] == QUESTIONS).all()
    assert held.dones[accepted].all()
    assert (held.rewards[held.actions == 0] < 0.1).all()


def test_the_transitions_are_the_choices_own(worlds):
    choice = chooser(worlds["binary"], items=3)
    policy = MaxEntropy(choice.world, seed=3)
    held = demonstrations(choice, policy, 30, 5)
    n = len(held)
    assert held.actions.dtype == torch.int64
    assert held.masks.gather(1, held.actions.unsqueeze(1)).all()
    assert torch.equal(held.masks, held.observations["mask"])
    assert torch.equal(held.next_masks, held.next_observations["mask"])
    space = choice.observation_space
    for row in (0, n // 2, n - 1):
        assert space.contains({k: v[row].to(torch.int8 if k == "mask" else v.dtype).numpy() for k, v in
                               held.observations.items()})  # fmt: skip
    # What follows a turn that does not end stands there as the beginning of another one.
    going = held.next_observations["state"][~held.dones]
    assert (torch.cdist(going, held.observations["state"], p=torch.inf).amin(1) < 1e-4).all()
    assert len(going) == n - 30


def test_the_same_seed_gives_the_same_and_another_one_others(worlds):
    choice = chooser(worlds["binary"])
    first, again, other = (demonstrations(choice, MaxEntropy(choice.world, seed=1), 20, seed) for seed in (0, 0, 1))
    for (name, a), (_, b) in zip(tree.named_tensors(first), tree.named_tensors(again), strict=True):
        assert torch.equal(a, b), name
    assert len(first) != len(other) or not torch.equal(first.rewards, other.rewards)


def test_at_the_last_turn_it_recommends(worlds):
    world = worlds["binary"]
    held = demonstrations(chooser(world), Threshold(world, 0), 40, 0)
    turn = held.observations["state"][:, 3 * 8 : 3 * 8 + 6].argmax(1)
    assert (held.actions[turn == 5] == QUESTIONS).all()
    assert (held.actions[turn == 0] == 0).all()
    assert (held.actions[~held.masks[:, 0]] == QUESTIONS).all()


def test_a_question_that_is_no_option_is_played_and_left_out(worlds):
    world = worlds["binary"]
    choice = chooser(world, questions=1)
    oracle = demonstrations(choice, OracleAsk(world, 5), 60, 0)
    best = demonstrations(choice, Threshold(world, 5), 60, 0)
    assert len(oracle) < len(best)
    # The oracle's questions were asked all the same: they narrow faster than the best ones that a learner has.
    assert oracle.rewards[oracle.actions == 1].mean() > best.rewards[best.actions == 1].mean()


def test_by_hand(worlds):
    world = worlds["binary"]
    choice = chooser(world, items=3)
    state = choice.reset(4, torch.Generator().manual_seed(0))
    options, mask = state.options, choice.action_mask(state)
    missing = next(p for p in range(world.catalogue.n_attributes) if p not in options.question[3].tolist())
    action = torch.stack(
        [
            selection.ask(world, options.question[:1, 2:3])[0],
            selection.recommend(world, options.item[1:2, [1, 0]])[0],
            selection.recommend(world, torch.tensor([[-1]]))[0],
            selection.ask(world, torch.tensor([[missing]]))[0],
        ]
    )
    assert chosen_by(choice, options, mask, action).tolist() == [2, QUESTIONS + 1, QUESTIONS, -1]
    # What the choice makes of them is what was asked.
    assert torch.equal(choice.action_of(options, torch.tensor([2, 0, 0, 0]))[0], action[0])


def test_a_learner_takes_them_and_then_asks_as_the_rule(worlds):
    choice = chooser(worlds["binary"])
    policy = Threshold(choice.world, 8)
    env = SB3VecEnv(choice, 8, scaled=False, seed=0)
    kwargs = {"net_arch": [32]}
    options = {"learning_rate": 3e-3, "buffer_size": 800, "learning_starts": 32, "seed": 0, "policy_kwargs": kwargs}
    model = DemonstrationDQN("ActionSetPolicy", env, batch_size=64, target_update_interval=0, tau=0.01, **options)
    model.demonstrate(demonstrations(choice, policy, 200, 0))
    model.pretrain(250)
    fresh = demonstrations(choice, policy, 50, 1)
    actions, _ = model.predict(fresh.observations, deterministic=True, action_masks=fresh.masks)
    assert ((actions == QUESTIONS) == (fresh.actions == QUESTIONS)).float().mean() > 0.9
    assert (actions == fresh.actions).float().mean() > 0.6
    model.learn(160)


def test_refusals(worlds):
    world = worlds["binary"]
    with pytest.raises(InputError, match="demonstrations: dialogues = 0"):
        demonstrations(chooser(world), AbsGreedy(world), 0, 0)
    late = world.with_rules(max_turns=1, turns="paper")
    assert len(demonstrations(chooser(late), AsksTheWorst(late), 5, 0)) == 5
    never = world.with_rules(max_turns=2, turns="official")
    with pytest.raises(InputError, match="no question of AsksTheWorst is among the 1 of the choice"):
        demonstrations(chooser(never, questions=1), AsksTheWorst(never), 3, 0)

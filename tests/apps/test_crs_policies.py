"""Policies that are rules: when they recommend, what they ask, and what they never do."""

import numpy as np
import pytest
import torch

from apps.crs.evaluation import Cases, evaluate
from apps.crs.policies import AbsGreedy, MaxEntropy, OracleAsk, RandomPolicy, Threshold
from core.errors import InputError
from simulators.crs import selection
from simulators.crs.generated import generate
from tests.simulators.crs_cases import QUESTIONS, SMALL, conversation, written_out

CATALOGUE = generate(SMALL, 0)
PAIRS = CATALOGUE.pairs("test")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def with_candidates(world, sizes):
    """What the system knows where there are so many candidates left."""
    seen = dict(world.observe(world.reset(len(sizes), seeded()), None))
    seen["candidate"] = torch.arange(world.catalogue.n_items) < torch.tensor(sizes).unsqueeze(1)
    return seen


def play(world, policy, **further):
    return evaluate(world, policy, Cases.of(world, PAIRS, 1), **further)


def test_max_entropy_recommends_as_often_as_a_list_covers_the_candidates():
    world = conversation(CATALOGUE, list_length=10)
    policy, n = MaxEntropy(world), 4000
    for size, share in ((40, 0.25), (20, 0.5), (10, 1.0), (4, 1.0)):
        lists = (policy(with_candidates(world, [size] * n))[:, 0] < 0).float().mean()
        assert float(lists) == pytest.approx(share, abs=4 * (share * (1 - share) / n) ** 0.5)


def test_threshold_asks_while_there_are_more():
    world = conversation(CATALOGUE, list_length=10)
    action = Threshold(world, 20)(with_candidates(world, [5, 20, 21, 60]))
    assert (action[:, 0] < 0).tolist() == [True, True, False, False]
    with pytest.raises(InputError, match="n = -1: must be at least 0"):
        Threshold(world, -1)


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("kind", ["weighted_entropy", "entropy", "preference"])
def test_the_question_is_the_one_of_the_largest_value(question, kind):
    world = conversation(CATALOGUE, question=question, choices=2)
    seen = world.observe(world.reset(20, seeded()), None)
    share = selection.shares(world, seen, weighted=kind != "entropy")
    values = selection.attribute_values(world, seen, share, kind)
    of_question = selection.question_values(world, values)
    action = Threshold(world, 0, selection=kind)(seen)
    asked = action[:, 0] if question != "multi_choice" else world.types[action[:, 0]]
    assert torch.equal(of_question.gather(1, asked.unsqueeze(1)).squeeze(1), of_question.max(1).values)


@pytest.mark.parametrize("question", QUESTIONS)
def test_nothing_is_asked_twice(question):
    world = conversation(CATALOGUE, question=question, list_length=2)
    data = play(world, Threshold(world, 1))
    for questions in data["question"].values:
        asked = [q for q in questions.tolist() if q >= 0]
        if question != "multi_choice":  # a type has more values than one such question names
            assert len(asked) == len(set(asked))
    assert (data["action"].values == 0).any()


def test_abs_greedy_only_recommends_and_never_the_same_item_again():
    world = conversation(CATALOGUE, list_length=3)
    data = play(world, AbsGreedy(world))
    assert not (data["action"].values == 0).any()
    for lists in data["list"].values:
        items = lists[lists >= 0].tolist()
        assert len(items) == len(set(items))
    first = data["list"].values[:, 0]
    start = world.reset_to(
        *[torch.as_tensor(x) for x in (data[["user", "target"]].to_array().values.T, data["opening"].values)]
    )
    best = start.score.masked_fill(~start.candidate, -torch.inf).argsort(1, descending=True)[:, :3].numpy()
    there = np.arange(3) < start.candidate.sum(1, keepdim=True).numpy()
    assert (first[there] == best[there]).all()
    assert (first[~there] == -1).all()


@pytest.mark.parametrize("question", QUESTIONS)
def test_the_oracle_never_hears_no(question):
    world = conversation(CATALOGUE, question=question, list_length=2)
    data = play(world, OracleAsk(world, 2))
    answers = data["answer"].values
    assert not (answers == 0).any()
    assert (answers == 1).any()


def test_the_oracle_asks_for_the_rarest_attribute_first():
    # The target, item 0, has 1 (with one other item) and 2 (alone).
    catalogue = written_out([(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (2, 0), (3, 0)], 4, [0, 0, 0])
    world = conversation(catalogue, list_length=1)
    state = world.reset_to(torch.tensor([[0, 0]]), torch.tensor([0]))
    assert OracleAsk(world, 1)(world.observe(state, None), state)[0, 0] == 2


@pytest.mark.parametrize("question", QUESTIONS)
def test_random_actions_are_of_the_set_and_cover_it(question):
    world = conversation(CATALOGUE, question=question, list_length=5)
    policy = RandomPolicy(world, questions=3)
    state = world.reset(1, seeded())
    state = type(state)(
        **{name: value.expand(600, *value.shape[1:]).contiguous() for name, value in vars(state).items()}
    )
    seen = world.observe(state, None)
    options = policy.choice.options(seen)
    action = policy(seen, state)
    asks = action[:, 0] >= 0
    offered = {tuple(x) for x in options.named[0].tolist()}
    asked = {tuple(x) for x in action[asks][:, : options.named.shape[2]].tolist()}
    assert asked == {x for x in offered if x[0] >= 0}
    items = [v for v in options.item[0].tolist() if v >= 0]
    assert set(action[~asks][:, 1].tolist()) == set(items)
    assert all(sorted(row) == sorted(options.item[0].tolist()) for row in action[~asks][:, 1:6].tolist())


def test_all_attributes_asked_leaves_the_list():
    catalogue = written_out([(0, 0), (1, 0)], 2, [0])
    world = conversation(catalogue, list_length=1)
    seen = world.observe(world.reset(2, seeded()), None)
    for policy in (Threshold(world, 0), MaxEntropy(world), RandomPolicy(world)):
        assert bool((policy(seen)[:, 0] == -1).all())
        assert bool((policy(seen)[:, 1] >= 0).all())


def test_coins_begin_anew_with_new_dialogues():
    world = conversation(CATALOGUE, list_length=10)
    seen = with_candidates(world, [25] * 200)
    policy, other = MaxEntropy(world, seed=1), MaxEntropy(world, seed=2)
    first = policy(seen)
    assert not torch.equal(policy(seen), first)
    policy.reset(200)
    assert torch.equal(policy(seen), first)
    assert not torch.equal(other(seen), first)

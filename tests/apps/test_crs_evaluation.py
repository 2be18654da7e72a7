"""Playing dialogues: the same cases and luck for everybody, whatever the batch, and what is written down."""

import numpy as np
import pytest
import torch

from apps.crs.evaluation import Cases, evaluate
from apps.crs.metrics import success_curve
from apps.crs.policies import AbsGreedy, MaxEntropy, Policy, Threshold
from benchmarks.one_user_at_a_time import OneUserAtATime
from core.errors import InputError
from simulators.crs import selection
from simulators.crs.generated import generate
from tests.simulators.crs_cases import QUESTIONS, SMALL, conversation

CATALOGUE = generate(SMALL, 0)
PAIRS = CATALOGUE.pairs("train")
ERRING = {"answer_noise": 0.2, "unknown_rate": 0.2, "quit_hazard": 0.1}


class Asks(Policy):
    """Asks, whatever happens; the questions by their number."""

    def __call__(self, observation, state=None):
        turn = observation["turn"].unsqueeze(1) % self.world.catalogue.n_attributes
        return selection.ask(self.world, turn)


class Sees(Policy):
    """Recommends the same item for ever, and keeps what it saw."""

    relaxes = True

    def __call__(self, observation, state=None):
        return selection.recommend(self.world, torch.zeros(len(observation["turn"]), 1, dtype=torch.int64))

    def posterior(self, observation):
        q = torch.zeros_like(observation["score"])
        q[:, 0] = 0.25
        return q


def cases(world, **further):
    return Cases.of(world, PAIRS, 7, **further)


def same(a, b, names=None):
    return all(np.array_equal(a[name].values, b[name].values, equal_nan=True) for name in names or a.data_vars)


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("policy", [AbsGreedy, Threshold])
def test_the_batch_changes_nothing(question, policy):
    world = conversation(CATALOGUE, question=question, list_length=3, **ERRING)
    played = [evaluate(world, policy(world), cases(world, limit=150), batch=batch) for batch in (512, 64, 37, 1)]
    names = [name for name in played[0].data_vars if name != "return"]
    for other in played[1:]:
        assert same(played[0], other, names)
        assert np.allclose(played[0]["return"], other["return"], atol=1e-5)


def test_everybody_meets_the_same_users_in_the_same_mood():
    world = conversation(CATALOGUE, list_length=3, **ERRING)
    all_cases = cases(world)
    a, b = evaluate(world, AbsGreedy(world), all_cases), evaluate(world, Asks(world), all_cases)
    assert same(a, b, ["user", "target", "opening"])
    # Whoever fails in the first turn and does not answer "do not care" leaves or stays with both.
    failed = (a["rank"].values == 0) & (a["answer"].values[:, 0] == 3) & (b["answer"].values[:, 0] == 0)
    left = (a["action"].values[:, 1] == -1)[failed], (b["action"].values[:, 1] == -1)[failed]
    assert failed.sum() > 20
    assert np.array_equal(*left)
    assert left[0].any()
    assert same(b, evaluate(world, Asks(world), all_cases))
    other = evaluate(world, Asks(world), Cases(all_cases.pairs, all_cases.opening, 8))
    assert not same(b, other, ["answer"])


def test_cases_are_a_shuffle_with_openings_of_the_targets():
    world = conversation(CATALOGUE)
    found = cases(world)
    assert sorted(map(tuple, found.pairs.tolist())) == sorted(map(tuple, PAIRS.tolist()))
    assert found.pairs.tolist() != PAIRS.tolist()
    assert bool(world.relation.has(found.pairs[:, 1], found.opening).all())
    few = cases(world, limit=5)
    assert torch.equal(few.pairs, found.pairs[:5])
    assert len(few.opening) == 5
    with pytest.raises(InputError, match="limit = 0: must be at least 1"):
        cases(world, limit=0)
    with pytest.raises(InputError, match="none to be played"):
        Cases.of(world, PAIRS[:0], 0)


def test_the_last_action_of_the_paper_is_a_recommendation():
    world = conversation(CATALOGUE, max_turns=4, list_length=3)
    data = evaluate(world, Asks(world), cases(world))
    assert (data["action"].values == [0, 0, 0, 1]).all()
    assert (data["rank"].values > 0).any()
    assert (data["turns"].values == 4).all()
    assert np.array_equal(data["rank"].values > 0, data["answer"].values[:, 3] == 4)


def test_official_turns_count_fourteen_and_a_failure_is_fifteen():
    world = conversation(CATALOGUE, turns="official", list_length=1)
    data = evaluate(world, AbsGreedy(world), cases(world))
    found, turns = data["rank"].values > 0, data["turns"].values
    assert turns[found].max() <= 14
    assert (turns[~found] == 15).all()
    assert (~found).any()
    assert (data["action"].values[:, 14] == -1).all()  # the void turn is neither
    assert np.array_equal((data["action"].values == 1).sum(1)[found], turns[found])
    asked = evaluate(world, Asks(world), cases(world, limit=20))
    assert ((asked["action"].values == 0).sum(1) == 14).all()
    assert (asked["rank"].values == 0).all()
    assert np.allclose(
        asked["return"].values + 0.3, np.where(asked["answer"].values[:, :14] == 1, 0.01, -0.1).sum(1), atol=1e-5
    )


def test_paper_turns_count_fifteen():
    world = conversation(CATALOGUE, list_length=1)
    data = evaluate(world, AbsGreedy(world), cases(world))
    turns, found = data["turns"].values, data["rank"].values > 0
    assert (turns[found] == 15).any()
    assert (turns[~found] == 15).all()
    assert np.array_equal((data["action"].values == 1).sum(1), turns)


def test_the_shortcut_recommends_once_all_candidates_fit():
    world = conversation(CATALOGUE, list_length=10)
    plain, short = (evaluate(world, Threshold(world, 0), cases(world), shortcut=s) for s in (False, True))
    left = short["candidates"].values
    for i in range(len(left)):
        few = np.flatnonzero((left[i] <= 10) & (left[i] > 0))
        if len(few):
            assert short["action"].values[i, few[0] + 1 :].max(initial=-1) in (1, -1)
    assert short["turns"].values.mean() < plain["turns"].values.mean()
    assert (short["rank"].values > 0).all()


@pytest.mark.parametrize("turns", [2, 15])
def test_dialogues_played_one_at_a_time_with_sets_are_the_same(turns):
    world = conversation(CATALOGUE, list_length=2, max_turns=turns)
    found = cases(world)
    data, loop = evaluate(world, AbsGreedy(world), found), OneUserAtATime(world, graph=turns == 2)
    for i, ((user, target), opening) in enumerate(zip(found.pairs.tolist(), found.opening.tolist(), strict=True)):
        turn, rank = loop.play(user, target, opening, lambda _: True)
        assert (turn, rank) == (data["turns"].values[i], data["rank"].values[i])
    asked = evaluate(world, Threshold(world, 5), found)["turns"].values
    pairs = zip(found.pairs.tolist(), found.opening.tolist(), strict=True)
    alone = [loop.play(user, target, opening, lambda size: size <= 5)[0] for (user, target), opening in pairs]
    # Questions of equal value may be asked in another order.
    assert np.mean(asked == alone) > 0.8


def test_what_is_written_down_agrees_with_itself():
    world = conversation(CATALOGUE, list_length=4, **ERRING)
    data = evaluate(world, MaxEntropy(world), cases(world))
    action, answer, lists = (data[name].values for name in ("action", "answer", "list"))
    assert np.array_equal(action == -1, answer == -1)
    assert np.array_equal(action == 0, np.isin(answer, [0, 1, 2]))
    assert np.array_equal(action == 1, np.isin(answer, [3, 4]))
    assert np.array_equal(data["question"].values >= 0, action == 0)
    assert ((lists >= 0).any(2) <= (action == 1)).all()
    rank, turns = data["rank"].values, data["turns"].values
    for i in np.flatnonzero(rank):
        assert lists[i, turns[i] - 1, rank[i] - 1] == data["target"].values[i]
    assert np.array_equal((answer == 4).any(1), rank > 0)
    assert success_curve(data)[-1] == (rank > 0).mean()
    paid = np.select([answer == 0, answer == 1, answer == 3, answer == 4], [-0.1, 0.01, -0.1, 1.0], 0.0)
    last = np.where(action >= 0, np.arange(15), -1).max(1)
    total = paid.sum(1)
    failed = rank == 0
    # Who fails has left, at the limit or before, or no candidate was left.
    end = data["return"].values[failed] - (total - paid[np.arange(len(paid)), last])[failed]
    assert np.minimum(abs(end + 0.3), abs(end + 0.1)).max() < 1e-5
    assert np.allclose(data["return"].values[~failed], total[~failed], atol=1e-5)


def test_confidence_is_the_belief_in_the_list():
    world = conversation(CATALOGUE, list_length=3)
    data = evaluate(world, Sees(world), cases(world, limit=30))
    there = data["action"].values == 1
    assert (data["confidence"].values[there] == 0.25).all()
    assert np.isnan(data["confidence"].values[~there]).all()
    assert np.isnan(evaluate(world, AbsGreedy(world), cases(world, limit=5))["confidence"].values).all()


def test_a_policy_that_relaxes_goes_on_without_candidates():
    world = conversation(CATALOGUE, list_length=3, answer_noise=0.4)
    stops, goes = (type("P", (Asks,), {"relaxes": r})(world) for r in (False, True))
    ended, kept = evaluate(world, stops, cases(world)), evaluate(world, goes, cases(world))
    assert (ended["action"].values[:, 14] == -1).any()
    assert (kept["action"].values[:, 14] == 1).all()


def test_progress_is_told():
    world, told = conversation(CATALOGUE), []
    evaluate(world, AbsGreedy(world), cases(world, limit=10), batch=4, progress=lambda *x: told.append(x))
    assert told == [(0.4, "dialogue 4 of 10"), (0.8, "dialogue 8 of 10"), (1.0, "dialogue 10 of 10")]

"""What questions are worth, against sums over the candidates one by one."""

import math

import numpy as np
import pytest
import torch

from simulators.crs import selection
from simulators.crs.generated import generate
from tests.simulators.crs_cases import QUESTIONS, SMALL, conversation, written_out

CATALOGUE = generate(SMALL, 0)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def somewhere(world, batch=12, turns=3, seed=0):
    """Dialogues after some random questions."""
    generator = seeded(seed)
    state = world.reset(batch, generator)
    for _ in range(turns):
        action = torch.full((batch, world.columns), -1)
        action[:, 0] = torch.randint(world.questions, (batch,), generator=generator)
        state = world.step(state, action, world.noise(batch, generator)).state
    return world.observe(state, None)


def by_hand(world, seen, row, *, weighted=True):
    """Share of each attribute that some candidate has."""
    held = {v: set() for v in range(world.catalogue.n_items)}
    for item, attribute in world.catalogue.edges.tolist():
        held[item].add(attribute)
    candidates = np.flatnonzero(seen["candidate"][row])
    weight = {v: 1 / (1 + math.exp(-float(seen["score"][row, v]))) if weighted else 1.0 for v in candidates}
    total = sum(weight.values())
    every = set().union(*(held[v] for v in candidates))
    return {p: sum(w for v, w in weight.items() if p in held[v]) / total for p in every}


def entropy(x, *, one_sided=False):
    def term(y):
        return -y * math.log2(y) if y > 0 else 0.0

    return term(x) if one_sided else term(x) + term(max(0.0, 1 - x))


@pytest.mark.parametrize("weighted", [True, False])
def test_shares_are_those_of_the_candidates(weighted):
    world = conversation(CATALOGUE)
    seen = somewhere(world)
    share = selection.shares(world, seen, weighted=weighted)
    for row in range(len(share)):
        found = {p: float(x) for p, x in enumerate(share[row]) if x > 0}
        assert found == pytest.approx(by_hand(world, seen, row, weighted=weighted), abs=1e-6)


@pytest.mark.parametrize("kind", ["weighted_entropy", "entropy", "preference"])
@pytest.mark.parametrize("one_sided", [False, True])
def test_values_are_those_of_the_candidates_and_of_nothing_else(kind, one_sided):
    world = conversation(CATALOGUE)
    seen = somewhere(world)
    share = selection.shares(world, seen, weighted=kind != "entropy")
    values = selection.attribute_values(world, seen, share, kind, one_sided=one_sided)
    embeddings = world.embeddings
    for row in range(len(values)):
        of_candidates = by_hand(world, seen, row, weighted=kind != "entropy")
        if kind == "preference":
            accepted = seen["accepted"][row].nonzero().flatten()
            wanted = embeddings.user[seen["user"][row]] + embeddings.attribute[accepted].sum(0)
            wanted_of = {p: float(wanted @ embeddings.attribute[p]) for p in of_candidates}
        else:
            wanted_of = {p: entropy(x, one_sided=one_sided) for p, x in of_candidates.items()}
        expected = {p: x for p, x in wanted_of.items() if not seen["asked"][row, p]}
        found = {p: float(x) for p, x in enumerate(values[row]) if x > -math.inf}
        assert found == pytest.approx(expected, abs=2e-5)


def test_random_values_are_uniform_over_what_can_be_asked():
    world = conversation(CATALOGUE)
    seen = somewhere(world, batch=400)
    share = selection.shares(world, seen)
    values = selection.attribute_values(world, seen, share, "random", seed=3)
    again = selection.attribute_values(world, seen, share, "random", seed=3)
    can = (share > 0) & ~seen["asked"]
    assert torch.equal(values, again)
    assert torch.equal(values > -torch.inf, can)
    drawn = values[can]
    assert float(drawn.min()) >= 0
    assert float(drawn.max()) < 1
    assert abs(float(drawn.mean()) - 0.5) < 0.03


def test_the_binary_entropy_is_symmetric_one_bit_at_a_half_and_nothing_at_the_ends():
    x = torch.tensor([0.0, 0.11, 0.5, 0.89, 1.0, 1.0 + 1e-7])
    found = selection.binary_entropy(x)
    assert found[[0, 2, 4, 5]].tolist() == [0, 1, 0, 0]
    assert float(found[1]) == pytest.approx(0.4999, abs=1e-4)
    assert float(found[1]) == pytest.approx(float(found[3]))


def test_no_candidates_leave_nothing_to_ask():
    world = conversation(CATALOGUE)
    seen = dict(somewhere(world))
    seen["candidate"] = torch.zeros_like(seen["candidate"])
    share = selection.shares(world, seen)
    assert not bool(share.any())
    values = selection.question_values(world, selection.attribute_values(world, seen, share))
    assert bool((values == -torch.inf).all())
    assert selection.top_items(seen["score"], seen["candidate"], 3).tolist() == [[-1, -1, -1]] * len(values)


def leaves(world, question):
    return [p for p, g in enumerate(world.catalogue.attribute_type) if g == question]


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_question_is_worth_the_sum_of_what_it_is_about(question):
    world = conversation(CATALOGUE, question=question, choices=2)
    seen = somewhere(world)
    values = selection.attribute_values(world, seen, selection.shares(world, seen))
    of_question = selection.question_values(world, values)
    assert of_question.shape == (len(values), world.questions)
    for row in range(len(values)):
        for q in range(world.questions):
            about = [q] if question == "binary" else leaves(world, q)
            can = sorted((float(values[row, p]) for p in about if values[row, p] > -math.inf), reverse=True)
            if question == "multi_choice":
                can = can[:2]
            assert float(of_question[row, q]) == pytest.approx(sum(can) if can else -math.inf, abs=1e-5)


def test_multi_choice_names_the_best_values_of_the_type():
    world = conversation(CATALOGUE, question="multi_choice", choices=3)
    seen = somewhere(world)
    values = selection.attribute_values(world, seen, selection.shares(world, seen))
    question = torch.arange(world.questions).expand(len(values), -1)
    columns = selection.named(world, question, values)
    for row in range(len(values)):
        for q in range(world.questions):
            can = sorted((p for p in leaves(world, q) if values[row, p] > -math.inf), key=lambda p: -values[row, p])
            found = [p for p in columns[row, q].tolist() if p >= 0]
            # Equal values may stand in either order.
            assert [float(values[row, p]) for p in found] == [float(values[row, p]) for p in can[:3]]
            assert set(found) <= set(can)
            assert len(set(found)) == len(found)
    assert bool((selection.named(world, torch.full((len(values), 1), -1), values) == -1).all())


def test_types_of_unequal_size():
    catalogue = written_out([(0, 0), (0, 2), (1, 1), (1, 3), (1, 0)], 2, [0, 1, 0, 0])
    world = conversation(catalogue, question="enumerated", list_length=1)
    assert world.leaves.tolist() == [[0, 2, 3], [1, -1, -1]]
    values = torch.tensor([[-torch.inf, 0.5, 0.25, 0.125]])
    assert selection.question_values(world, values).tolist() == [[0.375, 0.5]]


def test_actions_are_written_in_the_columns_of_the_world():
    world = conversation(CATALOGUE, list_length=3)
    assert selection.ask(world, torch.tensor([[7]])).tolist() == [[7, -1, -1, -1]]
    assert selection.recommend(world, torch.tensor([[4, 5]])).tolist() == [[-1, 4, 5, -1]]
    several = conversation(CATALOGUE, question="multi_choice", choices=4, list_length=2)
    assert selection.ask(several, torch.tensor([[7, 6, -1]])).tolist() == [[7, 6, -1, -1]]


def test_the_best_items_are_the_candidates_of_the_largest_scores_in_order():
    score = torch.tensor([[0.1, 0.9, 0.5, 0.7], [0.3, -0.2, 0.4, 0.0]])
    candidate = torch.tensor([[True, False, True, True], [False, True, False, False]])
    assert selection.top_items(score, candidate, 2).tolist() == [[3, 2], [1, -1]]
    assert selection.top_items(score, candidate, 6).tolist() == [[3, 2, 0, -1, -1, -1], [1, *[-1] * 5]]


def test_the_weight_of_a_tie_is_shared_and_either_may_be_first():
    catalogue = written_out([(0, 0), (0, 1), (1, 0), (1, 2)], 2, [0, 0, 0])
    world = conversation(catalogue, list_length=1)
    seen = world.observe(world.reset_to(torch.tensor([[0, 0]]), torch.tensor([0])), None)
    share = selection.shares(world, seen, weighted=False)
    assert share.tolist() == [[1.0, 0.5, 0.5]]
    values = selection.attribute_values(world, seen, share, "entropy")
    assert values.tolist() == [[-torch.inf, 1.0, 1.0]]

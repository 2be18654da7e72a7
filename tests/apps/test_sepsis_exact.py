"""Perfect play of the debate game against closed forms and against brute force."""

from itertools import combinations

import pytest
import torch

from apps.sepsis.debate import Position, argue_alone, hold_debate, speakers, verdict
from apps.sepsis.debaters import FirstOrderDebater, FixedEvidence, LookaheadDebater
from apps.sepsis.exact import ExactDebater, _children, _subsets, best_reply, exploitability, game_value, solve
from core.errors import InputError
from tests.apps.sepsis_judges import additive_judge, cases, pairwise_judge

BOTH = torch.tensor([1, 2])


def gap(judge, state, first, second, revealed):
    mask = torch.zeros(state.shape, dtype=torch.bool)
    mask[list(revealed)] = True
    return float(judge.score(state, mask, first) - judge.score(state, mask, second))


def brute_force(judge, state, first, second, speaker, revealed=(), debater=None):
    """Value for player 1 by recursion over all orders; with a debater, player 1 does as it says."""
    turn = len(revealed)
    if turn == len(speaker):
        return gap(judge, state, first, second, revealed)
    moves = [i for i in range(len(state)) if i not in revealed]
    if debater is not None and speaker[turn] == 1:
        mask = torch.zeros(1, len(state), dtype=torch.bool)
        mask[0, list(revealed)] = True
        position = Position(state[None], mask, first[None], second[None], len(speaker) - turn)
        moves = debater.choose(position).tolist()
    values = [brute_force(judge, state, first, second, speaker, (*revealed, i), debater) for i in moves]
    return max(values) if speaker[turn] == 1 else min(values)


@pytest.mark.parametrize(("items", "candidates"), [(4, None), (4, 8), (6, 16)])
def test_value_before_an_additive_judge_is_that_of_each_sides_best_items(items, candidates):
    judge, (state, first, second) = additive_judge(), cases(4)
    effect = ((judge.weight[first] - judge.weight[second]) * state).sort(1).values
    expected = effect[:, : items // 2].sum(1) + effect[:, -(items // 2) :].sum(1)
    for starter in BOTH:
        value = game_value(judge, state, first, second, items, starter=starter.expand(4), candidates=candidates)
        torch.testing.assert_close(value, expected)


@pytest.mark.parametrize("order", ["alternating", "upfront"])
@pytest.mark.parametrize("items", [2, 4])
def test_value_is_that_of_brute_force(items, order):
    judge, (state, first, second) = pairwise_judge(5), cases(6, 5)
    starter = BOTH.repeat(3)
    value = game_value(judge, state, first, second, items, order=order, starter=starter, candidates=None)
    speaker = speakers(starter, items, order)
    expected = [brute_force(judge, state[n], first[n], second[n], speaker[n].tolist()) for n in range(6)]
    torch.testing.assert_close(value, torch.tensor(expected, dtype=value.dtype))


@pytest.mark.parametrize("order", ["alternating", "upfront"])
def test_best_reply_is_that_of_brute_force(order):
    judge, (state, first, second) = pairwise_judge(6), cases(6, 6)
    starter = BOTH.repeat(3)
    debater = LookaheadDebater(judge)
    debate = best_reply(judge, state, first, second, debater, 4, order=order, starter=starter, candidates=None)
    speaker = speakers(starter, 4, order)
    expected = [
        brute_force(judge, state[n], first[n], second[n], speaker[n].tolist(), debater=debater) for n in range(6)
    ]
    torch.testing.assert_close(verdict(judge, debate, "difference"), torch.tensor(expected, dtype=state.dtype))
    assert torch.equal(debate.speaker, speaker)


def test_the_line_of_the_best_reply_is_one_that_the_debater_plays():
    judge, (state, first, second) = pairwise_judge(12), cases(8, 12)
    debater = FixedEvidence(torch.arange(8)[:, None] % 4 + torch.arange(9))
    starter = BOTH.repeat(4)
    debate = best_reply(judge, state, first, second, debater, 6, starter=starter, candidates=8)
    theirs = debate.items[debate.speaker == 2].view(8, 3)
    again = hold_debate(state, first, second, debater, FixedEvidence(theirs), 6, starter=starter)
    assert torch.equal(again.items, debate.items)


def test_perfect_play_cannot_be_exploited_and_nothing_does_better():
    judge, (state, first, second) = pairwise_judge(7), cases(10, 7)
    starter = BOTH.repeat(5)
    perfect = ExactDebater(judge, None)
    value = game_value(judge, state, first, second, 4, starter=starter, candidates=None)
    played = hold_debate(state, first, second, perfect, perfect, 4, starter=starter)
    torch.testing.assert_close(verdict(judge, played, "difference"), value)
    lost = {
        name: exploitability(judge, state, first, second, debater, 4, starter=starter, candidates=None)
        for name, debater in (
            ("perfect", perfect),
            ("lookahead", LookaheadDebater(judge)),
            ("first order", FirstOrderDebater(judge)),
        )
    }
    torch.testing.assert_close(lost["perfect"], torch.zeros_like(value))
    assert (lost["lookahead"] > -1e-12).all()
    assert lost["lookahead"].sum() > 0
    assert (lost["first order"] > -1e-12).all()


def test_exploitability_in_won_debates_is_that_of_the_signs():
    judge, (state, first, second) = pairwise_judge(7), cases(10, 7)
    more = {"starter": BOTH.repeat(5), "candidates": None}
    debater = LookaheadDebater(judge)
    value = game_value(judge, state, first, second, 4, **more)
    reply = verdict(judge, best_reply(judge, state, first, second, debater, 4, **more), "sign")
    lost = exploitability(judge, state, first, second, debater, 4, utility="sign", **more)
    assert torch.equal(lost, value.sign() - reply)


def test_the_game_is_zero_sum():
    judge, (state, first, second) = pairwise_judge(8), cases(10, 8)
    for order in ("alternating", "upfront"):
        value = game_value(judge, state, first, second, 4, order=order, starter=torch.ones(10).long(), candidates=None)
        other = game_value(
            judge, state, second, first, 4, order=order, starter=2 * torch.ones(10).long(), candidates=None
        )
        torch.testing.assert_close(value, -other)


def test_moves_are_solved_from_any_position():
    judge, (state, first, second) = pairwise_judge(6), cases(5, 6)
    revealed = torch.zeros(5, 6, dtype=torch.bool)
    revealed[:, 1] = True
    solution = solve(judge, Position(state, revealed, first, second, 3), None)
    assert sorted(solution.items[0].tolist()) == [0, 2, 3, 4, 5]
    for n in range(5):
        for item, value in zip(solution.items[n].tolist(), solution.value[n].tolist(), strict=True):
            expected = brute_force(judge, state[n], first[n], second[n], [2, 1, 2, 1], (1, item))
            assert value == pytest.approx(expected)


def test_one_turn_left_is_looked_ahead_exactly():
    judge, (state, first, second) = pairwise_judge(9), cases(12, 9)
    revealed = torch.zeros(12, 9, dtype=torch.bool)
    revealed[:, :3] = True
    position = Position(state, revealed, first, second, 1)
    assert torch.equal(ExactDebater(judge).choose(position), LookaheadDebater(judge).choose(position))


def test_subsets_are_all_there_and_children_add_one_item():
    for k, size in ((7, 0), (7, 1), (7, 3), (9, 4)):
        subsets, more = _subsets(k, size, torch.device("cpu")), _subsets(k, size + 1, torch.device("cpu"))
        found = {tuple(torch.nonzero(s)[:, 0].tolist()) for s in subsets}
        assert found == set(combinations(range(k), size))
        child, free = _children(k, size, torch.device("cpu"))
        assert torch.equal(free, ~subsets)
        for row, item in torch.nonzero(free).tolist():
            grown = subsets[row].clone()
            grown[item] = True
            assert torch.equal(more[child[row, item]], grown)


def test_too_few_candidates_are_refused():
    judge, (state, first, second) = additive_judge(), cases(3)
    message = "candidates: 5; must be 6 or more"
    with pytest.raises(InputError, match=message):
        game_value(judge, state, first, second, 6, candidates=5)
    with pytest.raises(InputError, match=message):
        best_reply(judge, state, first, second, LookaheadDebater(judge), 6, candidates=5)
    with pytest.raises(InputError, match="items: 3"):
        game_value(judge, state, first, second, 3)


def test_solving_in_parts_changes_nothing_and_tells_how_far_it_is(monkeypatch):
    judge, (state, first, second) = pairwise_judge(8), cases(11, 8)
    debater, told = LookaheadDebater(judge), []
    whole = exploitability(judge, state, first, second, debater, 4, candidates=6)
    monkeypatch.setattr("apps.sepsis.exact.OUTCOMES", 40)
    parts = exploitability(
        judge, state, first, second, debater, 4, candidates=6, progress=lambda share, message: told.append(share)
    )
    torch.testing.assert_close(parts, whole)
    assert told == sorted(told)
    assert told[-1] == 1.0
    assert len(told) > 10


def test_alone_is_no_game_but_the_same_bound():
    judge, (state, first, second) = additive_judge(), cases(10)
    alone = verdict(judge, argue_alone(state, first, second, LookaheadDebater(judge), 6), "difference")
    assert (alone >= game_value(judge, state, first, second, 6)).all()

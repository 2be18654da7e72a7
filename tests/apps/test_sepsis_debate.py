"""The debate game and the debaters that need no training."""

import pytest
import torch

from apps.sepsis.debate import (
    Position,
    argue_alone,
    compare,
    hold_debate,
    speakers,
    verdict,
)
from apps.sepsis.debaters import (
    FirstOrderDebater,
    FixedEvidence,
    LookaheadDebater,
    RandomDebater,
    first_order_effects,
    first_order_evidence,
)
from core.errors import InputError
from tests.apps.sepsis_judges import additive_judge, cases, pairwise_judge


def debaters(judge, n):
    return {
        "random": RandomDebater(torch.Generator().manual_seed(3)),
        "first order": FirstOrderDebater(judge),
        "lookahead": LookaheadDebater(judge),
        "fixed": FixedEvidence(torch.arange(n)[:, None] % 7 + torch.arange(12)),
    }


@pytest.mark.parametrize("order", ["alternating", "upfront"])
@pytest.mark.parametrize("name", ["random", "first order", "lookahead", "fixed"])
def test_evidence_has_exactly_the_items_asked_for_and_each_side_gives_half(name, order):
    judge, (state, first, second) = pairwise_judge(44), cases(31)
    player = debaters(judge, 31)[name]
    debate = hold_debate(state, first, second, player, LookaheadDebater(judge), 6, order=order)
    assert (debate.evidence.sum(1) == 6).all()
    assert ((debate.speaker == 1).sum(1) == 3).all()
    alone = argue_alone(state, first, second, player, 5)
    assert (alone.evidence.sum(1) == 5).all()
    assert (alone.speaker == 1).all()


def test_swapped_actions_negate_the_utility_for_the_same_evidence():
    judge, (state, first, second) = pairwise_judge(44), cases(50)
    debate = hold_debate(state, first, second, LookaheadDebater(judge), RandomDebater(torch.Generator()), 4)
    for utility in ("sign", "difference"):
        assert torch.equal(verdict(judge, debate.swapped, utility), -verdict(judge, debate, utility))
    wins = verdict(judge, debate, "wins") + verdict(judge, debate.swapped, "wins")
    assert torch.equal(wins, torch.ones_like(wins))
    assert torch.equal(debate.swapped.evidence, debate.evidence)


def test_a_debate_between_two_equal_actions_is_drawn_and_not_judged():
    judge, (state, first, second) = additive_judge(), cases(6)
    second[::2] = first[::2]
    evidence = torch.ones_like(state, dtype=torch.bool)
    for utility in ("sign", "difference", "wins"):
        assert (compare(judge, state, evidence, first, second, utility)[::2] == 0).all()
    assert judge.asked == [3] * 6
    judge.asked.clear()
    assert (compare(judge, state, evidence, first, first) == 0).all()
    assert not judge.asked


def test_hidden_features_do_not_reach_the_verdict():
    judge, (state, first, second) = pairwise_judge(44), cases(20)
    debate = hold_debate(state, first, second, *[RandomDebater(torch.Generator())] * 2)
    other = torch.where(debate.evidence, state, torch.randn(state.shape, dtype=state.dtype))
    assert torch.equal(
        verdict(judge, debate, "difference"), compare(judge, other, debate.evidence, first, second, "difference")
    )


def test_turns_alternate_from_the_starter_or_come_in_two_halves():
    starter = torch.tensor([1, 2])
    assert speakers(starter, 4).tolist() == [[1, 2, 1, 2], [2, 1, 2, 1]]
    assert speakers(starter, 4, "upfront").tolist() == [[1, 1, 2, 2], [2, 2, 1, 1]]


def test_the_starter_is_drawn_fairly_and_from_the_generator():
    state, first, second = cases(4000)
    player = FixedEvidence(torch.arange(6).expand(4000, 6))
    one, two = (
        hold_debate(state, first, second, player, player, 2, generator=torch.Generator().manual_seed(5))
        for _ in range(2)
    )
    assert torch.equal(one.speaker, two.speaker)
    assert abs((one.speaker[:, 0] == 1).double().mean() - 0.5) < 4 * 0.5 / 4000**0.5


def test_a_debate_of_many_equals_the_debates_one_by_one():
    judge, (state, first, second) = pairwise_judge(44), cases(9)
    starter = torch.tensor([1, 2, 2, 1, 1, 2, 1, 2, 2])
    players = LookaheadDebater(judge), FixedEvidence(torch.arange(9)[:, None] + torch.arange(9))
    together = hold_debate(state, first, second, *players, starter=starter)
    for i in range(9):
        own = players[0], FixedEvidence(players[1].order[i : i + 1])
        rows = slice(i, i + 1)
        alone = hold_debate(state[rows], first[rows], second[rows], *own, starter=starter[rows])
        assert torch.equal(alone.items[0], together.items[i])


def test_who_argues_alone_before_an_additive_judge_reveals_its_best_items():
    judge, (state, first, second) = additive_judge(), cases(20)
    effect = (judge.weight[first] - judge.weight[second]) * state
    best = effect.topk(6, dim=1).indices.sort(1).values
    for player in (FirstOrderDebater(judge), LookaheadDebater(judge)):
        alone = argue_alone(state, first, second, player)
        assert torch.equal(alone.items.sort(1).values, best)


def test_lookahead_maximises_the_difference_of_the_next_scores():
    judge, (state, first, second) = pairwise_judge(10), cases(15, 10)
    revealed = torch.rand(15, 10, generator=torch.Generator().manual_seed(2)) < 0.4
    item = LookaheadDebater(judge).choose(Position(state, revealed, first, second, 2))
    for n in range(15):
        gain = [-torch.inf if revealed[n, i] else _gap(judge, state, first, second, n, revealed, i) for i in range(10)]
        assert item[n] == int(torch.tensor(gain).argmax())


def _gap(judge, state, first, second, n, revealed, i):
    mask = revealed[n].clone()
    mask[i] = True
    return judge.score(state[n], mask, first[n]) - judge.score(state[n], mask, second[n])


def test_first_order_evidence_is_the_debate_of_first_order_debaters():
    judge, (state, first, second) = pairwise_judge(44), cases(25)
    debate = hold_debate(state, first, second, *[FirstOrderDebater(judge)] * 2)
    evidence = first_order_evidence(judge, state, first, second)
    assert torch.equal(evidence, debate.evidence)
    assert torch.equal(evidence, first_order_evidence(judge, state, second, first))


def test_first_order_effects_of_an_additive_judge_are_its_terms():
    judge, (state, first, second) = additive_judge(), cases(25)
    effects = first_order_effects(judge, state, first, second)
    torch.testing.assert_close(effects, (judge.weight[first] - judge.weight[second]) * state)


def test_random_evidence_is_uniform():
    state = torch.zeros(20_000, 5)
    player = RandomDebater(torch.Generator().manual_seed(0))
    counts = argue_alone(state, state[:, 0].long(), state[:, 0].long(), player, 2).evidence.double().mean(0)
    assert ((counts - 0.4).abs() < 4 * (0.24 / 20_000) ** 0.5).all()


class Stubborn:
    def choose(self, position):
        return torch.zeros_like(position.own)


def test_impossible_debates_are_refused():
    judge, (state, first, second) = additive_judge(), cases(3)
    player = LookaheadDebater(judge)
    for items in (5, 0, 46):
        with pytest.raises(InputError, match=rf"items: {items}; must be an even number, 2 to 44"):
            hold_debate(state, first, second, player, player, items)
    with pytest.raises(InputError, match="items: 45; must be 1 to 44"):
        argue_alone(state, first, second, player, 45)
    with pytest.raises(InputError, match="items: 3"):
        first_order_evidence(judge, state, first, second, 3)
    with pytest.raises(InputError, match="revealed an item twice"):
        argue_alone(state, first, second, Stubborn(), 2)
    with pytest.raises(InputError, match="2 lists for 3 debates"):
        FixedEvidence(torch.arange(2)[:, None]).choose(
            Position(state, torch.zeros_like(state, dtype=torch.bool), first, second, 2)
        )
    with pytest.raises(InputError, match="all 1 items of a list are revealed"):
        argue_alone(state, first, second, FixedEvidence(torch.zeros(3, 1, dtype=torch.long)), 2)

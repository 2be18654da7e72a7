"""Rules of exploration by name: what each makes of predictions, what wraps them, and what is refused."""

import math

import pytest
import torch
from pydantic import ValidationError

from apps.payments.exploration import WEIGHED, Exploration, Learned, Rule, grouping_of
from apps.payments.oracles import FactoredOracle, FactoredSettings, factored
from core import bandits
from core.errors import InputError
from core.study.loading import load_values
from simulators.payments import Payments
from tests.apps.payments_cases import SIZES

N, K = 40, 8
RULES = Rule.__args__


@pytest.fixture
def scores():
    return 0.7 + 0.3 * torch.rand(N, K, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture
def mask():
    found = torch.rand(N, K, generator=torch.Generator().manual_seed(2)) < 0.5
    found[:, 3] = True
    return found


def learned(examples=1000):
    rows = 1000 * torch.arange(K)  # the first action was never seen
    return Learned(examples, rows, torch.tensor([0, 0, 0, 1, 1, 2, 2, 2]))


def votes(scores, members=10):
    """Predictions of several oracles that differ a little."""
    noise = torch.randn(members, *scores.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return scores + 0.05 * noise


def chances(exploration, scores, mask, known=None):
    given = votes(scores, exploration.members) if exploration.rule == "thompson_bootstrap" else scores
    return exploration.probabilities(given, mask, known or learned())


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("more", [{}, {"floor": 0.2}, {"minimum": 0.1}, {"floor": 0.1, "minimum": 0.3}])
def test_every_rule_is_a_distribution_over_the_available_actions(rule, more, scores, mask):
    found = chances(Exploration(rule=rule, gamma=200.0, **more), scores, mask)
    torch.testing.assert_close(found.sum(1), torch.ones(N, dtype=torch.float64), rtol=0, atol=1e-12)
    assert not found[~mask].any()
    least = max(more.get("floor", 0.0), more.get("minimum", 0.0)) / mask.double().sum(1, keepdim=True)
    assert bool((found + 1e-12 >= least)[mask].all())


def test_every_rule_is_that_of_its_name(scores, mask):
    known = learned()
    expected = {
        "uniform": bandits.uniform(mask),
        "greedy": bandits.greedy(scores, mask),
        "epsilon": bandits.epsilon_greedy(scores, mask, 0.3),
        "epsilon_slice": bandits.epsilon_greedy(scores, mask, 0.3),
        "igw": bandits.inverse_gap_weighting(scores, mask, 70.0),
        "softmax": bandits.softmax(scores, mask, 0.02),
        "thompson_bootstrap": bandits.bootstrap_votes(votes(scores), mask),
        "grouped_igw": bandits.grouped_inverse_gap_weighting(scores, mask, known.groups, 70.0),
    }
    surviving = bandits.surviving_actions(scores, mask, 1 / known.rows.double(), known.examples, mellowness=0.1)
    assert mask[:, 1:].sum() > surviving[:, 1:].sum()  # some were eliminated
    assert torch.equal(mask[:, 0], surviving[:, 0])  # but not the one that nothing is known of
    expected["igw_elim"] = bandits.inverse_gap_weighting(scores, surviving, 70.0)
    assert expected.keys() == set(RULES)
    for rule, probabilities in expected.items():
        settings = {"epsilon": 0.3, "gamma": 70.0, "temperature": 0.02, "mellowness": 0.1}
        assert torch.equal(chances(Exploration(rule=rule, **settings), scores, mask), probabilities), rule


def test_gamma_is_a_number_or_a_schedule_of_available_actions_and_examples(scores, mask):
    available = mask.sum(1).double()
    expected = {
        "constant": torch.full((N,), 40.0, dtype=torch.float64),
        "sqrt_t": torch.full((N,), 10 * 900**0.5, dtype=torch.float64),
        "squarecb": (available * 10_000 / (50 * math.log(10_000) + math.log(2 / 0.05))).sqrt(),
        # 900 rows are in the epoch that began after 512.
        "falcon": (available * 512 / (50 + math.log(512 / 0.05))).sqrt() / 30,
    }
    given = {
        "constant": {"gamma": 40.0},
        "sqrt_t": {},
        "squarecb": {"horizon": 10_000, "complexity": 50.0},
        "falcon": {"complexity": 50.0},
    }
    for kind, gamma in expected.items():
        exploration = Exploration(rule="igw", gamma={"kind": kind, **given[kind]})
        torch.testing.assert_close(exploration.gammas(mask, 900), gamma, rtol=1e-12, atol=0)
        found = exploration.probabilities(scores, mask, Learned(900))
        torch.testing.assert_close(found, bandits.inverse_gap_weighting(scores, mask, gamma))
    assert torch.equal(Exploration(rule="igw", gamma=40).gammas(mask, 7), expected["constant"])


def test_a_rule_is_the_same_with_one_number_replaced():
    rule = Exploration(rule="igw", gamma=100.0, floor=0.1)
    assert rule.at("gamma", 300.0) == Exploration(rule="igw", gamma=300.0, floor=0.1)
    assert rule.at("floor", 0.0) == Exploration(rule="igw", gamma=100.0)
    scheduled = Exploration(rule="igw", gamma={"kind": "falcon"}, floor=0.1)
    assert scheduled.at("floor", 0.2).gamma == scheduled.gamma
    with pytest.raises(ValidationError, match="floor"):
        rule.at("floor", 1.5)


@pytest.mark.parametrize("rule", ["igw_elim", "grouped_igw"])
def test_a_rule_that_must_know_more_of_the_oracle_says_what(rule, scores, mask):
    with pytest.raises(InputError, match=rf"^{rule}: needs the (number of rows|group)[^\n]* every action$"):
        Exploration(rule=rule).probabilities(scores, mask)


def test_a_payment_without_an_action_and_a_score_that_is_no_number_are_refused_by_row(scores, mask):
    none = mask.clone()
    none[7] = False
    with pytest.raises(InputError, match="row 7"):
        Exploration(rule="igw").probabilities(scores, none)
    scores[5, 3] = math.nan
    with pytest.raises(InputError, match="row 5"):
        Exploration(rule="igw").probabilities(scores, mask)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rule=magic", 'rule = "magic": must be'),
        ("epsilon=1.5", "epsilon = 1.5: must be less than or equal to 1"),
        ("epsilon=-0.1", "epsilon = -0.1: must be greater than or equal to 0"),
        ("gamma=-1", "gamma = -1.0: must be at least 0"),
        ("gamma=.nan", "must be a finite number"),
        ("gamma={kind: magic}", "gamma: must be"),
        ("gamma={kind: constant, gamma: -1}", "gamma: must be"),
        ("temperature=0", "temperature = 0: must be greater than 0"),
        ("members=1", "members = 1: must be greater than or equal to 2"),
        ("floor=2", "floor = 2: must be less than or equal to 1"),
        ("minimum=-1", "minimum = -1: must be"),
        ("groups=0", "groups = 0: must be"),
        ("colour=red", "colour: unknown key; known here: rule, epsilon, gamma"),
    ],
)
def test_an_impossible_number_is_told_with_its_key_and_what_is_allowed(override, message):
    with pytest.raises(InputError) as refused:
        load_values(Exploration, ["rule=igw", override])
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.fixture
def predicted():
    """An oracle to which a token is worth nothing, and some payments to which every action is open."""
    weights = torch.randn(len(factored.Coefficients(SIZES)), generator=torch.Generator().manual_seed(4)).double()
    _, effects, pairs = factored.Coefficients(SIZES).split(weights)
    effects[1] = 0
    pairs.zero_()
    state = Payments(seed=1, sizes=SIZES).reset(600, torch.Generator().manual_seed(5))
    mask = torch.ones(len(state), SIZES.actions, dtype=torch.bool)
    return FactoredOracle(FactoredSettings(), SIZES, weights).predict_all, state, mask


def test_actions_that_differ_in_nothing_are_one_group(predicted):
    rule = Exploration(rule="grouped_igw", groups=SIZES.actions // 2)
    groups = grouping_of(rule, *predicted, rows=600)
    assert groups.shape == (SIZES.actions,)
    assert len(groups.unique()) == SIZES.actions // 2
    action = torch.arange(SIZES.actions)
    assert torch.equal(groups[action], groups[action ^ 2])  # with and without token


def test_the_data_choose_how_many_groups_and_more_rows_allow_more(predicted):
    chosen = [len(grouping_of(Exploration(rule="grouped_igw"), *predicted, rows=n).unique()) for n in (50, 10**9)]
    assert 1 <= chosen[0] < chosen[1] <= SIZES.actions
    # More groups than actions there cannot be.
    found = grouping_of(Exploration(rule="grouped_igw", groups=100), *predicted, rows=600)
    assert len(found.unique()) == SIZES.actions
    assert all(
        grouping_of(Exploration(rule=rule), *predicted, rows=600) is None for rule in set(RULES) - {"grouped_igw"}
    )
    assert "grouped_igw" in WEIGHED

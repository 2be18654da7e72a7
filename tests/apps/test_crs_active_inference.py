"""Active inference: the closed form against enumeration and against pymdp, and what it does where that is known."""

import itertools
import math

import numpy as np
import pytest
import torch

from apps.crs.active_inference import ActiveInference, BeliefRanking, Preferences, calibrate_beta
from apps.crs.evaluation import ASKED, Cases, evaluate
from apps.crs.policies import Threshold
from apps.crs.pymdp_agent import PymdpAgent, compare_with_closed_form
from core.errors import InputError
from simulators.crs import Catalogue, Conversation, Embeddings, Rules
from simulators.crs.belief import Belief
from simulators.crs.choice import CandidateChoice
from simulators.crs.features import CompactFeatures
from simulators.crs.generated import Generated, generate
from simulators.crs.selection import question_values

SHOP = generate(Generated(n_users=12, n_items=40, n_types=4, n_values=4, per_user=12, least_types=2, most_types=4), 0)


def embeddings(catalogue, scale=1.0, dim=5):
    generator = torch.Generator().manual_seed(1)
    counts = (catalogue.n_users, catalogue.n_items, catalogue.n_attributes)
    return Embeddings(*(scale * torch.randn(n, dim, generator=generator) / dim**0.5 for n in counts))


def shop(**rules):
    return Conversation(SHOP, embeddings(SHOP), Rules(**{"list_length": 3, "on_empty": "relax", **rules}))


def bits(count=3, **rules):
    """2^count items that are told apart by as many questions, and have one attribute in common."""
    items = 2**count
    has = [(item, bit) for item in range(items) for bit in range(count) if item >> bit & 1]
    catalogue = Catalogue(
        name="bits",
        item_names=tuple(map(str, range(items))),
        attribute_names=(*map(str, range(count)), "all"),
        type_names=("bit",),
        attribute_type=np.zeros(count + 1, dtype=np.int64),
        edges=np.array(has + [(item, count) for item in range(items)]),
        n_users=1,
        interactions={"train": np.array([[0, item] for item in range(items)])},
    )
    return Conversation(catalogue, embeddings(catalogue), Rules(**{"list_length": 1, **rules}))


def cases(world, count, seed=0):
    return Cases.of(world, SHOP.pairs("test"), seed, count)


def known_after(world, policy, turns, batch=12, seed=3):
    """What is known in dialogues that a policy led so far, and that went on."""
    generator = torch.Generator().manual_seed(seed)
    state = world.reset(batch, generator)
    for _ in range(turns):
        step = world.step(state, policy(world.observe(state, None), state), world.noise(batch, generator))
        state = step.state
    return world.observe(state, None)


def expected_free_energy(world, policy, known, row):
    """G of each binary question and of the best list, outcome by outcome."""
    q = policy.posterior(known)[row].double().numpy()
    has = np.zeros((world.catalogue.n_items, world.catalogue.n_attributes), dtype=bool)
    has[world.catalogue.edges[:, 0], world.catalogue.edges[:, 1]] = True
    eps, worth = policy.belief.error, policy.preferences
    left = np.where(known["recommended"][row], -1, q)
    listed = np.isin(np.arange(len(q)), np.argsort(-left)[: world.rules.list_length])
    yes = np.where(has, 1 - eps, eps)
    tables = [(np.stack([1 - yes[:, p], yes[:, p]]), (0, 0)) for p in range(has.shape[1])]
    tables.append((np.stack([~listed, listed]).astype(float), (-worth.reject, worth.accept)))
    found = []
    for table, preference in tables:
        outcome = table @ q
        surprise = sum(-o * math.log(o) for o in outcome if o > 0)
        ambiguity = sum(q[v] * -x * math.log(x) for v in range(len(q)) for x in table[:, v] if x > 0)
        found.append(-(outcome @ np.array(preference)) - (surprise - ambiguity))
    return np.array(found)


@pytest.mark.parametrize("turns", [0, 1, 4])
@pytest.mark.parametrize(
    ("belief", "worth"), [(Belief(2.0, 0.01), Preferences()), (Belief(4.0, 0.2), Preferences(2, 1))]
)
def test_the_closed_form_is_the_expected_free_energy(turns, belief, worth):
    world = shop(answer_noise=0.1)
    policy = ActiveInference(world, belief, worth)
    known = known_after(world, policy, turns)
    value = policy.neg_efe(known)
    asked = torch.nn.functional.pad(known["asked"], (0, 1))
    assert (value[asked] == -torch.inf).all()
    for row in range(len(value)):
        g, allowed = expected_free_energy(world, policy, known, row), ~asked[row].numpy()
        np.testing.assert_allclose(value[row].numpy()[allowed], -g[allowed], atol=3e-6)


@pytest.mark.parametrize("turns", [0, 2, 5])
def test_what_it_does_has_the_largest_value(turns):
    world = shop(answer_noise=0.1)
    policy = ActiveInference(world)
    known = known_after(world, policy, turns, batch=30)
    value, action = policy.neg_efe(known), policy(known)
    chosen = torch.where(action[:, 0] >= 0, action[:, 0], SHOP.n_attributes)
    torch.testing.assert_close(value.gather(1, chosen.unsqueeze(1))[:, 0], value.max(1).values, atol=1e-6, rtol=0)
    assert torch.equal(action[action[:, 0] < 0], policy.recommend(known)[action[:, 0] < 0])


def test_information_is_never_negative():
    world = shop(answer_noise=0.3)
    policy = ActiveInference(world, Belief(3.0, 0.3), Preferences(0, 0))
    value = policy.neg_efe(known_after(world, policy, 3))
    assert value[value.isfinite()].min() > -1e-6


def test_where_nothing_is_known_it_asks_what_splits_the_items_in_halves():
    world = bits(4)
    state = world.reset_to(torch.tensor([[0, 5]]), torch.tensor([4]))
    policy = ActiveInference(world, Belief(0.0))
    action, value = policy(world.observe(state, None)), policy.neg_efe(world.observe(state, None))
    assert 0 <= action[0, 0] < 4
    torch.testing.assert_close(
        value[0, :4], torch.full((4,), math.log(2) + 0.01 * math.log(0.01) + 0.99 * math.log(0.99))
    )


def test_it_finds_each_item_with_as_many_questions_as_there_are_bits():
    world = bits(3)
    items = torch.arange(8)
    played = Cases(torch.stack([0 * items, items], 1), torch.full((8,), 3), 0)
    found = evaluate(world, ActiveInference(world, Belief(0.0, 1e-4), Preferences(0, 1)), played)
    assert (found["turns"] == 4).all()
    assert (found["rank"] == 1).all()
    np.testing.assert_allclose(found["confidence"][:, 3], 1, atol=1e-3)


def test_it_recommends_when_it_is_certain_or_nothing_is_left_to_ask():
    sure = bits(3, list_length=8)
    state = sure.reset_to(torch.tensor([[0, 5]]), torch.tensor([3]))
    assert ActiveInference(sure)(sure.observe(state, None))[0, 0] == -1
    world = shop()
    known = known_after(world, ActiveInference(world), 1)
    action = ActiveInference(world, preferences=Preferences(0, 100))({**known, "asked": known["asked"] | True})
    assert (action[:, 0] == -1).all()


def test_contradictory_answers_do_not_end_a_dialogue():
    world = shop(answer_noise=0.4, on_empty="quit", list_length=1)
    played = evaluate(world, ActiveInference(world), cases(world, 40))
    failed = played["rank"].values == 0
    assert failed.any()
    assert (played["action"].values[failed, -1] != -1).all()
    lasts = evaluate(world, Threshold(world, 1), cases(world, 40))
    assert (lasts["action"].values[lasts["rank"].values == 0, -1] == -1).any()


def test_no_list_names_an_item_twice_over():
    world = shop(answer_noise=0.3, list_length=2)
    played = evaluate(world, ActiveInference(world, preferences=Preferences(5, 0)), cases(world, 30))
    for lists in played["list"].values:
        named = lists[lists >= 0]
        assert len(named) == len(set(named))


def test_nothing_is_listed_once_everything_was_rejected():
    world = shop()
    known = known_after(world, ActiveInference(world), 1)
    known["recommended"] = torch.ones_like(known["recommended"])
    assert (ActiveInference(world).recommend(known) == -1).all()
    assert (BeliefRanking()(world, known)[2] == -torch.inf).all()


@pytest.mark.parametrize("question", ["enumerated", "multi_choice"])
def test_a_question_about_several_attributes_counts_as_the_sum_which_bounds_what_the_answers_tell(question):
    world = shop(question=question, choices=2)
    policy = ActiveInference(world, Belief(2.0, 0.05))
    known = known_after(world, policy, 1)
    value, q = policy.neg_efe(known), policy.posterior(known).double().numpy()
    assert value.shape == (12, SHOP.n_types + 1)
    gains, _, _ = BeliefRanking(policy.belief)(world, known)
    torch.testing.assert_close(value[:, :-1], question_values(world, gains))
    if question == "enumerated":
        for row, kind in itertools.product(range(4), range(SHOP.n_types)):
            leaves = world.leaves[kind].tolist()
            if not known["asked"][row, leaves].any():
                assert value[row, kind] >= joint_information(world, q[row], leaves, 0.05) - 1e-6
    played = evaluate(world, policy, cases(world, 40))
    assert (played["action"] == ASKED).any()
    assert (played["rank"] > 0).mean() > 0.9


def joint_information(world, q, leaves, error):
    """Of the item and all answers about the leaves together, answer by answer."""
    v = torch.arange(len(q))
    has = torch.stack([world.relation.has(v, torch.full_like(v, p)) for p in leaves], 1).numpy()
    found = 0.0
    for answers in itertools.product([False, True], repeat=len(leaves)):
        likely = np.where(has == np.array(answers), 1 - error, error).prod(1)
        found += (q * likely * np.log(likely / (q @ likely))).sum()
    return found


def test_a_choice_may_rank_by_the_belief():
    world = shop(answer_noise=0.2)
    belief = Belief(2.0, 0.05)
    known = known_after(world, ActiveInference(world, belief, Preferences(5, 0)), 3)
    assert known["recommended"].any()
    value, share, score = BeliefRanking(belief)(world, known)
    policy = ActiveInference(world, belief)
    torch.testing.assert_close(value, policy.neg_efe(known)[:, :-1])
    torch.testing.assert_close(share, world.relation.mass(policy.posterior(known)), atol=1e-6, rtol=0)
    assert torch.equal(score == -torch.inf, known["recommended"])
    options = CandidateChoice(world, CompactFeatures(), questions=4, ranking=BeliefRanking(belief)).options(known)
    assert torch.equal(options.item, policy.recommend(known)[:, 1:4])
    assert torch.equal(options.question[:, 0], value.argmax(1))
    ranked = Threshold(world, 0, ranking=BeliefRanking(belief))
    assert torch.equal(ranked.recommend(known), policy.recommend(known))


@pytest.mark.parametrize("beta", [1.0, 4.0])
def test_the_sharpness_of_the_prior_that_drew_the_targets_is_recovered(beta):
    world = bits(5)
    prior = Belief(beta).posterior(world, prior_only(world))[0]
    items = torch.multinomial(prior, 2000, replacement=True, generator=torch.Generator().manual_seed(0))
    pairs = np.stack([np.zeros(2000, dtype=np.int64), items.numpy()], 1)
    assert calibrate_beta(world, pairs, (0.0, 0.25, 1.0, 4.0, 16.0), error=0.4999) == beta


def prior_only(world):
    state = world.reset_to(torch.tensor([[0, 0]]), torch.tensor([-1]))
    return world.observe(state, None)


def test_refusals():
    world = shop()
    with pytest.raises(InputError, match=r"preferences\.reject = -1: must be at least 0"):
        Preferences(reject=-1)
    with pytest.raises(InputError, match="grid: empty"):
        calibrate_beta(world, SHOP.pairs("valid"), ())
    with pytest.raises(InputError, match="pairs: none"):
        calibrate_beta(world, SHOP.pairs("valid")[:0])
    with pytest.raises(InputError, match="must be 'binary'"):
        PymdpAgent(shop(question="enumerated"))
    large = generate(Generated(n_users=12, n_items=40, n_types=32, n_values=4, per_user=12), 0)
    with pytest.raises(InputError, match="40 items and 129 actions; at most 512 and 128"):
        PymdpAgent(Conversation(large, embeddings(large)))
    with pytest.raises(InputError, match="turns = 16: must be 1 to 15"):
        compare_with_closed_form(world, cases(world, 2), turns=16)


# ---- against pymdp


@pytest.fixture
def pymdp():
    return pytest.importorskip("pymdp", reason='pymdp is not installed: pip install "szilard[crs]"')


@pytest.mark.usefixtures("pymdp")
def test_pymdp_plays_the_same_dialogues():
    world = shop(answer_noise=0.1, unknown_rate=0.2)
    theirs = PymdpAgent(world, batch=8)
    ours = ActiveInference(world)
    one, other = (evaluate(world, policy, cases(world, 20)) for policy in (theirs, ours))
    assert one["turns"].max() > 4
    assert one.drop_vars("confidence").identical(other.drop_vars("confidence"))
    np.testing.assert_allclose(one["confidence"], other["confidence"], atol=1e-5)
    # The same shapes as above, so that nothing is compiled again.
    compared = compare_with_closed_form(world, cases(world, 8), turns=5)
    assert compared["difference"].notnull().sum() > 8 * 10
    assert compared["difference"].max() <= 1e-4


@pytest.mark.slow
@pytest.mark.usefixtures("pymdp")
def test_pymdp_has_the_same_values_on_256_items_and_48_attributes():
    catalogue = generate(Generated(n_users=100, n_items=256, n_types=6, n_values=8, per_user=20, most_types=6), 0)
    world = Conversation(catalogue, embeddings(catalogue))
    compared = compare_with_closed_form(world, Cases.of(world, catalogue.pairs("test"), 0, 16), turns=5)
    assert compared["difference"].notnull().sum() > 2000
    assert compared["difference"].max() <= 1e-4

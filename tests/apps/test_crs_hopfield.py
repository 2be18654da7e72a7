"""Retrieval from a Hopfield memory: the masked softmax by hand, its limits, and what policies make of it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from apps.crs.evaluation import Cases, evaluate
from apps.crs.hopfield import HopfieldPolicy, HopfieldRanking, HopfieldScores, tune_beta
from apps.crs.policies import AbsGreedy, MaxEntropy, Threshold
from core.errors import InputError
from simulators.crs import Conversation, Embeddings, Rules
from simulators.crs.choice import EntropyRanking
from simulators.crs.generated import Generated, generate
from simulators.crs.selection import ask

SHOP = generate(Generated(n_users=12, n_items=60, n_types=4, n_values=4, per_user=12, least_types=2, most_types=4), 0)


def embeddings(dim=6):
    generator = torch.Generator().manual_seed(1)
    counts = (SHOP.n_users, SHOP.n_items, SHOP.n_attributes)
    return Embeddings(*(torch.nn.functional.normalize(torch.randn(n, dim, generator=generator)) for n in counts))


WORLD = Conversation(SHOP, embeddings(), Rules(list_length=3))
CASES = Cases.of(WORLD, SHOP.pairs("test"), 0)


def known_after(turns, accepting=False, batch=16):
    """After questions about random attributes, or about those of the target."""
    generator = torch.Generator().manual_seed(2)
    state = WORLD.reset(batch, generator)
    for _ in range(turns):
        wanted = torch.rand(state.asked.shape, generator=generator).masked_fill(state.asked, -1.0)
        if accepting:
            own = WORLD.relation.has(state.targets, torch.arange(SHOP.n_attributes))
            wanted = wanted + own.float().masked_fill(state.asked, 0.0)
        action = ask(WORLD, wanted.argmax(1, keepdim=True))
        state = WORLD.step(state, action, WORLD.noise(batch, generator)).state
    return WORLD.observe(state, None)


@pytest.mark.parametrize("retrievals", [1, 2, 3])
@pytest.mark.parametrize("beta", [0.7, 5.0])
def test_the_masses_are_those_of_a_memory_of_the_candidates_alone(retrievals, beta):
    known = known_after(2)
    found = HopfieldScores(beta, retrievals).log_weights(WORLD, known)
    for row in range(len(found)):
        candidates = known["candidate"][row]
        x = WORLD.embeddings.item[candidates]
        xi = WORLD.users[known["user"][row]] + WORLD.embeddings.attribute[known["accepted"][row]].sum(0)
        for _ in range(retrievals):
            weights = torch.softmax(beta * x @ xi, 0)
            xi = x.T @ weights
        torch.testing.assert_close(
            found[row, candidates].exp(), weights, atol=1e-4 * (retrievals > 1) + 1e-6, rtol=1e-4
        )
        assert (found[row, ~candidates] == -torch.inf).all()


def test_masses_sum_to_one_and_no_candidates_have_none():
    known = known_after(1)
    empty = {**known, "candidate": known["candidate"] & (torch.arange(16) > 0).unsqueeze(1)}
    weights = HopfieldScores().log_weights(WORLD, empty).exp()
    torch.testing.assert_close(weights.sum(1), (torch.arange(16) > 0).float())


def test_one_retrieval_has_the_order_of_equation_1_while_nothing_was_rejected():
    known = known_after(1, accepting=True)
    assert not known["rejected"].any()
    greedy, memory = AbsGreedy(WORLD), Threshold(WORLD, ranking=HopfieldRanking(HopfieldScores(3.0)))
    assert torch.equal(memory.recommend(known), greedy.recommend(known))


def test_without_sharpness_all_candidates_are_alike_and_with_much_of_it_one_is_left():
    known = known_after(1)
    value, share, _ = HopfieldRanking(HopfieldScores(1e-6))(WORLD, known)
    plain_value, plain_share, _ = EntropyRanking("entropy")(WORLD, known)
    torch.testing.assert_close(share, plain_share, atol=1e-5, rtol=0)
    torch.testing.assert_close(value, plain_value, atol=1e-4, rtol=0)
    log_weights = HopfieldScores(1e4).log_weights(WORLD, known)
    best = known["score"].masked_fill(~known["candidate"], -torch.inf)
    torch.testing.assert_close(log_weights.max(1).values, torch.zeros(16), atol=1e-2, rtol=0)
    # The others keep an order although their masses are below any float.
    assert (log_weights > -torch.inf).equal(known["candidate"])
    rejected = known["rejected"].any(1)
    assert torch.equal(log_weights.argsort(1)[~rejected, -3:], best.argsort(1)[~rejected, -3:])


def test_a_question_is_worth_the_entropy_of_the_mass_that_it_concerns():
    known = known_after(2)
    scores = HopfieldScores(2.0)
    value, share, log_weights = HopfieldRanking(scores)(WORLD, known)
    has = WORLD.relation.has(torch.arange(SHOP.n_items).unsqueeze(1), torch.arange(SHOP.n_attributes))
    torch.testing.assert_close(share, log_weights.exp() @ has.float(), atol=1e-6, rtol=0)
    x = share.double().clamp(1e-12, 1 - 1e-12)
    entropy = -(x * x.log2() + (1 - x) * (1 - x).log2())
    asked = value > -torch.inf
    torch.testing.assert_close(value[asked].double(), entropy[asked], atol=1e-5, rtol=0)
    assert not asked[known["asked"]].any()


@pytest.mark.parametrize("beta", [1.0, 4.0])
def test_the_inverse_temperature_that_drew_the_targets_is_recovered(beta):
    # All items have the one attribute, so that there is a single opening.
    alike = replace(
        SHOP,
        attribute_names=("all",),
        type_names=("type",),
        attribute_type=np.zeros(1, dtype=np.int64),
        edges=np.stack([np.arange(60), np.zeros(60, dtype=np.int64)], 1),
    )
    points = embeddings()
    world = Conversation(alike, replace(points, attribute=points.attribute[:1]), WORLD.rules)
    generator = torch.Generator().manual_seed(0)
    state = world.reset(4000, generator)
    weights = HopfieldScores(beta).log_weights(world, world.observe(state, None)).exp()
    target = torch.multinomial(weights, 1, generator=generator)
    pairs = torch.cat([state.user.unsqueeze(1), target], 1).numpy()
    assert tune_beta(world, pairs, (0.25, 1.0, 4.0, 16.0)) == beta


@pytest.mark.parametrize("policy", [MaxEntropy, Threshold])
def test_asking_by_the_ranking_of_equation_1_is_what_is_done_without_a_ranking(policy):
    plain = evaluate(WORLD, policy(WORLD, seed=3), CASES)
    ranked = evaluate(WORLD, policy(WORLD, ranking=EntropyRanking(), seed=3), CASES)
    assert plain.identical(ranked)


def test_a_policy_asks_and_recommends_by_the_memory():
    scores, known = HopfieldScores(3.0), known_after(0)
    policy = HopfieldPolicy(WORLD, scores, n=12)
    value, _, log_weights = HopfieldRanking(scores)(WORLD, known)
    action, asks = policy(known), known["candidate"].sum(1) > 12
    assert asks.any()
    assert not asks.all()
    assert torch.equal(action[asks, 0], value.argmax(1)[asks])
    best = log_weights.topk(3)
    listed = torch.where(best.values > -torch.inf, best.indices, -1)
    assert torch.equal(action[~asks, 1:4], listed[~asks])
    played = evaluate(WORLD, policy, CASES)
    assert (played["rank"] > 0).mean() > 0.9
    confidence = played["confidence"].values
    assert (np.isfinite(confidence) == (played["action"].values == 1)).all()
    assert np.nanmax(confidence) <= 1 + 1e-6


def test_refusals():
    with pytest.raises(InputError, match=r"hopfield\.beta = 0: must be above 0"):
        HopfieldScores(0)
    with pytest.raises(InputError, match=r"hopfield\.retrievals = 4: must be 1 to 3"):
        HopfieldScores(1.0, 4)
    with pytest.raises(InputError, match="grid: empty"):
        tune_beta(WORLD, SHOP.pairs("valid"), ())

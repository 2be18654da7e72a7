"""The belief about the item: Bayes' rule and mutual information, both by enumeration."""

import math

import numpy as np
import pytest
import torch

from core.errors import InputError
from core.simulation import tree
from simulators.crs import Conversation, Embeddings, Rules
from simulators.crs.belief import Belief, information_gain
from simulators.crs.generated import Generated, generate
from simulators.crs.selection import ask, recommend

CATALOGUE = generate(
    Generated(n_users=9, n_items=30, n_types=4, n_values=4, per_user=9, least_types=2, most_types=4), 0
)
HAS = np.zeros((CATALOGUE.n_items, CATALOGUE.n_attributes), dtype=bool)
HAS[CATALOGUE.edges[:, 0], CATALOGUE.edges[:, 1]] = True


def embeddings(catalogue=CATALOGUE, dim=5):
    generator = torch.Generator().manual_seed(1)
    counts = (catalogue.n_users, catalogue.n_items, catalogue.n_attributes)
    return Embeddings(*(torch.randn(n, dim, generator=generator) / dim**0.5 for n in counts))


WORLD = Conversation(CATALOGUE, embeddings(), Rules(list_length=3, answer_noise=0.2, on_empty="relax"))


def played(world=WORLD, batch=16, turns=6, seed=2):
    """Dialogues after random questions and, at every third turn, random lists that hold no target."""
    generator = torch.Generator().manual_seed(seed)
    state = world.reset(batch, generator)
    for t in range(turns):
        noise = world.noise(batch, generator)
        if t % 3 == 2:
            wrong = torch.rand(batch, CATALOGUE.n_items, generator=generator)
            wrong.scatter_(1, state.targets, -1.0)
            action = recommend(world, wrong.topk(3).indices)
        else:
            fresh = torch.rand(state.asked.shape, generator=generator).masked_fill(state.asked, -1.0)
            action = ask(world, fresh.argmax(1, keepdim=True))
        state = world.step(state, action, noise).state
    return state


def enumerated(state, row, belief):
    """The posterior of one dialogue from the product of the likelihoods of all that was said, item by item."""
    q = []
    for v in range(CATALOGUE.n_items):
        said = math.exp(belief.beta * float(WORLD.users[state.user[row]] @ WORLD.embeddings.item[v]))
        opening = int(state.order[row, 0])
        for p, yes in [(opening, True), *((int(p), a == 1) for p, a in heard(state, row))]:
            said *= 1 - belief.error if HAS[v, p] == yes else belief.error
        q.append(0.0 if v in state.lists[row].flatten().tolist() else said)
    return np.array(q) / sum(q)


def heard(state, row):
    asked = state.questions[row] >= 0
    return zip(state.questions[row, asked].tolist(), state.answers[row, asked].tolist(), strict=True)


@pytest.mark.parametrize("belief", [Belief(2.0, 0.01), Belief(0.0, 0.2), Belief(5.0, 0.4)])
def test_the_posterior_is_bayes_rule(belief):
    state = played()
    q = belief.posterior(WORLD, WORLD.observe(state, None))
    for row in range(len(q)):
        np.testing.assert_allclose(q[row], enumerated(state, row, belief), atol=1e-6, rtol=1e-4)


def test_a_belief_is_a_distribution_without_the_items_that_were_rejected():
    state = played()
    q = Belief().posterior(WORLD, WORLD.observe(state, None))
    assert state.recommended.sum(1).min() > 3
    torch.testing.assert_close(q.sum(1), torch.ones(len(q)))
    assert (q[state.recommended] == 0).all()
    assert (q[~state.recommended] > 0).all()


def test_once_every_item_was_rejected_the_belief_is_still_one():
    known = WORLD.observe(played(), None)
    q = Belief().posterior(WORLD, {**known, "recommended": torch.ones_like(known["recommended"])})
    torch.testing.assert_close(q.sum(1), torch.ones(len(q)))


def test_answers_that_are_as_often_wrong_as_right_say_nothing():
    known = WORLD.observe(played(), None)
    prior = {**known, **{name: torch.zeros_like(known[name]) for name in ("accepted", "rejected")}}
    blunt = Belief(error=0.5 - 1e-7)
    torch.testing.assert_close(blunt.posterior(WORLD, known), blunt.posterior(WORLD, prior))
    gain = information_gain(WORLD, blunt.posterior(WORLD, known), blunt.error)
    torch.testing.assert_close(gain, torch.zeros_like(gain))


def test_somebody_unknown_has_the_mean_taste():
    known = WORLD.observe(played(batch=4), None)
    stranger = {**known, "user": torch.full_like(known["user"], -1)}
    nothing = {**stranger, **{name: torch.zeros_like(known[name]) for name in ("accepted", "rejected", "recommended")}}
    taste = WORLD.embeddings.item @ WORLD.embeddings.user.mean(0)
    torch.testing.assert_close(Belief(1.5).posterior(WORLD, nothing)[0], (1.5 * taste).softmax(0))


@pytest.mark.parametrize("error", [0.01, 0.3])
def test_the_information_gain_is_the_mutual_information_of_item_and_answer(error):
    posterior = Belief(3.0).posterior(WORLD, WORLD.observe(played(), None))
    found, q = information_gain(WORLD, posterior, error), posterior.double().numpy()
    yes = np.where(HAS, 1 - error, error)
    joint = np.stack([q[:, :, None] * yes, q[:, :, None] * (1 - yes)], -1)  # dialogue, item, attribute, answer
    independent = joint.sum(1, keepdims=True) * joint.sum(3, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        terms = np.where(joint > 0, joint * np.log(joint / independent), 0.0)
    np.testing.assert_allclose(found, terms.sum((1, 3)), atol=2e-6)
    assert found.min() > -1e-6
    assert found.max() <= math.log(2) + error * math.log(error) + (1 - error) * math.log(1 - error) + 1e-6


def test_an_attribute_of_all_that_is_possible_or_of_none_tells_nothing():
    q = torch.zeros(2, CATALOGUE.n_items)
    q[:, 0] = 1.0
    gain = information_gain(WORLD, q, 0.1)
    torch.testing.assert_close(gain, torch.zeros_like(gain))


def test_the_mass_of_attributes_is_the_product_with_the_table():
    weight = torch.rand(3, CATALOGUE.n_items)
    torch.testing.assert_close(WORLD.relation.mass(weight), weight @ torch.as_tensor(HAS, dtype=torch.float32))


def test_a_row_of_a_batch_has_the_belief_of_one_dialogue():
    state = played()
    together = Belief().posterior(WORLD, WORLD.observe(state, None))
    one = tree.take(state, torch.tensor([5]))
    torch.testing.assert_close(Belief().posterior(WORLD, WORLD.observe(one, None))[0], together[5])


@pytest.mark.parametrize(
    ("wrong", "named"), [({"beta": -1.0}, "beta"), ({"error": 0.0}, "error"), ({"error": 0.5}, "error")]
)
def test_a_belief_refuses_numbers_out_of_range(wrong, named):
    with pytest.raises(InputError, match=rf"belief\.{named} = .*must be"):
        Belief(**wrong)

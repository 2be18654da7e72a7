"""Dialogues against a slow, obvious copy of their rules, step by step, and the laws that hold for any of them."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from core.errors import InputError
from core.simulation import tree
from simulators.crs import Conversation, Embeddings, Rewards, Rules
from simulators.crs.dialogue import Noise
from simulators.crs.generated import Generated, generate
from tests.simulators.crs_cases import QUESTIONS, SMALL, SlowDialogue, conversation, embedded, written_out

CATALOGUE = generate(SMALL, 0)
PAYS = Rewards(0.5, -0.25, 8.0, -2.0, -4.0, -1.0)
"""Distinct powers of two, so that a sum shows what was paid."""


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def some_action(world, state, row, rng):
    """A question, now and then one that was asked already, or a list of some of the candidates or of any items."""
    catalogue, rules = world.catalogue, world.rules
    action = [-1] * world.columns
    if rng.random() < 0.3:
        possible = np.flatnonzero(state.candidate[row]) if rng.random() < 0.7 else np.arange(catalogue.n_items)
        length = rng.integers(0, min(rules.list_length, len(possible)), endpoint=True)
        action[1 : 1 + length] = rng.permutation(possible)[:length].tolist()
    elif rules.question == "enumerated":
        action[0] = int(rng.integers(catalogue.n_types))
    elif rules.question == "binary":
        action[0] = int(rng.integers(catalogue.n_attributes))
    else:
        of_type = np.flatnonzero(catalogue.attribute_type == rng.integers(catalogue.n_types))
        count = rng.integers(1, min(rules.choices, len(of_type)), endpoint=True)
        action[:count] = rng.permutation(of_type)[:count].tolist()
    return action


def play(world, batch=24, seed=0):
    """Random dialogues to their end, each compared with its slow copy after each step; how they ended."""
    rng, generator = np.random.default_rng(seed), seeded(seed)
    state = world.reset(batch, generator)
    slow = [
        SlowDialogue(world.catalogue, world.embeddings, world.rules, int(u), t, int(o))
        for u, t, o in zip(state.user, state.targets.tolist(), state.order[:, 0], strict=True)
    ]
    ended = {"success": 0, "quit": 0, "empty": 0}
    assert not any(s.differs(state, row) for row, s in enumerate(slow))
    while slow:
        actions = [some_action(world, state, row, rng) for row in range(len(slow))]
        noise = world.noise(len(slow), generator)
        step = world.step(state, torch.tensor(actions), noise)
        going = torch.ones(len(slow), dtype=torch.bool)
        for row, s in enumerate(slow):
            told = s.step(actions[row], noise.flip[row].tolist(), float(noise.unknown[row]), float(noise.quit[row]))
            assert s.differs(step.state, row) == []
            assert float(step.reward[row]) == pytest.approx(told["reward"])
            assert bool(step.terminated[row]) == told["done"]
            assert int(step.info["rank"][row]) == told["rank"]
            assert bool(step.info["is_success"][row]) == (told["rank"] > 0)
            assert int(step.info["candidates"][row]) == told["candidates"]
            if told["done"]:
                going[row] = False
                reason = "success" if told["rank"] else "quit" if told["reward"] == PAYS.quit else "empty"
                ended[reason] += 1
        state = tree.take(step.state, going)
        slow = [s for s, on in zip(slow, going.tolist(), strict=True) if on]
    return ended


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("turns", ["paper", "official"])
@pytest.mark.parametrize("rejection", ["sigmoid", "dot"])
def test_dialogues_follow_the_rules(question, turns, rejection):
    world = conversation(
        CATALOGUE, question=question, turns=turns, rejection=rejection, max_turns=9, list_length=4, rewards=PAYS
    )
    ended = play(world)
    assert ended["success"]
    assert ended["quit"]
    assert not ended["empty"]


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("on_empty", ["quit", "relax"])
def test_they_do_when_users_err_leave_and_do_not_care(question, on_empty):
    world = conversation(
        CATALOGUE,
        question=question,
        on_empty=on_empty,
        list_length=3,
        max_turns=12,
        answer_noise=0.3,
        unknown_rate=0.2,
        quit_hazard=0.05,
        rewards=PAYS,
    )
    ended = play(world, batch=40, seed=1)
    assert ended["quit"]
    assert bool(ended["empty"]) == (on_empty == "quit")


@pytest.mark.parametrize("question", QUESTIONS)
def test_they_do_with_several_acceptable_items(question):
    assert play(conversation(CATALOGUE, question=question, targets=4, list_length=3, rewards=PAYS), seed=2)["success"]


def test_acceptable_items_have_the_opening_and_most_in_common_with_the_target():
    world = conversation(CATALOGUE, targets=4)
    state = world.reset(50, seeded())
    held = [set(CATALOGUE.edges[CATALOGUE.edges[:, 0] == v, 1].tolist()) for v in range(CATALOGUE.n_items)]
    for targets, opening in zip(state.targets.tolist(), state.order[:, 0].tolist(), strict=True):
        own = held[targets[0]]
        alike = {v: len(own & h) / len(own | h) for v, h in enumerate(held) if v != targets[0] and opening in h}
        chosen = [v for v in targets[1:] if v >= 0]
        assert len(chosen) == len(set(chosen)) == min(3, len(alike))
        assert sorted((alike[v] for v in chosen), reverse=True) == sorted(alike.values(), reverse=True)[: len(chosen)]


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_row_of_a_batch_is_the_single_copy(question):
    world = conversation(CATALOGUE, question=question, answer_noise=0.2, unknown_rate=0.1, targets=2, list_length=4)
    rng, generator = np.random.default_rng(0), seeded()
    together = world.reset(8, generator)
    pairs = torch.stack([together.user, together.targets[:, 0]], 1)
    alone = [world.reset_to(pairs[b : b + 1], together.order[b : b + 1, 0]) for b in range(8)]
    for _ in range(10):
        action = torch.tensor([some_action(world, together, row, rng) for row in range(8)])
        noise = world.noise(8, generator)
        step = world.step(together, action, noise)
        for b in range(8):
            one = world.step(alone[b], action[b : b + 1], tree.take(noise, slice(b, b + 1)))
            for name, value in tree.named_tensors(one.state):
                row = tree.take(step.state, slice(b, b + 1))
                wanted = dict(tree.named_tensors(row))[name]
                assert torch.allclose(value, wanted, atol=1e-6) if name == "score" else torch.equal(value, wanted)
            assert torch.equal(one.reward, step.reward[b : b + 1])
            assert torch.equal(one.terminated, step.terminated[b : b + 1])
            alone[b] = one.state
        together = step.state


def test_the_same_seed_gives_the_same_dialogues():
    world = conversation(CATALOGUE, answer_noise=0.2)

    def played(seed):
        generator = seeded(seed)
        state = world.reset(16, generator)
        for _ in range(5):
            action = torch.full((16, world.columns), -1)
            action[:, 0] = torch.randint(world.questions, (16,), generator=generator)
            state = world.step(state, action, world.noise(16, generator)).state
        return dict(tree.named_tensors(state))

    first, again, other = played(3), played(3), played(4)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["order"], other["order"])


def test_a_step_changes_nothing_in_the_state_before_it():
    world = conversation(CATALOGUE, list_length=4)
    state = world.reset(16, seeded())
    kept = tree.map_tensors(torch.clone, state)
    rng = np.random.default_rng(0)
    world.step(state, torch.tensor([some_action(world, state, b, rng) for b in range(16)]), world.noise(16, seeded()))
    assert all(torch.equal(a, dict(tree.named_tensors(kept))[name]) for name, a in tree.named_tensors(state))


def test_reset_draws_users_then_their_items_then_the_opening_uniformly():
    # User 0 has one item, user 1 three; item 0 has 1 attribute, item 3 four.
    edges = [(0, 0), (1, 0), (1, 1), (2, 2), (3, 0), (3, 1), (3, 2), (3, 3)]
    catalogue = written_out(edges, 4, [0, 0, 1, 1], pairs=[(0, 3), (1, 0), (1, 1), (1, 2)])
    n = 8000
    state = conversation(catalogue, list_length=2).reset(n, seeded())
    user, item, opening = state.user.numpy(), state.targets[:, 0].numpy(), state.order[:, 0].numpy()

    def fits(counts, shares):
        return stats.chisquare(counts, np.array(shares) * sum(counts)).pvalue > 1e-3

    assert fits(np.bincount(user, minlength=2), [0.5, 0.5])
    assert fits(np.bincount(item, minlength=4), [1 / 6, 1 / 6, 1 / 6, 1 / 2])
    assert fits(np.bincount(opening[item == 3], minlength=4), [0.25] * 4)
    assert set(opening[item == 2]) == {2}
    assert set(item[user == 0]) == {3}


def test_an_unknown_user_has_the_mean_taste_and_may_open_with_nothing():
    world = conversation(CATALOGUE)
    state = world.reset_to(
        torch.tensor([[-1, -1], [-1, 3]]), torch.tensor([-1, int(world.relation.item_attributes[0])])
    )
    mean = world.embeddings.user.mean(0)
    assert bool(state.candidate[0].all())
    assert not bool(state.accepted[0].any())
    assert torch.allclose(state.score[0], world.embeddings.item @ mean, atol=1e-6)
    action = torch.full((2, world.columns), -1)
    action[:, 1:] = torch.arange(world.rules.list_length)
    step = world.step(state, action, world.noise(2, seeded()))
    assert step.info["is_success"].tolist() == [False, True]  # nobody's target is never found


def answered(world, state, action, flip=1.0, unknown=1.0, leaves=1.0):
    n = len(action)
    noise = Noise(torch.full((n, world.width), flip), torch.full((n,), unknown), torch.full((n,), leaves))
    return world.step(state, torch.tensor(action), noise)


def two_items(**rules):
    """Item 0 has values 0 and 1, item 1 has 0 and 2; the target is item 0, and value 0 opens."""
    catalogue = written_out([(0, 0), (0, 1), (1, 0), (1, 2)], 2, [0, 1, 1])
    world = conversation(catalogue, list_length=1, **rules)
    return world, world.reset_to(torch.tensor([[0, 0]]), torch.tensor([0]))


def test_uniforms_below_the_rates_turn_answers_round_and_make_users_leave():
    world, state = two_items(answer_noise=0.2, unknown_rate=0.3, quit_hazard=0.4, rewards=PAYS)
    true = answered(world, state, [[1, -1]])
    assert float(true.reward) == PAYS.ask_success
    assert true.state.candidate.tolist() == [[True, False]]
    turned = answered(world, state, [[1, -1]], flip=0.1)
    assert float(turned.reward) == PAYS.ask_failure
    assert turned.state.candidate.tolist() == [[True, True]]
    assert turned.state.rejected.tolist() == [[False, True, False]]
    unsure = answered(world, state, [[1, -1]], unknown=0.1, leaves=0.1)
    assert float(unsure.reward) == 0.0
    assert not bool(unsure.terminated)
    assert int(unsure.state.answers[0, 0]) == 2
    assert unsure.state.asked.tolist() == [[True, True, False]]
    assert not bool(unsure.state.rejected.any())
    gone = answered(world, state, [[2, -1]], leaves=0.1)
    assert float(gone.reward) == PAYS.quit
    assert bool(gone.terminated)
    assert not bool(answered(world, state, [[1, -1]], leaves=0.1).terminated)  # only after a turn that failed
    assert bool(answered(world, state, [[-1, 1]], leaves=0.1).terminated)
    assert float(answered(world, state, [[-1, 0]], leaves=0.1).reward) == PAYS.recommend_success


def test_no_candidate_left_ends_the_dialogue_or_relaxes_the_last_answer():
    for on_empty in ("quit", "relax"):
        world, state = two_items(answer_noise=0.2, on_empty=on_empty, rewards=PAYS)
        state = answered(world, state, [[1, -1]]).state
        both = answered(world, state, [[2, -1]], flip=0.1)  # nothing has values 1 and 2
        assert both.state.accepted.tolist() == [[True, True, True]]
        if on_empty == "quit":
            assert bool(both.terminated)
            assert float(both.reward) == PAYS.empty
        else:
            assert not bool(both.terminated)
            assert float(both.reward) == PAYS.ask_success
            assert both.state.candidate.tolist() == [[True, False]]


def test_relaxed_to_items_that_were_ruled_out_their_scores_are_those_of_the_equation():
    # The only candidate is turned down, and what an earlier answer had ruled out comes back.
    catalogue = written_out([(0, 0), (0, 1), (1, 0), (1, 2)], 2, [0, 1, 1])
    world = conversation(catalogue, list_length=1, on_empty="relax", answer_noise=0.2)
    state = world.reset_to(torch.tensor([[0, 1]]), torch.tensor([0]))
    state = answered(world, state, [[1, -1]], flip=0.1).state
    assert state.candidate.tolist() == [[True, False]]
    step = answered(world, state, [[-1, 0]])
    assert step.state.candidate.tolist() == [[False, True]]
    assert not bool(step.terminated)
    assert torch.allclose(step.state.score[:, 1], world.scores(step.state)[:, 1], atol=1e-6)


def test_the_last_turn_of_the_paper_counts_and_the_official_one_is_void():
    for turns, found in (("paper", True), ("official", False)):
        world, state = two_items(turns=turns, max_turns=2, rewards=PAYS)
        state = answered(world, state, [[2, -1]]).state
        step = answered(world, state, [[-1, 0]])
        assert bool(step.terminated)
        assert bool(step.info["is_success"]) == found
        assert float(step.reward) == (PAYS.recommend_success if found else PAYS.quit)
        assert int(step.state.answers[0, 1]) == (4 if found else -1)
    assert (Rules().actions, Rules(turns="official").actions) == (15, 14)


def test_the_penalty_of_the_turn_limit_is_paid_in_place_of_the_answer():
    world, state = two_items(max_turns=1, rewards=PAYS)
    assert float(answered(world, state, [[1, -1]]).reward) == PAYS.quit


def test_the_rejection_of_a_type_and_the_acceptance_of_several_values():
    # Item 0 has values 1 and 2 of type 1, item 1 has 1 and 3; nobody has type 2 but item 2.
    catalogue = written_out([(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 3), (2, 0), (2, 4)], 3, [0, 1, 1, 1, 2])
    world = conversation(catalogue, question="enumerated", list_length=1, rewards=PAYS)
    state = world.reset_to(torch.tensor([[0, 0]]), torch.tensor([0]))
    yes = answered(world, state, [[1, -1]])
    assert float(yes.reward) == PAYS.ask_success  # once, however many values
    assert yes.state.order[0, :3].tolist() == [0, 1, 2]
    assert yes.state.rejected[0].tolist() == [0, 0, 0, 1, 0]
    assert yes.state.candidate.tolist() == [[True, False, False]]
    no = answered(world, yes.state, [[2, -1]])
    assert float(no.reward) == PAYS.ask_failure
    assert no.state.rejected[0].tolist() == [0, 0, 0, 1, 1]
    assert bool(no.state.asked.all())


def test_multi_choice_keeps_items_with_any_accepted_value_and_pays_for_each():
    catalogue = written_out([(0, 0), (0, 1), (1, 0), (1, 2), (2, 0), (2, 3)], 3, [0, 1, 1, 1])
    world = conversation(catalogue, question="multi_choice", choices=3, list_length=1, targets=2, rewards=PAYS)
    state = world.reset_to(torch.tensor([[0, 0]]), torch.tensor([0]))
    other = int(state.targets[0, 1])
    step = answered(world, state, [[1, 2, 3]])
    assert step.state.candidate[0].tolist() == [True, other == 1, other == 2]
    assert float(step.reward) == 2 * PAYS.ask_success + PAYS.ask_failure
    assert int(step.state.questions[0, 0]) == 1


def test_a_value_named_twice_counts_once():
    world = conversation(CATALOGUE, question="multi_choice", choices=3)
    state = world.reset(20, seeded())
    once, twice = (torch.full((20, world.columns), -1) for _ in range(2))
    once[:, 0] = twice[:, 0] = twice[:, 2] = torch.arange(20)
    noise = world.noise(20, seeded())
    a, b = world.step(state, once, noise), world.step(state, twice, noise)
    assert all(torch.equal(x, dict(tree.named_tensors(b.state))[name]) for name, x in tree.named_tensors(a.state))
    assert torch.equal(a.reward, b.reward)


@pytest.mark.parametrize("question", QUESTIONS)
def test_every_action_of_the_space_can_be_played(question):
    world = conversation(CATALOGUE, question=question, list_length=3)
    space = world.action_space
    space.seed(0)
    state, generator = world.reset(1, seeded()), seeded()
    for _ in range(200):
        action = torch.as_tensor(space.sample())[None]
        step = world.step(state, action, world.noise(1, generator))
        state = world.reset(1, generator) if bool(step.terminated) else step.state
        seen = {name: value[0].numpy() for name, value in world.observe(state, None).items()}
        for name, value in seen.items():
            kind = world.observation_space[name]
            assert kind.contains(value.astype(kind.dtype)), name


def test_one_item_one_attribute_and_short_lists():
    world = conversation(written_out([(0, 0)], 1, [0], n_users=1), list_length=1)
    state = world.reset(3, seeded())
    assert bool(answered(world, state, [[-1, 0]] * 3).info["is_success"].all())
    step = answered(world, state, [[0, -1]] * 3)
    assert not bool(step.terminated.any())
    assert bool(step.state.candidate.all())
    wide = conversation(CATALOGUE, list_length=10)
    state = wide.reset(1, seeded())
    short = answered(wide, state, [[-1, int(state.targets[0, 0]), *[-1] * 9]])
    assert int(short.info["rank"]) == 1


def test_memory_is_not_batch_times_items_times_attributes():
    sizes = Generated(n_users=10, n_items=4000, n_types=200, n_values=20, per_user=5)
    catalogue = generate(sizes, 0)
    world = Conversation(catalogue, embedded(catalogue, 4))
    largest = 0

    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            found = func(*args, **(kwargs or {}))
            for x in found if isinstance(found, tuple | list) else [found]:
                largest = max(largest, x.numel() if isinstance(x, torch.Tensor) else 0)
            return found

    batch = 16
    with Largest():
        state = world.reset(batch, seeded())
        action = torch.full((batch, world.columns), -1)
        action[:, 0] = world.relation.item_attributes[world.relation.item_start[state.targets[:, 0]]]
        state = world.step(state, action, world.noise(batch, seeded())).state
        action[:, 0] = -1
        action[:, 1:] = torch.arange(10)
        world.step(state, action, world.noise(batch, seeded()))
    # Besides (B, V) and (B, P) there are the pairs of candidate and attribute of the batch, and (pairs, d).
    assert largest <= 4 * batch * (catalogue.n_items + catalogue.n_attributes)
    assert batch * catalogue.n_items * catalogue.n_attributes > 1000 * largest


def test_changed_rules_and_pairs_leave_the_world_as_it_was():
    world = conversation(CATALOGUE)
    assert world.with_rules(max_turns=3).rules.max_turns == 3
    assert world.rules.max_turns == 15
    other = world.with_pairs(np.array([[7, 5]]))
    assert set(other.reset(20, seeded()).user.tolist()) == {7}
    assert len(set(world.reset(20, seeded()).user.tolist())) > 1
    with pytest.raises(InputError, match=r"rules\.question = 'enumerated'.*must stay 'binary'"):
        world.with_rules(question="enumerated")
    with pytest.raises(InputError, match="list_length = 61: must be at most 60"):
        world.with_rules(list_length=61)


REFUSED_RULES = {
    "question": ("ternary", "binary, enumerated, multi_choice"),
    "turns": ("mine", "paper, official"),
    "rejection": ("none", "sigmoid, dot"),
    "on_empty": ("stop", "quit, relax"),
    "max_turns": (0, "at least 1"),
    "list_length": (0, "at least 1"),
    "choices": (0, "at least 1"),
    "targets": (0, "at least 1"),
    "answer_noise": (0.5, "at least 0 and below 0.5"),
    "unknown_rate": (1.0, "at least 0 and below 1"),
    "quit_hazard": (-0.1, "at least 0 and below 1"),
}


@pytest.mark.parametrize("name", REFUSED_RULES)
def test_rules_out_of_range_are_refused(name):
    value, allowed = REFUSED_RULES[name]
    with pytest.raises(InputError, match=rf"rules\.{name} = {value!r}: must be .*{allowed}"):
        Rules(**{name: value})


def test_rates_that_are_no_numbers_and_a_single_official_turn_are_refused():
    with pytest.raises(InputError, match="quit_hazard = nan"):
        Rules(quit_hazard=math.nan)
    with pytest.raises(InputError, match=r"rewards\.quit = inf: must be finite"):
        Rewards(quit=math.inf)
    with pytest.raises(InputError, match="max_turns = 1: must be at least 2 with official"):
        Rules(turns="official", max_turns=1)


def test_embeddings_of_another_catalogue_or_not_finite_are_refused():
    good = embedded(CATALOGUE)
    with pytest.raises(InputError, match=r"item: shape \(59, 6\); must be \(60, 6\)"):
        Conversation(CATALOGUE, Embeddings(good.user, good.item[:-1], good.attribute))
    with pytest.raises(InputError, match=r"attribute: shape \(20, 5\); must be \(20, 6\)"):
        Conversation(CATALOGUE, Embeddings(good.user, good.item, good.attribute[:, :-1]))
    broken = good.user.clone()
    broken[3, 2] = math.nan
    with pytest.raises(InputError, match="user: holds a number that is not finite"):
        Conversation(CATALOGUE, Embeddings(broken, good.item, good.attribute))


def test_lists_longer_than_the_catalogue_and_impossible_pairs_are_refused():
    with pytest.raises(InputError, match=r"rules\.list_length = 61: must be at most 60, the number of items"):
        conversation(CATALOGUE, list_length=61)
    with pytest.raises(InputError, match=r"rules\.targets = 61: must be at most 60"):
        conversation(CATALOGUE, targets=61)
    bare = written_out([(0, 0)], 2, [0])
    with pytest.raises(InputError, match="an item without attributes cannot be a target"):
        conversation(bare, np.array([[0, 1]]), list_length=1)
    for pair in ([0, 60], [20, 0], [-1, 0]):
        with pytest.raises(InputError, match="pairs: an id out of range"):
            conversation(CATALOGUE, np.array([pair]))
    with pytest.raises(InputError, match="pairs: none; needs at least one"):
        conversation(CATALOGUE, np.empty((0, 2), dtype=np.int64))

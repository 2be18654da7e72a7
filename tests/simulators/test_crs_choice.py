"""The world as a choice among few actions: what is offered, what is allowed, what is seen, and the libraries' views."""

import math
import warnings

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from core.errors import InputError
from core.simulation import GymEnv, GymVectorEnv, SB3VecEnv, tree
from simulators.crs import selection
from simulators.crs.belief import Belief
from simulators.crs.choice import CandidateChoice, EntropyRanking
from simulators.crs.dialogue import Noise
from simulators.crs.environment import factorised
from simulators.crs.features import CompactFeatures
from simulators.crs.generated import PRESETS, generate
from tests.simulators.crs_cases import QUESTIONS, SMALL, conversation, embedded, written_out

CATALOGUE = generate(SMALL, 0)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def choice(question="binary", items=0, belief=None, questions=4, ranking=None, **rules):
    world = conversation(CATALOGUE, question=question, **rules)
    ranking = EntropyRanking() if ranking is None else ranking
    features = CompactFeatures(belief)
    return CandidateChoice(world, features, questions=questions, items=items, ranking=ranking)


def played(env, turns=4, batch=16, seed=0):
    """States on the way, with random allowed choices."""
    generator = seeded(seed)
    state = env.reset(batch, generator)
    found = [state]
    for _ in range(turns):
        mask = env.action_mask(state)
        drawn = torch.rand(mask.shape, generator=generator).masked_fill(~mask, -1)
        step = env.step(state, drawn.argmax(1), env.noise(batch, generator))
        state = tree.take(step.state, ~step.terminated)
        batch = len(state.dialogue.turn)
        found.append(state)
    return found


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("items", [0, 10])
@pytest.mark.parametrize("belief", [None, Belief()])
def test_observations_lie_in_the_space_and_something_is_always_allowed(question, items, belief):
    env = choice(question, items, belief)
    for state in played(env, turns=8):
        seen = env.observe(state)
        assert bool(seen["mask"].any(1).all())
        assert {k: v.shape[1:] for k, v in seen.items()} == {k: s.shape for k, s in env.observation_space.items()}
        for row in range(len(seen["mask"])):
            one = {name: value[row].numpy() for name, value in seen.items()}
            assert all(
                env.observation_space[k].contains(v.astype(env.observation_space[k].dtype)) for k, v in one.items()
            )


@pytest.mark.parametrize("question", QUESTIONS)
def test_offered_are_the_best_questions_in_order_and_the_best_candidates(question):
    env = choice(question, 10, questions=3)
    world = env.world
    for state in played(env):
        known = world.observe(state.dialogue, None)
        values = selection.attribute_values(world, known, selection.shares(world, known))
        of_question = selection.question_values(world, values)
        options = state.options
        for row in range(len(of_question)):
            best = sorted((float(x) for x in of_question[row] if x > -math.inf), reverse=True)[:3]
            offered = [q for q in options.question[row].tolist() if q >= 0]
            assert [float(of_question[row, q]) for q in offered] == best
            assert options.value[row, : len(best)].tolist() == best
            assert not bool(options.value[row, len(best) :].any())
        assert torch.equal(options.item, selection.top_items(known["score"], known["candidate"], 10))


@pytest.mark.parametrize("question", ["enumerated", "multi_choice"])
def test_the_share_of_a_type_is_the_sum_over_its_attributes(question):
    env = choice(question)
    state = played(env)[1]
    share = selection.shares(env.world, env.world.observe(state.dialogue, None))
    for row, questions in enumerate(state.options.question.tolist()):
        for place, q in enumerate(questions):
            about = np.flatnonzero(CATALOGUE.attribute_type == q)
            expected = float(share[row, about].sum()) if q >= 0 else 0.0
            assert float(state.options.share[row, place]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("items", [0, 10])
def test_a_choice_is_the_question_or_the_list_that_begins_with_the_item(items):
    env = choice(items=items)
    state = env.reset(5, seeded())
    options = state.options
    for place in range(4):
        action = env.action_of(options, torch.full((5,), place))
        assert torch.equal(action[:, 0], options.question[:, place])
        assert bool((action[:, 1:] == -1).all())
    for place in range(max(items, 1)):
        action = env.action_of(options, torch.full((5,), 4 + place))
        assert bool((action[:, 0] == -1).all())
        for row in range(5):
            best = options.item[row].tolist()
            wanted = [best[place], *best[:place], *best[place + 1 :]]
            assert action[row, 1:].tolist() == wanted
    nothing = env.action_of(tree.map_tensors(lambda x: torch.full_like(x, -1), options), torch.zeros(5).long())
    assert bool((nothing == -1).all())  # a question that is not there recommends what is there: nothing


@pytest.mark.parametrize("question", QUESTIONS)
def test_chosen_questions_are_put_to_the_world(question):
    env = choice(question)
    state = env.reset(6, seeded())
    step = env.step(state, torch.zeros(6, dtype=torch.int64), env.noise(6, seeded()))
    assert torch.equal(step.state.dialogue.questions[:, 0], state.options.question[:, 0])
    assert bool((step.state.dialogue.asked.sum(1) > state.dialogue.asked.sum(1)).all())


def test_the_last_turn_allows_only_lists_with_turns_of_the_paper():
    for turns, only in (("paper", True), ("official", False)):
        env = choice(turns=turns, max_turns=3, items=10, list_length=10)
        state = played(env, turns=0)[0]
        for turn in range(3):
            mask = env.action_mask(state)
            assert bool(mask[:, :4].any()) == (not only or turn < 2)
            questions = torch.zeros(len(state.dialogue.turn), dtype=torch.int64)
            step = env.step(state, questions, env.noise(len(questions), seeded()))
            state = tree.take(step.state, ~step.terminated)


def test_nothing_left_to_ask_leaves_the_list():
    catalogue = written_out([(0, 0), (1, 0)], 2, [0])
    world = conversation(catalogue, list_length=1)
    env = CandidateChoice(world, CompactFeatures(), questions=5)
    state = env.reset(3, seeded())
    assert env.action_mask(state).tolist() == [[False] * 5 + [True]] * 3
    assert bool((env.action_of(state.options, torch.tensor([0, 3, 5]))[:, 0] == -1).all())
    assert all(np.isfinite(value.numpy()).all() for value in env.observe(state).values())


def test_the_mask_counts_the_items_that_there_are():
    env = choice(items=10)
    for state in played(env, turns=5):
        there = state.dialogue.candidate.sum(1).clamp(max=10)
        assert torch.equal(env.action_mask(state)[:, 4:].sum(1), there)


def test_random_questions_repeat_with_the_seed():
    first, again, other = (
        choice(ranking=EntropyRanking("random", seed=seed)).reset(8, seeded()).options.question for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_compact_features_by_hand():
    """Item 0 has values 0 and 1, items 1 and 2 have 0 and 2; the user opens with 0 and turns item 2 down."""
    catalogue = written_out([(0, 0), (0, 1), (1, 0), (1, 2), (2, 0), (2, 2)], 3, [0, 1, 1])
    world = conversation(catalogue, list_length=1, max_turns=3)
    belief = Belief(beta=1.0, error=0.1)
    env = CandidateChoice(world, CompactFeatures(belief), questions=2)
    start = world.reset_to(torch.tensor([[1, 0]]), torch.tensor([0]))
    quiet = Noise(torch.ones(1, 1), torch.ones(1), torch.ones(1))
    state = env.choosing(world.step(start, torch.tensor([[-1, 2]]), quiet).state)
    seen = env.observe(state)

    e = embedded(catalogue)
    wanted = e.user[1] + e.attribute[0]
    score = e.item @ wanted
    weight = torch.sigmoid(score[:2])
    soft = torch.softmax(4 * score[:2], 0)
    top = int(score[:2].argmax())
    logits = e.item @ e.user[1] + math.log(9)
    logits[2] = -math.inf
    q = logits.softmax(0)
    spread = -float((q[:2] * q[:2].log()).sum()) / math.log(3)
    expected = torch.cat(
        [
            e.user[1],
            (weight[:, None] * e.item[:2]).sum(0) / weight.sum(),
            e.attribute[0],
            torch.tensor([0.0, 1.0, 0.0, math.log(2) / 8, 0.5, float(soft[top]), spread]),
        ]
    )
    assert torch.allclose(seen["state"][0], expected, atol=1e-5)

    share = weight / weight.sum()
    both = -float((share * share.log2()).sum())  # of a question about value 1 as about value 2
    for place, question in enumerate(state.options.question[0].tolist()):
        item = question - 1
        numbers = torch.tensor([1.0, 0.0, both, float(share[item]), float(q[item])])
        assert torch.allclose(seen["candidates"][0, place], torch.cat([e.attribute[question], numbers]), atol=1e-5)
    numbers = torch.tensor([0.0, 1.0, 0.0, float(soft[top]), float(q[top])])
    assert torch.allclose(seen["candidates"][0, 2], torch.cat([e.item[top], numbers]), atol=1e-5)
    assert seen["mask"].tolist() == [[True, True, True]]


def test_a_type_is_seen_as_the_mean_of_what_is_not_asked_yet():
    env = choice("enumerated")
    state = env.reset(6, seeded())
    seen = env.observe(state)["candidates"]
    attribute = env.world.embeddings.attribute
    for row in range(6):
        q = int(state.options.question[row, 0])
        about = [p for p in np.flatnonzero(CATALOGUE.attribute_type == q) if not state.dialogue.asked[row, p]]
        assert torch.allclose(seen[row, 0, : attribute.shape[1]], attribute[about].mean(0), atol=1e-6)


@pytest.mark.parametrize("question", QUESTIONS)
def test_the_belief_of_an_option_is_the_mass_of_what_it_is_about(question):
    belief = Belief()
    env = choice(question, belief=belief)
    state = played(env)[1]
    q = belief.posterior(env.world, env.world.observe(state.dialogue, None))
    seen = env.observe(state)["candidates"][:, :, -1]
    for row in range(len(q)):
        listed = [v for v in state.options.item[row].tolist() if v >= 0]
        assert float(seen[row, 4]) == pytest.approx(float(q[row, listed].sum()), abs=1e-5)
        for place, asked in enumerate(state.options.question[row].tolist()):
            about = [asked] if question == "binary" else np.flatnonzero(CATALOGUE.attribute_type == asked)
            rows = [float(q[row, v]) for v, p in CATALOGUE.edges.tolist() if p in about] if asked >= 0 else [0.0]
            assert float(seen[row, place]) == pytest.approx(sum(rows), abs=1e-5)


@pytest.mark.parametrize("question", QUESTIONS)
def test_gymnasium_accepts_the_single_copy(question):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        check_env(GymEnv(choice(question, items=10), scaled=False), skip_render_check=True)
        check_env(GymEnv(choice(question, belief=Belief())), skip_render_check=True)


def test_the_registered_environment_is_playable():
    import simulators  # noqa: F401 (registers the environments)

    env = gymnasium.make("CRS-v0", preset="tiny", seed=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        check_env(env.unwrapped, skip_render_check=True)
    again = gymnasium.make("CRS-v0", preset="tiny", seed=3)
    a, info = env.reset(seed=5)
    b, _ = again.reset(seed=5)
    assert all(np.array_equal(a[name], b[name]) for name in a)
    turns, terminated = 0, False
    while not terminated:
        allowed = info["action_mask"].astype(np.int8)
        _, reward, terminated, truncated, info = env.step(env.action_space.sample(allowed))
        turns += 1
        assert not truncated
        assert any(reward == pytest.approx(paid) for paid in (0.01, -0.1, 1.0, -0.3))
    assert turns <= 15
    with pytest.raises(InputError, match="preset = 'huge': must be one of tiny, small"):
        gymnasium.make("CRS-v0", preset="huge")


def test_a_row_of_the_vector_environment_is_the_single_environment():
    env = choice(items=3, questions=3, max_turns=4)
    dim = env.world.embeddings.dim
    together = GymVectorEnv(env, 5, scaled=False)
    seen, infos = together.reset(seed=1)
    assert seen["state"].shape == (5, 3 * dim + 4 + 3)
    alone = [GymEnv(env, scaled=False) for _ in range(5)]
    for row, single in enumerate(alone):
        single.reset(seed=0)
        single.episodes._state = tree.take(together.episodes._state, slice(row, row + 1))
    rng = np.random.default_rng(0)
    running = np.ones(5, dtype=bool)
    for _ in range(4):
        masks = seen["mask"].astype(bool)
        actions = np.array([rng.choice(np.flatnonzero(mask)) for mask in masks])
        seen, rewards, terminated, _, infos = together.step(actions)
        for row in np.flatnonzero(running):
            one, reward, ended, _, _ = alone[row].step(actions[row])
            assert reward == rewards[row]
            assert ended == terminated[row]
            last = infos["final_obs"][row] if ended else {name: value[row] for name, value in seen.items()}
            for name, value in one.items():
                assert np.allclose(value, last[name], atol=1e-5), name
            running[row] = not ended
    assert not running.any()


def test_stable_baselines_sees_the_mask_in_the_observation():
    env = SB3VecEnv(choice(items=10), 6, scaled=False, seed=0)
    seen = env.reset()
    assert seen["mask"].shape == (6, 14)
    assert seen["candidates"].shape[:2] == (6, 14)
    rng, finished = np.random.default_rng(0), 0
    for _ in range(25):
        actions = np.array([rng.choice(np.flatnonzero(mask)) for mask in seen["mask"]])
        seen, rewards, dones, infos = env.step(actions)
        finished += dones.sum()
        assert np.isfinite(rewards).all()
        assert all("is_success" in info for info, done in zip(infos, dones, strict=True) if done)
    assert finished


def test_impossible_sets_are_refused():
    world = conversation(CATALOGUE, list_length=5)
    with pytest.raises(InputError, match="questions = 0: must be at least 1"):
        CandidateChoice(world, CompactFeatures(), questions=0)
    with pytest.raises(InputError, match="items = 6: must be 0 to 5"):
        CandidateChoice(world, CompactFeatures(), items=6)


def test_embeddings_from_the_catalogue_alone_tell_whose_items_are_whose():
    catalogue = generate(PRESETS["small"], 0)
    found = factorised(catalogue)
    found.check(catalogue)
    norms = torch.cat([found.user, found.item, found.attribute]).norm(dim=1)
    assert bool(((norms - 1).abs().lt(1e-5) | (norms == 0)).all())
    edges = torch.as_tensor(catalogue.edges)
    match = found.item @ found.attribute.T
    assert float(match[edges[:, 0], edges[:, 1]].mean()) > float(match.mean()) + 0.2
    # What was held out of training is better liked than other items are.
    test = torch.as_tensor(catalogue.interactions["test"])
    taste = found.user @ found.item.T
    assert float(taste[test[:, 0], test[:, 1]].mean()) > float(taste.mean()) + 0.1
    small = written_out([(0, 0), (1, 1)], 2, [0, 0], n_users=1)
    assert factorised(small).item.shape == (2, 2)

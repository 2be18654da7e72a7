"""Asking in two stages: the groups, their clustering, what each stage allows and costs, and what it can reach."""

import warnings
from dataclasses import replace

import pytest
import torch
from gymnasium.utils.env_checker import check_env

from apps.crs.embedding import EmbeddingSettings, fit_embeddings
from apps.crs.evaluation import Cases, evaluate
from apps.crs.grouping import GroupedChoice, GroupedPolicy, spherical_kmeans
from apps.crs.policies import Threshold
from core.errors import InputError
from core.rl import DQN
from core.simulation import GymEnv, SB3VecEnv, tree
from simulators.crs import selection
from simulators.crs.choice import CandidateChoice
from simulators.crs.conversation import Conversation
from simulators.crs.features import CompactFeatures
from simulators.crs.generated import PRESETS, generate
from simulators.crs.rules import Rules

DIM, TURNS = 8, 6


def conversation(question="binary", **rules):
    catalogue = generate(PRESETS["tiny"], 0)
    points = fit_embeddings(catalogue, EmbeddingSettings(method="random", dim=DIM), 0, device="cpu")
    return Conversation(catalogue, points, Rules(question=question, list_length=3, max_turns=TURNS, **rules))


@pytest.fixture(scope="module")
def world():
    return conversation()


@pytest.fixture(scope="module")
def uneven(world):
    """Groups of 1, 2, ... attributes, in a shuffled order, whose numbers are not without gaps."""
    count = world.catalogue.n_attributes
    sizes = torch.repeat_interleave(torch.arange(8), torch.arange(1, 9))[:count]
    return GroupedChoice(world, 3 * sizes[torch.randperm(count, generator=torch.Generator().manual_seed(0))])


def begun(choice, batch=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return choice.reset(batch, generator), generator


# ---- k-means


def blobs(k=4, each=25, noise=0.05, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.nn.functional.normalize(torch.randn(k, 16, generator=generator), dim=1)
    label = torch.arange(k).repeat_interleave(each)
    return centres[label] + noise * torch.randn(k * each, 16, generator=generator), label


@pytest.mark.parametrize("seed", range(5))
def test_separated_clusters_are_found(seed):
    x, label = blobs(seed=seed)
    found = spherical_kmeans(x, 4, seed)
    # One to one: as many pairs of labels as there are clusters.
    assert len(torch.stack([found, label]).unique(dim=1).T) == len(found.unique()) == 4


def test_only_directions_count():
    x, _ = blobs(noise=0.4)
    scale = torch.rand(len(x), 1, generator=torch.Generator().manual_seed(1)) * 100 + 0.01
    assert torch.equal(spherical_kmeans(x, 6, 0), spherical_kmeans(scale * x, 6, 0))


def test_every_row_is_in_the_cluster_whose_mean_direction_it_fits_best():
    x, _ = blobs(noise=0.6)
    labels = spherical_kmeans(x, 5, 3)
    unit = torch.nn.functional.normalize(x.double(), dim=1)
    centres = torch.stack([unit[labels == k].sum(0) for k in range(5)])
    assert torch.equal((unit @ torch.nn.functional.normalize(centres, dim=1).T).argmax(1), labels)


@pytest.mark.parametrize("k", [1, 2, 7, 12])
def test_all_clusters_are_used_even_where_rows_are_the_same(k):
    x = torch.ones(12, 3)
    x[6:] = torch.tensor([1.0, -1.0, 0.0])
    assert spherical_kmeans(x, k, 0).unique().tolist() == list(range(k))


def test_impossible_numbers_of_clusters_are_refused():
    for k in (0, 4):
        with pytest.raises(InputError, match=f"groups = {k}: must be 1 to 3"):
            spherical_kmeans(torch.randn(3, 2), k, 0)


# ---- groups


def test_the_groups_are_a_partition(world, uneven):
    for choice in (GroupedChoice(world), uneven):
        members = choice.members
        assert members[members >= 0].sort().values.tolist() == list(range(world.catalogue.n_attributes))
        assert (members >= 0).any(1).all()
        assert choice.actions == (members.shape[0] + 1, members.shape[1])
        assert choice.action_space.n == max(members.shape) + 1
    labels = GroupedChoice(world).members
    kinds = world.types[labels.clamp(min=0)]
    assert ((kinds == kinds[:, :1]) | (labels < 0)).all()
    assert sorted((uneven.members >= 0).sum(1).tolist()) == sorted([1, 2, 3, 4, 5, 6, 7, 2])


def test_what_is_allowed(uneven):
    world, (state, generator) = uneven.world, begun(uneven)
    known = world.observe(state.dialogue, None)
    value = selection.attribute_values(world, known, selection.shares(world, known))
    mask = uneven.action_mask(state)
    for group, row in enumerate(uneven.members):
        here = row[row >= 0]
        assert torch.equal(mask[:, group], (value[:, here] > -torch.inf).any(1))
    assert not mask[:, len(uneven.members) : -1].any()
    assert mask[:, -1].all()
    group = mask[:, : len(uneven.members)].to(torch.int8).argmax(1)
    second = uneven.step(state, group, uneven.noise(16, generator)).state
    assert torch.equal(second.group, group)
    mask = uneven.action_mask(second)
    for b in range(16):
        row = uneven.members[group[b]]
        assert mask[b, : len(row)].tolist() == [p >= 0 and bool(value[b, p] > -torch.inf) for p in row]
    assert not mask[:, uneven.members.shape[1] :].any()
    assert torch.equal(uneven.observe(second)["mask"], mask)


def test_choosing_a_group_takes_no_turn_and_pays_nothing(uneven):
    state, generator = begun(uneven)
    step = uneven.step(state, torch.zeros(16, dtype=torch.int64), uneven.noise(16, generator))
    assert (step.reward == 0).all()
    assert not step.terminated.any()
    assert not step.info["is_success"].any()
    assert torch.equal(step.info["candidates"], state.dialogue.candidate.sum(1))
    for (name, before), (_, after) in zip(
        tree.named_tensors(state.dialogue), tree.named_tensors(step.state.dialogue), strict=True
    ):
        assert torch.equal(before, after), name


def test_both_stages_are_the_worlds_question_and_the_last_place_its_list(uneven):
    world, (state, generator) = uneven.world, begun(uneven)
    mask = uneven.action_mask(state)
    group = mask[:, : len(uneven.members)].to(torch.int8).argmax(1)
    noise = uneven.noise(16, generator)
    second = uneven.step(state, group, noise).state
    place = uneven.action_mask(second).to(torch.int8).argmax(1)
    found = uneven.step(second, place, noise)
    expected = world.step(state.dialogue, selection.ask(world, uneven.members[group, place].unsqueeze(1)), noise)
    same(found, expected)
    assert (found.state.group == -1).all()
    last = torch.full_like(group, uneven.slots)
    known = world.observe(state.dialogue, None)
    lists = selection.recommend(world, selection.top_items(known["score"], known["candidate"], 3))
    same(uneven.step(state, last, noise), world.step(state.dialogue, lists, noise))


def same(found, expected):
    assert torch.equal(found.reward, expected.reward)
    assert torch.equal(found.terminated, expected.terminated)
    for (name, a), (_, b) in zip(
        tree.named_tensors(found.state.dialogue), tree.named_tensors(expected.state), strict=True
    ):
        assert torch.equal(a, b), name
    assert torch.equal(found.info["candidates"], expected.info["candidates"])


def test_every_question_of_the_full_set_can_be_reached(world, uneven):
    full = CandidateChoice(world, CompactFeatures(), questions=world.catalogue.n_attributes)
    for choice in (GroupedChoice(world), uneven):
        state, _ = begun(choice, 8)
        known = world.observe(state.dialogue, None)
        options = full.options(known)
        allowed = full.mask(known, options)
        first = choice.action_mask(state)
        for b in range(8):
            wanted = set(options.question[b][allowed[b, :-1]].tolist())
            reached = set()
            for group in first[b, : len(choice.members)].nonzero().flatten().tolist():
                chosen = torch.full((8,), group)
                mask = choice.mask(known, state.groups, chosen)[b]
                places = mask.nonzero().flatten()
                reached |= set(choice.attribute(torch.full_like(places, group), places).tolist())
            assert reached == wanted


def test_at_the_last_turn_it_can_only_recommend(world):
    choice = GroupedChoice(world)
    state, _ = begun(choice)
    turn = torch.full_like(state.dialogue.turn, TURNS - 1)
    late = choice.grouping(replace(state.dialogue, turn=turn))
    assert choice.action_mask(late).sum(1).tolist() == [1] * 16
    assert choice.action_mask(late)[:, -1].all()


def test_a_group_is_seen_by_its_open_attributes(uneven):
    world, (state, generator) = uneven.world, begun(uneven, 4)
    seen = uneven.observe(state)
    groups, points = state.groups, world.embeddings.attribute
    for b in range(4):
        for g, row in enumerate(uneven.members):
            here = [p for p in row.tolist() if p >= 0 and groups.open[b, p]]
            found = seen["candidates"][b, g]
            if here:
                torch.testing.assert_close(found[:DIM], points[here].mean(0))
                torch.testing.assert_close(found[DIM + 2], groups.value[b, here].max())
                torch.testing.assert_close(found[DIM + 3], groups.share[b, here].sum())
            assert found[-1] == 1
    flat = CandidateChoice(world, CompactFeatures(), questions=uneven.slots)
    expected = flat.seen(world.observe(state.dialogue, None))[0]
    width = expected["state"].shape[1]
    torch.testing.assert_close(seen["state"][:, :width], expected["state"])
    assert (seen["state"][:, width:] == 0).all()
    torch.testing.assert_close(seen["candidates"][:, -1, :-1], expected["candidates"][:, -1])
    # In the second stage the state says which group was chosen, and the candidates are its attributes.
    group = uneven.action_mask(state)[:, : len(uneven.members)].to(torch.int8).argmax(1)
    later = uneven.observe(uneven.step(state, group, uneven.noise(4, generator)).state)
    assert (later["state"][:, width] == 1).all()
    row = torch.arange(4)
    torch.testing.assert_close(later["state"][:, width + 1 : width + 1 + DIM], seen["candidates"][row, group, :DIM])
    place = later["mask"].to(torch.int8).argmax(1)
    attribute = uneven.attribute(group, place)
    torch.testing.assert_close(later["candidates"][row, place, :DIM], points[attribute])
    torch.testing.assert_close(later["candidates"][row, place, DIM + 2], groups.value[row, attribute])
    assert (later["candidates"][..., -1] == 0).all()


# ---- views and learners


def test_the_checker_of_gymnasium_passes(uneven):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(GymEnv(uneven, scaled=False), skip_render_check=True)


def test_whatever_is_chosen_dialogues_end_in_time(uneven):
    state, generator = begun(uneven, 32)
    running = torch.ones(32, dtype=torch.bool)
    space = uneven.observation_space
    for _ in range(2 * TURNS):
        mask = uneven.action_mask(state)
        assert mask[running].any(1).all()
        seen = {name: value[0].to(torch.int8 if name == "mask" else value.dtype) for name, value in
                uneven.observe(state).items()}  # fmt: skip
        assert space.contains({name: value.numpy() for name, value in seen.items()})
        drawn = torch.rand(mask.shape, generator=generator).masked_fill(~mask, -1.0).argmax(1)
        step = uneven.step(state, drawn, uneven.noise(32, generator))
        assert tree.finite(step.state, step.reward).all()
        state, running = step.state, running & ~step.terminated
    assert not running.any()


class Rule(torch.nn.Module):
    """Recommends below a number of candidates, else chooses by the entropy that it sees of groups and attributes."""

    def forward(self, seen):
        value = seen["candidates"][..., DIM + 2].clone()
        count = (8 * seen["state"][:, 3 * DIM + TURNS]).exp()
        value[:, -1] = torch.where(count < 5.5, 9.0, -9.0)
        return value


def test_the_policy_asks_in_two_stages_what_the_best_rule_asks_in_one(world):
    cases = Cases.of(world, world.catalogue.pairs("test"), 0, 60)
    for labels in (None, spherical_kmeans(world.embeddings.attribute, 5, 0)):
        choice = GroupedChoice(world, labels)
        found = evaluate(world, GroupedPolicy(choice, Rule()), cases, batch=16)
        expected = evaluate(world, Threshold(world, 5), cases, batch=16)
        assert found.equals(expected)


def test_a_learner_chooses_in_both_stages(world):
    choice = GroupedChoice(world)
    env = SB3VecEnv(choice, 16, scaled=False, seed=0)
    model = DQN(
        "ActionSetPolicy", env, buffer_size=2_000, learning_starts=64, seed=0, target_update_interval=0, tau=0.05
    )
    model.learn(640)
    cases = Cases.of(world, world.catalogue.pairs("test"), 0, 20)
    played = evaluate(world, GroupedPolicy(choice, model.q_net), cases)
    assert played.sizes["dialogue"] == 20
    assert ((played["turns"] <= TURNS) & (played["turns"] >= 1)).all()


def test_refusals(world):
    with pytest.raises(InputError, match=r"rules\.question = 'enumerated': must be 'binary'"):
        GroupedChoice(conversation("enumerated"))
    for labels in (torch.zeros(3, dtype=torch.int64), torch.full((world.catalogue.n_attributes,), -1)):
        with pytest.raises(InputError, match="labels: "):
            GroupedChoice(world, labels)

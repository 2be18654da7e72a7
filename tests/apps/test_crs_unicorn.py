from dataclasses import replace

import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback

from apps.crs.evaluation import Cases, evaluate
from apps.crs.learned import QPolicy
from apps.crs.policies import Threshold
from apps.crs.training import WEIGHTS, load_weights, save_weights
from apps.crs.unicorn import (
    HistoryFeatures,
    RandomItems,
    UnicornNetwork,
    UnicornSettings,
    new_choice,
    new_unicorn,
    policy_of,
    restore,
    warm_start,
)
from apps.crs.unicorn.graph import state_graph
from core.errors import InputError
from core.rl.demonstrations import margin_loss
from simulators.crs import Conversation, Embeddings, Rules
from simulators.crs.choice import EntropyRanking
from simulators.crs.generated import PRESETS, generate

SMALL = UnicornSettings(
    questions=4, items=3, hidden=12, heads=2, feedforward=16, learning_starts=16, batch=16, memory=400
)


@pytest.fixture(scope="module")
def catalogue():
    return generate(PRESETS["tiny"], 0)


@pytest.fixture(scope="module")
def embeddings(catalogue):
    generator = torch.Generator().manual_seed(0)
    counts = catalogue.n_users, catalogue.n_items, catalogue.n_attributes
    return Embeddings(*(0.5 * torch.randn(n, 8, generator=generator) for n in counts))


@pytest.fixture(scope="module")
def world(catalogue, embeddings):
    return Conversation(catalogue, embeddings, Rules(list_length=5))


def _played(world, settings=SMALL, batch=12, turns=3, seed=0):
    """Dialogues after a few random choices that did not end them, and what a learner sees of them."""
    choice, generator = new_choice(world, settings), torch.Generator().manual_seed(seed)
    state = choice.reset(batch, generator)
    for _ in range(turns):
        mask = choice.action_mask(state)
        action = torch.rand(mask.shape, generator=generator).masked_fill(~mask, -1.0).argmax(1)
        step = choice.step(state, action, choice.noise(batch, generator))
        state = choice.choosing(_where(~step.terminated, step.state.dialogue, state.dialogue))
    return state.dialogue, choice.observe(state)


def _where(which, first, second):
    def pick(a, b):
        return torch.where(which.view(-1, *[1] * (a.dim() - 1)), a, b)

    return replace(first, **{name: pick(value, getattr(second, name)) for name, value in vars(first).items()})


def _network(world, settings=SMALL, seed=0):
    torch.manual_seed(seed)
    return UnicornNetwork(world, settings).eval()


def _rows(seen, rows):
    return {name: value[rows] for name, value in seen.items()}


# ---- histories


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"turns": "official", "rejection": "dot"},
        {"answer_noise": 0.2, "unknown_rate": 0.3},
        {"question": "enumerated"},
        {"question": "enumerated", "answer_noise": 0.1, "unknown_rate": 0.2},
    ],
)
def test_dialogue_follows_from_its_history(catalogue, embeddings, changes):
    world = Conversation(catalogue, embeddings, Rules(**{"list_length": 5, "max_turns": 8} | changes))
    for turns in (0, 1, 3, 8):
        dialogue, seen = _played(world, batch=40, turns=turns, seed=turns)
        known, again = world.observe(dialogue, None), restore(world, seen)
        assert set(again) == set(known)
        for name, value in known.items():
            if name != "score":
                assert torch.equal(again[name], value), name
        here = known["candidate"]
        torch.testing.assert_close(again["score"][here], known["score"][here], atol=1e-5, rtol=0)


def test_a_question_that_is_asked_again_changes_nothing(world):
    generator = torch.Generator().manual_seed(0)
    dialogue = world.reset(6, generator)
    for question in (3, 3, 5, 3):
        action = torch.full((6, world.columns), -1)
        action[:, 0] = question
        noise = replace(world.noise(6, generator), flip=torch.ones(6, 1))
        step = world.step(dialogue, action, noise)
        dialogue = _where(~step.terminated, step.state, dialogue)
    choice = new_choice(world, SMALL)
    seen = choice.observe(choice.choosing(dialogue))
    again = restore(world, seen)
    for name in ("asked", "accepted", "rejected", "candidate"):
        assert torch.equal(again[name], getattr(dialogue, name))


def test_memory_of_a_dialogue_does_not_grow_with_the_catalogue(catalogue, embeddings, world):
    long = Conversation(generate(PRESETS["small"], 0), _random_embeddings(PRESETS["small"]), Rules(list_length=5))
    sizes = []
    for one in (world, long):
        space = HistoryFeatures(one).space(new_choice(one, SMALL))
        sizes.append(sum(part.shape[0] for part in space.values()) - space["order"].shape[0])
    assert sizes[0] == sizes[1]


def _random_embeddings(generated):
    generator = torch.Generator().manual_seed(0)
    counts = generated.n_users, generated.n_items, generated.n_types * generated.n_values
    return Embeddings(*(torch.randn(n, 4, generator=generator) for n in counts))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"question": "multi_choice"}, r"rules\.question = 'multi_choice'.*binary or enumerated"),
        ({"on_empty": "relax"}, r"rules\.on_empty = 'relax'.*quit"),
    ],
)
def test_rules_whose_candidates_do_not_follow_are_refused(catalogue, embeddings, changes, message):
    world = Conversation(catalogue, embeddings, Rules(list_length=5, **changes))
    with pytest.raises(InputError, match=message):
        HistoryFeatures(world)
    with pytest.raises(InputError, match=message):
        UnicornNetwork(world, SMALL)


# ---- graph and network


def _by_hand(world, network, known, row):
    """Outputs of the convolutions at the accepted attributes of one dialogue, by dense matrices (section 4.1)."""
    catalogue, paper = world.catalogue, network.settings.compat == "paper"
    u, v, p = len(world.users), catalogue.n_items, catalogue.n_attributes
    has = world.relation.has(torch.arange(v)[:, None], torch.arange(p))
    item = known["candidate"][row].float()
    attribute = (~known["rejected"][row] & (known["accepted"][row] | ~known["asked"][row])).float()
    dense = torch.zeros(u + v + p, u + v + p)
    dense[known["user"][row], u : u + v] = item * known["score"][row].sigmoid()
    dense[u : u + v, u + v :] = has * item[:, None] * attribute
    dense = dense + dense.T
    if paper:
        inverse = torch.where(dense.sum(1) > 0, dense.sum(1), torch.inf).rsqrt()
        dense = inverse[:, None] * dense * inverse
    features = network.table
    for layer in network.convolutions:
        features_next = dense @ features @ layer.of_neighbours.weight.T
        if paper:
            features_next = torch.relu(features_next + features @ layer.of_own.weight.T)
        features = features_next
    order = known["order"][row]
    return features[u + v + order[order >= 0]]


@pytest.mark.parametrize("changes", [{}, {"layers": 1}, {"compat": "official"}])
@pytest.mark.parametrize("question", ["binary", "enumerated"])
def test_convolutions_are_the_dense_formula(catalogue, embeddings, changes, question):
    world = Conversation(catalogue, embeddings, Rules(list_length=5, question=question))
    network = _network(world, SMALL.model_copy(update=changes))
    dialogue, seen = _played(world, turns=2)
    known = world.observe(dialogue, None)
    graph = network.scene(seen).graph
    features = network.table
    for layer, parts in zip(network.convolutions, graph.layers, strict=True):
        features = layer(features, *parts)
    expected = torch.cat([_by_hand(world, network, known, row) for row in range(len(known["user"]))])
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-4)


def test_official_layer_gives_all_accepted_attributes_the_same_output(world):
    """Deng et al.'s code: a sum over the candidates, which all have every accepted attribute."""
    network = _network(world, SMALL.model_copy(update={"compat": "official"}))
    _, seen = _played(world, turns=4, batch=30)
    graph = network.scene(seen).graph
    outputs = network.convolutions[0](network.table, *graph.layers[0])
    for row in range(30):
        of_row = outputs[graph.dialogue == row]
        torch.testing.assert_close(of_row, of_row[:1].expand_as(of_row))


def test_row_of_a_batch_is_as_alone(world):
    network = _network(world)
    _, seen = _played(world)
    together = network(seen)
    for row in range(len(together)):
        torch.testing.assert_close(network(_rows(seen, [row])), together[row : row + 1], atol=1e-5, rtol=1e-4)


def test_padding_does_not_matter(world):
    """A short dialogue has the same state beside a longer one, although their sequences are padded together."""
    network = _network(world)
    _, long = _played(world, turns=4, batch=40)
    _, short = _played(world, turns=0, batch=40, seed=1)
    longest = int((long["order"] >= 0).sum(1).argmax())
    assert (long["order"][longest] >= 0).sum() > 1
    both = {name: torch.cat([value[:3], long[name][longest : longest + 1]]) for name, value in short.items()}
    alone, beside = (network.state(network.scene(x).graph) for x in (_rows(short, slice(3)), both))
    torch.testing.assert_close(beside[:3], alone, atol=1e-6, rtol=1e-5)


def test_weights_of_the_candidates_and_the_user_reach_the_state(world):
    network = _network(world)
    dialogue, _ = _played(world)
    known = dict(world.observe(dialogue, None))

    def state(**changes):
        return network.state(state_graph(world, known | changes, layers=2))

    assert (state(score=known["score"] * 3 + 1) - state()).abs().max() > 1e-4
    assert (state(user=(known["user"] + 1) % 5) - state()).abs().max() > 1e-4


def test_more_candidates_than_fit_leave_those_with_the_largest_scores(world):
    dialogue, _ = _played(world, turns=0)
    known = dict(world.observe(dialogue, None))
    best = known["score"].masked_fill(~known["candidate"], -torch.inf).topk(3, dim=1)
    kept = torch.zeros_like(known["candidate"]).scatter(1, best.indices, True) & known["candidate"]
    network = _network(world)
    states = [
        network.state(state_graph(world, known, most_items=3)),
        network.state(state_graph(world, known | {"candidate": kept})),
    ]
    torch.testing.assert_close(*states)


def test_dropout_is_off_when_acting(world):
    model = new_unicorn(world, SMALL, 0)
    _, seen = _played(world)
    model.policy.set_training_mode(True)
    assert (model.q_net(seen) - model.q_net(seen)).abs().max() > 0
    assert not model.q_net_target.training
    actions = [model.predict(seen, deterministic=True)[0] for _ in range(2)]
    assert torch.equal(*actions)
    assert torch.equal(model.q_net(seen), model.q_net(seen))


def test_dropout_is_off_behind_an_update(world):
    model = new_unicorn(world, SMALL.model_copy(update={"demonstrations": 5, "pretraining": 1}), 0)
    acting = policy_of(model)
    dialogue, _ = _played(world)
    known = world.observe(dialogue, None)
    for behind in (lambda: warm_start(model, Threshold(world, 10), 0), lambda: model.learn(20)):
        behind()
        assert torch.equal(acting.valued(known)[0], acting.valued(known)[0])
    assert model._n_updates > 1


def test_action_that_is_not_there_changes_no_value(world):
    network = _network(world)
    _, seen = _played(world)
    seen["mask"][:, 1] = False
    without = network(seen)
    other = network({**seen, "question": seen["question"].clone().index_fill(1, torch.tensor([1]), 0)})
    kept = seen["mask"].bool()
    torch.testing.assert_close(without[kept], other[kept])


def test_type_has_the_mean_embedding_of_its_attributes(catalogue, embeddings):
    world = Conversation(catalogue, embeddings, Rules(list_length=5, question="enumerated"))
    network = _network(world)
    scene = network.scene(_played(world, turns=1)[1])
    kind = int(scene.question[0, 0])
    expected = embeddings.attribute[torch.as_tensor(catalogue.attribute_type) == kind].mean(0)
    torch.testing.assert_close(network.actions(scene)[0, 0], expected)


@pytest.mark.parametrize("changes", [{"graph": False}, {"transformer": False}, {"pretrained": False}])
def test_ablations_have_values_and_learn(world, changes):
    network = UnicornNetwork(world, SMALL.model_copy(update=changes)).train()
    values = network(_played(world)[1])
    assert torch.isfinite(values).all()
    values.square().sum().backward()
    unused = [name for name, x in network.named_parameters() if x.requires_grad and x.grad is None]
    assert not unused


def test_dialogue_with_nothing_accepted_has_values(world):
    dialogue = world.reset_to(torch.tensor([[-1, 0], [2, 3]]), torch.tensor([-1, -1]))
    choice = new_choice(world, SMALL)
    values = _network(world)(choice.observe(choice.choosing(dialogue)))
    assert torch.isfinite(values).all()


# ---- ablation of the items


def test_random_items_are_candidates_and_the_same_in_the_same_dialogue(world):
    dialogue, _ = _played(world, batch=20)
    known = world.observe(dialogue, None)
    value, share, score = RandomItems()(world, known)
    expected = EntropyRanking()(world, known)
    assert torch.equal(value, expected[0])
    assert torch.equal(share, expected[1])
    assert torch.equal(score > -torch.inf, known["candidate"])
    alone = RandomItems()(world, {name: x[4:5] for name, x in known.items()})[2]
    assert torch.equal(alone, score[4:5])
    assert not torch.equal(RandomItems(seed=1)(world, known)[2], score)


def test_random_items_are_uniform(world):
    """Every place of a long list is first equally often, within the sampling error of 4 standard deviations."""
    known = dict(world.observe(world.reset_to(torch.zeros(4000, 2, dtype=torch.int64), torch.full((4000,), -1)), None))
    known["user"] = torch.arange(4000) % 50
    known["turn"] = torch.arange(4000) // 50
    first = RandomItems()(world, known)[2].argmax(1)
    n = world.catalogue.n_items
    counts = torch.bincount(first, minlength=n).double()
    assert (counts - 4000 / n).abs().max() < 4.5 * (4000 / n) ** 0.5


# ---- learning


def test_learner_has_the_settings_of_the_paper(world):
    model = new_unicorn(world, UnicornSettings(items=5, memory=100), 0)
    assert (model.gamma, model.tau, model.batch_size, model.lr_schedule(0.5)) == (0.999, 0.01, 128, 1e-4)
    assert (model.double, model.prioritized, model.max_grad_norm) == (True, True, 1.0)
    assert model.policy.optimizer.defaults["weight_decay"] == 1e-6
    priorities = model.replay_buffer.priorities
    assert (priorities.alpha, priorities.eps, float(priorities.largest)) == (0.6, 0.01, pytest.approx(0.1))
    assert (model.exploration_initial_eps, model.exploration_final_eps, model.exploration_fraction) == (0.9, 0.1, 0.2)
    official = new_unicorn(world, UnicornSettings(items=5, memory=100, compat="official"), 0)
    assert official.exploration_initial_eps == 0.1
    assert len(official.network.convolutions) == 1


def test_update_on_a_fixed_batch_lowers_its_loss(world):
    model = new_unicorn(world, SMALL.model_copy(update={"dropout": 0.0, "learning_rate": 1e-3, "updates": 1}), 0)
    model.learn(40)
    batch = model.replay_buffer.sample(32)
    losses = [float(model._update(replace(batch, weights=None))) for _ in range(10)]
    assert losses[-1] < losses[0]


def test_importance_exponent_grows_with_the_updates(world):
    model = new_unicorn(world, SMALL.model_copy(update={"envs": 4, "priority_beta_step": 0.01}), 0)
    model.learn(64)
    done = model._n_updates
    model.train(1, 8)
    assert model.replay_buffer.priorities.beta == pytest.approx(0.4 + 0.01 * done)
    model.train(70, 8)
    model.train(1, 8)
    assert model.replay_buffer.priorities.beta == 1.0


def test_target_reads_the_same_graphs(world):
    model = new_unicorn(world, SMALL, 0)
    model.learn(24)
    batch = model.replay_buffer.sample(16)
    with torch.no_grad():
        judged = model.q_net.eval()(batch.next_observations).masked_fill(~batch.next_masks, -torch.inf)
        expected = model.q_net_target(batch.next_observations).gather(1, judged.argmax(1, keepdim=True))
        torch.testing.assert_close(model.next_values(batch), expected)


def test_embeddings_stay_or_are_learnt_as_the_settings_say(world):
    for trained in (True, False):
        model = new_unicorn(world, SMALL.model_copy(update={"train_embeddings": trained}), 0)
        before = model.network.table.detach().clone()
        model.learn(24)
        assert torch.equal(before, model.network.table.detach()) != trained


def test_official_exploration_lists_in_proportion_to_the_candidates(world):
    settings = SMALL.model_copy(update={"compat": "official"})
    model = new_unicorn(world, settings, 0)
    _, one = _played(world, settings, batch=1, turns=0)
    seen = {name: value.expand(4000, *value.shape[1:]) for name, value in one.items()}
    known = restore(world, one)
    items = int(known["candidate"].sum())
    item = known["candidate"].nonzero(as_tuple=True)[1]
    attributes = int(_reached(world, item) - known["accepted"].sum())
    chosen = model._choose(seen, seen["mask"].bool(), 1.0)
    share = float((chosen >= settings.questions).float().mean())
    expected = items / (items + attributes)
    assert abs(share - expected) < 4 * (expected * (1 - expected) / 4000) ** 0.5
    assert seen["mask"].bool()[torch.arange(4000), chosen].all()


def _reached(world, item):
    return len(world.relation.attributes_of(item)[1].unique())


def test_warm_start_learns_the_demonstrated_actions(world):
    """The demonstrated action comes closer to being the best by the margin."""
    changes = {"demonstrations": 20, "pretraining": 60, "learning_rate": 3e-3, "margin": 0.5, "dropout": 0.0}
    model = new_unicorn(world, SMALL.model_copy(update=changes), 0)
    fresh = {name: value.clone() for name, value in model.q_net.state_dict().items()}

    def loss():
        held = model.demonstrations
        with torch.no_grad():
            values = model.q_net.eval()(held.observations)
        return float(margin_loss(values, held.actions.unsqueeze(1), held.masks, 0.5))

    warm_start(model, Threshold(world, 10), 0)
    after = loss()
    assert model._n_updates == 60
    model.q_net.load_state_dict(fresh)
    assert after < loss() - 0.03


def test_interrupted_training_goes_on_bit_for_bit(world, tmp_path):
    settings = SMALL.model_copy(update={"envs": 4, "demonstrations": 10, "pretraining": 3})

    def new():
        return new_unicorn(world, settings, 3)

    whole = new()
    warm_start(whole, Threshold(world, 10), 0)
    whole.learn(48)
    part = new()
    warm_start(part, Threshold(world, 10), 0)
    part.learn(48, callback=_StopAt(24, tmp_path / "state.safetensors"))
    again = new()
    again.restore_state(tmp_path / "state.safetensors")
    again.learn(48 - again.num_timesteps, reset_num_timesteps=False)
    for name, value in whole.q_net.state_dict().items():
        assert torch.equal(value, again.q_net.state_dict()[name]), name


class _StopAt(BaseCallback):
    """Keeps the state at so many turns, and ends the training a little later."""

    def __init__(self, steps, path):
        super().__init__()
        self.steps, self.path = steps, path

    def _on_rollout_start(self):
        if self.model.num_timesteps == self.steps:
            self.model.save_state(self.path)

    def _on_step(self):
        return self.model.num_timesteps < self.steps + 4


# ---- files


def test_policy_survives_its_files(world, tmp_path):
    model = new_unicorn(world, SMALL, 0)
    model.learn(24)
    save_weights(model.q_net, tmp_path / WEIGHTS)
    other = new_unicorn(world, SMALL, 1)
    load_weights(other.q_net, tmp_path / WEIGHTS)
    again = policy_of(other)
    dialogue, _ = _played(world)
    known = world.observe(dialogue, None)
    assert isinstance(again, QPolicy)
    torch.testing.assert_close(again.valued(known)[0], policy_of(model).valued(known)[0])
    assert again.choice.slots == SMALL.questions


def test_policy_plays_as_well_in_a_batch_as_alone(world):
    policy = policy_of(new_unicorn(world, SMALL, 0))
    cases = Cases.of(world, world.catalogue.pairs("test"), 1, limit=12)
    played = evaluate(world, policy, cases)
    assert played.equals(evaluate(world, policy, cases))
    assert set(played["action"].values.ravel()) >= {1}
    dialogue, _ = _played(world)
    known = world.observe(dialogue, None)
    together = policy(known)
    for row in range(len(together)):
        assert torch.equal(policy({name: x[row : row + 1] for name, x in known.items()})[0], together[row])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 7}, "heads: 7; must be a divisor of hidden, 100"),
        ({"pretraining": 5}, "pretraining: 5; must be 0 without demonstrations"),
        ({"layers": 3}, "layers"),
        ({"gamma": 1.5}, "gamma"),
    ],
)
def test_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        UnicornSettings(**changes)


def test_more_items_than_a_list_has_are_refused(world):
    with pytest.raises(InputError, match="items = 10: must be 0 to 5"):
        new_unicorn(world, UnicornSettings(memory=10), 0)

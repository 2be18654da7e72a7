"""EAR and CRM: what their networks see, what their training pays, whom they imitate, and their files."""

import functools

import pytest
import torch
from gymnasium.utils.env_checker import check_env

from apps.crs import policy_gradient
from apps.crs.crm import CrmChoice, CrmPolicy, CrmSettings
from apps.crs.ear import EarChoice, EarPolicy, EarSettings
from apps.crs.evaluation import Cases, evaluate
from apps.crs.flat_choice import history, length_bins
from apps.crs.policies import MaxEntropy, Policy
from apps.crs.policy_gradient import PolicyGradient, log_probabilities
from apps.crs.question_policy import MOST_QUESTIONS, demonstrator, new_network
from core.checkpoint import Checkpoint
from core.errors import InputError
from core.simulation import GymEnv, tree
from simulators.crs import selection
from simulators.crs.conversation import Conversation
from simulators.crs.embeddings import Embeddings
from simulators.crs.generated import Generated, generate
from simulators.crs.rules import Rewards, Rules
from tests.simulators.crs_cases import QUESTIONS, SMALL, conversation, embedded, written_out

CATALOGUE = generate(SMALL, 0)
QUICK = {"demonstrations": 60, "pretraining": 10, "pretraining_batch": 32, "updates": 4, "episodes": 16, "hidden": 8}
KINDS = [(EarPolicy.train, EarSettings), (CrmPolicy.train, CrmSettings)]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def by_hand(**rules):
    """Items 0..3; item v has the attributes of the bits of v + 1."""
    edges = [(v, p) for v in range(4) for p in range(3) if (v + 1) >> p & 1]
    catalogue = written_out(edges, 4, [0, 0, 1])
    points = Embeddings(torch.tensor([[1.0], [3.0]]), torch.zeros(4, 1), torch.tensor([[0.5], [2.0], [-1.0]]))
    return Conversation(catalogue, points, Rules(list_length=2, max_turns=4, **rules))


def test_what_ear_sees_by_hand():
    world = by_hand()
    # The opening is attribute 0: items 0 and 2 are left, which have attributes {0} and {0, 1}.
    state = world.reset_to(torch.tensor([[1, 2]]), torch.tensor([0]))
    view = EarChoice(world).view(world.observe(state, None))
    entropy, preference, told, bins = view.seen[0].split([3, 3, 4, 8])
    # All scores are 0, so attribute 1 has half of the weight; e_u.e_1 + e_0.e_1 = 6 + 1.
    assert entropy.tolist() == pytest.approx([0, 1, 0])
    assert preference.tolist() == pytest.approx([0, 7, 0])
    assert told.tolist() == [0] * 4
    assert bins.tolist() == [1] + [0] * 7
    assert view.mask.tolist() == [[False, True, False, True]]


def test_what_ear_sees_of_types_by_hand():
    world = by_hand(question="enumerated")
    state = world.reset_to(torch.tensor([[1, 2], [0, 3]]), torch.tensor([0, -1]))
    view = EarChoice(world).view(world.observe(state, None))
    entropy, preference, _, _ = view.seen.split([2, 2, 4, 8], 1)
    # Without an opening the shares are 2/4, 2/4 and 1/4; H(1/4) = 0.8113 bit.
    torch.testing.assert_close(entropy, torch.tensor([[1, 0], [2.0, 0.8113]]), atol=1e-4, rtol=0)
    torch.testing.assert_close(preference, torch.tensor([[7, 0], [2.0, -1.0]]))
    assert view.mask.tolist() == [[True, False, True], [True, True, True]]


def test_what_crm_sees_by_hand():
    world = by_hand()
    state = world.reset_to(torch.tensor([[1, 0]]), torch.tensor([0]))
    assert CrmChoice(world).view(world.observe(state, None)).seen.tolist() == [[1, 0.5, 0]]
    asks = selection.ask(world, torch.tensor([[1]]))
    step = world.step(state, asks, world.noise(1, seeded()))
    # Rejected, although half of the candidates still have it.
    assert CrmChoice(world).view(world.observe(step.state, None)).seen.tolist() == [[1, -1, 0]]


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("kind", [EarChoice, CrmChoice])
def test_actions_are_the_questions_of_the_catalogue_and_one_more(question, kind):
    world = conversation(CATALOGUE, question=question, list_length=3)
    env, generator = kind(world), seeded()
    state, batch = env.reset(20, generator), 20
    assert env.action_space.n == (20 if question == "binary" else 5) + 1
    for _ in range(6):
        known = world.observe(state.dialogue, None)
        value = selection.question_values(
            world, selection.attribute_values(world, known, selection.shares(world, known))
        )
        mask = env.action_mask(state)
        assert torch.equal(mask[:, :-1], value > -torch.inf)
        assert bool(mask[:, -1].all())
        lists = env.action_of(known, state.view, torch.full((batch,), env.slots))
        assert torch.equal(lists, Policy(world).recommend(known))
        choice = torch.rand(mask.shape, generator=generator).masked_fill(~mask, -1).argmax(1)
        action = env.action_of(known, state.view, choice)[:, 0]
        asked = world.types[action.clamp(min=0)] if question == "multi_choice" else action
        assert torch.equal(torch.where(action >= 0, asked, env.slots), choice)
        step = env.step(state, choice, env.noise(batch, generator))
        state = tree.take(step.state, ~step.terminated)
        batch = len(state.dialogue.turn)
        if not batch:
            break
    check_env(GymEnv(env, scaled=False), skip_render_check=True)


def test_at_the_last_turn_of_the_paper_nothing_can_be_asked():
    world = conversation(CATALOGUE, max_turns=3)
    known = world.observe(world.reset(6, seeded()), None)
    late = {**known, "turn": known["turn"] + 2}
    for kind in (EarChoice, CrmChoice):
        assert kind(world).view(late).mask.sum(1).tolist() == [1] * 6
        assert kind(world).view(known).mask.sum(1).min() > 1


def test_history_and_bins_are_the_last_numbers_that_ear_sees():
    world = conversation(CATALOGUE)
    known = world.observe(world.reset(6, seeded()), None)
    known = {**known, "answers": torch.randint(-1, 4, known["answers"].shape, generator=seeded())}
    seen = EarChoice(world).view(known).seen
    assert torch.equal(seen[:, -23:], torch.cat([history(known), length_bins(known)], 1))


def test_the_training_pays_ears_rewards_and_the_world_stays_as_it_is():
    paid = EarSettings().rewards
    assert vars(paid) == pytest.approx(
        {
            "ask_success": 0.09,
            "ask_failure": -0.01,
            "recommend_success": 0.99,
            "recommend_failure": -0.01,
            "quit": -0.31,
            "empty": -0.31,
        }
    )
    world = conversation(CATALOGUE)
    policy = EarPolicy.train(world, EarSettings(**QUICK), 0)
    assert world.rules.rewards == Rewards()
    assert policy.world is world


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize(("train", "settings"), KINDS)
def test_what_is_trained_can_be_evaluated_and_repeated(train, settings, question):
    world = conversation(CATALOGUE, question=question)
    policy, again = (train(world, settings(**QUICK), 5) for _ in range(2))
    for x, y in zip(policy.network.parameters(), again.network.parameters(), strict=True):
        assert torch.equal(x, y)
    cases = Cases.of(world, CATALOGUE.pairs("test"), 0)
    for samples in (False, True):
        policy.samples = samples
        first, second = evaluate(world, policy, cases), evaluate(world, policy, cases)
        assert first.equals(second)
        assert 1 <= first.turns.mean() <= 15


def test_the_demonstrator_is_max_entropy():
    world = conversation(CATALOGUE, question="multi_choice")
    env, rule = EarChoice(world), MaxEntropy(world, seed=9)
    state = env.reset(30, seeded())
    chosen = demonstrator(env, 9)(state.view.seen, state.view.mask, state)
    known = world.observe(state.dialogue, None)
    assert torch.equal(env.action_of(known, state.view, chosen), rule(known))
    assert 0 < (chosen == env.slots).sum() < 30


def test_pretraining_reproduces_how_often_the_demonstrator_recommends():
    """MaxEntropy recommends with probability K / |V_cand|: the network must do so in every bin of lengths."""
    catalogue = generate(Generated(n_users=40, n_items=400, n_types=4, n_values=4, per_user=20, least_types=2), 0)
    world = Conversation(catalogue, embedded(catalogue), Rules())
    env = EarChoice(world)
    settings = EarSettings(demonstrations=2_000, pretraining=1_000, updates=0)
    network = new_network(env, settings, 0)
    training = PolicyGradient(env, network, settings, 0, horizon=15, demonstrator=demonstrator(env, 1))
    training.train()
    steps = training.decisions
    with torch.no_grad():
        found = log_probabilities(network, steps.seen, steps.mask).exp()[:, -1]
    free = steps.mask.sum(1) > 1
    compared = 0
    for bin_ in range(8):
        rows = free & (steps.seen[:, -8 + bin_] == 1)
        if rows.sum() > 300:
            rate = (steps.action[rows] == env.slots).float().mean()
            assert found[rows].mean() == pytest.approx(float(rate), abs=0.05)
            compared += 1
    assert compared >= 3


@pytest.mark.parametrize(("train", "settings"), KINDS)
def test_a_resumed_training_equals_one_that_was_not_interrupted(train, settings, tmp_path, monkeypatch):
    monkeypatch.setattr(policy_gradient, "Checkpoint", functools.partial(Checkpoint, every_seconds=0.0))
    world, path = conversation(CATALOGUE), tmp_path / "state.safetensors"
    whole = train(world, settings(**QUICK), 2)

    def stop(share, message):
        if share > 0.8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(world, settings(**QUICK), 2, checkpoint=path, progress=stop)
    again = train(world, settings(**QUICK), 2, checkpoint=path)
    for x, y in zip(whole.network.parameters(), again.network.parameters(), strict=True):
        assert torch.equal(x, y)
    with pytest.raises(InputError, match="another training"):
        train(world, settings(**{**QUICK, "hidden": 4}), 2, checkpoint=path)


def test_more_questions_than_a_network_can_tell_apart_are_refused():
    many = MOST_QUESTIONS + 1
    catalogue = written_out([(p % 7, p) for p in range(many)], 7, [p % 9 for p in range(many)])
    for kind in (EarChoice, CrmChoice):
        with pytest.raises(InputError, match=f"by hand: {many} questions; must be at most {MOST_QUESTIONS}, because"):
            kind(Conversation(catalogue, embedded(catalogue), Rules(list_length=2)))
        assert (
            kind(Conversation(catalogue, embedded(catalogue), Rules(list_length=2, question="enumerated"))).slots == 9
        )

"""SCPR: what its network sees, what may be asked, and that learners of two actions can be trained on it."""

import pytest
import stable_baselines3
import torch
from gymnasium.utils.env_checker import check_env

from apps.crs.evaluation import Cases, evaluate
from apps.crs.flat_choice import EDGES, FlatPolicy, history, length_bins
from apps.crs.policies import Policy, Threshold
from apps.crs.scpr import ASK, RECOMMEND, ScprChoice, reachable
from apps.crs.training import QLearning, new_dqn
from core.rl import PPO
from core.simulation import GymEnv, SB3VecEnv, tree
from simulators.crs import selection
from simulators.crs.conversation import Conversation
from simulators.crs.dialogue import DO_NOT_CARE, LIST_ACCEPTED, LIST_REJECTED, NO, UNASKED, YES
from simulators.crs.generated import Generated, generate
from simulators.crs.rules import Rules
from tests.simulators.crs_cases import QUESTIONS, SMALL, conversation, embedded, written_out

CATALOGUE = generate(SMALL, 0)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def met(world, batch=24, turns=5, seed=0):
    """What the system knows in dialogues on the way, with random choices of the action set of SCPR."""
    env, generator = ScprChoice(world), seeded(seed)
    state, found = env.reset(batch, generator), []
    for _ in range(turns):
        found.append(world.observe(state.dialogue, None))
        drawn = torch.rand(env.action_mask(state).shape, generator=generator).masked_fill(~env.action_mask(state), -1)
        noise = tree.take(env.noise(batch, generator), slice(len(drawn)))
        step = env.step(state, drawn.argmax(1), noise)
        state = tree.take(step.state, ~step.terminated)
        if not len(state.dialogue.turn):
            break
    return found


def test_history_by_hand():
    answers = torch.tensor([[YES, NO, LIST_REJECTED, DO_NOT_CARE, UNASKED], [LIST_ACCEPTED, *[UNASKED] * 4]])
    assert history({"answers": answers}).tolist() == [[0.5, -0.5, -1.0, 0, 0], [0] * 5]


def test_length_bins_by_hand():
    counts = [0, 10, 11, 50, 51, 100, 101, 200, 201, 300, 301, 500, 501, 700, 701, 900]
    candidate = torch.arange(1_000) < torch.tensor(counts).unsqueeze(1)
    bins = length_bins({"candidate": candidate})
    assert bins.shape == (len(counts), len(EDGES) + 1)
    assert bins.argmax(1).tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7]
    assert bins.sum(1).tolist() == [1.0] * len(counts)


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_what_is_reachable_is_two_hops_from_the_attribute_accepted_last(question, noise):
    world = conversation(CATALOGUE, question=question, answer_noise=noise, on_empty="relax", list_length=3)
    held = {v: set() for v in range(CATALOGUE.n_items)}
    for v, p in CATALOGUE.edges.tolist():
        held[v].add(p)
    narrower = 0
    for known in met(world):
        found = reachable(world, known)
        for row in range(len(found)):
            last = [p for p in known["order"][row].tolist() if p >= 0][-1]
            candidates = set(known["candidate"][row].nonzero().flatten().tolist())
            through = [held[v] for v in candidates if last in held[v]]
            wanted = set().union(*through)
            assert set(found[row].nonzero().flatten().tolist()) == wanted
            narrower += wanted != set().union(*(held[v] for v in candidates))
    assert narrower > 0 or (question != "multi_choice" and noise == 0)


def test_without_an_opening_everything_that_a_candidate_has_is_reachable():
    world = conversation(CATALOGUE)
    state = world.reset_to(torch.tensor([[0, 3], [1, 5]]), torch.tensor([-1, 2]))
    known = world.observe(state, None)
    share = selection.shares(world, known)
    assert torch.equal(reachable(world, known), share > 0)


@pytest.mark.parametrize("question", QUESTIONS)
def test_the_reachable_question_of_the_largest_weighted_entropy_is_asked(question):
    world = conversation(CATALOGUE, question=question, answer_noise=0.3, on_empty="relax", list_length=3)
    env = ScprChoice(world)
    for known in met(world):
        view = env.view(known)
        value = selection.attribute_values(world, known, selection.shares(world, known))
        value = value.masked_fill(~reachable(world, known), -torch.inf)
        of_question = selection.question_values(world, value)
        asks = view.mask[:, ASK].nonzero().flatten()
        action = env.action_of(known, view, torch.full((len(value),), ASK))
        asked = action[asks, 0]
        if question == "multi_choice":
            asked = world.types[asked]
        assert torch.equal(of_question[asks, asked], of_question[asks].amax(1))


def test_nothing_can_be_asked_at_the_last_turn_of_the_paper_or_when_all_is_asked():
    by_hand = written_out([(0, 0), (0, 1), (1, 0)], 2, [0, 0])
    for turns, allowed in (("paper", False), ("official", True)):
        world = conversation(by_hand, max_turns=3, list_length=1, turns=turns)
        env = ScprChoice(world)
        state = world.reset_to(torch.tensor([[0, 0]]), torch.tensor([0]))
        known = world.observe(state, None)
        assert env.view(known).mask.tolist() == [[True, True]]
        assert env.view({**known, "turn": known["turn"] + 2}).mask.tolist() == [[allowed, True]]
        all_asked = {**known, "asked": torch.ones_like(known["asked"])}
        view = env.view(all_asked)
        assert view.mask.tolist() == [[False, True]]
        # Asking all the same, as learners without masks do, recommends.
        chosen = [env.action_of(all_asked, view, torch.tensor([choice])) for choice in (ASK, RECOMMEND)]
        assert torch.equal(*chosen)
        assert chosen[0][0, 0] == -1


def test_always_recommending_is_what_the_world_recommends():
    world = conversation(CATALOGUE, list_length=3)
    known = met(world)[1]
    env = ScprChoice(world)
    chosen = env.action_of(known, env.view(known), torch.full((len(known["turn"]),), RECOMMEND))
    assert torch.equal(chosen, Policy(world).recommend(known))


@pytest.mark.parametrize("question", QUESTIONS)
def test_gymnasium_finds_nothing_wrong_with_it(question):
    env = GymEnv(ScprChoice(conversation(CATALOGUE, question=question)), scaled=False)
    check_env(env, skip_render_check=True)


@pytest.mark.parametrize("kind", [PPO, stable_baselines3.PPO])
def test_ppo_can_be_trained_on_it(kind):
    env = SB3VecEnv(ScprChoice(conversation(CATALOGUE)), 8, scaled=False, seed=0)
    policy = "MaskedMlpPolicy" if kind is PPO else "MlpPolicy"
    model = kind(policy, env, n_steps=16, batch_size=64, n_epochs=2, seed=0, device="cpu")
    before = torch.nn.utils.parameters_to_vector(model.policy.parameters()).clone()
    model.learn(256)
    after = torch.nn.utils.parameters_to_vector(model.policy.parameters())
    assert bool(torch.isfinite(after).all())
    assert not torch.equal(before, after)


def test_a_trained_network_knows_when_to_ask():
    catalogue = generate(Generated(n_users=40, n_items=400, n_types=6, n_values=4, per_user=20, least_types=3), 0)
    world = Conversation(catalogue, embedded(catalogue), Rules())
    learning = QLearning(hidden=(64,), learning_rate=1e-3, learning_starts=256, memory=8_000, updates=2)
    model = new_dqn(ScprChoice(world), learning, 0, policy="MlpPolicy", device="cpu")
    model.learn(12_000)
    policy = FlatPolicy(ScprChoice(world), model.q_net)
    cases = Cases.of(world, catalogue.pairs("test"), 1)

    def earned(policy):
        return float(evaluate(world, policy, cases)["return"].mean())

    never, always = (earned(Threshold(world, n)) for n in (catalogue.n_items, 0))
    assert earned(policy) > max(never, always) + 0.15

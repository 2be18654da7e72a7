"""Dialogues, training and embeddings on a CUDA device: the same world, and policies that learn there."""

import pytest
import torch

from apps.crs.active_inference import ActiveInference
from apps.crs.embedding import EmbeddingSettings, fit_embeddings
from apps.crs.evaluation import Cases, evaluate
from apps.crs.learned import QPolicy
from apps.crs.policies import AbsGreedy, MaxEntropy, Threshold
from apps.crs.training import QLearning, new_dqn
from apps.crs.unicorn import UnicornSettings, new_unicorn, policy_of
from simulators.crs import Conversation, Rules
from simulators.crs.choice import CandidateChoice
from simulators.crs.features import CompactFeatures
from simulators.crs.generated import generate
from tests.simulators.crs_cases import QUESTIONS, SMALL, embedded

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CATALOGUE = generate(SMALL, 0)


@pytest.mark.parametrize("question", QUESTIONS)
def test_the_same_dialogues_are_played_on_both_devices(question):
    played = {}
    for device in ("cpu", "cuda"):
        world = Conversation(CATALOGUE, embedded(CATALOGUE), Rules(question=question), device=device)
        pairs = torch.as_tensor(CATALOGUE.pairs("test"), device=device)
        opening = world.relation.item_attributes[world.relation.item_start[pairs[:, 1]]]
        cases = Cases(pairs, opening, 0)
        played[device] = [evaluate(world, policy, cases) for policy in (AbsGreedy(world), Threshold(world, 20))]
    for one, other in zip(*played.values(), strict=True):
        # Equal scores up to rounding: a tie may be broken in another order.
        assert abs(float(one["turns"].mean() - other["turns"].mean())) < 0.2
        assert float((one["turns"] == other["turns"]).mean()) > 0.9


def test_policies_learn_and_act_on_the_device():
    embeddings = fit_embeddings(CATALOGUE, EmbeddingSettings(epochs=2), 0, device="cuda")
    assert embeddings.item.is_cuda
    world = Conversation(CATALOGUE, embeddings, device="cuda")
    cases = Cases.of(world, CATALOGUE.pairs("test"), 0)
    choice = CandidateChoice(world, CompactFeatures())
    quick = QLearning(envs=8, batch=16, memory=500, learning_starts=16)
    dqn = new_dqn(choice, quick, 0, policy="ActionSetPolicy", device="cuda")
    dqn.learn(160)
    unicorn = new_unicorn(world, UnicornSettings(envs=8, batch=16, memory=500, learning_starts=16), 0, device="cuda")
    unicorn.learn(160)
    for policy in (MaxEntropy(world), ActiveInference(world), QPolicy(choice, dqn.q_net), policy_of(unicorn)):
        assert 1 <= float(evaluate(world, policy, cases)["turns"].mean()) <= 15

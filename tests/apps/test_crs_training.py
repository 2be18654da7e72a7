"""Training keeps the weights that did best on held-out dialogues, and goes on after a kill as if never stopped."""

import functools
import json

import numpy as np
import pytest
import torch

from apps.crs.evaluation import Cases, evaluate
from apps.crs.flat_choice import FlatPolicy
from apps.crs.learned import QPolicy
from apps.crs.methods.learned import DQNMethod, GroupedMethod, ScprMethod
from apps.crs.metrics import measures
from apps.crs.scpr import ScprChoice
from apps.crs.training import (
    LOOKS,
    WEIGHTS,
    QLearning,
    load_weights,
    loss_of,
    new_dqn,
    save_weights,
    split_pairs,
    train,
)
from core.errors import InputError
from core.rl import resume
from simulators.crs.choice import CandidateChoice
from simulators.crs.features import CompactFeatures
from simulators.crs.generated import generate
from tests.simulators.crs_cases import SMALL, conversation

CATALOGUE = generate(SMALL, 0)
QUICK = QLearning(steps=1_600, looks=4, learning_starts=64, envs=16, batch=32, memory=500, updates=1)


def learner(kind, seed=3):
    world = conversation(CATALOGUE)
    if kind == "flat":
        choice = ScprChoice(world)
        model = new_dqn(choice, QUICK, seed, policy="MlpPolicy", device="cpu")
        return model, FlatPolicy(choice, model.q_net)
    choice = CandidateChoice(world, CompactFeatures())
    model = new_dqn(choice, QUICK, seed, policy="ActionSetPolicy", device="cpu")
    return model, QPolicy(choice, model.q_net)


def run(folder, kind, progress=None):
    model, policy = learner(kind)
    folder.mkdir(exist_ok=True)
    cases = Cases.of(policy.world, CATALOGUE.pairs("valid"), 5)
    options = {"steps": QUICK.steps, "looks": QUICK.looks, "checkpoint": folder / "checkpoint"}
    train(model, policy, cases, folder, progress=progress, **options)
    return policy, cases


@pytest.mark.parametrize("kind", ["flat", "set"])
def test_a_resumed_training_equals_one_that_was_not_interrupted(tmp_path, monkeypatch, kind):
    run(tmp_path / "whole", kind)
    quick = functools.partial(resume.ResumeCallback, every_seconds=0)
    monkeypatch.setattr("core.rl.training.ResumeCallback", lambda path, every_seconds: quick(path))

    def stop(share, message):
        if share > 0.6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", kind, stop)
    run(tmp_path / "parts", kind)
    for name in (WEIGHTS, LOOKS):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()


def test_the_kept_weights_are_those_of_the_best_look(tmp_path):
    policy, cases = run(tmp_path, "flat")
    record = json.loads((tmp_path / LOOKS).read_text())
    assert len(record["looks"]) == QUICK.looks
    assert record["best"]["loss"] == min(look["loss"] for look in record["looks"])
    load_weights(policy.network, tmp_path / WEIGHTS)
    played = evaluate(policy.world, policy, cases)
    assert loss_of(played) == record["best"]["loss"]
    assert float(measures(played)["AT"].mean()) == record["best"]["turns"]


@pytest.mark.parametrize("kind", ["flat", "set"])
def test_every_look_is_without_dropout(tmp_path, monkeypatch, kind):
    """Also the last one, which follows gradient steps."""
    model, policy = learner(kind)
    seen, looking = [], []
    model.q_net.register_forward_hook(lambda net, *_: seen.append(net.training) if looking else None)

    def spied(known, state=None):
        looking.append(True)
        acted = type(policy).__call__(policy, known, state)
        looking.clear()
        return acted

    class Spied:
        world, relaxes, reset = policy.world, policy.relaxes, policy.reset
        recommend, posterior, __call__ = policy.recommend, policy.posterior, staticmethod(spied)

    cases = Cases.of(policy.world, CATALOGUE.pairs("valid"), 5, 20)
    train(model, Spied(), cases, tmp_path, steps=320, looks=2, checkpoint=tmp_path / "checkpoint")
    assert len(json.loads((tmp_path / LOOKS).read_text())["looks"]) == 2
    assert seen
    assert not any(seen)


@pytest.mark.parametrize("method", [DQNMethod, GroupedMethod, ScprMethod])
def test_a_policy_that_is_opened_is_without_dropout_and_restarts_no_generator(tmp_path, method):
    method = method(name="any", learning=QUICK.model_copy(update={"dropout": 0.5}))
    world = conversation(CATALOGUE)
    made = new_dqn(method.choice(world), method.learning, 3, policy=method.policy_name, device="cpu")
    save_weights(made.q_net, tmp_path / WEIGHTS)
    torch.manual_seed(987)
    policy = method.open(world, tmp_path, 0)
    assert torch.initial_seed() == 987
    cases = Cases.of(world, CATALOGUE.pairs("test"), 1, 20)
    made.q_net.train()
    original = method.acting(method.choice(world), made.q_net)
    assert evaluate(world, policy, cases).equals(evaluate(world, original, cases))


def test_a_failure_counts_twice_the_longest_dialogue():
    world = conversation(CATALOGUE)
    policy = FlatPolicy(ScprChoice(world), torch.nn.Linear(ScprChoice(world).width, 2))
    played = evaluate(world, policy, Cases.of(world, CATALOGUE.pairs("test"), 1))
    horizon = world.rules.max_turns
    turns = np.where(played["rank"].values > 0, played["turns"].values, 2 * horizon)
    assert loss_of(played) == pytest.approx(turns.mean())


def test_parts_of_the_pairs_have_nothing_in_common():
    pairs = CATALOGUE.pairs("valid")
    one, two = split_pairs(pairs, 0.25, 0)
    both = np.concatenate([one, two])
    assert len(two) == round(0.25 * len(pairs))
    assert np.array_equal(np.unique(both, axis=0), np.unique(pairs, axis=0))
    with pytest.raises(InputError, match=r"held_out = 0\.5: leaves"):
        split_pairs(pairs[:1], 0.5, 0)


def test_weights_of_another_network_are_refused(tmp_path):
    run(tmp_path, "flat")
    with pytest.raises(InputError, match=r"q_network\.safetensors: Error\(s\) in loading"):
        load_weights(torch.nn.Linear(2, 2), tmp_path / WEIGHTS)


def test_weights_that_are_not_finite_are_refused(tmp_path):
    net = torch.nn.Linear(2, 2)
    with torch.no_grad():
        net.weight[0, 0] = torch.nan
    save_weights(net, tmp_path / WEIGHTS)
    with pytest.raises(InputError, match=r"q_network\.safetensors: weight: holds a number that is not finite"):
        load_weights(torch.nn.Linear(2, 2), tmp_path / WEIGHTS)

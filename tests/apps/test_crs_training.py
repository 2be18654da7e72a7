"""Training keeps the weights that did best on held-out dialogues, and goes on after a kill as if never stopped."""

import functools
import json

import numpy as np
import pytest
import torch

from apps.crs.evaluation import Cases, evaluate
from apps.crs.flat_choice import FlatPolicy
from apps.crs.learned import QPolicy
from apps.crs.metrics import measures
from apps.crs.scpr import ScprChoice
from apps.crs.training import LOOKS, WEIGHTS, QLearning, load_weights, loss_of, new_dqn, split_pairs, train
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

import math

import numpy as np
import pytest
import torch
from gymnasium import spaces

from core.checkpoint import Checkpoint
from core.errors import InputError
from core.offline import BehaviourCloning, NearestNeighbourBehaviour, OfflineDataset
from core.rl.algorithm import TrainingDiverged
from tests.core.offline_logs import CHOICES, Tabular, ragged


def expert(n=400, noise=0.1):
    """One-step episodes of a linear policy with Gaussian noise; the policy's matrix."""
    generator = torch.Generator().manual_seed(5)
    seen, matrix = torch.randn(n, 3, generator=generator), torch.randn(3, 2, generator=generator)
    data = OfflineDataset(
        observations=seen,
        actions=seen @ matrix + 0.5 + noise * torch.randn(n, 2, generator=generator),
        rewards=torch.zeros(n),
        next_observations=seen,
        terminated=torch.ones(n, dtype=torch.bool),
        truncated=torch.zeros(n, dtype=torch.bool),
        episode=torch.arange(n),
        step=torch.zeros(n, dtype=torch.int64),
        observation_space=spaces.Box(-np.inf, np.inf, (3,)),
        action_space=spaces.Box(-np.inf, np.inf, (2,)),
    )
    return data, matrix


def weights(model):
    return model.network.state_dict()


def test_linear_cloning_is_least_squares():
    data, _ = expert()
    model = BehaviourCloning(hidden=(), epochs=1500, batch=len(data), learning_rate=0.01).fit(data)
    x = torch.cat([data.observations, torch.ones(len(data), 1)], 1).double()
    solution = torch.linalg.lstsq(x, data.actions.double()).solution
    assert torch.allclose(model.predict(data.observations).double(), x @ solution, atol=1e-5)
    residual = (x @ solution - data.actions).square().mean(0).sqrt()
    log_prob = torch.distributions.Normal(x @ solution, residual).log_prob(data.actions.double()).sum(1)
    assert torch.allclose(model.log_prob(data.observations, data.actions).double(), log_prob, atol=1e-3)


def test_cloned_probabilities_are_the_shares_of_the_log():
    world = Tabular.of(0)
    data = world.log(2000, seed=1)
    model = BehaviourCloning(hidden=(), epochs=300, batch=len(data), learning_rate=0.05).fit(data)
    state = data.extras["state"]
    for s in range(4):
        shares = torch.bincount(data.actions[state == s], minlength=CHOICES) / (state == s).sum()
        found = model.probabilities(torch.eye(4)[s : s + 1])[0]
        assert torch.allclose(found, shares, atol=2e-3)
    taken = model.probabilities(data.observations).gather(1, data.actions[:, None])[:, 0]
    assert torch.allclose(model.log_prob(data.observations, data.actions), taken.log(), atol=1e-5)


def test_only_the_best_episodes_are_imitated():
    data = ragged([2] * 40)
    reward = (data.actions == 1).float()
    data = data.with_rewards(reward)
    best = int((data.episode_returns() == 2).sum())
    model = BehaviourCloning(hidden=(), epochs=400, learning_rate=0.05, top=best / 40).fit(data)
    assert model.probabilities(data.observations)[:, 1].min() > 0.9


class Killed(Exception):
    pass


@pytest.mark.parametrize("stop", [7, 20, 33])
def test_a_killed_training_goes_on_bit_for_bit(tmp_path, monkeypatch, stop):
    monkeypatch.setattr(Checkpoint, "due", property(lambda self: self.path is not None))
    data = ragged([10] * 20)
    settings = {"batch_norm": True, "epochs": 4, "batch": 20, "weight_decay": 0.1, "seed": 2}
    whole = BehaviourCloning(**settings).fit(data)

    def kill(fraction, message):
        if fraction * 40 >= stop:
            raise Killed

    with pytest.raises(Killed):
        BehaviourCloning(**settings).fit(data, checkpoint=tmp_path / "bc.safetensors", progress=kill)
    resumed = BehaviourCloning(**settings).fit(data, checkpoint=tmp_path / "bc.safetensors")
    assert all(torch.equal(weights(whole)[name], x) for name, x in weights(resumed).items())


def test_the_global_generator_is_left_alone():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    BehaviourCloning(epochs=1).fit(ragged([5, 5]))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("continuous", [False, True])
def test_a_saved_model_predicts_the_same(tmp_path, continuous):
    data = expert(50)[0] if continuous else ragged([10] * 5)
    model = BehaviourCloning(batch_norm=True, epochs=2).fit(data)
    model.metadata["features"] = "abc"
    model.save(tmp_path / "clone")
    read = BehaviourCloning.load(tmp_path / "clone")
    assert torch.equal(read.predict(data.observations), model.predict(data.observations))
    assert torch.equal(read.log_prob(data.observations, data.actions), model.log_prob(data.observations, data.actions))
    assert read.metadata == {"features": "abc"}
    # One observation alone is evaluated with the statistics of the training.
    assert torch.allclose(
        read._outputs(data.observations[:1], discrete=not continuous),
        model._outputs(data.observations, discrete=not continuous)[:1],
        atol=1e-6,
    )
    (tmp_path / "clone.safetensors").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"clone\.safetensors"):
        BehaviourCloning.load(tmp_path / "clone")


def test_divergence_leaves_finite_weights():
    data, _ = expert(100)
    model = BehaviourCloning(hidden=(4,), learning_rate=1e30, epochs=3, batch=10)
    with pytest.raises(TrainingDiverged, match="the loss of epoch"):
        model.fit(data)
    assert all(torch.isfinite(x).all() for x in weights(model).values())


def test_what_a_model_was_not_fitted_to_is_refused():
    data = ragged([5, 5])
    model = BehaviourCloning(epochs=1)
    with pytest.raises(InputError, match="call fit first"):
        model.probabilities(data.observations)
    model.fit(data)
    with pytest.raises(InputError, match="observations: 7 numbers; it was fitted to 2"):
        model.probabilities(torch.zeros(1, 7))
    with pytest.raises(InputError, match="fitted to a Discrete"):
        model.mean(data.observations)
    with pytest.raises(InputError, match=r"top: 0\.0"):
        BehaviourCloning(top=0.0)


def test_neighbour_probabilities_are_smoothed_shares():
    pytest.importorskip("sklearn")
    data = Tabular.of(0).log(400, seed=1)
    counts = torch.bincount(data.actions[data.extras["state"] == 0], minlength=CHOICES)
    model = NearestNeighbourBehaviour(k=int(counts.sum()), smoothing=0.5).fit(data)
    expected = (counts + 0.5) / (counts.sum() + 0.5 * CHOICES)
    assert torch.allclose(model.probabilities(torch.eye(4)[:1])[0], expected)
    everything = NearestNeighbourBehaviour(k=10**6, smoothing=0.0).fit(data).probabilities(torch.eye(4))
    assert torch.allclose(everything, (torch.bincount(data.actions) / len(data)).expand(4, -1))
    assert math.isclose(float(everything.sum()), 4, rel_tol=1e-6)

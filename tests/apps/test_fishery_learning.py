"""Training that resumes, the trained policy in the domain's units, and its smoothing by a Gaussian process."""

import json

import numpy as np
import pytest
import torch

from apps.fishery import PPOSettings, evaluate, load_policy, model, smooth, train
from apps.fishery.gaussian_process import design_points, fit_rule, popular_window
from core.rl import PPO, KLPenaltyPPO, LearnedPolicy, TrainingDiverged
from simulators.fishery import YEARS

SMALL = PPOSettings(timesteps=4096, n_envs=16, n_steps=32, batch_size=128, n_epochs=2)
WORLD = model(3, dtype=torch.float64)
POPULATIONS = torch.rand(40, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 1.5


@pytest.fixture(scope="module")
def trained():
    return train(WORLD, SMALL, seed=3)


class Killed(Exception):
    pass


@pytest.mark.parametrize("algorithm", ["ppo", "kl_penalty"])
def test_a_training_that_was_stopped_equals_one_that_was_not(tmp_path, monkeypatch, algorithm):
    settings = SMALL.model_copy(update={"algorithm": algorithm})
    checkpoint, curve = tmp_path / "state.safetensors", tmp_path / "curve.jsonl"
    whole = train(WORLD, settings, seed=5, curve=tmp_path / "whole.jsonl")

    def stop(share, message):
        if share > 0.6:
            raise Killed

    monkeypatch.setattr("core.rl.training.CHECKPOINT_SECONDS", 0.0)
    with pytest.raises(Killed):
        train(WORLD, settings, seed=5, checkpoint=checkpoint, curve=curve, progress=stop)
    resumed = train(WORLD, settings, seed=5, checkpoint=checkpoint, curve=curve)
    for name, value in whole.policy.state_dict().items():
        assert torch.equal(value, resumed.policy.state_dict()[name]), name
    assert (tmp_path / "whole.jsonl").read_text() == curve.read_text()


def test_a_diverged_training_keeps_its_last_good_state(tmp_path, monkeypatch):
    loss = PPO.value_loss
    monkeypatch.setattr(
        PPO, "value_loss", lambda self, batch: loss(self, batch) * (np.nan if self.num_timesteps > 2000 else 1)
    )
    checkpoint = tmp_path / "state.safetensors"
    with pytest.raises(TrainingDiverged):
        train(WORLD, SMALL, checkpoint=checkpoint)
    before = checkpoint.read_bytes()
    with pytest.raises(TrainingDiverged):  # the same training diverges again: it never passes for a finished one
        train(WORLD, SMALL, checkpoint=checkpoint)
    assert checkpoint.read_bytes() == before
    monkeypatch.undo()
    going_on = train(WORLD, SMALL, checkpoint=checkpoint)
    whole = train(WORLD, SMALL)
    for ours, theirs in zip(going_on.policy.parameters(), whole.policy.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_saved_policy_is_the_trained_one(tmp_path, trained):
    trained.save(tmp_path / "policy")
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".json", ".safetensors"]
    loaded = load_policy(tmp_path / "policy", WORLD, SMALL)
    assert torch.equal(loaded(POPULATIONS), LearnedPolicy(trained, WORLD)(POPULATIONS))


def test_the_policy_speaks_populations_and_mortalities(trained):
    """The network sees 2 N/2 - 1 and answers in [-1, 1]; the policy takes N and gives M = (a + 1)/2."""
    seen = (POPULATIONS - 1).clamp(-1, 1).float()
    with torch.no_grad():
        action = trained.policy.get_distribution(seen).mode().clamp(-1, 1)
    np.testing.assert_allclose(LearnedPolicy(trained, WORLD)(POPULATIONS), (action.double() + 1) / 2, atol=1e-6)
    assert LearnedPolicy(trained, WORLD)(POPULATIONS).dtype == torch.float64


def test_unit4_shows_the_population_over_four(trained):
    settings = PPOSettings(**{**SMALL.model_dump(), "observation": "unit4"})
    other = train(WORLD, settings, seed=3)
    policy = LearnedPolicy(other, settings.seen(WORLD), observation_range=settings.observation_range)
    with torch.no_grad():
        action = other.policy.get_distribution((POPULATIONS / 4).float()).mode().clamp(-1, 1)
    np.testing.assert_allclose(policy(POPULATIONS), (action.double() + 1) / 2, atol=1e-6)


def test_sampled_actions_repeat_and_scatter_around_the_mean(trained):
    mean, sampled = LearnedPolicy(trained, WORLD), LearnedPolicy(trained, WORLD, deterministic=False, seed=1)
    population = torch.full((20_000, 3), 0.5, dtype=torch.float64)
    before = torch.get_rng_state()
    first, second = sampled(population), sampled(population)
    assert torch.equal(before, torch.get_rng_state())  # the world's luck is not touched
    assert not torch.equal(first, second)
    sampled.reset(1)
    assert torch.equal(first, sampled(population))
    scale = float(trained.policy.log_std.detach().exp().mean()) / 2
    assert abs(float((first - mean(population)).mean())) < 0.05
    assert float(first[:, 0].std()) == pytest.approx(scale, rel=0.1)


@pytest.mark.parametrize("truncate", [True, False])
def test_truncation_can_be_switched_off(truncate):
    """Where nearly nothing is lost, training episodes are cut at the horizon, or go on beyond it."""
    safe = model(3, sigma=0.0, threshold=0.0)
    settings = PPOSettings(timesteps=16 * 32, n_envs=16, n_steps=32, batch_size=512, n_epochs=1, truncate=truncate)
    lengths = [episode["l"] for episode in train(safe, settings, horizon=10).ep_info_buffer]
    assert (max(lengths) == 10) if truncate else (max(lengths) > 10)


def test_the_papers_algorithm_is_used_when_asked_for():
    settings = PPOSettings(**{**SMALL.model_dump(), "algorithm": "kl_penalty", "max_grad_norm": None})
    learner = train(WORLD, settings)
    assert isinstance(learner, KLPenaltyPPO)
    assert learner.max_grad_norm == np.inf


def test_the_smoothing_is_the_posterior_mean_of_scikit_learn():
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, WhiteKernel

    generator = torch.Generator().manual_seed(2)
    inputs = torch.rand(60, 3, generator=generator, dtype=torch.float64)
    actions = (
        0.4 + 0.3 * torch.sin(3 * inputs[:, :2]) + 0.1 * torch.randn(60, 2, generator=generator, dtype=torch.float64)
    )
    for optimize in (True, False):
        rule = fit_rule(inputs, actions, optimize=optimize)
        optimizer = "fmin_l_bfgs_b" if optimize else None
        theirs = GaussianProcessRegressor(1.0 * RBF(10.0) + WhiteKernel(0.1), optimizer=optimizer, random_state=0)
        expected = theirs.fit(inputs.numpy(), actions.numpy()).predict(POPULATIONS.numpy())
        np.testing.assert_allclose(rule(POPULATIONS), np.clip(expected, 0, 1), atol=1e-7)
        assert (rule.length == pytest.approx(10.0)) == (not optimize)


def test_smoothing_averages_the_action_noise():
    truth = lambda n: 0.2 + 0.4 * n[:, :2]  # noqa: E731

    def noisy(n, state=None):
        noise = torch.randn(len(n), 2, generator=torch.Generator().manual_seed(len(n)), dtype=n.dtype)
        return truth(n) + 0.1 * noise

    rule = smooth(WORLD, noisy, long=9, short=3, points=150)
    inside = 0.3 + 0.4 * POPULATIONS / 1.5
    assert float((rule(inside) - truth(inside)).abs().mean()) < 0.03


def test_the_popular_window_is_the_smallest_that_holds_its_share():
    values = np.concatenate([np.linspace(0, 10, 201), np.full(1000, 6.0)])
    low, high = popular_window(values)
    assert low <= 6.0 <= high
    assert high - low == pytest.approx(10 * 0.8**10)
    assert popular_window(np.linspace(0, 1, 1001)) == pytest.approx((0.0, 0.8), abs=0.21)


def test_design_points_are_three_long_grids(trained):
    points = design_points(WORLD, LearnedPolicy(trained, WORLD), long=11, short=3, episodes=5)
    assert points.shape == (3 * 11 * 9, 3)
    for i in range(3):
        block = points[i * 99 : (i + 1) * 99]
        assert len(block[:, i].unique()) == 11
        assert (block[:, i].min(), block[:, i].max()) == (0, 1)
        assert all(len(block[:, j].unique()) == 3 for j in range(3) if j != i)
    one = model(1, dtype=torch.float64)
    assert design_points(one, None, long=51).shape == (101, 1)


@pytest.mark.slow
def test_ppo_learns_model_3():
    """The recipe for CPUs beats the best constant mortality (about 62.7) by more than 1.5, seed 0."""
    learner = train(WORLD, PPOSettings(), seed=0)
    data = evaluate(WORLD, LearnedPolicy(learner, WORLD), replicates=1000, seed=9, horizon=YEARS)
    assert float(data["return"].mean()) > 64.2
    assert float(data["survived"].mean()) > 0.85


def test_the_learning_curve_is_written_update_by_update(tmp_path):
    train(WORLD, SMALL, curve=tmp_path / "curve.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "curve.jsonl").read_text().splitlines()]
    assert [x["timesteps"] for x in lines] == list(range(512, 4097, 512))

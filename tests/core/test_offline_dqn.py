import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.utils import LinearSchedule
from torch import nn

import core.offline.dqn
from core.checkpoint import Checkpoint
from core.errors import InputError
from core.offline import MeanQ, OfflineDQN
from core.rl import DQN, TrainingDiverged
from tests.core.offline_logs import ragged
from tests.core.test_ppo import one_thread, parameters  # noqa: F401 (one_thread is a fixture)

LOG = ragged([4, 7, 1, 9, 3] * 8)
SMALL = {"net_arch": [8], "dueling": True, "head_arch": [4]}
PUBLISHED = {
    **{"net_arch": [16, 16], "dueling": True, "head_arch": [8], "batch_norm": True, "xavier": True},
    "activation_fn": nn.LeakyReLU,
}
TABLE = {"net_arch": []}
"""On one-hot observations."""


def build(dataset=LOG, kind=OfflineDQN, **options):
    options = {"batch_size": 16, "learning_rate": 1e-3, "tau": 0.01, "policy_kwargs": SMALL} | options
    return kind(dataset, **options)


def chain(n=5, noise=False, seed=0):
    """Every state and action of a chain once: 0 goes on, 1 ends with what the state pays; the last state pays most."""
    states = torch.arange(n).repeat_interleave(2)
    actions = torch.tensor([0, 1]).repeat(n)
    code = torch.eye(n)
    pays = torch.tensor([1.0, 0.0, 0.5, 0.0, 2.0])
    rows = torch.arange(2 * n)
    return ragged([1] * (2 * n), choices=2, width=n).__class__(
        observations=code[states],
        actions=actions,
        rewards=torch.where(actions == 1, pays[states], 0.0),
        next_observations=code[(states + 1).clamp(max=n - 1)],
        terminated=actions == 1,
        truncated=actions == 0,
        episode=rows,
        step=torch.zeros_like(rows),
        observation_space=spaces.Box(0, 1, (n,)),
        action_space=spaces.Discrete(2),
    )


# ---- what it learns


@pytest.mark.parametrize("options", [{"double": True}, {"double": False}, {"prioritized": True, "priority_beta": 1.0}])
def test_a_table_becomes_the_solution_of_bellmans_equation(options):
    model = build(chain(), n_steps=1, gamma=0.9, learning_rate=0.02, tau=0.1, policy_kwargs=TABLE, **options).fit(1500)
    pays = [1.0, 0.0, 0.5, 0.0, 2.0]
    value, exact = 2.0, []
    for state in reversed(range(5)):
        goes_on = 0.9 * value if state < 4 else 0.9 * 2.0
        exact.append([goes_on, pays[state]])
        value = max(goes_on, pays[state])
    torch.testing.assert_close(model.q_values(torch.eye(5)), torch.tensor(exact[::-1]), atol=0.01, rtol=0)
    assert model.greedy(torch.eye(5)).tolist() == [0, 0, 0, 0, 1]
    assert model.clipped_share == 0


@pytest.mark.parametrize("prioritized", [False, True])
def test_batches_are_n_step_transitions_of_the_log(prioritized):
    model = build(n_steps=3, gamma=0.9, prioritized=prioritized)
    steps = LOG.n_step(3, 0.9)
    batch = model.replay_buffer.sample(200)
    rows = (batch.observations[:, None] == LOG.observations).all(2).int().argmax(1)
    assert len(rows.unique()) > 100
    for name, expected in (
        *(("observations", steps.observations), ("next_observations", steps.next_observations)),
        *(("actions", steps.actions.unsqueeze(1)), ("rewards", steps.rewards.unsqueeze(1))),
        *(("dones", steps.terminated.float().unsqueeze(1)), ("discounts", steps.discounts.unsqueeze(1))),
    ):
        assert torch.equal(getattr(batch, name), expected[rows]), name
    if prioritized:
        assert torch.equal(batch.positions, rows)


def test_the_bound_cuts_bootstrap_values_and_presses_on_the_q_values():
    model = build(q_bound=0.05, bound_weight=5.0, n_steps=1, gamma=0.9)
    with torch.no_grad():
        for net in (model.q_net, model.q_net_target):
            for parameter in net.parameters():
                parameter.mul_(3)
    batch = model.replay_buffer.sample(64)
    with torch.no_grad():
        values = DQN.next_values(model, batch)
        target = model.critic_target(batch)
        assert values.abs().max() > 0.05
        torch.testing.assert_close(target, batch.rewards + (1 - batch.dones) * 0.9 * values.clamp(-0.05, 0.05))
        over = (values.abs() > 0.05) & (batch.dones == 0)
        assert model.clipped_share == pytest.approx(float(over.sum() / (batch.dones == 0).sum()))
        q_values = model.q_net(batch.observations)
        q = q_values.gather(1, batch.actions)
        excess = sum(max(abs(x) - 0.05, 0) for x in q.flatten().tolist())
        assert float(model.critic_penalty(q_values, batch)) == pytest.approx(5 * excess, rel=1e-4)
        weights = torch.rand(64, 1)
        by_hand = (weights * (q - target) ** 2).mean()
        torch.testing.assert_close(model.critic_loss(q, target, weights), by_hand)
    free = build(q_bound=None)
    assert free.critic_penalty(q_values, batch) == 0
    free.fit(10)
    assert free.clipped_share == 0


def test_rewards_above_the_bound_are_passed_on_within_it():
    data = replace(chain(), rewards=torch.where(chain().actions == 1, 10.0, 0.0))
    options = {"n_steps": 1, "learning_rate": 0.02, "tau": 0.1, "policy_kwargs": TABLE}
    model = build(data, q_bound=2.0, bound_weight=0.0, **options).fit(1000)
    expected = torch.tensor([0.99 * 2.0, 10.0]).expand(5, 2)
    torch.testing.assert_close(model.q_values(torch.eye(5)), expected, atol=0.05, rtol=0)
    assert model.clipped_share > 0.5
    pressed = build(data, q_bound=2.0, **options).fit(1000)
    assert float(pressed.q_values(torch.eye(5)).max()) < 3


# ---- what it answers


def test_answers_do_not_depend_on_the_rest_of_the_batch():
    model = build(policy_kwargs=PUBLISHED).fit(50)
    alone = torch.cat([model.q_values(x[None]) for x in LOG.observations[:20]])
    torch.testing.assert_close(model.q_values(LOG.observations)[:20], alone, atol=1e-6, rtol=1e-5)
    before = model.policy.state_dict()["q_net.q_net.1.running_mean"].clone()
    model.q_values(100 + LOG.observations)
    assert torch.equal(before, model.policy.state_dict()["q_net.q_net.1.running_mean"])


def test_probabilities_are_the_softmax_at_a_temperature():
    model = build().fit(20)
    q_values = model.q_values(LOG.observations)
    assert not q_values.requires_grad
    torch.testing.assert_close(model.predict_probabilities(LOG.observations), torch.softmax(q_values, 1))
    cold = model.predict_probabilities(LOG.observations, 1e-6)
    torch.testing.assert_close(cold.argmax(1), model.greedy(LOG.observations))
    action, _ = model.predict(LOG.observations, deterministic=True)
    assert torch.equal(action, model.greedy(LOG.observations))
    warm = model.predict_probabilities(LOG.observations, 1e9)
    torch.testing.assert_close(warm, torch.full_like(warm, 1 / 3))
    with pytest.raises(InputError, match="temperature: 0; allowed: greater than 0"):
        model.predict_probabilities(LOG.observations, 0)


def test_the_mean_of_models_answers_as_one():
    models = [build(seed=seed).fit(20) for seed in range(3)]
    mean = MeanQ(models)
    expected = sum(model.q_values(LOG.observations) for model in models) / 3
    torch.testing.assert_close(mean.q_values(LOG.observations), expected)
    torch.testing.assert_close(mean.predict_probabilities(LOG.observations, 2.0), torch.softmax(expected / 2, 1))
    assert torch.equal(mean.greedy(LOG.observations), expected.argmax(1))
    with pytest.raises(InputError, match="models: none"):
        MeanQ([])


# ---- files


@pytest.mark.parametrize("policy_kwargs", [SMALL, PUBLISHED])
def test_save_load_round_trip_needs_no_data(tmp_path, policy_kwargs):
    model = build(policy_kwargs=policy_kwargs, q_bound=0.5, n_steps=2, seed=3).fit(30)
    model.save(tmp_path / "model")
    loaded = OfflineDQN.load(tmp_path / "model", device="cpu")
    assert torch.equal(loaded.q_values(LOG.observations), model.q_values(LOG.observations))
    assert (loaded.q_bound, loaded.n_steps, loaded.seed, loaded._n_updates) == (0.5, 2, 3, 30)
    assert loaded.clipped_share == model.clipped_share > 0
    assert loaded.policy_kwargs == model.policy_kwargs
    assert loaded.action_space == LOG.action_space
    with pytest.raises(InputError, match="dataset: None; allowed: a dataset"):
        loaded.fit(1)
    with pytest.raises(InputError, match="env: given; allowed: None"):
        OfflineDQN.load(tmp_path / "model", env="CartPole-v1")


class Killed(Exception):
    pass


def kill(share, _):
    if share >= 0.5:
        raise Killed


@pytest.mark.parametrize("options", [{}, {"prioritized": True, "policy_kwargs": PUBLISHED, "n_steps": 3}])
def test_a_killed_fit_goes_on_bit_for_bit(tmp_path, monkeypatch, options):
    monkeypatch.setattr(core.offline.dqn, "Checkpoint", partial(Checkpoint, every_seconds=0.0))
    file = tmp_path / "fit.safetensors"
    whole = build(**options).fit(400)
    with pytest.raises(Killed):
        build(**options).fit(400, checkpoint=file, progress=kill)
    shares = []
    torch.manual_seed(99)
    resumed = build(**options).fit(400, checkpoint=file, progress=lambda share, _: shares.append(share))
    assert shares == [0.75, 1.0]
    assert torch.equal(parameters(resumed), parameters(whole))
    assert resumed.clipped_share == whole.clipped_share
    assert resumed._n_updates == whole._n_updates == 400
    for a, b in zip(resumed._statistics[0], whole._statistics[0], strict=True):
        assert torch.equal(a, b)
    if resumed.prioritized:
        first, second = (x.replay_buffer.priorities for x in (resumed, whole))
        assert torch.equal(first.tree.values, second.tree.values)
    done = build(**options).fit(400, checkpoint=file)
    assert torch.equal(parameters(done), parameters(whole))


def test_checkpoints_of_another_model_are_refused(tmp_path):
    file = tmp_path / "fit.safetensors"
    build().fit(10, checkpoint=file)
    with pytest.raises(InputError, match=r"fit\.safetensors: largest_priority is absent"):
        build(prioritized=True).fit(20, checkpoint=file)
    with pytest.raises(InputError, match=r"fit\.safetensors"):
        build(policy_kwargs={"net_arch": [8]}).fit(20, checkpoint=file)
    file.unlink()
    build(prioritized=True).fit(10, checkpoint=file)
    with pytest.raises(InputError, match=r"fit\.safetensors: of 192 transitions; the dataset has 5"):
        build(ragged([5]), prioritized=True).fit(20, checkpoint=file)


def test_two_calls_are_one():
    once, twice = build().fit(150), build().fit(70).fit(80)
    assert torch.equal(parameters(once), parameters(twice))


def test_the_seed_decides():
    first, second, other = (parameters(build(seed=seed).fit(50)) for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_beta_follows_its_schedule_over_a_fit():
    model = build(prioritized=True, priority_beta=LinearSchedule(0.4, 1.0, 1.0))
    betas = []
    model.fit(400, progress=lambda *_: betas.append(model.replay_buffer.priorities.beta))
    assert betas == pytest.approx([0.4, 0.55, 0.7, 0.85])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_fits_and_resumes(tmp_path, monkeypatch):
    monkeypatch.setattr(core.offline.dqn, "Checkpoint", partial(Checkpoint, every_seconds=0.0))
    options = {"prioritized": True, "policy_kwargs": PUBLISHED, "device": "cuda"}
    with pytest.raises(Killed):
        build(**options).fit(400, checkpoint=tmp_path / "fit", progress=kill)
    model = build(**options).fit(400, checkpoint=tmp_path / "fit")
    assert model._n_updates == 400
    model.save(tmp_path / "model")
    loaded = OfflineDQN.load(tmp_path / "model", device="cpu")
    torch.testing.assert_close(model.q_values(LOG.observations).cpu(), loaded.q_values(LOG.observations))


# ---- faults


class Diverging(OfflineDQN):
    def critic_penalty(self, q_values, batch):
        return math.nan if self._n_updates >= 100 else super().critic_penalty(q_values, batch)


def test_divergence_keeps_the_last_good_parameters(tmp_path):
    file = tmp_path / "fit.safetensors"
    model = build(kind=Diverging, prioritized=True)
    with pytest.raises(TrainingDiverged, match="not finite after 200 updates; last good parameters restored"):
        model.fit(1000, checkpoint=file)
    assert torch.equal(parameters(model), parameters(build(prioritized=True).fit(100)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": 1.5}, r"gamma: 1\.5; allowed: 0 to 1"),
        ({"tau": -0.1}, r"tau: -0\.1; allowed: 0 to 1"),
        ({"batch_size": 0}, "batch_size: 0; allowed: at least 1"),
        ({"q_bound": -1.0}, r"q_bound: -1\.0; allowed: at least 0"),
        ({"n_steps": 0}, "n_steps: 0; allowed: at least 1"),
    ],
)
def test_impossible_numbers_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        build(**options)


def test_what_it_cannot_learn_from_is_refused():
    continuous = replace(
        LOG,
        actions=torch.zeros(len(LOG), 2),
        action_space=spaces.Box(-1, 1, (2,)),
        behaviour_probability=None,
    )
    with pytest.raises(InputError, match="needs a Discrete one"):
        build(continuous)
    with pytest.raises(InputError, match=r"learn: .*allowed: fit"):
        build().learn(10)


@pytest.mark.parametrize("lengths", [[1], [5], [1, 1, 1, 1]])
def test_small_logs_are_learnt_from(lengths):
    model = build(ragged(lengths), prioritized=True).fit(20)
    assert torch.isfinite(parameters(model)).all()

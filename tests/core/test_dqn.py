import math
from dataclasses import dataclass, field

import numpy as np
import pytest
import stable_baselines3
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import StopTrainingOnMaxEpisodes
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecMonitor
from stable_baselines3.dqn.policies import QNetwork as SB3QNetwork
from torch import nn

from core.errors import InputError
from core.rl import DQN, LearnedPolicy, ResumeCallback, TrainingDiverged
from core.rl.q_network import DQNPolicy, DuelingHead, MultiInputDQNPolicy
from core.rl.replay import PrioritizedReplayBuffer, ReplayBatch, TensorReplayBuffer
from core.simulation import SB3VecEnv, draw, episode_totals
from tests.core.test_ppo import Watch, one_thread, parameters  # noqa: F401 (one_thread is a fixture)
from tests.core.test_ppo_files import Stop
from tests.core.worlds import Corridor, Drift

ROWS = 8


@dataclass(frozen=True)
class Pushes(Drift):
    """Drift with four pushes to choose from."""

    action_space: spaces.Discrete = field(default_factory=lambda: spaces.Discrete(4))

    def step(self, state, action, noise):
        push = torch.tensor([[0.5, 0], [-0.5, 0], [0, 0.5], [0, -0.5]], device=action.device)
        return super().step(state, push[action], noise)


@dataclass(frozen=True)
class Seen(Corridor):
    """The corridor with Dict observations, of which one is the mask."""

    @property
    def observation_space(self):
        return spaces.Dict({"cell": spaces.Discrete(self.n), "allowed": spaces.MultiBinary(3)})

    def observe(self, state, noise):
        return {"cell": state.cell, "allowed": self.action_mask(state).to(torch.int8)}


def build(algorithm=DQN, simulator=None, n_envs=ROWS, horizon=9, policy="MlpPolicy", **options):
    env = SB3VecEnv(Pushes() if simulator is None else simulator, n_envs, horizon=horizon)
    options = {
        **{"buffer_size": 200 * n_envs, "learning_starts": 4 * n_envs, "batch_size": 32, "train_freq": 2},
        **{"gradient_steps": 2, "target_update_interval": 3 * n_envs, "learning_rate": 1e-3, "gamma": 0.9},
        **{"policy_kwargs": {"net_arch": [16]}, "seed": 0, "device": "cpu"},
    } | options
    return algorithm(policy, env, **options)


@pytest.fixture
def same_draws(monkeypatch):
    """The same transitions from the memories of both libraries, and the same first actions."""

    def sb3(low, high=None, size=None):
        return np.arange(size if isinstance(size, int) else size[0]) % high

    def ours(high, size, device=None):
        i = torch.arange(size[0])
        if high == 4:
            return torch.ones(size, dtype=torch.int64)
        slots = high // ROWS
        return i % slots * ROWS + i % ROWS

    monkeypatch.setattr(np.random, "randint", sb3)
    monkeypatch.setattr(torch, "randint", ours)
    monkeypatch.setattr(spaces.Discrete, "sample", lambda self, mask=None: np.int64(1))


# ---- without the extensions it is SB3's


class WithTheirTrain(DQN):
    train = stable_baselines3.DQN.train


GREEDY = {"exploration_initial_eps": 0.0, "exploration_final_eps": 0.0}


@pytest.mark.parametrize("n_steps", [1, 3])
def test_learning_equals_sb3(same_draws, n_steps):
    learners = []
    for algorithm in (DQN, WithTheirTrain, stable_baselines3.DQN):
        learners.append(build(algorithm, n_steps=n_steps, **GREEDY).learn(80 * ROWS))
    ours, mixed, theirs = learners
    assert ours.replay_buffer.data["ended"].any()
    assert not ours.replay_buffer.data["terminated"][: ours.replay_buffer.pos].all()
    for name in ("observations", "next_observations", "actions", "rewards"):
        held = ours.replay_buffer.data[name].numpy()
        assert np.array_equal(
            held.reshape(theirs.replay_buffer.__dict__[name].shape), getattr(theirs.replay_buffer, name)
        )
    if n_steps == 1:
        assert torch.equal(parameters(ours), parameters(theirs))
    assert torch.equal(parameters(ours), parameters(mixed))
    torch.testing.assert_close(parameters(ours), parameters(theirs), rtol=1e-3, atol=1e-5)
    assert ours._n_updates == theirs._n_updates > 60
    assert [e["r"] for e in ours.ep_info_buffer] == [e["r"] for e in theirs.ep_info_buffer]
    assert ours._episode_num == theirs._episode_num
    assert ours.exploration_rate == theirs.exploration_rate


def test_a_slow_target_equals_sb3s(same_draws):
    ours, theirs = (build(kind, tau=0.3, **GREEDY).learn(40 * ROWS) for kind in (DQN, stable_baselines3.DQN))
    # The average of two numbers is rounded in another order.
    torch.testing.assert_close(parameters(ours), parameters(theirs), rtol=1e-3, atol=1e-5)
    first, second = (torch.nn.utils.parameters_to_vector(x.q_net_target.parameters()) for x in (ours, theirs))
    torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-5)
    assert not torch.equal(first, torch.nn.utils.parameters_to_vector(ours.q_net.parameters()))


@pytest.mark.parametrize("memory", [None, ReplayBuffer])
def test_other_environments_and_memories_go_through_sb3s_loop(same_draws, memory):
    results = []
    for algorithm, kind in ((DQN, memory), (stable_baselines3.DQN, None)):
        env = make_vec_env("CartPole-v1", ROWS, seed=0)
        learner = algorithm(
            "MlpPolicy", env, learning_starts=64, replay_buffer_class=kind, seed=0, device="cpu", **GREEDY
        )
        results.append(parameters(learner.learn(640)))
    assert torch.equal(*results)


def test_the_networks_begin_as_sb3s():
    ours, theirs = (build(kind) for kind in (DQN, stable_baselines3.DQN))
    assert ours.policy.state_dict().keys() == theirs.policy.state_dict().keys()
    assert torch.equal(parameters(ours), parameters(theirs))


# ---- exploration and masks


def test_every_row_tosses_its_own_coin():
    learner = build(n_envs=64, learning_starts=0)
    learner._setup_learn(1)
    learner.exploration_rate = 0.4
    obs = learner.env.reset_tensor()
    greedy, _ = learner.predict(obs, deterministic=True)
    different = torch.stack([(learner.predict(obs)[0] != greedy).float() for _ in range(300)])
    # A uniform action is the greedy one in a quarter of its draws.
    share, rows = different.mean(), different.mean(1)
    assert abs(float(share) - 0.3) < 4 * math.sqrt(0.21 / different.numel())
    assert float(rows.std()) < 2 * math.sqrt(0.21 / 64)


def test_masked_actions_are_neither_explored_nor_chosen():
    learner = build(simulator=Corridor(n=6), horizon=12, learning_starts=30 * ROWS).learn(120 * ROWS)
    data = learner.replay_buffer.data
    cells, actions = (data[name].squeeze(2)[:120] for name in ("observations", "actions"))
    assert (cells == 0).any()
    assert not ((cells == 0) & (actions == 0)).any()
    assert ((cells > 0) & (actions == 0)).any()
    reached = data["next_observations"].squeeze(2)[:120]
    assert torch.equal(data["next_masks"][:120, :, 0], reached > 0)


def test_a_target_bootstraps_from_allowed_actions_only():
    for double in (False, True):
        learner = build(simulator=Corridor(), double=double)
        cells = torch.tensor([[0], [1], [0]])
        masks = torch.tensor([[False, True, True], [True, True, True], [False, False, False]])
        online, target = (net(cells).detach() for net in (learner.q_net, learner.q_net_target))
        online = online if double else target
        ones, dones = torch.ones(3, 1), torch.tensor([[0.0], [0.0], [1.0]])
        batch = ReplayBatch(cells, torch.zeros(3, 1, dtype=torch.int64), cells, dones, ones, None, masks)
        best = [max((online[i, a].item(), target[i, a].item()) for a in range(3) if masks[i, a])[1] for i in (0, 1)]
        expected = torch.tensor([1 + 0.9 * best[0], 1 + 0.9 * best[1], 1.0]).unsqueeze(1)
        with torch.no_grad():
            torch.testing.assert_close(learner.critic_target(batch), expected)


def test_predict_takes_masks_of_both_kinds():
    learner = build(simulator=Corridor(), learning_starts=0)
    learner.exploration_rate = 0.5
    cells = torch.zeros(200, dtype=torch.int64)
    for masks in ([False, True, True], [False, False, True]):
        mask = torch.tensor(masks).expand(200, 3)
        for deterministic in (True, False):
            tensor, _ = learner.predict(cells, deterministic=deterministic, action_masks=mask)
            array, _ = learner.predict(cells.numpy(), deterministic=deterministic, action_masks=mask.numpy())
            assert mask.gather(1, tensor.unsqueeze(1)).all()
            assert isinstance(array, np.ndarray)
            assert mask.gather(1, torch.from_numpy(array).unsqueeze(1)).all()
    single, _ = learner.predict(np.int64(0), deterministic=True, action_masks=np.array([False, False, True]))
    assert single == 2
    assert learner.predict(cells, deterministic=True)[0].shape == (200,)


def test_finds_the_optimum_of_the_corridor_with_dict_observations():
    options = {"policy": "MultiInputPolicy", "learning_rate": 1e-2, "double": True, "prioritized": True, "n_steps": 2}
    world = Seen(n=6)
    learner = build(
        simulator=world, horizon=12, exploration_fraction=0.5, target_update_interval=0, tau=0.05, **options
    )
    learner.learn(300 * ROWS)
    totals = episode_totals(world, LearnedPolicy(learner, world), draw(world, 12, 8, seed=0))
    assert (totals.reward == 1).all()
    returns, lengths = evaluate_policy(learner, learner.env, 8, return_episode_rewards=True)
    assert set(lengths) == {4}
    assert set(returns) == {1.0}


# ---- the extensions


def test_double_takes_the_online_networks_choice():
    learner = build(double=True)
    with torch.no_grad():
        for parameter in learner.q_net_target.parameters():
            parameter.add_(torch.randn_like(parameter))
    obs = torch.randn(50, 2)
    ones = torch.ones(50, 1)
    batch = ReplayBatch(obs, ones.long(), obs, 0 * ones, ones, 0.5 * ones)
    with torch.no_grad():
        online, target = learner.q_net(obs), learner.q_net_target(obs)
        expected = 1 + 0.5 * target[torch.arange(50), online.argmax(1)].unsqueeze(1)
        torch.testing.assert_close(learner.critic_target(batch), expected)
        assert not torch.equal(expected, 1 + 0.5 * target.max(1, keepdim=True).values)


def test_a_dueling_head_adds_advantages_of_mean_zero():
    head = DuelingHead(5, 4, [7], nn.ReLU)
    features = torch.randn(20, 5)
    q_values = head(features)
    torch.testing.assert_close(q_values.mean(1, keepdim=True), head.value(features))
    advantages = head.advantage(features)
    torch.testing.assert_close(q_values - q_values[:, :1], advantages - advantages[:, :1])
    with pytest.raises(InputError, match=r"head_arch: \[7\]; allowed with dueling=True only"):
        build(policy_kwargs={"head_arch": [7]})


PUBLISHED = {"net_arch": [16, 8], "dueling": True, "head_arch": [4], "batch_norm": True, "xavier": True}


def test_the_published_network_is_built_in_its_order():
    kwargs = PUBLISHED | {"activation_fn": nn.LeakyReLU}
    net = build(policy_kwargs=kwargs).q_net.q_net
    kinds = [nn.Linear, nn.BatchNorm1d, nn.LeakyReLU] * 2
    assert [type(layer) for layer in net] == [*kinds, DuelingHead]
    assert [tuple(x.weight.shape) for x in net.modules() if isinstance(x, nn.Linear)] == [
        *((16, 2), (8, 16), (4, 8), (1, 4), (4, 8), (4, 4))
    ]
    assert all((x.bias == 0).all() for x in net.modules() if isinstance(x, nn.Linear))
    wide = build(policy_kwargs={"net_arch": [400], "xavier": True}).q_net.q_net[0].weight
    assert float(wide.detach().std()) == pytest.approx(math.sqrt(2 / 402), rel=0.1)


def test_the_target_has_the_statistics_of_the_batches():
    learner = build(policy_kwargs=PUBLISHED, target_update_interval=0, tau=0.5, double=True).learn(30 * ROWS)
    batch = learner.replay_buffer.sample(32)
    running = learner.q_net.q_net[1].running_mean.clone()
    learner.policy.set_training_mode(True)
    learner._update(batch)
    assert torch.equal(learner.q_net_target.q_net[1].running_mean, running)
    # The choice for the target reads the statistics and does not move them: one batch was seen, not two.
    assert int(learner.q_net.q_net[1].num_batches_tracked) == learner._n_updates + 1


def test_the_target_moves_before_every_step_if_asked():
    learner = build(target_update_interval=0, tau=0.25).learn(20 * ROWS)
    vector = torch.nn.utils.parameters_to_vector
    target, online = (vector(net.parameters()).detach().clone() for net in (learner.q_net_target, learner.q_net))
    learner._update(learner.replay_buffer.sample(8))
    torch.testing.assert_close(vector(learner.q_net_target.parameters()), target + 0.25 * (online - target))
    learner._on_step()
    torch.testing.assert_close(vector(learner.q_net_target.parameters()), target + 0.25 * (online - target))


def test_errors_become_priorities_and_beta_follows_its_schedule():
    learner = build(
        prioritized=True, priority_alpha=1.0, priority_beta=LinearSchedule(0.4, 1.0, 1.0), priority_eps=0.01
    )
    learner.learn(60 * ROWS)
    assert learner.replay_buffer.priorities.beta == pytest.approx(0.4 + 0.6, abs=0.03)
    batch = learner.replay_buffer.sample(16)
    with torch.no_grad():
        q = learner.q_net(batch.observations).gather(1, batch.actions)
        errors = (learner.critic_target(batch) - q).abs().squeeze(1)
    weighted = (
        batch.weights * torch.nn.functional.smooth_l1_loss(q, learner.critic_target(batch), reduction="none")
    ).mean()
    loss = learner._update(batch)
    torch.testing.assert_close(loss, weighted.detach())
    torch.testing.assert_close(learner.replay_buffer.priorities.tree.values[batch.positions], errors.double() + 0.01)


class Scores(SB3QNetwork):
    """Scores each action by a feature of its own: equal features get equal values."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.q_net = nn.Linear(1, 1)

    def forward(self, obs):
        return self.q_net(obs["allowed"].float().unsqueeze(2)).squeeze(2)


class ScoresPolicy(MultiInputDQNPolicy):
    def make_q_net(self):
        return Scores(**self._update_features_extractor(self.net_args, features_extractor=None)).to(self.device)


class ScoresDQN(DQN):
    policy_aliases = {**DQN.policy_aliases, "ScoresPolicy": ScoresPolicy}  # noqa: RUF012


def test_a_network_of_another_kind_learns_and_is_saved(tmp_path):
    learner = build(ScoresDQN, Seen(), policy="ScoresPolicy", policy_kwargs={}, double=True).learn(30 * ROWS)
    assert len(parameters(learner)) == 4
    learner.save(tmp_path / "model")
    loaded = ScoresDQN.load(tmp_path / "model")
    assert torch.equal(parameters(loaded), parameters(learner))


# ---- files and faults


EVERYTHING = {
    **{"double": True, "prioritized": True, "n_steps": 3, "target_update_interval": 0, "tau": 0.01},
    **{"priority_beta": LinearSchedule(0.4, 1.0, 0.5), "train_freq": (2, "step")},
}


@pytest.mark.parametrize("format", ["safetensors", "sb3"])
def test_save_load_predict_round_trip(tmp_path, format):
    options = EVERYTHING | {"policy_kwargs": PUBLISHED | {"activation_fn": nn.LeakyReLU}}
    learner = build(**options).learn(40 * ROWS)
    learner.save(tmp_path / "model", format=format)
    loaded = DQN.load(tmp_path / "model", device="cpu", **({"trust_pickle": True} if format == "sb3" else {}))
    obs = learner.env.reset()
    assert np.array_equal(learner.predict(obs, deterministic=True)[0], loaded.predict(obs, deterministic=True)[0])
    assert (loaded.num_timesteps, loaded.exploration_rate) == (learner.num_timesteps, learner.exploration_rate)
    assert (loaded.double, loaded.n_steps, loaded.tau) == (True, 3, 0.01)
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 60_000
    if format == "safetensors":
        assert loaded.replay_buffer is None
        again = DQN.load(tmp_path / "model", env=learner.env, device="cpu")
        again.learn(40 * ROWS, reset_num_timesteps=False)
        assert again.num_timesteps == 80 * ROWS


@pytest.mark.parametrize(
    ("simulator", "options"),
    [
        (None, {}),
        (None, EVERYTHING | {"policy_kwargs": PUBLISHED}),
        (Seen(), EVERYTHING | {"policy": "MultiInputPolicy", "buffer_size": 20 * ROWS}),
    ],
    ids=["plain", "everything", "dict"],
)
def test_a_stopped_training_goes_on_bit_for_bit(tmp_path, simulator, options):
    total = 60 * ROWS
    whole = build(simulator=simulator, **options).learn(total)
    next_draw = torch.rand(3)
    state = tmp_path / "state.safetensors"
    stopped = build(simulator=simulator, **options)
    stopped.learn(total, callback=[ResumeCallback(state, every_seconds=0), Stop(total // 2 - 1)])
    torch.manual_seed(12345)
    resumed = build(simulator=simulator, **options | {"seed": 7})
    resumed.restore_state(state)
    assert 0 < resumed.num_timesteps < total
    resumed.learn(total - resumed.num_timesteps, reset_num_timesteps=False)
    assert torch.equal(parameters(resumed), parameters(whole))
    assert [e["r"] for e in resumed.ep_info_buffer] == [e["r"] for e in whole.ep_info_buffer]
    for name, value in whole.replay_buffer.state_tensors().items():
        assert torch.equal(value, resumed.replay_buffer.state_tensors()[name]), name
    assert torch.equal(torch.rand(3), next_draw)


class Diverging(DQN):
    def critic_loss(self, q, target, weights):
        loss = super().critic_loss(q, target, weights)
        return loss * torch.nan if self._n_updates >= 150 else loss


def test_divergence_restores_the_last_good_parameters():
    constant = {"exploration_initial_eps": 0.3, "exploration_final_eps": 0.3, "prioritized": True}
    learner = build(Diverging, **constant)
    with pytest.raises(TrainingDiverged, match="not finite after 200 updates"):
        learner.learn(10**6)
    twin = build(**constant).learn(104 * ROWS)
    assert twin._n_updates == 100
    assert torch.equal(parameters(learner), parameters(twin))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_steps": 0}, "n_steps: 0; allowed: at least 1"),
        ({"target_update_interval": -1}, "target_update_interval: -1; allowed: at least 0"),
        ({"prioritized": True, "priority_alpha": 2.0}, r"priority_alpha: 2\.0; allowed: 0 to 1"),
    ],
)
def test_impossible_numbers_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        build(**options)


def test_callbacks_see_what_sb3_shows_them_and_stop():
    watchers = [Watch(), Watch()]
    for algorithm, watcher in zip((DQN, stable_baselines3.DQN), watchers, strict=True):
        build(algorithm).learn(30 * ROWS, callback=watcher)
    assert watchers[0].steps == watchers[1].steps == 30
    learner = build().learn(10**6, callback=StopTrainingOnMaxEpisodes(3))
    assert 0 < learner.num_timesteps <= 3 * 9 * ROWS


@pytest.mark.parametrize("again", ["learn", "set_env"])
def test_no_transition_goes_on_behind_a_reset(again):
    learner = build(n_steps=3, horizon=None, simulator=Pushes(edge=9.0), learning_starts=10**9, train_freq=1)
    learner.learn(5 * ROWS)
    if again == "set_env":
        learner.set_env(SB3VecEnv(Pushes(edge=9.0), ROWS))
    learner.learn(5 * ROWS, reset_num_timesteps=again == "learn")
    batch = learner.replay_buffer._get_samples(torch.arange(10 * ROWS))
    steps = torch.tensor([3, 3, 3, 2, 1] * 2).repeat_interleave(ROWS)
    torch.testing.assert_close(batch.discounts.squeeze(1), 0.9**steps)
    whole = build(n_steps=3, horizon=None, simulator=Pushes(edge=9.0), learning_starts=10**9, train_freq=1)
    whole.learn(5 * ROWS).learn(5 * ROWS, reset_num_timesteps=False)
    assert not whole.replay_buffer.data["ended"][4].any()


def test_a_named_memory_gets_the_arguments_of_the_extensions():
    memory = build(replay_buffer_class=TensorReplayBuffer, simulator=Corridor(), n_steps=3).replay_buffer
    assert (memory.n_steps, memory.gamma, memory.masked) == (3, 0.9, True)
    options = {"prioritized": True, "priority_alpha": 0.3, "replay_buffer_kwargs": {"n_steps": 2}}
    memory = build(replay_buffer_class=PrioritizedReplayBuffer, **options).replay_buffer
    assert (memory.n_steps, memory.priorities.alpha) == (2, 0.3)
    for options in ({"n_steps": 2, "replay_buffer_class": ReplayBuffer}, {"prioritized": True}):
        with pytest.raises(InputError, match="allowed with prioritized or n_steps"):
            build(**{"replay_buffer_class": TensorReplayBuffer} | options)


def test_training_in_episodes_needs_a_single_row():
    learner = build(n_envs=1, train_freq=(2, "episode"), gradient_steps=-1).learn(40)
    assert learner._n_updates > 10
    with pytest.raises(InputError, match="train_freq: in episodes"):
        build(train_freq=(2, "episode")).learn(40)


def test_a_policy_keeps_its_arguments():
    policy = build(policy_kwargs=PUBLISHED).policy
    assert isinstance(policy, DQNPolicy)
    assert policy._get_constructor_parameters().items() >= {"dueling": True, "batch_norm": True, "xavier": True}.items()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_keeps_everything():
    env = SB3VecEnv(Corridor(n=6), 256, horizon=12, device="cuda")
    options = {"learning_rate": 1e-2, "learning_starts": 512, "buffer_size": 20_000, "batch_size": 256, "train_freq": 1}
    options |= EVERYTHING | {"tau": 0.05, "gamma": 0.9, "device": "cuda"}
    learner = DQN("MlpPolicy", env, **options).learn(256 * 300)
    assert learner.replay_buffer.data["rewards"].is_cuda
    action, _ = learner.predict(torch.arange(1, 5, device="cuda"), deterministic=True)
    assert action.is_cuda
    assert action.tolist() == [1, 1, 1, 1]


def test_masks_that_nobody_would_heed_are_refused():
    with pytest.warns(UserWarning, match="already wrapped"):
        env = VecMonitor(SB3VecEnv(Corridor(), 4, horizon=5, seed=0))
    with pytest.raises(InputError, match="VecMonitor masks actions, which SB3's loop does not heed"):
        DQN("MlpPolicy", env, learning_starts=0, device="cpu").learn(8)

import tempfile

import numpy as np
import pytest
import stable_baselines3
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback, StopTrainingOnMaxEpisodes
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecMonitor, VecNormalize

from core.errors import InputError
from core.rl import PPO, TrainingDiverged
from core.rl.buffers import TensorRolloutBuffer
from core.simulation.sb3_vec_env import SB3VecEnv
from simulators.fishery import model
from tests.core.worlds import Corridor, Drift, Duo

NAMES = ("observations", "actions", "rewards", "episode_starts", "values", "log_probs", "advantages", "returns")


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def in_order(monkeypatch):
    """Minibatches in the order of the buffer, in both libraries."""
    monkeypatch.setattr(np.random, "permutation", np.arange)
    monkeypatch.setattr(torch, "randperm", lambda n, device=None: torch.arange(n, device=device))


def build(algorithm, simulator=None, n_envs=64, horizon=200, **options):
    env = SB3VecEnv(model(3) if simulator is None else simulator, n_envs, horizon=horizon)
    options = {"n_steps": 32, "batch_size": 256, "n_epochs": 3, "seed": 0, "device": "cpu"} | options
    return algorithm("MlpPolicy", env, **options)


def roll_out(learner):
    _, callback = learner._setup_learn(1)
    assert learner.collect_rollouts(learner.env, callback, learner.rollout_buffer, learner.n_steps)
    buffer = learner.rollout_buffer
    if isinstance(buffer, TensorRolloutBuffer):
        return {name: buffer.data[name].numpy() for name in NAMES}
    return {name: getattr(buffer, name) for name in NAMES}


def parameters(learner):
    return torch.nn.utils.parameters_to_vector(learner.policy.parameters())


# ---- the same numbers as SB3's loop


@pytest.mark.parametrize("simulator", [None, Corridor(), Duo()], ids=["fishery", "corridor", "duo"])
def test_roll_out_equals_sb3s_loop(simulator):
    options = {"n_steps": 256, "horizon": None}
    a, b = (roll_out(build(algorithm, simulator, **options)) for algorithm in (PPO, stable_baselines3.PPO))
    assert b["episode_starts"][1:].any()
    for name in NAMES:
        assert np.array_equal(a[name].reshape(b[name].shape), b[name]), name


def test_roll_out_with_time_outs_equals_sb3s_loop():
    ours = build(PPO, horizon=5)
    a = roll_out(ours)
    theirs = build(stable_baselines3.PPO, horizon=5)
    b = roll_out(theirs)
    assert not b["episode_starts"][5::5].all(1).any()  # the copies are out of step, as in earnest
    assert [e["l"] for e in theirs.ep_info_buffer].count(5) > 10
    for name in NAMES:
        if name in ("rewards", "advantages", "returns"):
            # SB3 values the last observations one by one, and a batch of one rounds differently.
            np.testing.assert_allclose(a[name], b[name], atol=1e-5)
        else:
            assert np.array_equal(a[name], b[name]), name
    assert [(e["r"], e["l"]) for e in ours.ep_info_buffer] == [(e["r"], e["l"]) for e in theirs.ep_info_buffer]


def test_learning_equals_sb3(in_order):
    start = parameters(build(PPO, horizon=None)).clone()
    ours, theirs = (build(algorithm, horizon=None).learn(4 * 32 * 64) for algorithm in (PPO, stable_baselines3.PPO))
    assert not torch.equal(parameters(ours), start)
    assert torch.equal(parameters(ours), parameters(theirs))
    for name in ("policy_gradient_loss", "value_loss", "approx_kl", "clip_fraction", "explained_variance", "std"):
        logged = [learner.logger.name_to_value[f"train/{name}"] for learner in (ours, theirs)]
        assert logged[0] == pytest.approx(logged[1], rel=1e-5), name


class WithTheirTrain(PPO):
    train = stable_baselines3.PPO.train


@pytest.mark.parametrize(
    ("simulator", "options"),
    [
        (None, {}),
        (None, {"clip_range_vf": 0.1, "ent_coef": 0.01, "normalize_advantage": False}),
        (None, {"target_kl": 1e-4, "learning_rate": 1e-2}),
        (None, {"use_sde": True, "sde_sample_freq": 4}),
        (Corridor(), {"ent_coef": 0.01}),
    ],
)
def test_default_hooks_train_as_sb3(in_order, simulator, options):
    ours, theirs = (build(algorithm, simulator, **options).learn(2 * 32 * 64) for algorithm in (PPO, WithTheirTrain))
    assert torch.equal(parameters(ours), parameters(theirs))
    assert ours._n_updates == theirs._n_updates


def test_gae_of_a_lone_step_by_hand():
    box = spaces.Box(-1, 1, (1,))
    buffer = TensorRolloutBuffer(3, box, box, device="cpu", gae_lambda=0.5, gamma=0.9, n_envs=1)
    zero = np.zeros((1, 1), np.float32)
    for reward, start, value in ((1.0, True, 0.5), (2.0, False, 1.0), (3.0, True, 1.5)):
        one = [np.array([x], np.float32) for x in (reward, start)]
        buffer.add(zero, zero, *one, torch.tensor([value]), torch.tensor([0.0]))
    buffer.compute_returns_and_advantage(torch.tensor([2.0]), np.array([False]))
    last = 3.0 + 0.9 * 2.0 - 1.5
    middle = 2.0 - 1.0  # the third step starts another episode
    first = 1.0 + 0.9 * 1.0 - 0.5 + 0.9 * 0.5 * middle
    np.testing.assert_allclose(buffer.data["advantages"].flatten(), [first, middle, last], rtol=1e-6)
    np.testing.assert_allclose(buffer.returns.flatten(), [first + 0.5, middle + 1.0, last + 1.5], rtol=1e-6)


def test_minibatches_hold_every_sample_once_in_sb3s_order(in_order):
    learner = build(PPO)
    roll_out(learner)
    ours = list(learner.rollout_buffer.get(100))
    assert [len(batch.returns) for batch in ours] == [100] * 20 + [48]
    # Environment by environment, as ``RolloutBuffer.swap_and_flatten``.
    expected = RolloutBuffer.swap_and_flatten(learner.rollout_buffer.data["log_probs"].numpy()).flatten()
    assert np.array_equal(torch.cat([batch.old_log_prob for batch in ours]).numpy(), expected)


def test_minibatches_are_a_permutation():
    learner = build(PPO)
    roll_out(learner)
    first, second = (torch.cat([b.old_log_prob for b in learner.rollout_buffer.get(256)]) for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(first.sort()[0], second.sort()[0])


# ---- faults


def test_the_buffer_never_holds_a_nan():
    learner = build(PPO, Drift(explode=0.5), n_envs=32, horizon=50)
    data = roll_out(learner)
    assert learner.env.episodes.n_nonfinite > 0
    for name in NAMES:
        assert np.isfinite(data[name]).all(), name
    learner.learn(2 * 32 * 32)
    assert torch.isfinite(parameters(learner)).all()


class Diverging(PPO):
    def policy_loss(self, batch):
        loss = super().policy_loss(batch)
        return loss * torch.nan if self._n_updates >= 3 else loss


def test_divergence_restores_the_last_good_parameters():
    learner = build(Diverging)
    with pytest.raises(TrainingDiverged, match="not finite after 4096 steps"):
        learner.learn(10 * 32 * 64)
    twin = build(PPO).learn(32 * 64)
    assert torch.equal(parameters(learner), parameters(twin))
    ours, theirs = (x.policy.optimizer.state_dict()["state"] for x in (learner, twin))
    assert all(torch.equal(ours[i][key], theirs[i][key]) for i in ours for key in ours[i])


def test_a_buffer_too_large_says_what_fits(monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError

    box = spaces.Box(-1, 1, (2,))
    monkeypatch.setattr(torch, "zeros", full)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 2000))
    # A step of one environment: 2 observations, 2 actions and 6 scalars in float32.
    with pytest.raises(InputError, match=r"n_steps: 100 steps of 1 environments need 4000 bytes.*at most 25 steps"):
        TensorRolloutBuffer(100, box, box, device="cpu")


# ---- the interface of SB3


class Watch(BaseCallback):
    def __init__(self):
        super().__init__()
        self.steps, self.ended = 0, []

    def _on_step(self):
        self.steps += 1
        assert isinstance(self.locals["dones"], np.ndarray)
        assert isinstance(self.locals["rewards"], np.ndarray)
        assert len(self.locals["infos"]) == len(self.locals["dones"]) == len(self.locals["new_obs"])
        for done, info in zip(self.locals["dones"], self.locals["infos"], strict=True):
            assert ("episode" in info) == done
            self.ended += [info["episode"]["l"]] if done else []
        return True


def test_callbacks_see_what_sb3_shows_them():
    watchers = [Watch(), Watch()]
    for algorithm, watcher in zip((PPO, stable_baselines3.PPO), watchers, strict=True):
        build(algorithm, horizon=7).learn(32 * 64, callback=watcher)
    assert watchers[0].steps == watchers[1].steps == 32
    assert watchers[0].ended == watchers[1].ended


def test_a_callback_stops_the_training():
    learner = build(PPO, horizon=5)
    learner.learn(10**6, callback=StopTrainingOnMaxEpisodes(3))
    # Three episodes a copy on average, and none is longer than five steps.
    assert 0 < learner.num_timesteps <= 3 * 5 * 64


def test_a_quiet_training_leaves_nothing_in_the_temporary_directory(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    learner = build(PPO, Corridor(), 4).learn(128)
    assert not list(tmp_path.iterdir())
    learner.verbose = 1
    learner.learn(128)
    assert [path.name[:4] for path in tmp_path.iterdir()] == ["SB3-"]


def test_is_success_reaches_the_statistics():
    learner = build(PPO, Corridor(), horizon=20)
    learner.learn(32 * 64)
    assert set(learner.ep_success_buffer) <= {True, False}
    assert len(learner.ep_success_buffer) == len(learner.ep_info_buffer) == 100


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("simulator", [None, Corridor()])
def test_predict_gives_tensors_for_tensors(simulator, deterministic):
    learner = build(PPO, simulator, use_sde=simulator is None, policy_kwargs={"log_std_init": 1.0})
    obs = learner.env.reset_tensor()
    torch.manual_seed(1)
    tensor, _ = learner.predict(obs, deterministic=deterministic)
    torch.manual_seed(1)
    array, _ = learner.predict(obs.numpy(), deterministic=deterministic)
    assert isinstance(tensor, torch.Tensor)
    assert np.array_equal(tensor.numpy(), array)
    assert learner.action_space.contains(tensor[0].numpy())


def test_other_environments_go_through_sb3s_loop(in_order):
    results = []
    for algorithm in (PPO, stable_baselines3.PPO):
        env = make_vec_env("CartPole-v1", 4, seed=0)
        learner = algorithm("MlpPolicy", env, n_steps=64, batch_size=64, n_epochs=2, seed=0, device="cpu").learn(512)
        results.append(parameters(learner))
    assert torch.equal(*results)


@pytest.mark.filterwarnings("ignore:The environment is already wrapped:UserWarning")
def test_a_wrapped_view_goes_through_sb3s_loop(in_order):
    results = []
    for wrap in (lambda env: env, VecMonitor):
        env = wrap(SB3VecEnv(model(3), 16))
        learner = PPO("MlpPolicy", env, n_steps=32, batch_size=128, n_epochs=2, seed=0, device="cpu").learn(1024)
        results.append(parameters(learner))
    assert torch.equal(*results)


def test_evaluate_policy_counts_whole_episodes(recwarn):
    learner = build(PPO, Corridor(), horizon=6)
    returns, lengths = evaluate_policy(learner, learner.env, n_eval_episodes=128, return_episode_rewards=True)
    assert len(returns) == 128
    assert set(lengths) <= {2, 3, 4, 5, 6}
    assert not [w for w in recwarn if "Monitor" in str(w.message)]


def test_unusable_environments_are_refused():
    env = SB3VecEnv(model(3), 4)
    with pytest.raises(InputError, match="VecNormalize"):
        PPO("MlpPolicy", VecNormalize(env))
    learner = PPO("MlpPolicy", env, device="cpu")
    with pytest.raises(InputError, match="VecNormalize"):
        learner.set_env(VecNormalize(env))


class DictDrift(Drift):
    def observe(self, state, noise):
        return {"x": state.x}


def test_dict_observations_are_refused():
    world = DictDrift(observation_space=spaces.Dict({"x": spaces.Box(-1, 1, (2,))}))
    with pytest.raises(InputError, match="Dict"):
        PPO("MultiInputPolicy", SB3VecEnv(world, 4), device="cpu")


# ---- it learns


def test_finds_the_optimum_of_the_corridor():
    learner = build(PPO, Corridor(n=6), horizon=12, n_envs=64, n_steps=16, learning_rate=3e-3, gamma=0.9)
    learner.learn(20_000)
    action, _ = learner.predict(torch.arange(1, 5), deterministic=True)
    assert action.tolist() == [1, 1, 1, 1]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_and_cpu_agree_in_distribution():
    returns = []
    for device in ("cpu", "cuda"):
        env = SB3VecEnv(model(3), 4096, horizon=50, device=device, seed=1)
        env.reset_tensor()
        action = torch.full((4096, 2), -0.5, device=device)
        total = torch.zeros(4096, device=device)
        alive = torch.ones(4096, device=device)
        for _ in range(50):
            step = env.step_tensor(action)
            total += alive * step.reward
            alive *= 1.0 - (step.terminated | step.truncated).float()
        returns.append(total.double().cpu())
    cpu, gpu = returns
    error = (cpu.var() / 4096 + gpu.var() / 4096).sqrt()
    assert abs(cpu.mean() - gpu.mean()) < 4 * error
    learner = PPO("MlpPolicy", SB3VecEnv(model(3), 256, horizon=50, device="cuda"), n_steps=16, device="cuda")
    learner.learn(2 * 4096)
    assert learner.rollout_buffer.data["rewards"].is_cuda

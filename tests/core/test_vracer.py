import copy
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from stable_baselines3.common.callbacks import StopTrainingOnMaxEpisodes
from stable_baselines3.common.env_util import make_vec_env

from core.errors import InputError
from core.rl import VRACER, LearnedPolicy, ResumeCallback, TrainingDiverged
from core.rl.episode_replay import INNER, TERMINATED, TRUNCATED
from core.simulation import SB3VecEnv, draw, episode_totals
from simulators.testbeds import ScalarLQR
from tests.core.test_ppo import one_thread, parameters  # noqa: F401 (one_thread is a fixture)
from tests.core.test_ppo_files import Stop
from tests.core.worlds import Corridor, Drift, Duo

HORIZON = 32


def build(simulator=None, n_envs=8, horizon=8, **options):
    env = SB3VecEnv(ScalarLQR() if simulator is None else simulator, n_envs, horizon=horizon)
    options = {
        **{"learning_rate": 1e-3, "gamma": 0.95, "sigma": 0.3, "batch_size": 32, "n_steps": 5},
        **{"replay_start": 16 * n_envs, "replay_size": 40 * n_envs, "updates_per_experience": 1 / n_envs},
        **{"seed": 0, "device": "cpu"},
    } | options
    return VRACER("MlpPolicy", env, **options)


def learned(steps=20, **options):
    learner = build(**options)
    return learner.learn(steps * learner.n_envs)


# ---- one update


def one_update(learner):
    """The losses of an update by the written-out formulas; the learner has made that update."""
    before, state = copy.deepcopy(learner.policy), torch.get_rng_state()
    n = learner._n_updates
    learner._update(learner.replay)
    torch.set_rng_state(state)
    replay = learner.replay
    positions = replay.sample(learner.batch_size)
    u, m_old, s_old = (replay.take(name, positions) for name in ("actions", "means", "stds"))
    value, m_new, s_new = before(replay.take("observations", positions))
    log_ratio = (torch.log(s_old / s_new) + ((u - m_old) / s_old) ** 2 / 2 - ((u - m_new) / s_new) ** 2 / 2).sum(1)
    ratio = log_ratio.exp()
    cutoff = learner.cutoff / (1 + learner.annealing * n)
    near = (ratio > 1 / cutoff) & (ratio < cutoff)
    kl = (torch.log(s_new / s_old) + (s_old**2 + (m_old - m_new) ** 2) / (2 * s_new**2) - 0.5).sum(1)
    vtbc, qret = replay.targets(positions)
    losses = {
        "value": ((vtbc - value) ** 2 / 2).mean(),
        "policy": -(near * (qret - value).detach() * ratio).mean(),
        "kl": kl.mean(),
    }
    return before, losses, near


def gradient(loss, policy):
    return torch.cat([x.flatten() for x in torch.autograd.grad(loss, list(policy.parameters()), retain_graph=True)])


@pytest.mark.parametrize(("beta", "cutoff"), [(0.0, 5.0), (0.3, 1.05), (1.0, 1e9)])
def test_an_update_descends_the_published_losses(beta, cutoff):
    # beta = 0 is the divergence alone; beta = 1 without a cut-off the plain off-policy actor-critic.
    learner = learned(n_envs=16, cutoff=cutoff, learning_rate=5e-3, simulator=Drift(edge=1.0))
    learner.policy.beta.fill_(beta)
    before, losses, near = one_update(learner)
    assert bool(near.all()) == (cutoff > 100)
    assert near.any()
    total = losses["value"] + beta * losses["policy"] + (1 - beta) * losses["kl"]
    torch.testing.assert_close(learner._loss.detach(), total.detach(), rtol=1e-4, atol=1e-6)
    made = torch.cat([x.grad.flatten() for x in learner.policy.parameters()])
    torch.testing.assert_close(made, gradient(total, before), rtol=1e-3, atol=1e-5)
    assert float(losses["kl"].detach()) > 0


def test_without_beta_a_policy_stays_that_of_its_memory():
    learner = learned(steps=20, updates_per_experience=1e-9)
    learner._n_updates = 1  # the first update standardises, which moves the policy
    learner.policy.beta.zero_()
    learner._update(learner.replay)
    last = learner.policy.net[-1]
    assert float(last.weight.grad[1:].abs().max()) < 1e-7
    assert float(last.weight.grad[0].abs().max()) > 1e-3


@pytest.mark.parametrize(("cutoff", "target", "rises"), [(5.0, 0.1, True), (1.0001, 0.1, False), (1.0001, 1.0, True)])
def test_beta_falls_while_too_much_is_far(cutoff, target, rises):
    learner = learned(cutoff=cutoff, target=target, annealing=0.0)
    for _ in range(30):
        learner._update(learner.replay)
    far = float(learner.replay.far_count / learner.replay.samples.sum())
    assert (far <= target) == rises
    before = float(learner.policy.beta)
    learner._update(learner.replay)
    expected = (1 - learner.learning_rate) * before + learner.learning_rate * rises
    assert float(learner.policy.beta) == pytest.approx(expected, rel=1e-6)


def test_step_size_and_cut_off_are_annealed():
    learner = learned(annealing=0.5, cutoff=30.0)
    for n, some in ((1, True), (58, False)):  # the cut-off is 20, then 1, with which nothing is trusted
        learner._n_updates = n
        _, _, near = one_update(learner)
        assert bool(near.any()) == some
        assert learner.policy.optimizer.param_groups[0]["lr"] == pytest.approx(1e-3 / (1 + 0.5 * n))
        assert int(learner.replay.far_count) == int(learner.replay.data["far"].sum())
    assert int(learner.replay.far_count) > 10


# ---- the network


def test_the_first_actions_have_the_noise_that_was_asked_for():
    policy = build(n_envs=8, sigma=0.07).policy
    value, mean, std = (x.detach() for x in policy(torch.linspace(-1, 1, 50).unsqueeze(1)))
    np.testing.assert_allclose(std, 0.07, rtol=2e-3)
    assert float(mean.abs().max()) < 2e-3
    assert float(value.abs().max()) < 2e-3


def test_deviations_are_positive_and_smooth_however_far_the_network_goes():
    policy = build().policy
    with torch.no_grad():
        policy.net[-1].weight.zero_()
    for s in (-1e6, -30.0, 0.0, 30.0, 1e6):
        policy.zero_grad()
        with torch.no_grad():
            policy.net[-1].bias[2] = s
        std = policy(torch.zeros(1, 1))[2].squeeze()
        exact = 0.3 * (s + math.sqrt(1 + s * s)) if s >= 0 else 0.3 / (math.sqrt(1 + s * s) - s)
        assert float(std.detach()) == pytest.approx(exact, rel=1e-4)
        std.backward()
        assert float(policy.net[-1].bias.grad[2]) == pytest.approx(exact / math.sqrt(1 + s * s), rel=1e-4)


@dataclass(frozen=True)
class Constant(ScalarLQR):
    """The regulator, which also shows a number that never varies."""

    @property
    def observation_space(self):
        return Box(-2.0, 2.0, (2,), np.float32)

    def observe(self, state, noise=None):
        return torch.stack([state.x, torch.full_like(state.x, 0.7)], dim=-1)


def test_observations_are_standardised_once_and_constant_ones_are_not_divided():
    learner = build(Constant(), updates_per_experience=1.0)
    learner.learn(8 * learner.n_envs)
    assert learner._n_updates == 0
    learner.learn(8 * learner.n_envs, reset_num_timesteps=False)
    assert learner._n_updates == 8
    seen = learner.replay.data["observations"][:16, :, 0]
    mean, std = (getattr(learner.policy, f"observation_{name}").clone() for name in ("mean", "std"))
    np.testing.assert_allclose([mean[0], std[0]], [seen.mean(), seen.std(correction=0)], rtol=1e-4)
    np.testing.assert_allclose([mean[1], std[1]], [0.35, 1.0], rtol=1e-6)
    learner.learn(30 * learner.n_envs, reset_num_timesteps=False)
    assert torch.equal(mean, learner.policy.observation_mean)
    assert torch.equal(std, learner.policy.observation_std)
    assert bool(torch.isfinite(parameters(learner)).all())


def test_rewards_are_rescaled_by_the_memory():
    learner = learned(steps=16, rescale_every=10)
    mean = float(learner.replay.reward_mean)
    assert mean == pytest.approx(float(learner.replay.data["rewards"][:16].mean()), rel=1e-4)
    learner.learn(10 * 8, reset_num_timesteps=False)
    assert float(learner.replay.reward_mean) != mean
    assert float(learned(rescale_every=None).replay.reward_mean) == 0


# ---- counting, episodes, agents


@pytest.mark.parametrize(("ratio", "agents"), [(1.0, 1), (1.0, 3), (0.3, 1), (0.01, 3)])
def test_updates_follow_the_experiences_whatever_the_agents(ratio, agents):
    learner = build(ScalarLQR(agents=agents), n_envs=4, updates_per_experience=ratio, batch_size=8, replay_start=50)
    learner.learn(30 * 4 * agents)
    assert learner.num_timesteps == 30 * 4 * agents
    # The first updates follow the 13th step: 50 experiences or more, and the first episodes are over.
    assert learner._n_updates == math.floor((30 - 13 + 1) * 4 * ratio + 1e-9)


def test_agents_learn_as_so_many_single_copies():
    runs = []
    for agents in (1, 4):
        copies = 8 // agents
        options = {"replay_start": 16 * copies, "replay_size": 40 * copies, "updates_per_experience": 1 / copies}
        runs.append(learned(steps=24, simulator=ScalarLQR(agents=agents), n_envs=copies, **options))
    single, several = runs
    assert single._n_updates == several._n_updates > 0
    assert torch.equal(parameters(single), parameters(several))
    assert all(torch.equal(x, several.replay.data[name]) for name, x in single.replay.data.items())


def test_failures_are_terminal_and_time_limits_are_not():
    learner = learned(steps=39, simulator=Drift(edge=0.8), sigma=1.0, updates_per_experience=1e-9)
    data = {name: x[:39] for name, x in learner.replay.data.items()}
    last, inner = data["ends"] != INNER, data["ends"] == INNER
    assert (data["ends"] == TERMINATED).sum() > 20
    assert (data["places"][data["ends"] == TRUNCATED] == 7).all()
    assert (data["places"][1:][last[:-1]] == 0).all()
    assert (data["places"][1:][inner[:-1]] == data["places"][:-1][inner[:-1]] + 1).all()
    # A time limit is followed by another episode, and what stands there is where the old one arrived.
    truncated = data["ends"][:-1] == TRUNCATED
    moved = (data["final_observations"][:-1] - data["observations"][1:])[truncated]
    assert float(moved.abs().max()) > 0.01


def test_faulty_copies_end_as_truncated_and_leave_no_trace():
    for lockstep in (False, True):
        learner = build(Drift(explode=0.4, edge=9.0), sigma=1.0)
        env = SB3VecEnv(learner.env.simulator, 8, horizon=8, assume_horizon=lockstep)
        learner.set_env(env)
        learner.learn(39 * 8)
        assert env.episodes.n_nonfinite > 5
        data = {name: x[:39] for name, x in learner.replay.data.items()}
        assert all(bool(torch.isfinite(x).all()) for x in data.values())
        early = (data["ends"] == TRUNCATED) & (data["places"] < 7)
        assert int(early.sum()) > 5
        assert (data["places"][1:][early[:-1]] == 0).all()


def test_new_episodes_in_another_call_truncate_the_running_ones():
    learner = learned(steps=11)
    arrived = learner._last_obs.clone()
    learner.learn(16)
    assert (learner.replay.data["ends"][10] == TRUNCATED).all()
    assert torch.equal(learner.replay.data["final_observations"][10], arrived)
    assert (learner.replay.data["places"][11] == 0).all()


# ---- the interface


def test_predictions_stay_within_the_action_space():
    learner = learned(simulator=Drift())
    obs = learner.env.reset()
    for deterministic in (True, False):
        action, _ = learner.predict(obs, deterministic=deterministic)
        tensor, _ = learner.predict(torch.from_numpy(obs), deterministic=True)
        assert action.shape == (8, 2)
        assert np.abs(action).max() <= 1
        if deterministic:
            np.testing.assert_array_equal(action, tensor)
            mean = learner.policy(torch.from_numpy(obs))[1].detach()
            np.testing.assert_allclose(action, torch.tanh(mean), rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        learner.policy.net[-1].bias[1:3] = 50.0
    policy = LearnedPolicy(learner, learner.env.simulator)
    assert policy(torch.zeros(3, 2)).tolist() == [[0.5, 0.5]] * 3


def test_callbacks_see_the_episodes():
    learner = build(horizon=8)
    learner.learn(10**6, callback=StopTrainingOnMaxEpisodes(3))
    assert learner.num_timesteps == 3 * 8 * 8
    assert [episode["l"] for episode in learner.ep_info_buffer] == [8] * 16


@pytest.mark.parametrize("format", ["safetensors", "sb3"])
def test_save_load_predict_round_trip(tmp_path, format):
    learner = learned(policy_kwargs={"net_arch": [16, 8]}, target=0.2)
    learner.save(tmp_path / "model", format=format)
    # Neither observations nor the memory are in the file.
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 40_000
    options = {"trust_pickle": True} if format == "sb3" else {}
    loaded = VRACER.load(tmp_path / "model", env=SB3VecEnv(ScalarLQR(), 4, horizon=8), device="cpu", **options)
    obs = learner.env.reset()
    assert np.array_equal(learner.predict(obs, deterministic=True)[0], loaded.predict(obs, deterministic=True)[0])
    assert (loaded.target, loaded._n_updates) == (0.2, learner._n_updates)
    assert torch.equal(loaded.policy.beta, learner.policy.beta)
    standard = loaded.policy.observation_std.clone()
    loaded.learn(40 * 4, reset_num_timesteps=False)
    assert loaded._n_updates > learner._n_updates
    assert torch.equal(loaded.policy.observation_std, standard)


@pytest.mark.parametrize("simulator", [None, Drift(edge=0.8), Duo()])
@pytest.mark.parametrize("last", [14, 33, 61])  # before the first update, before the ring is full, after
def test_a_stopped_training_goes_on_bit_for_bit(tmp_path, simulator, last):
    total, options = 75, {"updates_per_experience": 0.3, "simulator": simulator, "rescale_every": 7}
    whole = learned(total, **options)
    rows = whole.n_envs
    next_draw = torch.rand(3)
    state = tmp_path / "state.safetensors"
    stopped = build(**options)
    stopped.learn(total * rows, callback=[ResumeCallback(state, every_seconds=0), Stop(last * rows)])
    torch.manual_seed(12345)
    resumed = build(**options | {"seed": 7})
    resumed.restore_state(state)
    assert resumed.num_timesteps == (last - 1) // 5 * 5 * rows
    resumed.learn(total * rows - resumed.num_timesteps, reset_num_timesteps=False)
    assert resumed.num_timesteps == total * rows
    assert resumed._n_updates > 50
    assert torch.equal(parameters(resumed), parameters(whole))
    assert torch.equal(resumed.policy.beta, whole.policy.beta)
    assert torch.equal(resumed._last_obs, whole._last_obs)
    mine, theirs = resumed.replay.tensors(), whole.replay.tensors()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert [e["r"] for e in resumed.ep_info_buffer] == [e["r"] for e in whole.ep_info_buffer]
    assert torch.equal(torch.rand(3), next_draw)


def test_a_state_of_another_memory_is_refused(tmp_path):
    learner = learned()
    learner.save_state(tmp_path / "state")
    with pytest.raises(InputError, match="replay memory observations"):
        build(replay_size=16 * 8).restore_state(tmp_path / "state")


def test_numbers_that_are_not_finite_end_the_training():
    learner = build(learning_rate=1e25)
    before = parameters(learner).clone()
    with pytest.raises(TrainingDiverged, match="last good parameters"):
        learner.learn(40 * 8)
    assert torch.equal(parameters(learner), before)
    assert bool(torch.isfinite(parameters(learner)).all())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate: 0.0; allowed: greater than 0"),
        ({"gamma": 1.01}, "gamma: 1.01; allowed: greater than 0 and at most 1"),
        ({"sigma": float("nan")}, "sigma: nan; allowed"),
        ({"cutoff": 1.0}, "cutoff: 1.0; allowed: greater than 1"),
        ({"target": -0.1}, "target: -0.1; allowed: 0 to 1"),
        ({"initial_beta": 2}, "initial_beta: 2; allowed: 0 to 1"),
        ({"l2": -1}, "l2: -1; allowed: at least 0"),
        ({"rescale_every": 0}, "rescale_every: 0; allowed"),
        ({"replay_size": 60}, "replay_size: 60; allowed: at least 64"),
        ({"replay_start": 400}, "replay_start: 400; allowed: at most 320"),
        ({"simulator": Corridor()}, "observation_space: Discrete; allowed: Box"),
    ],
)
def test_impossible_arguments_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        build(**options)


def test_other_environments_are_refused():
    with pytest.raises(InputError, match="env: DummyVecEnv; allowed: SB3VecEnv"):
        VRACER("MlpPolicy", make_vec_env("Pendulum-v1", 2), device="cpu")


def test_a_memory_in_which_no_episode_ends_is_refused():
    with pytest.raises(InputError, match="replay_size: 320, and no episode ended within it"):
        build(horizon=None).learn(50 * 8)


def test_without_a_discount_it_still_learns():
    assert bool(torch.isfinite(parameters(learned(gamma=1.0, steps=30))).all())


# ---- learning


def cost_ratio(learner):
    """Mean cost of the deterministic policy over the least possible one."""
    world = learner.env.simulator
    totals = episode_totals(world, LearnedPolicy(learner, world), draw(world, HORIZON, 4096, seed=1))
    return -float(totals.reward.mean()) / world.optimal_cost(HORIZON)


def regulator(seed, steps, **options):
    options = {
        **{"n_envs": 256, "horizon": HORIZON, "batch_size": 256, "replay_start": 8192, "replay_size": 65_536},
        **{"updates_per_experience": 1 / 32, "seed": seed},
    } | options
    return learned(steps, **options)


def test_it_learns_to_regulate():
    learner = regulator(0, 145, learning_rate=3e-3, gamma=0.9, batch_size=128)
    assert cost_ratio(learner) < 2  # doing nothing costs 18 times the least


def far_share(learner):
    """Share of the memory that is far from the present policy, at the usual cut-off of 5."""
    replay, last = learner.replay, slice(0, learner.replay.filled)
    u, m_old, s_old = (replay.data[name][last].flatten(0, 1) for name in ("actions", "means", "stds"))
    with torch.no_grad():
        _, m_new, s_new = learner.policy(replay.data["observations"][last].flatten(0, 1))
    densities = [torch.distributions.Normal(m, s).log_prob(u).sum(1) for m, s in ((m_new, s_new), (m_old, s_old))]
    return float((abs(densities[0] - densities[1]) > math.log(5)).float().mean())


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_finds_the_optimal_regulator_and_forgets_what_is_far(seed):
    learner = regulator(seed, 400)
    ratio, share = cost_ratio(learner), far_share(learner)
    free = regulator(seed, 400, cutoff=1e6, target=1.0, initial_beta=1.0)
    print(f"seed {seed}: cost ratio {ratio:.3f}, far {share:.3f}; without ReF-ER {cost_ratio(free):.3g}, far", end=" ")
    print(f"{far_share(free):.3f}")
    assert ratio < 1.1
    assert share < 0.15
    assert far_share(free) > 0.3

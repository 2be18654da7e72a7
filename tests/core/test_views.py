import warnings
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env as gymnasium_check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from core.errors import InputError
from core.simulation.episodes import Episodes
from core.simulation.gym_env import GymEnv
from core.simulation.gym_vector_env import GymVectorEnv
from core.simulation.sb3_vec_env import SB3VecEnv
from core.simulation.spaces import Scaling
from simulators.fishery import model
from tests.core.worlds import Corridor, Drift, Duo, Position


def equal(a, b):
    """Same structure, types, shapes and numbers."""
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, np.ndarray) and a.dtype == object:
        return b.dtype == object and all(x is y is None or equal(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a, b)
    return type(a) is type(b) and a == b


# ---- scaling


def test_scaling_is_affine_both_ways_and_clips():
    low, high = np.array([0.0, -3.0, 5.0], np.float32), np.array([1.0, 3.0, 5.0], np.float32)
    scaling = Scaling(spaces.Box(low, high))
    assert scaling.view == spaces.Box(-1.0, 1.0, (3,), np.float32)
    value = torch.tensor([[0.25, 1.5, 5.0]], dtype=torch.float64)
    seen = scaling.to_view(value)
    assert seen.dtype == torch.float32
    torch.testing.assert_close(seen[0, :2], torch.tensor([-0.5, 0.5]))
    torch.testing.assert_close(scaling.to_domain(seen), value.float())
    assert scaling.view.contains(scaling.to_view(torch.tensor([9.0, -9.0, 9.0])).numpy())
    assert scaling.domain.contains(scaling.to_domain(torch.tensor([9.0, -9.0, 9.0])).numpy())
    torch.testing.assert_close(scaling.to_domain(torch.tensor([-1.0, 1.0, 0.0])), torch.tensor([0.0, 3.0, 5.0]))


def test_scaling_reaches_into_a_dict_and_leaves_discrete_spaces_alone():
    space = spaces.Dict({"level": spaces.Box(0, 4, (1,), np.float64), "mode": spaces.Discrete(3)})
    scaling = Scaling(space)
    assert scaling.view["level"] == spaces.Box(-1.0, 1.0, (1,), np.float32)
    assert scaling.view["mode"] == spaces.Discrete(3)
    seen = scaling.to_view({"level": torch.tensor([[3.0]]), "mode": torch.tensor([2], dtype=torch.int32)})
    assert seen["level"].item() == 0.5
    assert seen["mode"].dtype == torch.int64
    own = Scaling(space["level"], scaled=False)
    assert own.to_view(torch.tensor([7.0])).dtype == torch.float64
    assert own.to_view(torch.tensor([7.0])).item() == 4.0


def test_infinite_and_unusable_spaces_are_refused():
    with pytest.raises(InputError, match=r"observation_space\['x'\].*infinite"):
        Scaling(spaces.Dict({"x": spaces.Box(0, np.inf, (2,))}))
    with pytest.raises(InputError, match=r"Text.*allowed: Box"):
        Scaling(spaces.Text(3))


# ---- the engine


def test_time_limit_and_restart_in_the_same_step():
    episodes = Episodes(Corridor(), 2, horizon=3)
    first = episodes.reset()
    assert first.tolist() == [1, 1]
    steps = [episodes.step(torch.tensor(a)) for a in ([1, 2], [1, 2], [2, 2])]
    assert [s.terminated.tolist() for s in steps] == [[False, False], [True, False], [False, False]]
    assert [s.truncated.tolist() for s in steps] == [[False, False], [False, False], [False, True]]
    assert steps[1].final_obs.tolist() == [3, 1]
    assert steps[1].obs.tolist() == [1, 1]
    assert steps[1].episode_return.tolist() == [1, 0]
    assert [s.episode_length.tolist() for s in steps] == [[1, 1], [2, 2], [1, 3]]
    assert steps[1].info["action_mask"].tolist() == [[True] * 3] * 2


def test_termination_at_the_time_limit_is_not_a_truncation():
    episodes = Episodes(Corridor(), 1, horizon=2)
    episodes.reset()
    episodes.step(torch.tensor([1]))
    step = episodes.step(torch.tensor([1]))
    assert step.terminated.item()
    assert not step.truncated.item()


def test_a_copy_that_blows_up_ends_alone():
    calm = Episodes(Drift(), 6, horizon=50, seed=3)
    wild = Episodes(Drift(explode=0.6), 6, horizon=50, seed=3)
    before = wild.reset()
    calm.reset()
    push = torch.tensor([[0.4, 0.0]] * 2 + [[0.0, 0.0]] * 4)
    for _ in range(20):
        expected, step = calm.step(push), wild.step(push)
        for tensor in (step.obs, step.reward, step.final_obs, step.episode_return):
            assert torch.isfinite(tensor).all()
        if step.nonfinite.any():
            break
        before = step.obs
    bad = step.nonfinite
    assert bad.any()
    assert not bad.all()
    assert step.truncated[bad].all()
    assert not step.terminated[bad].any()
    assert (step.reward[bad] == 0).all()
    assert torch.equal(step.final_obs[bad], before[bad])
    assert torch.equal(step.final_obs[~bad], expected.final_obs[~bad])
    assert torch.equal(step.reward[~bad], expected.reward[~bad])
    assert wild.n_nonfinite == int(bad.sum())


def test_assume_horizon_changes_nothing_where_it_holds():
    action = torch.rand(40, 5, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
    runs = []
    for assume in (False, True):
        episodes = Episodes(Drift(edge=1e9), 5, horizon=7, seed=1, assume_horizon=assume)
        episodes.reset()
        runs.append([episodes.step(a) for a in action])
    for plain, lockstep in zip(*runs, strict=True):
        for name in ("obs", "reward", "terminated", "truncated", "final_obs", "episode_return", "episode_length"):
            assert torch.equal(getattr(plain, name), getattr(lockstep, name)), name


def test_assume_horizon_survives_faults_and_early_ends():
    episodes = Episodes(Drift(edge=1.0, explode=0.8), 64, horizon=30, seed=1, assume_horizon=True)
    start = episodes.reset()
    for t in range(1, 31):
        step = episodes.step(torch.full((64, 2), 0.3))
        done = step.terminated | step.truncated
        assert torch.isfinite(step.obs).all()
        if t < 30:
            assert torch.equal(step.obs[done], start[done])
    assert done.all()
    assert episodes.n_nonfinite > 0


@pytest.mark.parametrize("assume_horizon", [False, True])
def test_state_tensors_continue_exactly(assume_horizon):
    options = {"horizon": 9, "assume_horizon": assume_horizon}
    action = torch.rand(30, 8, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
    episodes = Episodes(model(3), 8, seed=0, **options)
    episodes.reset()
    for a in action[:13]:
        episodes.step(a)
    kept = {name: tensor.clone() for name, tensor in episodes.state_tensors().items()}
    expected = [episodes.step(a) for a in action[13:]]
    other = Episodes(model(3), 8, seed=99, **options)
    other.load_state_tensors(kept)
    for a, old in zip(action[13:], expected, strict=True):
        new = other.step(a)
        for name in ("obs", "reward", "terminated", "truncated", "final_obs", "episode_return", "episode_length"):
            assert torch.equal(getattr(old, name), getattr(new, name)), name
    del kept["state.population"]
    with pytest.raises(InputError, match=r"state\.population: absent"):
        other.load_state_tensors(kept)


@dataclass(frozen=True)
class Widening(Drift):
    def step(self, state, action, noise):
        step = super().step(state, action, noise)
        return replace(step, state=Position(step.state.x.double()))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Episodes(Widening(), 2), "state.x: step returned torch.float64"),
        (lambda: Episodes(Drift(), 0), "num_envs: 0"),
        (lambda: Episodes(Drift(), 2, horizon=0), "horizon: 0"),
        (lambda: Episodes(Drift(), 2, assume_horizon=True), "assume_horizon"),
        (lambda: GymEnv(Duo()), "GymEnv: the world has 2 agents"),
        (lambda: GymVectorEnv(Duo(), 2), "GymVectorEnv: the world has 2 agents"),
        (lambda: GymVectorEnv(Drift(), 2).reset(seed=[1, 2]), "seed: list"),
        (lambda: SB3VecEnv(Drift(), 2).action_masks(), "allows every action"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(InputError, match=message):
        make()


# ---- gymnasium


@pytest.mark.parametrize("simulator", [Drift(), Drift(dtype=torch.float64), Corridor(), model(1), model(3)])
@pytest.mark.parametrize("scaled", [True, False])
def test_gymnasium_checker_passes_without_warnings(simulator, scaled):
    env = GymEnv(simulator, horizon=200, scaled=scaled)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gymnasium_check_env(env, skip_render_check=True)


@pytest.mark.parametrize("simulator", [Drift(), Corridor(), model(3)])
def test_sb3_checker_passes_without_warnings(simulator):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sb3_check_env(GymEnv(simulator, horizon=200))


def test_vector_env_is_laid_out_as_sync_vector_env():
    # A world without luck, so that copies behind one generator equal copies with their own.
    vector = GymVectorEnv(Corridor(), 3, horizon=4)
    sync = SyncVectorEnv([lambda: GymEnv(Corridor(), horizon=4)] * 3, autoreset_mode=AutoresetMode.SAME_STEP)
    assert vector.metadata["autoreset_mode"] == sync.metadata["autoreset_mode"]
    assert vector.observation_space == sync.observation_space
    assert vector.action_space == sync.action_space
    for ours, theirs in zip(vector.reset(seed=0), sync.reset(seed=0), strict=True):
        assert equal(ours, theirs)
    ends = []
    for action in ([2, 1, 1], [2, 1, 0], [2, 0, 2], [1, 1, 2], [1, 2, 1], [1, 1, 2], [0, 1, 0], [2, 2, 2]):
        ours, theirs = vector.step(np.array(action)), sync.step(np.array(action))
        for a, b in zip(ours, theirs, strict=True):
            assert equal(a, b)
        ends.append(int((ours[2] | ours[3]).sum()))
    assert {0, 1} <= set(ends)
    assert sum(ends) > 0


def test_vector_env_layout_when_all_end_together_and_with_boxes():
    vector = GymVectorEnv(Drift(sigma=0.0), 2, horizon=3, scaled=False)
    sync = SyncVectorEnv([lambda: GymEnv(Drift(), horizon=3, scaled=False)] * 2, autoreset_mode="SameStep")
    vector.reset(seed=0)
    sync.reset(seed=0)
    for _ in range(4):
        ours, theirs = vector.step(np.zeros((2, 2), np.float32)), sync.step(np.zeros((2, 2), np.float32))
        for a, b in zip(ours, theirs, strict=True):
            assert type(a) is type(b)
            if isinstance(a, np.ndarray):
                assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert ours[4].keys() == theirs[4].keys()
        for key in set(ours[4]) - {"final_info"}:
            assert (ours[4][key].dtype, ours[4][key].shape) == (theirs[4][key].dtype, theirs[4][key].shape), key
        assert ours[4].get("final_info", {}).keys() == theirs[4].get("final_info", {}).keys()


def test_vector_env_reports_faults_and_reseeds():
    env = GymVectorEnv(Drift(explode=0.5), 32)
    first, _ = env.reset(seed=5)
    for _ in range(20):
        *_, truncated, infos = env.step(np.full((32, 2), 0.2, np.float32))
        if truncated.any():
            break
    assert np.array_equal(infos["final_info"]["nonfinite"], truncated)
    assert np.array_equal(env.reset(seed=5)[0], first)
    assert not np.array_equal(env.reset()[0], first)


def test_domain_units_and_scaled_views_agree():
    seen, own = (SB3VecEnv(model(3), 4, horizon=20, seed=2, scaled=s) for s in (True, False))
    populations = own.reset()
    np.testing.assert_allclose(seen.reset(), 2 * populations / 2.0 - 1, atol=1e-6)
    for _ in range(10):
        scaled, reward, *_ = seen.step(np.full((4, 2), -0.6, np.float32))
        populations, own_reward, *_ = own.step(np.full((4, 2), 0.2, np.float32))
        np.testing.assert_allclose(scaled, populations - 1, atol=1e-5)
        np.testing.assert_allclose(reward, own_reward, rtol=1e-5)


# ---- Stable-Baselines3


def test_numpy_face_equals_tensor_face():
    numpy_face, tensor_face = (SB3VecEnv(model(3), 16, horizon=11, seed=4) for _ in range(2))
    assert np.array_equal(numpy_face.reset(), tensor_face.reset_tensor().numpy())
    rng = np.random.default_rng(0)
    ended = 0
    for _ in range(60):
        action = rng.uniform(-1, 1, (16, 2)).astype(np.float32)
        obs, reward, done, infos = numpy_face.step(action)
        step = tensor_face.step_tensor(torch.as_tensor(action))
        assert np.array_equal(obs, step.obs.numpy())
        assert np.array_equal(reward, step.reward.numpy())
        assert np.array_equal(done, (step.terminated | step.truncated).numpy())
        assert len({id(info) for info in infos}) == 16
        for row, info in enumerate(infos):
            assert bool(info) == done[row]
            if done[row]:
                ended += 1
                assert np.array_equal(info["terminal_observation"], step.final_obs[row].numpy())
                assert info["TimeLimit.truncated"] == bool(step.truncated[row])
                assert info["episode"]["l"] == int(step.episode_length[row])
                assert info["episode"]["r"] == pytest.approx(float(step.episode_return[row]))
    assert ended > 16


def test_episode_statistics_equal_those_of_sb3_monitor():
    # The same policy in the same world without luck: SB3's Monitor adds up what our view adds up.
    env = SB3VecEnv(Corridor(), 1, horizon=4)
    monitored = DummyVecEnv([lambda: Monitor(GymEnv(Corridor(), horizon=4))])
    env.reset()
    monitored.reset()
    for action in [2, 1, 1, 2, 2, 2, 2, 1, 1]:
        *_, ours = env.step(np.array([action]))
        *_, theirs = monitored.step(np.array([action]))
        assert ("episode" in ours[0]) == ("episode" in theirs[0])
        if ours[0]:
            assert [ours[0]["episode"][k] for k in "rl"] == [theirs[0]["episode"][k] for k in "rl"]
            assert ours[0]["TimeLimit.truncated"] == theirs[0]["TimeLimit.truncated"]
            assert np.array_equal(ours[0]["terminal_observation"], theirs[0]["terminal_observation"])


def test_seed_replays_and_attributes_are_the_worlds():
    env = SB3VecEnv(model(3), 4)
    assert env.seed(7) == [7] * 4
    first = env.reset()
    env.seed(7)
    assert np.array_equal(env.reset(), first)
    assert env.get_attr("harvested", [0, 2]) == [2, 2]
    assert env.get_attr("render_mode") == [None] * 4
    assert env.env_method("action_mask", None, indices=1) == [None]
    assert env.env_is_wrapped(Monitor) == [True] * 4
    assert not env.has_attr("no_such_thing")
    assert not env.has_attr("action_masks")
    with pytest.raises(AttributeError):
        env.set_attr("sigma", 0.2)


def test_the_world_and_the_learner_share_no_noise():
    """SB3 seeds torch's own generator and the environment alike; their normals must not be the same ones."""
    env = SB3VecEnv(model(3), 64)
    torch.manual_seed(7)
    actions = torch.randn(64 * 3)
    env.seed(7)
    env.reset()
    world = env.episodes._noise.growth.flatten()
    assert not torch.isclose(actions.sort().values, world.sort().values, atol=1e-6).any()


@pytest.mark.parametrize("action", [3, -1, 1.5, np.array([1, 2])])
def test_an_action_outside_the_space_is_refused(action):
    env = GymEnv(Corridor())
    env.reset(seed=0)
    with pytest.raises(InputError, match="allowed: whole numbers from 0 to 2"):
        env.step(action)


def test_masks_are_found_as_sb3_contrib_looks_for_them():
    env = SB3VecEnv(Corridor(), 2)
    env.reset()
    env.step(np.array([0, 2]))
    assert env.has_attr("action_masks")
    assert np.stack(env.env_method("action_masks")).tolist() == [[False, True, True], [True, True, True]]
    single = GymEnv(Corridor())
    _, info = single.reset()
    assert np.array_equal(single.get_wrapper_attr("action_masks")(), info["action_mask"])
    for _ in range(5):  # gymnasium draws among what is allowed
        *_, info = single.step(single.action_space.sample(info["action_mask"]))
    assert not hasattr(GymEnv(Drift()), "action_masks")


@pytest.mark.parametrize("shared", [False, True])
def test_agents_become_rows_copy_by_copy(shared):
    world = Duo(shared=shared)
    env = SB3VecEnv(world, 3, horizon=5)
    env.episodes.seed(1)
    assert env.num_envs == 6
    rows = torch.as_tensor(env.reset()).reshape(3, 2, 2)
    # Each agent sees itself first and the other second.
    assert torch.equal(rows[:, 0], rows[:, 1].flip(1))
    action = np.linspace(-1, 1, 6, dtype=np.float32).reshape(6, 1)
    generator = torch.Generator().manual_seed(1)
    state, noise = world.reset(3, generator), world.noise(3, generator)
    expected = world.step(state, torch.as_tensor(action).reshape(3, 2, 1) / 2, noise)
    _, reward, _, _ = env.step(action)
    own = expected.reward.unsqueeze(1).expand(3, 2) if shared else expected.reward
    np.testing.assert_allclose(reward, own.flatten(), atol=1e-6)
    for _ in range(4):
        _, _, done, infos = env.step(np.zeros((6, 1), np.float32))
    by_copy = done.reshape(3, 2)
    assert (by_copy[:, 0] == by_copy[:, 1]).all()
    assert done.any()
    for copy in np.flatnonzero(by_copy[:, 0]):
        assert infos[2 * copy]["episode"]["r"] == infos[2 * copy + 1]["episode"]["r"]

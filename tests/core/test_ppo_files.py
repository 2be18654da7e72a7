import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import LinearSchedule

from core.errors import InputError
from core.rl import PPO, KLPenaltyPPO, ResumeCallback
from core.rl.checkpoint import REGISTERED, read_tensors
from core.simulation.sb3_vec_env import SB3VecEnv
from simulators.fishery import model
from tests.core.test_ppo import build, one_thread, parameters  # noqa: F401 (one_thread is a fixture)
from tests.core.worlds import Corridor, Duo

STEPS = 32 * 64
ROOT = Path(__file__).parents[2]


# ---- weights


@pytest.mark.parametrize("format", ["safetensors", "sb3"])
@pytest.mark.parametrize("simulator", [None, Corridor()])
def test_save_load_predict_round_trip(tmp_path, format, simulator):
    kwargs = {"net_arch": {"pi": [16], "vf": [8, 8]}, "activation_fn": torch.nn.ELU, "log_std_init": -1.0}
    learner = build(PPO, simulator, learning_rate=LinearSchedule(1e-3, 1e-4, 0.5), policy_kwargs=kwargs).learn(STEPS)
    learner.save(tmp_path / "model", format=format)
    loaded = PPO.load(tmp_path / "model", device="cpu", **({"trust_pickle": True} if format == "sb3" else {}))
    obs = learner.env.reset()
    assert np.array_equal(learner.predict(obs, deterministic=True)[0], loaded.predict(obs, deterministic=True)[0])
    assert loaded.num_timesteps == learner.num_timesteps
    assert loaded.lr_schedule(0.75) == learner.lr_schedule(0.75) == 5.5e-4
    assert (loaded.observation_space, loaded.action_space) == (learner.observation_space, learner.action_space)
    # Neither the last observations of 64 copies nor the buffer are in the file.
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 60_000
    assert loaded._last_obs is None


def test_a_loaded_model_trains_on(tmp_path):
    learner = build(PPO).learn(STEPS)
    learner.save(tmp_path / "model.safetensors")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.json", "model.safetensors"]
    torch.manual_seed(17)
    loaded = PPO.load(tmp_path / "model", env=SB3VecEnv(model(3), 16, horizon=200), device="cpu", n_steps=128)
    assert torch.initial_seed() == 17  # the model's own seed is not applied to the process
    ours, theirs = (x.policy.optimizer.state_dict()["state"] for x in (learner, loaded))
    assert all(torch.equal(ours[i][key], theirs[i][key]) for i in ours for key in ours[i])
    loaded.learn(STEPS, reset_num_timesteps=False)
    assert loaded.num_timesteps == 2 * STEPS
    assert not torch.equal(parameters(loaded), parameters(learner))


def test_a_variant_is_loaded_as_itself(tmp_path):
    build(KLPenaltyPPO, kl_coef=0.3, max_grad_norm=float("inf")).save(tmp_path / "model")
    loaded = PPO.load(tmp_path / "model", device="cpu")
    assert type(loaded) is KLPenaltyPPO
    assert (loaded.kl_coef, loaded.kl_target, loaded.max_grad_norm) == (0.3, 0.01, float("inf"))
    build(PPO).save(tmp_path / "plain")
    with pytest.raises(InputError, match="algorithm 'PPO'; allowed: KLPenaltyPPO"):
        KLPenaltyPPO.load(tmp_path / "plain")


class Swish(torch.nn.SiLU):
    pass


def test_registered_classes_are_saved_by_name(tmp_path, monkeypatch):
    learner = build(PPO, policy_kwargs={"activation_fn": Swish})
    with pytest.raises(InputError, match=r"policy_kwargs\.activation_fn.*REGISTERED"):
        learner.save(tmp_path / "model")
    assert not list(tmp_path.iterdir())
    monkeypatch.setitem(REGISTERED, "Swish", Swish)
    learner.save(tmp_path / "model")
    assert torch.equal(parameters(PPO.load(tmp_path / "model", device="cpu")), parameters(learner))


def test_files_that_cannot_be_used_are_refused(tmp_path):
    learner = build(PPO)
    learner.save(tmp_path / "model")
    learner.save(tmp_path / "zip", format="sb3")
    with pytest.raises(InputError, match=r"zip\.zip|zip: SB3's zip holds pickles"):
        PPO.load(tmp_path / "zip")
    with pytest.raises(InputError, match=r"absent\.json: no such file"):
        PPO.load(tmp_path / "absent")
    with pytest.raises(InputError, match="format: 'pickle'"):
        learner.save(tmp_path / "model", format="pickle")
    with pytest.raises(InputError, match="Observation spaces do not match"):
        PPO.load(tmp_path / "model", env=SB3VecEnv(model(1), 8))
    with pytest.raises(InputError, match="learning_rate"):
        build(PPO, learning_rate=lambda progress: 1e-3 * progress).save(tmp_path / "model")
    record = json.loads((tmp_path / "model.json").read_text())
    record["arguments"]["policy_kwargs"] = {"net_arch": [3]}
    (tmp_path / "model.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"model\.safetensors: .*size mismatch"):
        PPO.load(tmp_path / "model", device="cpu")
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(InputError, match=r"model\.safetensors: not a complete"):
        PPO.load(tmp_path / "model", device="cpu")


# ---- exact resume


class Stop(BaseCallback):
    """Ends the training in the middle of an iteration, after the state was saved at its start."""

    def __init__(self, after):
        super().__init__()
        self.after = after

    def _on_step(self):
        return self.num_timesteps < self.after


@pytest.mark.parametrize(
    ("algorithm", "simulator", "options"),
    [
        (PPO, None, {}),
        (KLPenaltyPPO, None, {"learning_rate": LinearSchedule(1e-3, 0.0, 1.0)}),
        (PPO, None, {"use_sde": True, "sde_sample_freq": 8}),
        (PPO, Corridor(), {}),
        (PPO, Duo(), {}),
    ],
)
def test_a_stopped_training_goes_on_bit_for_bit(tmp_path, algorithm, simulator, options):
    whole = build(algorithm, simulator, horizon=11, **options)
    total = 5 * 32 * whole.n_envs
    whole.learn(total)
    next_draw = torch.rand(3)
    stopped = build(algorithm, simulator, horizon=11, **options)
    state = tmp_path / "state.safetensors"
    stopped.learn(total, callback=[ResumeCallback(state, every_seconds=0), Stop(total * 3 // 5 - whole.n_envs * 5)])
    torch.manual_seed(12345)
    resumed = build(algorithm, simulator, horizon=11, **options | {"seed": 7})
    resumed.restore_state(state)
    assert resumed.num_timesteps == total * 2 // 5
    resumed.learn(total - resumed.num_timesteps, reset_num_timesteps=False)
    assert resumed.num_timesteps == total
    assert torch.equal(parameters(resumed), parameters(whole))
    assert torch.equal(resumed._last_obs, whole._last_obs)
    assert [e["r"] for e in resumed.ep_info_buffer] == [e["r"] for e in whole.ep_info_buffer]
    assert [getattr(resumed, n) for n in algorithm.resumed_attributes] == [
        getattr(whole, n) for n in algorithm.resumed_attributes
    ]
    assert torch.equal(torch.rand(3), next_draw)


TOTAL = 12 * 512


class Announce(BaseCallback):
    def _on_step(self):
        return True

    def _on_rollout_end(self):
        print(self.num_timesteps, flush=True)


def train(state):
    """A training that goes on from ``state`` if that is there, as a user writes it."""
    torch.set_num_threads(1)
    env = SB3VecEnv(model(3), 32, horizon=20)
    learner = PPO("MlpPolicy", env, n_steps=16, batch_size=128, n_epochs=2, seed=0, device="cpu")
    if state.exists():
        learner.restore_state(state)
    callbacks = [ResumeCallback(state, every_seconds=0), Announce()]
    return learner.learn(TOTAL - learner.num_timesteps, callback=callbacks, reset_num_timesteps=False)


def test_a_killed_training_goes_on_bit_for_bit(tmp_path):
    state = tmp_path / "state.safetensors"
    program = f"from pathlib import Path; from {__name__} import train; train(Path({str(state)!r}))"
    killed = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert killed.stdout is not None
    assert any(line.strip() == str(5 * 512) for line in killed.stdout)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    with safetensors.safe_open(state, "pt") as file:
        done = json.loads(file.metadata()["state"])["attributes"]["num_timesteps"]
    assert 4 * 512 <= done < TOTAL
    resumed = train(state)
    whole = train(tmp_path / "another.safetensors")
    assert resumed.num_timesteps == whole.num_timesteps == TOTAL
    assert torch.equal(parameters(resumed), parameters(whole))
    assert torch.equal(resumed._last_obs, whole._last_obs)


def test_states_that_do_not_fit_are_refused(tmp_path):
    state = tmp_path / "state.safetensors"
    learner = build(PPO, n_envs=8)
    learner.learn(256, callback=ResumeCallback(state, every_seconds=0))
    with pytest.raises(InputError, match="n_envs 8; allowed: 4"):
        build(PPO, n_envs=4, batch_size=64).restore_state(state)
    with pytest.raises(InputError, match="algorithm 'PPO'; allowed: 'KLPenaltyPPO'"):
        build(KLPenaltyPPO, n_envs=8).restore_state(state)
    with pytest.raises(InputError, match="size mismatch"):
        build(PPO, n_envs=8, policy_kwargs={"net_arch": [8]}).restore_state(state)
    with pytest.raises(InputError, match="no such file"):
        learner.restore_state(tmp_path / "absent")
    learner.save(tmp_path / "weights")
    with pytest.raises(InputError, match="holds weights only"):
        learner.restore_state(tmp_path / "weights.safetensors")
    with pytest.raises(InputError, match="env: DummyVecEnv; allowed: SB3VecEnv"):
        PPO("MlpPolicy", "CartPole-v1", device="cpu").save_state(state)


def test_what_is_read_lies_in_memory_as_what_is_computed_does(tmp_path):
    # Sums over memory that is not aligned may differ in the last bit, and a resumed training with them.
    tensors = {f"{i}": torch.arange(float(i)) for i in range(1, 40)}
    for name in ("one", "other name"):
        safetensors.torch.save_file(tensors, tmp_path / name, {"state": "x" * len(name)})
        found, _ = read_tensors(tmp_path / name)
        assert {x.data_ptr() % 64 for x in found.values()} == {0}
        assert all(torch.equal(found[key], x) for key, x in tensors.items())

"""PPO at equal settings: the roll-out alone, and the whole training, against SB3 with DummyVecEnv."""

from __future__ import annotations

import statistics
from typing import Any

import stable_baselines3
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from benchmarks.clock import Clock, spread
from benchmarks.numpy_fishery import NumpyFishery
from core.rl import PPO
from core.simulation import SB3VecEnv
from simulators.fishery import YEARS, model


def _dummy(n: int) -> VecEnv:
    return DummyVecEnv([NumpyFishery for _ in range(n)])


def _ours(n: int) -> VecEnv:
    return SB3VecEnv(model(3), n, horizon=YEARS)


def _train(algorithm: type[stable_baselines3.PPO], env: VecEnv, steps: int, **settings: Any) -> tuple[float, float]:
    """Environment steps a CPU second: in the roll-outs, and in all."""
    model_ = algorithm("MlpPolicy", env, device="cpu", seed=0, **settings)
    rollout = 0.0
    collect = model_.collect_rollouts

    def timed(*args: Any, **kwargs: Any) -> bool:
        nonlocal rollout
        inner = Clock()
        going_on = collect(*args, **kwargs)
        rollout += inner.seconds
        return going_on

    model_.collect_rollouts = timed  # type: ignore[method-assign]
    clock = Clock()
    model_.learn(steps)
    return model_.num_timesteps / rollout, model_.num_timesteps / clock.seconds


def main(repeats: int = 3) -> None:
    """Print rates and ratios."""
    equal = {"n_steps": 16, "batch_size": 512, "n_epochs": 10}
    sb3 = [_train(stable_baselines3.PPO, _dummy(256), 40_960, **equal) for _ in range(repeats)]
    ours = [_train(PPO, _ours(256), 81_920, **equal) for _ in range(repeats)]
    print("  equal settings (256 copies, 16 steps, minibatch 512, 10 epochs)")
    for name, k, target in (("roll-out", 0, ""), ("total", 1, " (target 1.3)")):
        theirs, mine = [x[k] for x in sb3], [x[k] for x in ours]
        ratio = statistics.median(mine) / statistics.median(theirs)
        print(f"    {name:<9} SB3 {spread(theirs)}, ours {spread(mine)} steps/s = {ratio:.2g} x{target}")
    few = {"n_steps": 128, "batch_size": 512, "n_epochs": 1}
    many = {"n_steps": 16, "batch_size": 8192, "n_epochs": 1}
    theirs = [_train(stable_baselines3.PPO, _dummy(16), 16_384, **few)[0] for _ in range(repeats)]
    mine = [_train(PPO, _ours(4096), 655_360, **many)[0] for _ in range(repeats)]
    ratio = statistics.median(mine) / statistics.median(theirs)
    print("  roll-out of 4096 copies against SB3's DummyVecEnv of 16")
    print(f"    SB3 {spread(theirs)}, ours {spread(mine)} steps/s = {ratio:.2g} x (target 20)")

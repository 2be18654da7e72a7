"""Environment steps a second: the batched simulator against a plain NumPy gymnasium environment."""

from __future__ import annotations

import statistics

import numpy as np
import torch
from stable_baselines3.common.vec_env import DummyVecEnv

from benchmarks.clock import rates, spread
from benchmarks.numpy_fishery import NumpyFishery
from core.simulation import SB3VecEnv
from simulators.fishery import YEARS, model


def one_environment(steps: int = 20_000) -> int:
    """Steps of one NumPy environment."""
    env, action = NumpyFishery(), np.array([-0.6, -0.6], np.float32)
    env.reset(seed=0)
    for _ in range(steps):
        *_, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            env.reset()
    return steps


def batch(copies: int, dtype: torch.dtype, steps: int = 40) -> int:
    """``step`` and ``noise`` of the batched simulator."""
    world, generator = model(3, dtype=dtype), torch.Generator().manual_seed(0)
    state, action = world.reset(copies, generator), torch.full((copies, 2), 0.2, dtype=dtype)
    for _ in range(steps):
        state = world.step(state, action, world.noise(copies, generator)).state
    return steps * copies


def vector(env: DummyVecEnv | SB3VecEnv, steps: int) -> int:
    """Steps of an SB3 vector environment through its NumPy face."""
    env.reset()
    action = np.full((env.num_envs, 2), -0.6, np.float32)
    for _ in range(steps):
        env.step(action)
    return steps * env.num_envs


def main() -> None:
    """Print the rates and their ratios."""
    plain = rates(one_environment)
    print(f"  one NumPy environment              {spread(plain)} steps/s")
    for dtype in (torch.float32, torch.float64):
        ours = rates(lambda dtype=dtype: batch(100_000, dtype))  # type: ignore[misc]
        ratio = statistics.median(ours) / statistics.median(plain)
        print(
            f"  batched, 100 000 copies, {str(dtype)[6:]}   {spread(ours)} steps/s = {ratio:.0f} x"
            f"{' (target 300)' if dtype == torch.float32 else ''}"
        )
    dummy = rates(lambda: vector(DummyVecEnv([NumpyFishery for _ in range(16)]), 1000))
    face = rates(lambda: vector(SB3VecEnv(model(3), 128, horizon=YEARS, seed=0), 1000))
    ratio = statistics.median(face) / statistics.median(dummy)
    print(f"  SB3 DummyVecEnv of 16              {spread(dummy)} steps/s")
    print(f"  SB3VecEnv of 128, NumPy face       {spread(face)} steps/s = {ratio:.0f} x (target 10)")

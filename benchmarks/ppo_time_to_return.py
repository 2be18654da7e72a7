"""CPU seconds until PPO's deterministic policy earns a full return of 60 on Model 3, evaluation outside the clock."""

from __future__ import annotations

import math
import statistics
from typing import Any

import stable_baselines3
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from benchmarks.clock import Clock, spread
from benchmarks.numpy_fishery import NumpyFishery
from core.rl import PPO, LearnedPolicy
from core.simulation import SB3VecEnv, draw, episode_totals
from simulators.fishery import YEARS, model

TARGET = 60.0


class _StopAtReturn(BaseCallback):
    """Evaluates every ``every`` updates with the clock stopped, and ends the training at the target."""

    def __init__(self, every: int) -> None:
        super().__init__()
        self.clock = Clock()
        self.every, self.updates, self.reached = every, 0, math.inf
        self.draws = draw(model(3), YEARS, 500, seed=999)

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        self.updates += 1
        if self.updates % self.every:
            return
        with self.clock.paused():
            policy = LearnedPolicy(PPO_predictor(self.model), model(3))
            mean = float(episode_totals(model(3), policy, self.draws).reward.mean())
        if mean >= TARGET and math.isinf(self.reached):
            self.reached = self.clock.seconds


class PPO_predictor:
    """The tensor face of ``predict`` for SB3's own algorithm."""

    def __init__(self, learner: Any) -> None:
        self.learner, self.device = learner, learner.device

    def predict(self, observation: Any, deterministic: bool = True) -> tuple[Any, None]:
        """Mean actions, clipped as the environment clips them."""
        self.learner.policy.set_training_mode(False)
        return self.learner.policy._predict(observation, deterministic=deterministic).detach().clamp(-1, 1), None


def _seconds(
    algorithm: type[stable_baselines3.PPO], env: VecEnv, seed: int, limit: int, every: int, **settings: Any
) -> float:
    learner = algorithm("MlpPolicy", env, device="cpu", seed=seed, **settings)
    callback = _StopAtReturn(every)  # its clock starts here, and runs through all calls of learn
    step = 0
    while step < limit and math.isinf(callback.reached):
        # One update a call: learn() has no way to stop between two roll-outs.
        learner.learn(learner.n_steps * env.num_envs, callback=callback, reset_num_timesteps=False)
        step = learner.num_timesteps
    return callback.reached


def main(seeds: int = 3) -> None:
    """Print seconds and ratios."""
    recipe = {"n_steps": 16, "batch_size": 2048, "n_epochs": 8, "learning_rate": 2e-3}
    ours = [
        _seconds(
            PPO,
            SB3VecEnv(model(3), 256, horizon=YEARS),
            s,
            1_000_000,
            2,
            policy_kwargs={"log_std_init": -1.0},
            **recipe,
        )
        for s in range(seeds)
    ]
    print(f"  ours (256 copies, 16 steps, minibatch 2048, 8 epochs, lr 2e-3)  {spread(ours)} CPU s", flush=True)
    for n_steps, limit, every in ((128, 500_000, 2), (2048, 400_000, 1)):
        theirs = [
            _seconds(
                stable_baselines3.PPO, DummyVecEnv([NumpyFishery for _ in range(16)]), s, limit, every, n_steps=n_steps
            )
            for s in range(seeds)
        ]
        reached = all(math.isfinite(seconds) for seconds in theirs)
        told = f"{spread(theirs)} CPU s" if reached else f"{theirs} CPU s (inf: not reached in {limit:,} steps)"
        ratio = statistics.median(theirs) / statistics.median(ours)
        note = " (target 6)" if n_steps == 128 else ""
        print(
            f"  SB3, DummyVecEnv of 16, n_steps {n_steps}, other defaults  {told} = {ratio:.3g} x{note}",
            flush=True,
        )

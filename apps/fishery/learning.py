"""PPO on the fishery: settings, training that resumes, and the trained policy."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from apps.fishery.scenario import Scenario
from core.errors import InputError
from core.rl import PPO, KLPenaltyPPO, LearnedPolicy
from core.rl.training import learn
from core.seeds import stream
from core.simulation import SB3VecEnv
from core.study import Config, Context, Product
from simulators.fishery import YEARS, Fishery


class PPOSettings(Config):
    """Settings of PPO; the defaults are a recipe that takes half a minute of one CPU core."""

    algorithm: Literal["ppo", "kl_penalty"] = "ppo"
    """PPO as in Stable-Baselines3, or with RLlib's adaptive KL penalty and clipped value loss (the paper's)."""
    timesteps: int = Field(default=655_360, ge=1)
    """Environment steps in all."""
    n_envs: int = Field(default=128, ge=1, le=2**20)
    """Copies of the world."""
    n_steps: int = Field(default=64, ge=2, le=2**20)
    """Steps of each copy between updates."""
    batch_size: int = Field(default=2048, ge=2)
    """Size of a minibatch."""
    n_epochs: int = Field(default=8, ge=1)
    """Passes over the data of an update."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Step size of Adam."""
    gamma: float = Field(default=0.99, gt=0, le=1)
    """Discount factor."""
    gae_lambda: float = Field(default=0.95, ge=0, le=1)
    """Trade-off of generalised advantage estimation."""
    clip_range: float = Field(default=0.2, gt=0)
    """Clip of the probability ratio."""
    ent_coef: float = Field(default=0.0, ge=0)
    """Weight of the entropy."""
    vf_coef: float = Field(default=0.5, ge=0)
    """Weight of the value loss."""
    max_grad_norm: float | None = Field(default=0.5, gt=0)
    """Clip of the gradient's norm; null for none."""
    net: tuple[Annotated[int, Field(ge=1)], ...] = (64, 64)
    """Widths of the hidden layers of policy and value function (tanh)."""
    log_std_init: float = -1.0
    """Initial logarithm of the standard deviation of the actions."""
    truncate: bool = True
    """End training episodes at the horizon with a bootstrapped value; false lets only extinction end them."""
    observation: Literal["bound2", "unit4"] = "bound2"
    """Populations on [0, 2] seen as [-1, 1], or on [0, 4] seen as [0, 1] as in the authors' code."""

    @property
    def observation_range(self) -> tuple[float, float]:
        """Interval that the learner's observations fill."""
        return (-1.0, 1.0) if self.observation == "bound2" else (0.0, 1.0)

    def seen(self, simulator: Fishery) -> Fishery:
        """The world as the learner sees it: its precision and the bound of its observations."""
        return replace(simulator, dtype=torch.float32, bound=2.0 if self.observation == "bound2" else 4.0)


def train(
    simulator: Fishery,
    settings: PPOSettings | None = None,
    *,
    seed: int = 0,
    horizon: int = YEARS,
    device: str | torch.device = "cpu",
    checkpoint: Path | None = None,
    curve: Path | None = None,
    progress: Callable[[float, str], None] | None = None,
) -> PPO:
    """Train PPO on a world.

    Args:
        simulator: the world.
        settings: of the algorithm.
        seed: of networks, actions and worlds.
        horizon: years of a training episode.
        device: where to compute.
        checkpoint: file from which an interrupted training goes on, bit for bit, and which it keeps up to date.
        curve: file of the learning curve (JSON lines: timesteps, mean return of the last 100 training episodes).
        progress: told the share done and a message.

    Raises:
        TrainingDiverged: a loss or parameter is not finite; ``checkpoint`` holds the last good state that was saved.
    """
    settings = PPOSettings() if settings is None else settings
    env = SB3VecEnv(
        settings.seen(simulator),
        settings.n_envs,
        horizon=horizon if settings.truncate else None,
        device=device,
        observation_range=settings.observation_range,
    )
    algorithm: type[PPO] = KLPenaltyPPO if settings.algorithm == "kl_penalty" else PPO
    model = algorithm(
        "MlpPolicy",
        env,
        learning_rate=settings.learning_rate,
        n_steps=settings.n_steps,
        batch_size=settings.batch_size,
        n_epochs=settings.n_epochs,
        gamma=settings.gamma,
        gae_lambda=settings.gae_lambda,
        clip_range=settings.clip_range,
        ent_coef=settings.ent_coef,
        vf_coef=settings.vf_coef,
        max_grad_norm=math.inf if settings.max_grad_norm is None else settings.max_grad_norm,
        policy_kwargs={"net_arch": list(settings.net), "log_std_init": settings.log_std_init},
        seed=stream(seed, "training"),
        device=device,
    )
    learn(model, settings.timesteps, checkpoint=checkpoint, curve=curve, progress=progress)
    return model


def load_policy(
    path: Path | str,
    simulator: Fishery,
    settings: PPOSettings,
    *,
    deterministic: bool = True,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> LearnedPolicy:
    """A saved policy (``<path>.safetensors`` and ``<path>.json``) as a rule from populations to mortalities.

    Raises:
        InputError: damaged files, or a policy for another number of species or of harvested ones.
    """
    model: Any = PPO.load(path, device=device)
    trained = model.observation_space.shape + model.action_space.shape
    needed = (simulator.observation_space.shape or ()) + simulator.action_space.shape
    if trained != needed:
        raise InputError(
            f"{path}: trained for {trained[0]} observed and {trained[1]} harvested species; this world has {needed[0]} "
            f"and {needed[1]}"
        )
    return LearnedPolicy(
        model,
        settings.seen(simulator),
        deterministic=deterministic,
        seed=seed,
        observation_range=settings.observation_range,
    )


class TrainedPolicy(Product):
    """A policy trained by PPO in a scenario, shared by every run that evaluates it."""

    scenario: Scenario
    """Where it is trained."""
    settings: PPOSettings
    """Of the algorithm."""
    seed: int
    """Of the training."""

    @property
    def label(self) -> str:
        """Name on the screen."""
        return f"{self.scenario.name} train ppo seed {self.seed}"

    def make(self, directory: Path, context: Context) -> None:
        """Write ``policy.safetensors``, ``policy.json`` and ``curve.jsonl``."""
        model = train(
            self.scenario.world(),
            self.settings,
            seed=self.seed,
            horizon=self.scenario.horizon,
            device=context.device,
            checkpoint=context.checkpoint / "state.safetensors",
            curve=directory / "curve.jsonl",
            progress=context.progress,
        )
        model.save(directory / "policy")

    def policy(self, context: Context, *, deterministic: bool = True) -> LearnedPolicy:
        """The trained policy in its scenario's units."""
        return load_policy(
            context.product(self) / "policy",
            self.scenario.world(),
            self.settings,
            deterministic=deterministic,
            seed=stream(self.seed, "sampled actions"),
            device=context.device,
        )

"""Training of the agents: their settings, the learners, and the trained policy as a closure."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import stable_baselines3
import torch
from pydantic import Field, model_validator

from apps.turbulence.differentiable import GradientSettings, train_through_the_solver
from apps.turbulence.ensemble import Progress
from apps.turbulence.scenario import Scenario
from apps.turbulence.snapshots import numbered, reference_spectra, snapshots_of, truncated
from core import files
from core.errors import InputError
from core.rl import PPO, VRACER, LearnedPolicy
from core.rl.training import CurveCallback, learn, read_curve
from core.seeds import stream
from core.simulation import SB3VecEnv
from core.study import Config, Context, Product
from core.study.loading import from_options
from simulators.turbulence.agents import ClosureAgents, PolicyClosure
from simulators.turbulence.agents.interpolation import Interpolation
from simulators.turbulence.agents.rewards import OFFSET, RewardKind
from simulators.turbulence.agents.states import StateKind
from simulators.turbulence.agents.world import SEEN, ActionKind, Positivity

OBSERVATION_RANGE = (-SEEN, SEEN)
"""The learners see standard deviations."""

Width = Annotated[int, Field(ge=1)]


class Agents(Config):
    """What the agents see, do and are paid for (Mojgani et al. 2023)."""

    agents_per_side: int = Field(default=4, ge=2)
    """Agents along each side; a divisor of the grid's points."""
    action: ActionKind = "leith"
    """What their coefficient multiplies."""
    state: StateKind = "invariant"
    """What they see."""
    reward: RewardKind = "zlog"
    """What they are paid for."""
    horizon: int = Field(default=100, ge=1)
    """Actions of a training episode."""
    steps_per_action: int = Field(default=10, ge=1)
    """Solver steps between two actions."""
    renew_every: int = Field(default=5, ge=1)
    """Solver steps between two evaluations of what their coefficient multiplies; 1 in the paper's code."""
    spin_up: int = Field(default=0, ge=0)
    """Solver steps without closure at the beginning of an episode."""
    interpolation: Interpolation = "biquadratic"
    """From the agents to the grid."""
    positivity: Positivity = "none"
    """Whether coefficients may be negative."""
    padded: bool = False
    """De-alias the products of the agents' stress."""
    stacked_state: bool = False
    """See the spectra along x and y one after the other."""
    shift: bool = True
    """Begin at a random place of the flow."""
    compat: bool = False
    """Reward, failure and state as in the paper's code; observations are standardised and cut all the same."""

    def world(self, scenario: Scenario, snapshots: np.ndarray, device: torch.device | str = "cpu") -> ClosureAgents:
        """The world of a scenario, which begins with its training snapshots.

        Args:
            scenario: flow, grid and the roles of the snapshots.
            snapshots: ``(S, N, N)`` resolved vorticity.
            device: where to compute.

        Raises:
            InputError: agents that do not divide the grid, or snapshots that are missing.
        """
        solver = scenario.grid.solver(scenario.flow, device=device)
        starts = truncated(numbered(snapshots, scenario.training), scenario.grid.n, solver.grid.dtype)
        kind: Literal["energy", "enstrophy"] = "energy" if self.reward.startswith("k") else "enstrophy"
        reference = reference_spectra(scenario, snapshots, kind).mean(0)
        if scenario.axis == "both":
            reference = reference.mean(0)
        options = self.model_dump(exclude={"horizon"})
        return ClosureAgents(solver, reference.to(solver.grid.dtype), starts, horizon=self.horizon, **options)


class PPOSettings(Config):
    """Proximal policy optimisation, one policy for all agents."""

    kind: Literal["ppo"] = "ppo"
    """The core's PPO, or Stable-Baselines3's own."""
    implementation: Literal["core", "sb3"] = "core"
    """``sb3`` is the cross-check: its own loop over arrays, which cannot be resumed."""
    iterations: int = Field(default=60, ge=1)
    """Updates."""
    n_envs: int = Field(default=8, ge=1)
    """Flows at once."""
    n_steps: int = Field(default=100, ge=2)
    """Actions of each between updates."""
    batch_size: int = Field(default=3200, ge=2)
    """Size of a minibatch, in actions of one agent."""
    n_epochs: int = Field(default=4, ge=1)
    """Passes over the data of an update."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Step size of Adam."""
    gamma: float = Field(default=0.8, gt=0, le=1)
    """Discount factor."""
    gae_lambda: float = Field(default=0.9, ge=0, le=1)
    """Trade-off of generalised advantage estimation."""
    clip_range: float = Field(default=0.2, gt=0)
    """Clip of the probability ratio."""
    net: tuple[Width, ...] = (64, 64)
    """Widths of the hidden layers of policy and value function (tanh)."""
    log_std_init: float = -2.7
    """Initial logarithm of the standard deviation of the actions, of which the bound is 1."""


class VRACERSettings(Config):
    """V-RACER with ReF-ER, the trainer of the paper."""

    kind: Literal["vracer"] = "vracer"
    """Off-policy actor-critic with remembered and forgotten experiences."""
    episodes: int = Field(default=1000, ge=1)
    """Episodes in all."""
    n_envs: int = Field(default=1, ge=1)
    """Flows at once."""
    learning_rate: float = Field(default=1e-4, gt=0)
    """Step size of Adam."""
    gamma: float = Field(default=0.995, gt=0, le=1)
    """Discount factor."""
    batch_size: int = Field(default=256, ge=1)
    """Experiences of an update."""
    replay_start: int = Field(default=10_000, ge=1)
    """Experiences before the first update."""
    replay_size: int = Field(default=100_000, ge=1)
    """Experiences kept."""
    updates_per_experience: float = Field(default=1.0, gt=0)
    """Updates for each environment step."""
    sigma: float = Field(default=0.0156, gt=0)
    """Initial exploration noise, before the tanh: 0.25^3 for ``leith``, 0.05 for ``smagorinsky``."""
    l2: float = Field(default=1e-4, ge=0)
    """Weight decay."""
    cutoff: float = Field(default=5.0, gt=1)
    """ReF-ER's cut-off of the importance weight."""
    target: float = Field(default=0.1, gt=0, lt=1)
    """ReF-ER's share of far experiences."""
    annealing: float = Field(default=5e-8, ge=0)
    """Annealing of cut-off and step size."""


Learner = Annotated[PPOSettings | VRACERSettings | GradientSettings, Field(discriminator="kind")]


def train(
    world: ClosureAgents,
    learner: PPOSettings | VRACERSettings | GradientSettings,
    *,
    seed: int = 0,
    checkpoint: Path | None = None,
    curve: Path | None = None,
    progress: Progress | None = None,
) -> Any:
    """Train one policy for all agents.

    Args:
        world: the world.
        learner: how.
        seed: of networks, actions and episodes.
        checkpoint: file from which an interrupted training goes on, bit for bit.
        curve: file of the learning curve.
        progress: told the share done and a message.

    Returns:
        The trained model, ``PPO`` or ``VRACER``.

    Raises:
        TrainingDiverged: a loss or parameter is not finite.
    """
    options = {"checkpoint": checkpoint, "curve": curve, "progress": progress}
    if isinstance(learner, GradientSettings):
        return train_through_the_solver(world, learner, seed=seed, **options)  # type: ignore[arg-type]
    device = world.solver.grid.device
    env = SB3VecEnv(world, learner.n_envs, horizon=world.horizon, device=device, observation_range=OBSERVATION_RANGE)
    seed = stream(seed, "training")
    if isinstance(learner, VRACERSettings):
        model = VRACER("MlpPolicy", env, **_vracer_arguments(learner), seed=seed, device=device)
        assert world.horizon is not None
        learn(model, learner.episodes * world.horizon * world.agents, **options)  # type: ignore[arg-type]
        return model
    return _ppo(env, learner, seed, device, options)


def _vracer_arguments(learner: VRACERSettings) -> dict[str, Any]:
    return learner.model_dump(exclude={"kind", "episodes", "n_envs"})


def _ppo(env: SB3VecEnv, learner: PPOSettings, seed: int, device: torch.device, options: dict[str, Any]) -> PPO:
    names = ("n_steps", "batch_size", "n_epochs", "learning_rate", "gamma", "gae_lambda", "clip_range")
    arguments: dict[str, Any] = {name: getattr(learner, name) for name in names}
    arguments |= {"policy_kwargs": {"net_arch": list(learner.net), "log_std_init": learner.log_std_init}}
    # The curve shows the episodes of about two iterations.
    arguments |= {"seed": seed, "device": device, "stats_window_size": 2 * learner.n_envs}
    model = PPO("MlpPolicy", env, **arguments)
    timesteps = learner.iterations * learner.n_steps * env.num_envs
    if learner.implementation == "core":
        learn(model, timesteps, **options)
        return model
    stock = stable_baselines3.PPO("MlpPolicy", env, **arguments)
    if options["curve"] is not None:
        # It begins anew, and so does its curve.
        options["curve"].unlink(missing_ok=True)
    stock.learn(timesteps, callback=CurveCallback(timesteps, options["curve"], options["progress"]))
    model.policy.load_state_dict(stock.policy.state_dict())
    return model


def load_policy(path: Path, world: ClosureAgents, kind: str) -> PolicyClosure:
    """A saved policy as the closure of a world.

    Raises:
        InputError: damaged files, or a policy for another number of states.
    """
    algorithm: Any = VRACER if kind == "vracer" else PPO
    model = algorithm.load(path, device=world.solver.grid.device)
    trained, needed = model.observation_space.shape, world.observation_space.shape
    if trained != needed:
        raise InputError(f"{path}: trained with {trained[0]} states; this world has {needed[0]}")
    return closure_of(model, world)


def closure_of(model: Any, world: ClosureAgents) -> PolicyClosure:
    """A trained model as the closure of a world; every agent takes its mean action."""
    return PolicyClosure(world, LearnedPolicy(model, world, observation_range=OBSERVATION_RANGE))


def check_updates(agents: Agents, learner: PPOSettings | VRACERSettings | GradientSettings) -> None:
    """Refuse a training that would end before its first update.

    Raises:
        InputError: so it is.
    """
    if isinstance(learner, GradientSettings):
        learner.updates(agents.steps_per_action)
    elif isinstance(learner, VRACERSettings) and learner.episodes * agents.horizon < learner.replay_start:
        raise InputError(
            f"replay_start = {learner.replay_start}: {learner.episodes} episodes of {agents.horizon} actions are only "
            f"{learner.episodes * agents.horizon} experiences"
        )


class Training(Config):
    """What is trained, and where."""

    scenario: Scenario = Scenario()
    """The flow, its grid and its snapshots."""
    agents: Agents = Agents()
    """What the agents see and do."""
    learner: Learner = PPOSettings()
    """How they learn."""
    seed: int = Field(default=0, ge=0)
    """Of the training."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        check_updates(self.agents, self.learner)
        return self

    def curve_of(self, path: Path) -> dict[str, Any]:
        """The learning curve: ``score``, the mean reward of an action before its offset, and ``steps`` of the solver.

        Actions that an episode did not live to see count as rewards of 0. For training through the solver the score is
        minus the loss.
        """
        points = read_curve(path) if path.exists() else []
        steps, returns = (np.array([point[name] for point in points]) for name in ("timesteps", "return"))
        if not isinstance(self.learner, GradientSettings):
            offset = 0.0 if self.agents.compat else OFFSET.get(self.agents.reward, 0.0)
            returns = returns / self.agents.horizon - offset
            steps = steps / self.agents.agents_per_side**2 * self.agents.steps_per_action
        return {
            "score": ("update", returns, {"units": "1", "long_name": "mean score of an action"}),
            "steps": ("update", steps, {"units": "steps", "long_name": "solver steps of a single flow"}),
        }


class TrainedPolicy(Product):
    """A policy that the study trains, shared by every run that evaluates it."""

    training: Training
    """What is trained, and where."""

    @property
    def label(self) -> str:
        """Name on the screen."""
        t = self.training
        return f"{t.scenario.flow.title} train {t.learner.kind} seed {t.seed}"

    def make(self, directory: Path, context: Context) -> None:
        """Write ``policy.safetensors``, ``policy.json`` and ``curve.jsonl``."""
        model = train(
            world_of(self.training, context),
            self.training.learner,
            seed=self.training.seed,
            checkpoint=context.checkpoint / "state.safetensors",
            curve=directory / "curve.jsonl",
            progress=context.progress,
        )
        model.save(directory / "policy")

    def folder(self, context: Context) -> Path:
        """Where the policy is."""
        return context.product(self)


class StoredPolicy(Config):
    """A policy that the verb ``train`` has left in a folder."""

    source: str
    """The folder."""
    sha256: str
    """Of its weights: another policy in the same place is another run."""
    training: Training
    """How it was trained."""

    @classmethod
    def of(cls, folder: Path) -> StoredPolicy:
        """The policy in a folder.

        Raises:
            InputError: there is none, or its record is damaged.
        """
        weights = folder / "policy.safetensors"
        if not weights.exists():
            raise InputError(f"--policy {folder}: holds no trained policy; szilard turbulence train writes one")
        record = files.read_json(folder / "training.json")
        training = from_options(Training, record, str(folder / "training.json"))
        digest = hashlib.sha256(weights.read_bytes()).hexdigest()
        return cls(source=str(folder), sha256=digest, training=training)

    @property
    def label(self) -> str:
        """Name on the screen."""
        return self.source

    def folder(self, context: Context) -> Path:
        """Where the policy is."""
        return Path(self.source)


def world_of(training: Training, context: Context) -> ClosureAgents:
    """The world that a policy is trained in."""
    snapshots = snapshots_of(training.scenario).load(context)
    return training.agents.world(training.scenario, snapshots, context.device)

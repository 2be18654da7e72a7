"""The runs of a fishery study: tuning a rule, and evaluating a method in a scenario."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
import xarray as xr
from pydantic import Field

from apps.fishery.approximate_model import poor_model_rule
from apps.fishery.dynamic_programming import solve
from apps.fishery.evaluation import digest, evaluate, policy_slices
from apps.fishery.gaussian_process import smooth
from apps.fishery.learning import TrainedPolicy
from apps.fishery.policies import ConstantMortality
from apps.fishery.scenario import Scenario
from apps.fishery.tuning import tune, tuned_rule
from core.rl.training import read_curve
from core.seeds import stream
from core.simulation import Policy, draw
from core.study import Config, Context, Run
from simulators.fishery import Fishery

Rule = Literal["constant_mortality", "constant_escapement", "precautionary_ramp"]
Method = Literal[
    "unharvested",
    "constant_mortality",
    "constant_mortality_0.95",
    "constant_mortality_0.9",
    "constant_mortality_0.8",
    "constant_escapement",
    "precautionary_ramp",
    "dynamic_programming",
    "dynamic_programming_time_aware",
    "poor_model",
    "ppo",
    "ppo_sampled",
    "ppo_gp",
]
"""What can be compared: tuned rules, exact solutions, and PPO with mean, sampled or smoothed actions."""

LEARNED = ("ppo", "ppo_sampled", "ppo_gp")
"""The methods that are trained, once for each seed."""


class Tune(Run):
    """A harvest rule tuned by grid search."""

    scenario: Scenario
    """Where it is tuned."""
    rule: Rule
    """Which rule."""
    replicates: int
    """Episodes a grid point, the same for all points."""
    points: int | None
    """Points on each axis; the paper's if null."""
    seed: int
    """Of the replicates."""

    @property
    def label(self) -> str:
        """Name on the screen."""
        return f"{self.scenario.name} tune {self.rule}"

    def execute(self, inputs: Mapping[str, xr.Dataset], context: Context) -> xr.Dataset:
        """The grid of ``tune``, and the tuned rule's returns on the replicates that chose it."""
        world = self.scenario.world(torch.float32)
        draws = draw(world, self.scenario.horizon, self.replicates, stream(self.seed, "tuning"), context.device)
        tuned = tune(world, self.rule, draws=draws, points=self.points, progress=context.progress)
        data = evaluate(world, tuned_rule(tuned), draws=draws)
        return tuned.assign(in_sample_return=data["return"].rename(rep="replicate").drop_vars("replicate"))


class Smoothing(Config):
    """Settings of the Gaussian process that smooths a trained policy."""

    long: int = Field(default=51, ge=2, le=1001)
    """Points along the long axis of each design grid."""
    short: int = Field(default=5, ge=2, le=101)
    """Points along its short axes."""
    points: int | None = Field(default=None, ge=2)
    """Keep at most so many design points, drawn at random; null keeps all (the regression costs their cube)."""
    optimize: bool = True
    """Optimise the kernel from its starting values, or keep them."""


class Logistic(Config):
    """Data that the poor model is fitted to."""

    episodes: int = Field(default=20, ge=1, le=100_000)
    """Unharvested histories of the true world."""
    years: int = Field(default=50, ge=1, le=100_000)
    """Length of each."""


class Solver(Config):
    """Grid of the dynamic programming."""

    nodes: int = Field(default=801, ge=16, le=10_001)
    """Points of the population grid."""
    quadrature: int = Field(default=9, ge=1, le=101)
    """Gauss-Hermite nodes of the noise."""


class Evaluate(Run):
    """A method on fresh episodes of a scenario, the same episodes for all methods."""

    scenario: Scenario
    """The true world."""
    method: Method
    """What is evaluated."""
    replicates: int
    """Episodes."""
    seed: int
    """Of the episodes."""
    record: int
    """Episodes kept whole."""
    tuned: Tune | None = None
    """The tuned rule."""
    learned: TrainedPolicy | None = None
    """The trained policy."""
    smoothing: Smoothing | None = None
    """Of the Gaussian process."""
    logistic: Logistic | None = None
    """Of the poor model."""
    solver: Solver | None = None
    """Of the exact solution."""

    @property
    def label(self) -> str:
        """Name on the screen."""
        seed = "" if self.learned is None else f" seed {self.learned.seed}"
        return f"{self.scenario.name} {self.method}{seed}"

    def execute(self, inputs: Mapping[str, xr.Dataset], context: Context) -> xr.Dataset:
        """Per-episode sums, quantile bands, some whole episodes and slices of the policy."""
        world = self.scenario.world()
        policy = _POLICIES[self.method.partition("_0.")[0]](self, world, inputs, context)
        context.log(message="evaluating")
        data = evaluate(
            world,
            policy,
            replicates=self.replicates,
            seed=self.seed,
            horizon=self.scenario.horizon,
            device=context.device,
        )
        result = digest(data, self.record).merge(policy_slices(world, policy))
        if self.learned is not None:
            points = read_curve(context.product(self.learned) / "curve.jsonl")
            result = result.assign_coords(timesteps=[p["timesteps"] for p in points])
            result["training_return"] = ("timesteps", [p["return"] for p in points], {"units": "K"})
        return result.assign_attrs(method=self.method)


def _unharvested(run: Evaluate, world: Fishery, inputs: Mapping[str, xr.Dataset], context: Context) -> Policy:
    return ConstantMortality([0.0] * world.harvested)


def _tuned(run: Evaluate, world: Fishery, inputs: Mapping[str, xr.Dataset], context: Context) -> Policy:
    fraction = run.method.removeprefix("constant_mortality_")
    return tuned_rule(inputs["tuned"], float(fraction) if fraction[0].isdigit() else 1.0)


def _solved(run: Evaluate, world: Fishery, inputs: Mapping[str, xr.Dataset], context: Context) -> Policy:
    grid = (run.solver or Solver()).model_dump()
    mode = "finite" if run.method.endswith("time_aware") else "stationary"
    return solve(world, mode=mode, horizon=run.scenario.horizon, **grid).policy()  # type: ignore[arg-type]


def _poor(run: Evaluate, world: Fishery, inputs: Mapping[str, xr.Dataset], context: Context) -> Policy:
    data = (run.logistic or Logistic()).model_dump()
    return poor_model_rule(world, seed=run.seed, horizon=run.scenario.horizon, **data)


def _learned(run: Evaluate, world: Fishery, inputs: Mapping[str, xr.Dataset], context: Context) -> Policy:
    assert run.learned is not None
    policy = run.learned.policy(context, deterministic=run.method == "ppo")
    if run.method != "ppo_gp":
        return policy
    context.log(message="smoothing")
    settings = (run.smoothing or Smoothing()).model_dump()
    return smooth(world, policy, seed=run.learned.seed, **settings)


_POLICIES: dict[str, Callable[[Evaluate, Fishery, Mapping[str, xr.Dataset], Context], Policy]] = {
    "unharvested": _unharvested,
    "constant_mortality": _tuned,
    "constant_escapement": _tuned,
    "precautionary_ramp": _tuned,
    "dynamic_programming": _solved,
    "dynamic_programming_time_aware": _solved,
    "poor_model": _poor,
    "ppo": _learned,
    "ppo_sampled": _learned,
    "ppo_gp": _learned,
}

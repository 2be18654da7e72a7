"""What a log says of a policy without trying it: every estimator, and whether it can say anything at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

import xarray as xr
from pydantic import Field
from torch import Tensor

from apps.sepsis.clinician import Clinician
from apps.sepsis.policies import LearnedPolicy
from core.errors import InputError
from core.offline import Estimate, FittedQEvaluation, Trajectories, evaluate_policy, softened
from core.offline.evaluation import FLOOR
from core.seeds import stream
from core.stats import Interval, mean_interval
from core.study import Config
from simulators.sepsis.cohort import Cohort
from simulators.sepsis.features import ACTIONS

EstimatorName = Literal["IS", "WIS", "PDIS", "WPDIS", "DR", "WDR", "FQE"]
ESTIMATORS: tuple[EstimatorName, ...] = get_args(EstimatorName)
WITH_MODEL = ("DR", "WDR", "FQE")


class EstimateSettings(Config):
    """Off-policy estimates from the test patients; the return is the outcome, +1 or -1, without any shaping."""

    estimators: tuple[EstimatorName, ...] = Field(default=("WIS", "WPDIS"), min_length=1)
    """Which; DR, WDR and FQE fit a model on the training patients first."""
    target: Literal["softmax", "softened"] = "softmax"
    """The policy that is evaluated: softmax of Q at temperature 1, as published, or greedy with a share of 0.01
    uniform."""
    behaviour: Literal["known", "estimated"] = "known"
    """Probabilities of the behaviour policy, where a simulator knows them, or those of the estimated clinician."""
    gamma: float = Field(default=0.99, gt=0, le=1)
    """Discount of a step."""
    clip: tuple[float, float] | None = (1e-8, 1e2)
    """Bounds of each trajectory's weight, as published; null for none."""
    compat: Literal["official"] | None = None
    """Replace behaviour probabilities of 0 by 0.1 as the published code does, instead of a floor of 0.01."""
    resamples: int = Field(default=1000, ge=100)
    """Of the bootstrap over patients."""
    model_updates: int = Field(default=5000, ge=1)
    """Gradient steps of fitted Q evaluation."""
    model_tau: float = Field(default=0.02, gt=0, le=1)
    """Share of the network that its target takes over before each step: over 1/tau steps times the length of a stay."""


def target_probabilities(policy: LearnedPolicy, settings: EstimateSettings) -> Callable[[Tensor], Tensor]:
    """The stochastic policy that is evaluated, from normalised states ``(N, 44)`` to ``(N, 25)``."""
    if settings.target == "softmax":
        return policy.probabilities
    return lambda state: softened(policy.greedy(state), ACTIONS)


def estimate(
    cohort: Cohort,
    policy: LearnedPolicy,
    clinician: Clinician | None,
    settings: EstimateSettings,
    seed: int,
    *,
    checkpoint: Path | None = None,
    progress: Callable[[float, str], None] | None = None,
) -> list[Estimate]:
    """Estimate the expected outcome of a policy from the test patients of a cohort.

    Args:
        cohort: the log.
        policy: in question.
        clinician: the estimated behaviour policy; needed where the cohort does not know its own.
        settings: estimators and their constants.
        seed: of the bootstrap and of the model.
        checkpoint: file of the model's training.
        progress: told the share done of the model and a message.

    Raises:
        InputError: the behaviour policy is neither known nor given.
    """
    reward = cohort.rewards()
    test = cohort.dataset(reward, "test")
    target = target_probabilities(policy, settings)
    behaviour = _behaviour(cohort, test.observations, clinician, settings)
    q = None
    if set(settings.estimators) & set(WITH_MODEL):
        model = FittedQEvaluation(
            gamma=settings.gamma,
            gradient_steps=settings.model_updates,
            tau=settings.model_tau,
            seed=stream(seed, "fitted q"),
            device=test.device,
        )
        learned = cohort.dataset(reward, ("train", "validation"))
        q = model.fit(learned, target, checkpoint=checkpoint, progress=progress).q_values(test.observations)
    return evaluate_policy(
        test,
        target(test.observations),
        behaviour,
        gamma=settings.gamma,
        q=q,
        estimators=settings.estimators,
        clip=settings.clip,
        resamples=settings.resamples,
        seed=stream(seed, "estimates"),
        compat=settings.compat,
    )


def log_weights(
    cohort: Cohort, policy: LearnedPolicy, clinician: Clinician | None, settings: EstimateSettings
) -> Tensor:
    """``(E,)`` logarithms of the importance weights of the test patients, not clipped: how far policy and log overlap.

    Raises:
        InputError: as ``estimate``.
    """
    test = cohort.dataset(cohort.rewards(), "test")
    behaviour = _behaviour(cohort, test.observations, clinician, settings)
    target = target_probabilities(policy, settings)(test.observations)
    official = settings.compat == "official"
    floor = None if behaviour is None or official else FLOOR
    return Trajectories.of(test, target, behaviour, floor=floor, official=official).final_log_weights


def logged_outcome(cohort: Cohort, gamma: float) -> Interval:
    """Mean discounted outcome of the test patients, which is the clinician's own."""
    test = cohort.subset("test")
    discounted = gamma ** (test.lengths - 1).double() * test.outcome.double()
    return mean_interval(discounted.cpu())


def _behaviour(cohort: Cohort, state: Tensor, clinician: Clinician | None, settings: EstimateSettings) -> Tensor | None:
    """Estimated probabilities ``(N, 25)`` of the behaviour policy; None where the cohort's own are to be used."""
    if cohort.behaviour is not None and settings.behaviour == "known":
        return None
    if clinician is None:
        raise InputError("clinician: none given, and the behaviour policy is not known (or not to be used)")
    return clinician.probabilities(state)


def as_dataset(found: list[Estimate]) -> xr.Dataset:
    """The estimates along ``estimator``."""
    columns = ("value", "low", "high", "ess", "max_weight_share", "episodes", "floored", "verdict")
    data = {f"estimate_{name}": ("estimator", [getattr(e, name) for e in found]) for name in columns}
    return xr.Dataset(data, {"estimator": [e.name for e in found]})

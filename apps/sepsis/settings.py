"""What can be set: where patients come from, how the clinician is modelled, how policies are trained."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from apps.sepsis.rewards import DebateReward, Shaping
from core.errors import InputError
from core.study import Config

Fractions = tuple[
    Annotated[float, Field(gt=0, lt=1)], Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(gt=0, lt=1)]
]


class _Simulated(Config):
    """Simulated patients."""

    patients: int = Field(default=2000, ge=20)
    """How many are treated by the physician."""
    fractions: Fractions = (0.75, 0.0, 0.25)
    """Shares of training, validation and test."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if not math.isclose(sum(self.fractions), 1.0, abs_tol=1e-6):
            raise InputError(f"fractions: {self.fractions} add up to {sum(self.fractions):g}; they must add up to 1")
        return self


class MechanisticPatients(_Simulated):
    """Patients of ``sepsis44``, whose physiology and best doses are known."""

    kind: Literal["sepsis44"] = "sepsis44"
    """Kind of source."""
    temperature: float = Field(default=0.8, gt=0)
    """Spread of the physician's doses, in squared levels."""
    bias: float = 0.8
    """Fluid that the physician gives too much, in levels."""


class TabularPatients(_Simulated):
    """Patients of ``icusepsis44``: the published chain estimated from real records, seen through 44 features."""

    kind: Literal["icusepsis44"] = "icusepsis44"
    """Kind of source."""
    kappa: float = Field(default=1.0, ge=0)
    """Size of the spread around a state's centroid, 1 as in the records."""


class RecordedPatients(Config):
    """Records that ``szilard sepsis ingest`` has read."""

    kind: Literal["recorded"] = "recorded"
    """Kind of source."""
    path: Path
    """The file ``cohort.nc``."""
    content: str | None = None
    """SHA-256 of the file, taken when it is there: results are those of the content, not of the name."""

    @model_validator(mode="before")
    @classmethod
    def _of_content(cls, given: Any) -> Any:
        if isinstance(given, dict) and not given.get("content") and Path(str(given.get("path"))).is_file():
            with Path(given["path"]).open("rb") as file:
                given = {**given, "content": hashlib.file_digest(file, "sha256").hexdigest()}
        return given


Source = Annotated[MechanisticPatients | TabularPatients | RecordedPatients, Field(discriminator="kind")]


class ClinicianSettings(Config):
    """How the behaviour policy is estimated where it must be."""

    kind: Literal["cloning", "neighbours"] = "cloning"
    """A network trained on the logged actions, or the actions of the nearest training states."""
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the network, batch normalisation after each ReLU."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Of Adam."""
    weight_decay: float = Field(default=0.1, ge=0)
    """Of Adam (added to the gradient)."""
    batch: int = Field(default=64, ge=2)
    """Steps in a batch."""
    epochs: int = Field(default=100, ge=1)
    """Passes over the training steps."""
    neighbours: int = Field(default=100, ge=1)
    """k, of ``neighbours``."""
    smoothing: float = Field(default=0.01, ge=0)
    """Added to the share of each action, of ``neighbours``."""


class PolicySettings(Config):
    """How a policy is trained from data: n-step dueling double DQN; the defaults are the published ones."""

    nets: int = Field(default=1, ge=1)
    """Networks whose Q is averaged; each starts from another seed."""
    updates: int = Field(default=25_000, ge=1)
    """Gradient steps of a network."""
    learning_rate: float = Field(default=1e-4, gt=0)
    """Of Adam."""
    adam_eps: float = Field(default=1.5e-4, gt=0)
    """Epsilon of Adam."""
    batch: int = Field(default=256, ge=2)
    """Transitions in a batch."""
    gamma: float = Field(default=0.99, gt=0, le=1)
    """Discount of a step of 4 h."""
    tau: float = Field(default=1e-3, gt=0, le=1)
    """Share by which the target network follows."""
    n_steps: int = Field(default=6, ge=1)
    """Steps of a return, up to lambda 0.5."""
    n_steps_above: int = Field(default=3, ge=1)
    """Steps of a return for lambda above 0.5 (the published values are not known)."""
    hidden: tuple[int, ...] = (128, 128)
    """Widths of the trunk."""
    heads: int = Field(default=64, ge=1)
    """Width of the hidden layer of value and advantage head."""
    batch_norm: bool = True
    """Batch normalisation in the trunk, before each leaky ReLU."""
    initial: Literal["xavier", "torch"] = "xavier"
    """Initial weights: Glorot's normal ones, as published, or torch's, which are smaller."""
    prioritized: bool = True
    """Prioritised replay (alpha 0.6, beta 0.9) instead of uniform."""
    q_bound: float | None = Field(default=20.0, gt=0)
    """Bootstrapped values are clipped to this size and larger Q are punished; null for neither."""
    shaping: Shaping = "normalised"
    """Shaping of the reward before the last step."""
    debate_reward: DebateReward = "01"
    """What a debate pays."""


class Learner(Config):
    """A way to learn from data."""

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    """Name in tables and figures."""
    alpha: float = Field(default=0.0, ge=0)
    """Weight of the conservative penalty (Kumar et al. 2020); 0 is plain double DQN."""


class Arm(Config):
    """A policy of the study."""

    learner: str = "plain"
    """Name of the learner."""
    lam: float = Field(ge=0, le=1)
    """Lambda, the share of the debate in the reward."""
    reward: Literal["debate", "state"] = "debate"
    """Whether the judge hears a debate or sees the whole state."""

    @property
    def name(self) -> str:
        """Name in tables and figures."""
        return "lambda 0" if self.lam == 0 else f"{self.reward} {self.lam:g}"

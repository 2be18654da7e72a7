"""Methods without a network: rules, of which some have a number that is tuned on the validation dialogues."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from apps.crs.active_inference import ActiveInference, Preferences, calibrate_beta
from apps.crs.evaluation import evaluate
from apps.crs.hopfield import HopfieldPolicy, HopfieldScores, tune_beta
from apps.crs.methods.method import Method, Workbench
from apps.crs.policies import AbsGreedy, MaxEntropy, OracleAsk, Policy, RandomPolicy, Threshold
from apps.crs.training import loss_of
from core import files
from core.study import Config
from simulators.crs import Conversation
from simulators.crs.belief import Belief
from simulators.crs.selection import Selection

TUNED = "tuned.json"
Grid = Annotated[tuple[Annotated[float, Field(ge=0)], ...], Field(min_length=1)]
Sizes = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]


class RandomMethod(Method):
    """A random member of the action set."""

    kind: Literal["random"] = "random"
    """Kind of method."""
    learns: ClassVar[bool] = True

    def open(self, world: Conversation, directory: Path, seed: int) -> Policy:
        """See ``Method``."""
        return RandomPolicy(world, seed=seed)


class GreedyMethod(Method):
    """Recommend at every turn."""

    kind: Literal["abs_greedy"] = "abs_greedy"
    """Kind of method."""

    def open(self, world: Conversation, directory: Path, seed: int) -> Policy:
        """See ``Method``."""
        return AbsGreedy(world)


class MaxEntropyMethod(Method):
    """Ask what has the largest entropy, recommend with probability K / |V_cand|."""

    kind: Literal["max_entropy"] = "max_entropy"
    """Kind of method."""
    selection: Selection = "weighted_entropy"
    """How questions are valued."""
    learns: ClassVar[bool] = True

    def open(self, world: Conversation, directory: Path, seed: int) -> Policy:
        """See ``Method``."""
        return MaxEntropy(world, selection=self.selection, seed=seed)


class ThresholdMethod(Method):
    """Ask while there are more than n candidates; n from a grid, the best on the validation dialogues."""

    kind: Literal["threshold"] = "threshold"
    """Kind of method."""
    selection: Selection = "weighted_entropy"
    """How questions are valued."""
    grid: Sizes = (10, 20, 35, 50, 75, 100, 125, 150, 175, 200, 250, 300, 400, 500)
    """What n is chosen from."""

    def make(self, bench: Workbench, seed: int) -> None:
        """Try the whole grid."""
        opened, losses = bench.opened, {}
        cases = opened.all_valid()
        for i, n in enumerate(self.grid):
            losses[n] = loss_of(evaluate(opened.world, Threshold(opened.world, n, selection=self.selection), cases))
            bench.progress((i + 1) / len(self.grid), f"n = {n}: loss {losses[n]:.3f}")
        best = min(losses, key=lambda n: (losses[n], n))
        files.write_json(bench.directory / TUNED, {"n": best, "losses": losses})

    def open(self, world: Conversation, directory: Path, seed: int) -> Policy:
        """See ``Method``."""
        return Threshold(world, files.read_json(directory / TUNED, ("n",))["n"], selection=self.selection, seed=seed)


class OracleMethod(Method):
    """Asks only for attributes of the target, which it knows: what the best questions could be worth."""

    kind: Literal["oracle"] = "oracle"
    """Kind of method."""
    n: int = Field(default=100, ge=0)
    """Candidates from which on it recommends."""

    def open(self, world: Conversation, directory: Path, seed: int) -> Policy:
        """See ``Method``."""
        return OracleAsk(world, self.n)


class BeliefSettings(Config):
    """The user model of a Bayesian."""

    beta: float = Field(default=2.0, ge=0)
    """Sharpness of the prior."""
    error: float = Field(default=0.01, gt=0, lt=0.5)
    """Believed probability of a wrong answer."""

    def belief(self) -> Belief:
        """As the simulators have it."""
        return Belief(self.beta, self.error)


class ActiveInferenceMethod(Method):
    """Minimises expected free energy, in closed form."""

    kind: Literal["active_inference"] = "active_inference"
    """Kind of method."""
    beta: float | Literal["calibrated"] = 2.0
    """Sharpness of the prior; ``calibrated`` takes the likeliest of the grid on the validation pairs."""
    grid: Grid = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
    """What a calibrated beta is chosen from."""
    error: float = Field(default=0.01, gt=0, lt=0.5)
    """Believed probability of a wrong answer."""
    accept: float = Field(default=1.0, gt=0)
    """Preference for an accepted list, in nats."""
    reject: float = Field(default=0.1, ge=0)
    """Dislike of a rejected one."""

    def make(self, bench: Workbench, seed: int) -> None:
        """Calibrate the prior."""
        beta = self.beta
        if beta == "calibrated":
            pairs = bench.opened.world.catalogue.pairs("valid")
            beta = calibrate_beta(bench.opened.world, pairs, self.grid, error=self.error)
        files.write_json(bench.directory / TUNED, {"beta": beta})

    def open(self, world: Conversation, directory: Path, seed: int) -> Policy:
        """See ``Method``."""
        beta = float(files.read_json(directory / TUNED, ("beta",))["beta"])
        return ActiveInference(world, Belief(beta, self.error), Preferences(self.accept, self.reject))


class HopfieldMethod(Method):
    """The threshold rule with candidates weighed by a modern Hopfield network over the items."""

    kind: Literal["hopfield"] = "hopfield"
    """Kind of method."""
    beta: float | Literal["tuned"] = "tuned"
    """Inverse temperature; ``tuned`` takes the likeliest of the grid on the validation pairs."""
    grid: Grid = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
    """What it is chosen from."""
    retrievals: int = Field(default=1, ge=1, le=3)
    """Updates of the state."""
    n: int = Field(default=100, ge=0)
    """Candidates from which on it recommends."""

    def make(self, bench: Workbench, seed: int) -> None:
        """Tune beta."""
        beta = self.beta
        if beta == "tuned":
            pairs = bench.opened.world.catalogue.pairs("valid")
            beta = tune_beta(bench.opened.world, pairs, self.grid, retrievals=self.retrievals)
        files.write_json(bench.directory / TUNED, {"beta": beta})

    def open(self, world: Conversation, directory: Path, seed: int) -> Policy:
        """See ``Method``."""
        beta = float(files.read_json(directory / TUNED, ("beta",))["beta"])
        return HopfieldPolicy(world, HopfieldScores(beta, self.retrievals), n=self.n)

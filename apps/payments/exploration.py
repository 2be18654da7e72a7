"""How a policy explores: the rule that turns predicted approval probabilities into probabilities of actions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from torch import Tensor

from core.bandits import (
    ConstantGamma,
    FalconGamma,
    PowerGamma,
    SquareCBGamma,
    agglomerate,
    bootstrap_votes,
    choose_grouping,
    effect_vectors,
    epsilon_greedy,
    greedy,
    grouped_inverse_gap_weighting,
    inverse_gap_weighting,
    softmax,
    surviving_actions,
    uniform,
    with_floor,
    with_minimum,
)
from core.errors import InputError
from core.study import Config
from simulators.payments.context import SCHEMES, PaymentContext

Rule = Literal[
    "uniform", "greedy", "epsilon", "epsilon_slice", "igw", "igw_elim", "softmax", "thompson_bootstrap", "grouped_igw"
]
GROUPING_ROWS = 4096
WEIGHED = ("igw", "igw_elim", "grouped_igw")
"""The rules that take gamma."""


class Constant(Config):
    """The same gamma always."""

    kind: Literal["constant"] = "constant"
    gamma: float = Field(default=1000.0, ge=0)
    """How greedy: 0 is uniform."""

    def schedule(self) -> ConstantGamma:
        """The schedule."""
        return ConstantGamma(self.gamma)


class Power(Config):
    """Gamma grows with the number of learned examples, as in Vowpal Wabbit."""

    kind: Literal["sqrt_t"] = "sqrt_t"
    scale: float = Field(default=10.0, ge=0)
    """Factor."""
    rho: float = Field(default=0.5, ge=0, le=1)
    """Exponent."""

    def schedule(self) -> PowerGamma:
        """The schedule."""
        return PowerGamma(self.scale, self.rho)


class SquareCB(Config):
    """Gamma of SquareCB (Foster and Rakhlin 2020) for a known horizon."""

    kind: Literal["squarecb"] = "squarecb"
    horizon: int = Field(ge=1)
    """Decisions in all."""
    complexity: float = Field(default=1000.0, gt=0)
    """Of the oracle's class: its number of free parameters."""
    delta: float = Field(default=0.05, gt=0, lt=1)
    """Failure probability."""

    def schedule(self) -> SquareCBGamma:
        """The schedule."""
        return SquareCBGamma(self.horizon, self.complexity, self.delta)


class Falcon(Config):
    """Gamma of FALCON (Simchi-Levi and Xu 2020), which changes from epoch to epoch."""

    kind: Literal["falcon"] = "falcon"
    complexity: float = Field(default=1000.0, gt=0)
    """Of the oracle's class: its number of free parameters."""
    delta: float = Field(default=0.05, gt=0, lt=1)
    """Failure probability."""
    c: float = Field(default=1 / 30, gt=0)
    """Factor."""
    epochs: tuple[int, ...] | None = None
    """Examples at which epochs end; powers of 2 if null."""
    previous_epoch: bool = False
    """Learn from the previous epoch alone (FALCON+), not from all rows."""

    def schedule(self) -> FalconGamma:
        """The schedule."""
        return FalconGamma(self.complexity, self.delta, self.c, self.epochs, self.previous_epoch)


Gamma = Annotated[Constant | Power | SquareCB | Falcon, Field(discriminator="kind")]


@dataclass(frozen=True)
class Learned:
    """What a rule may have to know of the oracle beside its scores.

    Attributes:
        examples: rows that it has learned from so far; schedules of gamma ask for it.
        rows: ``(K,)`` rows of each action in its last fit; ``igw_elim`` asks for it.
        groups: ``(K,)`` int64, the group of each action; ``grouped_igw`` asks for it.
    """

    examples: int = 0
    rows: Tensor | None = None
    groups: Tensor | None = None


class Exploration(Config):
    """A rule and its numbers."""

    rule: Rule
    """Which rule."""
    epsilon: float = Field(default=0.05, ge=0, le=1)
    """Of ``epsilon`` and ``epsilon_slice``: share of uniform decisions."""
    gamma: float | Gamma = Field(default=1000.0)
    """Of ``igw``, ``igw_elim`` and ``grouped_igw``: a number, or a schedule."""
    temperature: float = Field(default=0.01, gt=0)
    """Of ``softmax``."""
    members: int = Field(default=10, ge=2, le=1000)
    """Of ``thompson_bootstrap``: oracles on resampled rows."""
    mellowness: float = Field(default=0.001, gt=0)
    """Of ``igw_elim``: the larger, the fewer actions are eliminated."""
    groups: int | None = Field(default=None, ge=1)
    """Of ``grouped_igw``: groups of actions; chosen from the data if null."""
    floor: float = Field(default=0.0, ge=0, le=1)
    """Share of uniform decisions mixed into any rule."""
    minimum: float = Field(default=0.0, ge=0, le=1)
    """Probability, divided by the number of available actions, that each keeps at least."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if isinstance(self.gamma, int | float) and self.gamma < 0:
            raise InputError(f"gamma = {self.gamma}: must be at least 0")
        return self

    def at(self, parameter: str, value: float) -> Self:
        """The same rule with one number replaced."""
        return type(self).model_validate(self.model_dump() | {parameter: value})

    def probabilities(self, scores: Tensor, mask: Tensor, learned: Learned | None = None) -> Tensor:
        """Probabilities of the actions ``(n, K)``, 0 where they are not available.

        Args:
            scores: ``(n, K)`` predicted approval probabilities; of ``thompson_bootstrap`` ``(members, n, K)``.
            mask: ``(n, K)`` bool, the available actions.
            learned: what is known of the oracle; nothing if None.

        Raises:
            InputError: a payment without an action, a score that is not a number, or a rule that has to know more of
                the oracle.
        """
        found = self._rule(scores, mask, learned or Learned())
        if self.floor:
            found = with_floor(found, mask, self.floor)
        return with_minimum(found, mask, self.minimum) if self.minimum else found

    def gammas(self, mask: Tensor, examples: int) -> Tensor:
        """Gamma of each payment ``(n,)``."""
        schedule = ConstantGamma(self.gamma) if isinstance(self.gamma, int | float) else self.gamma.schedule()
        return schedule(mask.sum(1), examples)

    def _rule(self, scores: Tensor, mask: Tensor, learned: Learned) -> Tensor:
        if self.rule == "uniform":
            return uniform(mask, scores.dtype)
        if self.rule == "greedy":
            return greedy(scores, mask)
        if self.rule in ("epsilon", "epsilon_slice"):
            return epsilon_greedy(scores, mask, self.epsilon)
        if self.rule == "softmax":
            return softmax(scores, mask, self.temperature)
        if self.rule == "thompson_bootstrap":
            return bootstrap_votes(scores, mask)
        if self.rule == "igw_elim":
            if learned.rows is None:
                raise InputError("igw_elim: needs the number of rows learned from of every action")
            leverage = 1 / learned.rows.to(scores)
            mask = surviving_actions(scores, mask, leverage, learned.examples, mellowness=self.mellowness)
        gamma = self.gammas(mask, learned.examples)
        if self.rule == "grouped_igw":
            if learned.groups is None:
                raise InputError("grouped_igw: needs the group of every action")
            return grouped_inverse_gap_weighting(scores, mask, learned.groups, gamma)
        return inverse_gap_weighting(scores, mask, gamma)


def grouping_of(
    exploration: Exploration,
    predict: Callable[[PaymentContext], Tensor],
    context: PaymentContext,
    mask: Tensor,
    rows: int,
) -> Tensor | None:
    """The group ``(K,)`` of every action, by its predicted effects in each scheme of each country.

    Args:
        exploration: says how many groups, or that the data choose among powers of 2; rules without groups get None.
        predict: the oracle.
        context: of some payments; the first half makes the groups, the second chooses how many.
        mask: ``(n, K)`` bool, their available actions.
        rows: that the oracle has learned from.
    """
    if exploration.rule != "grouped_igw":
        return None
    context, mask = context.take(slice(0, GROUPING_ROWS)), mask[:GROUPING_ROWS]
    scores, half = predict(context), len(mask) // 2
    cluster = context.country * len(SCHEMES) + context.scheme
    effects = effect_vectors(scores[:half], mask[:half], cluster[:half])
    if exploration.groups is not None:
        return agglomerate(effects, min(exploration.groups, len(effects)))
    sizes = [2**i for i in range(len(effects).bit_length())]
    return choose_grouping(effects, scores[half:], mask[half:], rows, sizes=sizes).groups

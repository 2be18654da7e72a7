"""What a training of sequences minimises."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from core.errors import InputError
from core.sequence.batch import Estimator, Loss, LossResult, TokenScores
from core.sequence.minibatch import Part
from core.sequence.policy import NOTHING


@dataclass(frozen=True)
class Objective:
    """What is minimised: ``supervised_weight * supervised(references) + weight * policy(samples)``, scored in one pass.

    Attributes:
        policy: loss of the samples. One with an attribute ``phases`` is several losses, each with an optimiser and
            a step of its own on fresh scores.
        weight: of it.
        estimator: fills the samples' advantage.
        supervised: loss of the references; joins the last phase.
        supervised_weight: of it.
        epochs: times that the samples of an update are gone through.
        minibatches: steps in each of them; the samples of a prompt stay together.
        drop_ties: leave out the prompts whose samples all have the same reward.
        temperature: at which sequences are scored, the one they were sampled at.
    """

    policy: Loss | None = None
    weight: float = 1.0
    estimator: Estimator | None = None
    supervised: Loss | None = None
    supervised_weight: float = 1.0
    epochs: int = 1
    minibatches: int = 1
    drop_ties: bool = False
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.policy is None and self.supervised is None:
            raise InputError("Objective: neither policy nor supervised; allowed: at least one loss")
        for name in ("epochs", "minibatches"):
            if getattr(self, name) < 1:
                raise InputError(f"Objective.{name}: {getattr(self, name)}; allowed: at least 1")
        if not self.temperature > 0:
            raise InputError(f"Objective.temperature: {self.temperature}; allowed: above 0")

    @property
    def phases(self) -> tuple[Loss | None, ...]:
        """Policy losses of the steps on a minibatch."""
        return getattr(self.policy, "phases", (self.policy,))

    def need(self, part: Part, phase: int) -> frozenset[str]:
        """Fields of the scores that the losses of a step read."""
        losses = ([] if part.sampled is None else [self.phases[phase]]) + (
            [] if part.reference is None else [self.supervised]
        )
        return NOTHING.union(*(getattr(loss, "need", NOTHING) for loss in losses))

    def loss(self, scores: TokenScores, part: Part, phase: int) -> LossResult:
        """Of a step; where both losses act, ``policy_loss`` and ``supervised_loss`` are logged too."""
        mine, right = part.halves(scores)
        policy, last = self.phases[phase], phase == len(self.phases) - 1
        terms: dict[str, tuple[float, LossResult]] = {}
        if mine is not None and part.sampled is not None and policy is not None:
            terms["policy_loss"] = self.weight, policy(mine, part.sampled)
        if right is not None and part.reference is not None and self.supervised is not None and last:
            terms["supervised_loss"] = self.supervised_weight, self.supervised(right, part.reference)
        value, metrics = scores.log_prob.new_zeros(()), dict[str, Tensor]()
        for name, (weight, found) in terms.items():
            value = value + weight * found.value
            metrics |= found.metrics | ({name: found.value.detach()} if len(terms) > 1 else {})
        return LossResult(value, metrics)

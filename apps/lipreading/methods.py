"""Training objectives that a study compares: a loss over sampled transcripts beside, or in place of, cross-entropy."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from apps.lipreading.rewards import UNLABELLED, Kind
from core.errors import InputError
from core.sequence.advantages import GroupRelative, LeaveOneOut, RewardToGo, SemanticEntropyScale, StandardisedReturns
from core.sequence.any_loss import AnyEstimator, AnyLoss
from core.sequence.losses import MinimumRisk
from core.study import Config

Weight = Annotated[float, Field(ge=0)]
OWN_CREDIT = ("pcpg", "minimum_risk")
"""Losses that read rewards, not advantages."""
SUPPORTED = (*OWN_CREDIT, "reinforce", "grpo", "clip_cov", "kl_cov", "entropy_bonus", "forking_tokens")
"""Losses of transcripts that the model has just sampled."""
BY_SYMBOL = ("pcpg", "clip_cov", "kl_cov")
"""Losses that tell the symbols of a transcript apart."""


class Method(Config):
    """One objective: supervised * L_CE + weight * L_policy."""

    name: str = Field(default="objective", min_length=1)
    """In tables and figures."""
    loss: AnyLoss | None = None
    """Over sampled transcripts; none is cross-entropy alone."""
    estimator: AnyEstimator | None = None
    """Of advantages from rewards; the windows of PCPG make their own."""
    reward: Kind = "cer"
    """What a transcript earns."""
    group: int = Field(default=1, ge=1)
    """Transcripts sampled for a clip."""
    weights: tuple[Weight, ...] = Field(default=(1.0,), min_length=1)
    """Of the policy loss; where there are several, the best on validation clips is taken."""
    supervised: Weight = 1.0
    """Of the cross-entropy."""
    replaced: tuple[float, float] = (0.0, 0.0)
    """Scheduled sampling: share of the decoder's inputs that are the model's own symbols, at first and at last."""
    guard: float | None = Field(default=None, gt=0, le=1)
    """Fall of the share of sentences in the grammar, or of the reward, at which to stop without labels; null never."""
    own_argmax: bool = False
    """They are the most probable symbols, in place of sampled ones."""
    minibatches: int = Field(default=1, ge=1)
    """Steps on each batch of samples."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if not all(0 <= share <= 1 for share in self.replaced):
            raise InputError(f"replaced: {self.replaced} is outside [0, 1]")
        if self.loss is None:
            if not self.supervised:
                raise InputError("supervised: 0 leaves nothing to learn from, as there is no loss; allowed: above 0")
            return self
        if max(self.replaced) > 0:
            raise InputError(f"replaced: {self.replaced}; allowed beside a loss, whose samples are read as they are: 0")
        if self.loss.name not in SUPPORTED:
            raise InputError(f"loss: {self.loss.name} learns from recorded pairs; allowed: {', '.join(SUPPORTED)}")
        if self.loss.name in OWN_CREDIT and self.estimator is not None:
            raise InputError(f"estimator: {self.loss.name} makes its own of the rewards; allowed: null")
        if self.loss.name not in OWN_CREDIT and self.estimator is None:
            raise InputError(f"estimator: is required by {self.loss.name}")
        if self.group < 2 and (self.compares or self.reward in UNLABELLED):
            raise InputError(f"group: {self.group}; transcripts of a clip are compared here, at least 2")
        return self

    @property
    def by_symbol(self) -> bool:
        """Whether the symbols of a transcript are told apart, for which a model must give each its probability."""
        estimator = self.estimator.inner if isinstance(self.estimator, SemanticEntropyScale) else self.estimator
        by_loss = self.loss is not None and self.loss.name in BY_SYMBOL
        return by_loss or max(self.replaced) > 0 or isinstance(estimator, RewardToGo | StandardisedReturns)

    @property
    def compares(self) -> bool:
        """Whether the transcripts of a clip are compared with each other."""
        by_loss = isinstance(self.loss, MinimumRisk) or getattr(self.loss, "baseline", "none") == "group"
        return by_loss or isinstance(self.estimator, LeaveOneOut | GroupRelative | SemanticEntropyScale)

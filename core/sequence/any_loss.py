"""Objectives and estimators that a configuration can name: ``{name: kl_cov, ratio: .02}`` is ``KLCov(ratio=.02)``."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from core.sequence.advantages import Plain, SemanticEntropyScale
from core.sequence.losses import OnlineLoss
from core.sequence.offline import OREO
from core.sequence.preferences import CPL, DPO

AnyLoss = Annotated[OnlineLoss | DPO | CPL | OREO, Field(discriminator="name")]
"""Any objective that is made of numbers alone."""
AnyEstimator = Annotated[Plain | SemanticEntropyScale, Field(discriminator="name")]
"""Any estimator."""

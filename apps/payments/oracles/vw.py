"""The factored model learned online by Vowpal Wabbit.

VW runs over the rows once or more in the order of time, on the columns of the factored oracle's design (its constant,
numbers, levels and their products with the flag bits). Its weights are read out afterwards, so the fitted oracle is
that of ``factored``: all actions at once on any device, saved as safetensors. VW's own model file, a binary format that
its C++ code parses, is neither written nor read, and VW is needed for fitting only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from apps.payments.oracles.factored import Coefficients, FactoredOracle, Link
from apps.payments.oracles.oracle import OracleConfig, OracleDiverged
from apps.payments.oracles.rows import Rows
from core.errors import require
from simulators.payments.context import Sizes


class VWSettings(OracleConfig):
    """The factored model, learned online by Vowpal Wabbit."""

    binary: ClassVar[bool] = True

    kind: Literal["vw"] = "vw"
    loss: Literal["logistic", "squared"] = "logistic"
    """With ``squared`` a score is the approval probability itself, clipped to [0, 1]."""
    learning_rate: float = Field(default=0.5, gt=0)
    """VW's ``--learning_rate``, of its adaptive, normalised, invariant updates."""
    power: float = Field(default=0.5, ge=0, le=1)
    """VW's ``--power_t``: decay of the learning rate."""
    l2: float = Field(default=0.0, ge=0)
    """VW's ``--l2``: ridge of each update."""
    passes: int = Field(default=1, ge=1, le=1000)
    """Over the rows."""

    @property
    def link(self) -> Link:
        """From a score to the approval probability."""
        return "logistic" if self.loss == "logistic" else "identity"

    def _fit(self, rows: Rows, sizes: Sizes, **unused: Any) -> FactoredOracle:
        """Learn from the rows in their order; nothing in it is random."""
        coefficients = Coefficients(sizes)
        examples = list(self._examples(rows, coefficients))
        # A table larger than the columns, indexed by their numbers, has no collisions.
        width = max(18, (len(coefficients) - 1).bit_length())
        workspace = require("vowpalwabbit", "vw").Workspace(
            f"--quiet --noconstant -b {width} --loss_function {self.loss} --learning_rate {self.learning_rate} "
            f"--power_t {self.power} --l2 {self.l2}"
        )
        try:
            for _ in range(self.passes):
                for example in examples:
                    workspace.learn(example)
            weights = np.array([workspace.get_weight(i) for i in range(len(coefficients))], dtype=np.float64)
        finally:
            workspace.finish()
        if not np.isfinite(weights).all():
            raise OracleDiverged(f"vw: its weights are not finite at the learning rate {self.learning_rate}")
        return FactoredOracle(self, sizes, torch.from_numpy(weights), self.link)

    def restore(self, state: Mapping[str, Tensor], extras: Mapping[str, Any], sizes: Sizes) -> FactoredOracle:
        """The oracle with the saved coefficients."""
        return FactoredOracle(self, sizes, state["coefficients"], self.link)

    def _examples(self, rows: Rows, coefficients: Coefficients) -> Iterator[str]:
        """A line in VW's format a row, in the order of the rows: label, weight, and column:value pairs."""
        design, order = coefficients.design(rows.context, rows.action)
        design = design[np.argsort(order)]
        declined = -1 if self.loss == "logistic" else 0
        weight = np.ones(len(rows)) if rows.weight is None else rows.weight.cpu().double().numpy()
        pairs = [f"{column}:{value:.9g}" for column, value in zip(design.indices, design.data, strict=True)]
        for i, reward in enumerate(rows.reward.tolist()):
            label = 1 if reward == 1 else declined
            yield f"{label} {weight[i]:.9g} | {' '.join(pairs[design.indptr[i] : design.indptr[i + 1]])}"

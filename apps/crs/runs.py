"""The runs of a study: test dialogues of a policy, and the comparison of active inference with pymdp."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from pydantic import Field

from apps.crs.evaluation import evaluate
from apps.crs.problem import GeneratedSource, Problem
from apps.crs.products import PolicyProduct
from apps.crs.training import LOOKS
from core import files
from core.errors import MissingExtra
from core.study import Context, Run


class Play(Run):
    """The test dialogues of a policy."""

    policy: PolicyProduct
    """Whose."""
    problem: Problem
    """On what it is tested; the policy may have been made for another."""

    @property
    def label(self) -> str:
        """Name on the screen."""
        where = "" if self.problem == self.policy.problem else f" on {self.problem.name}"
        return f"{self.policy.label}{where}"

    def execute(self, inputs: Mapping[str, xr.Dataset], context: Context) -> xr.Dataset:
        """What ``evaluate`` returns, with the looks at the held-out dialogues where the policy was trained."""
        opened = self.problem.open(context)
        policy = self.policy.open(opened.world, context)
        played = evaluate(
            opened.world, policy, opened.cases(), shortcut=self.problem.shortcut, progress=context.progress
        )
        record = context.product(self.policy) / LOOKS
        if record.exists():
            looks = files.read_json(record, ("looks",))["looks"]
            columns = {name: ("look", np.array([look[name] for look in looks], dtype=float)) for name in looks[0]}
            played = played.assign({f"look_{name}": column for name, column in columns.items()})
        popularity = np.bincount(
            opened.world.catalogue.interactions["train"][:, 1], minlength=opened.world.catalogue.n_items
        )
        return played.assign(popularity=("dialogue", popularity[played["target"].values].astype(np.int32)))


class Agreement(Run):
    """Expected free energies of the closed form and of a pymdp agent, in the same dialogues."""

    catalogue: GeneratedSource = GeneratedSource(n_items=256, n_types=6, n_values=8)
    """On what; small, because pymdp's tables are dense."""
    dialogues: int = Field(default=16, ge=1)
    """At once."""
    turns: int = Field(default=5, ge=1)
    """That are compared."""
    method: Literal["pymdp"] = "pymdp"
    """With what."""

    @property
    def label(self) -> str:
        """Name on the screen."""
        return "active inference and pymdp"

    def execute(self, inputs: Mapping[str, xr.Dataset], context: Context) -> xr.Dataset:
        """``gap`` of every action, turn and dialogue; empty, with the reason as an attribute, without pymdp."""
        from apps.crs.pymdp_agent import compare_with_closed_form

        opened = Problem(name="pymdp", catalogue=self.catalogue, limit=self.dialogues).open(context)
        try:
            found = compare_with_closed_form(opened.world, opened.cases(), turns=self.turns)
        except MissingExtra as missing:
            return xr.Dataset({"gap": ("number", np.empty(0))}, attrs={"reason": str(missing)})
        return xr.Dataset({"gap": ("number", gaps(found), {"units": "nats"})})


def gaps(compared: xr.Dataset) -> NDArray[np.float64]:
    """``(n,)`` the differences of ``compare_with_closed_form`` where there is something to compare.

    Infinite where one side alone has no number: what is compared follows from the dialogues, not from the results.
    """
    sides = [np.isfinite(compared[name].values.astype(np.float64)) for name in ("closed_form", "pymdp")]
    found: NDArray[np.float64] = compared["difference"].values.astype(np.float64)
    return np.where(sides[0] & sides[1], found, np.inf)[sides[0] | sides[1]]

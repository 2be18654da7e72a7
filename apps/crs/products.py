"""What runs share: policies, each made once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from apps.crs.methods import AnyMethod, Workbench
from apps.crs.policies import Policy
from apps.crs.problem import Opened, Problem
from core import files
from core.study import Context, Product

if TYPE_CHECKING:
    from simulators.crs import Conversation

RECORD = "policy.json"


class PolicyProduct(Product):
    """A policy that a method has made."""

    problem: Problem
    """For which conversation."""
    method: AnyMethod
    """How."""
    seed: int
    """Of its training and its coins."""

    @property
    def label(self) -> str:
        """Name on the screen."""
        return f"{self.method.name}, {self.problem.name}, seed {self.seed}"

    def make(self, directory: Path, context: Context) -> None:
        """Tune or train it."""
        self.write(directory, self.problem.open(context), context)

    def write(self, directory: Path, opened: Opened, context: Context) -> None:
        """The same for an opened problem."""
        self.method.make(Workbench(opened, directory, context.checkpoint, context.progress), self.seed)
        method, catalogue = self.method.model_dump(mode="json"), opened.world.catalogue.hash
        files.write_json(directory / RECORD, {"method": method, "seed": self.seed, "catalogue": catalogue})

    def open(self, world: Conversation, context: Context) -> Policy:
        """The policy in a world, which may have other rules than the one it was made for."""
        return self.method.open(world, context.product(self), self.seed)

"""Runs and products: the pure functions that a study is made of."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import xarray as xr

from core.study.config import Config

if TYPE_CHECKING:
    from core.study.context import Context


class Run(Config):
    """One run: a pure function of its fields and of the results of its inputs.

    Every field whose value is a run, or a tuple of runs, names an input: the runner executes it first, once however
    many runs name it, and hands its result to ``execute`` under the field's name (``name.0``, ``name.1`` for a tuple).
    """

    @abstractmethod
    def execute(self, inputs: Mapping[str, xr.Dataset], context: Context) -> xr.Dataset:
        """Do the work and return the result; what it keeps in ``context.checkpoint`` survives a kill.

        Args:
            inputs: results of the input runs, keyed by field name.
            context: directory, checkpoint folder, device, products, progress and log.
        """

    @property
    def label(self) -> str:
        """Short text that names this run on the screen and in the report."""
        return type(self).__name__


class Product(Config):
    """What several runs share, such as a fitted prior or a trained policy: a pure function of its own fields."""

    @abstractmethod
    def make(self, directory: Path, context: Context) -> None:
        """Write the product's files into ``directory``, where an interrupted ``make`` finds what it left.

        Args:
            directory: working folder; it becomes ``DIR/products/<hash>`` when ``make`` returns.
            context: as for a run; ``context.product`` gives the products that this one builds on.
        """

    @property
    def label(self) -> str:
        """Short text that names this product on the screen and in the report."""
        return type(self).__name__


def inputs_of(run: Run) -> dict[str, Run]:
    """The runs that ``run`` takes its inputs from, keyed as ``execute`` receives them."""
    found: dict[str, Run] = {}
    for name in type(run).model_fields:
        value = getattr(run, name)
        if isinstance(value, Run):
            found[name] = value
        elif isinstance(value, tuple | list):
            found |= {f"{name}.{i}": item for i, item in enumerate(value) if isinstance(item, Run)}
    return found


def expand(runs: Iterable[Run]) -> dict[str, Run]:
    """The runs and all they need, once each, keyed by hash and ordered so that inputs come first."""
    ordered: dict[str, Run] = {}

    def visit(run: Run) -> None:
        if (key := run.hash) not in ordered:
            for needed in inputs_of(run).values():
                visit(needed)
            ordered[key] = run

    for run in runs:
        visit(run)
    return ordered

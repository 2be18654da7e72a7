"""What a study concludes: the rows of its table, its claims, its figures, and the summary that keeps them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xarray as xr

from core.files import jsonable
from core.study.claims import Claim

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing


class StudyError(RuntimeError):
    """A study that could not be completed; the message has one line for each run that failed."""


@dataclass(frozen=True)
class Row:
    """One number of the table: the mean of ``metric`` over ``n`` replicates, with its interval."""

    scenario: str
    method: str
    metric: str
    unit: str
    mean: float | None
    low: float | None = None
    high: float | None = None
    n: int | None = None


def side_by_side(rows: Iterable[Row]) -> dict[str, dict[str, list[Row]]]:
    """The rows by scenario and by metric with its unit, in order of appearance: what is compared stands together."""
    groups: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        metric = row.metric if row.unit in ("", "1") else f"{row.metric} ({row.unit})"
        groups.setdefault(row.scenario, {}).setdefault(metric, []).append(row)
    return groups


@dataclass(frozen=True)
class Figure:
    """A picture of the report: ``draw`` returns it, ``caption`` says what is seen and over how many replicates."""

    name: str
    caption: str
    draw: Callable[[], Drawing]


@dataclass(frozen=True)
class Analysis:
    """All that a study concludes from its results.

    Attributes:
        table: the numbers, in the order in which they are printed.
        claims: what was tested.
        figures: what is drawn.
        data: what goes to ``results.nc``.
        notes: paragraphs for the report: assumptions, exclusions, what was not done.
    """

    table: list[Row]
    claims: list[Claim]
    figures: list[Figure]
    data: xr.Dataset | xr.DataTree
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Summary:
    """The content of ``summary.json``, and the folder it lies in.

    Attributes:
        seconds: wall seconds of the study, added up over resumptions.
        out: the folder of the study.
    """

    study: str
    config_hash: str
    version: str
    seconds: float
    claims: list[Claim]
    table: list[Row]
    out: Path

    @property
    def all_hold(self) -> bool:
        """Whether every claim was decided and holds."""
        return all(claim.holds is True for claim in self.claims)

    @property
    def report(self) -> Path:
        """The page with everything on it."""
        return self.out / "report.html"

    def content(self) -> dict[str, Any]:
        """The JSON data of ``summary.json``."""
        data = asdict(self)
        del data["out"]
        plain: dict[str, Any] = jsonable(data)
        return plain

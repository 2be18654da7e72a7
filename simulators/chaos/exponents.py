"""Our own Lyapunov exponents of the catalogue's ordinary differential equations, with their standard errors.

The table beside this module is made by ``python -m simulators.chaos.estimation``.
"""

from __future__ import annotations

import csv
import io
from dataclasses import astuple, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Literal

from core.errors import InputError
from simulators.chaos.catalogue import stored

TABLE = Path(__file__).with_name("exponents.csv")
Source = Literal["estimated", "stored"]


@dataclass(frozen=True)
class Estimated:
    """What we estimated for a system.

    Attributes:
        name: of the system.
        values: exponents in 1 / time units, largest first.
        standard_errors: of ``values``.
        kaplan_yorke: dimension from the mean spectrum.
        kaplan_yorke_standard_error: of that, by the jackknife.
        sum_error: sum of the exponents less the mean divergence of the flow.
        trajectories: behind the means.
        failed: trajectories left out.
        periods: that each was followed.
        steps_per_period: of dop853.
        reason: why there are no values; empty where there are.
    """

    name: str
    values: tuple[float, ...] = ()
    standard_errors: tuple[float, ...] = ()
    kaplan_yorke: float | None = None
    kaplan_yorke_standard_error: float | None = None
    sum_error: float | None = None
    trajectories: int = 0
    failed: int = 0
    periods: float = 0.0
    steps_per_period: int = 0
    reason: str = ""


def estimated(name: str) -> Estimated | None:
    """Our own exponents of a system; None where there are none (see ``table`` for the reason)."""
    entry = table().get(name)
    return entry if entry is not None and entry.values else None


def exponent(name: str, source: Source = "estimated") -> float:
    """Largest Lyapunov exponent of a system of the catalogue, 1 / time units.

    Args:
        name: of the system.
        source: ``estimated`` by us, with a standard error in ``estimated(name)``, or ``stored`` in dysts, which the
            published comparisons use.

    Raises:
        InputError: an unknown source or system, or a system for which we have no estimate.
        MissingExtra: dysts is not installed and its value is asked for.
    """
    if source == "stored":
        return stored(name).maximum_lyapunov
    if source != "estimated":
        raise InputError(f"source = {source!r}; allowed are estimated and stored")
    found = estimated(name)
    if found is None:
        entry = table().get(name)
        why = entry.reason if entry else "not an ordinary differential equation of the catalogue"
        raise InputError(f"system: {name} has no exponent of ours ({why}); source stored has dysts' value")
    return found.values[0]


@cache
def table() -> dict[str, Estimated]:
    """Every system that was tried, by name."""
    return read(TABLE)


def read(path: Path) -> dict[str, Estimated]:
    """A table that the command of this module wrote; empty where there is none."""
    if not path.exists():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        return {row["name"]: _parsed(row) for row in csv.DictReader(file)}


def _parsed(row: dict[str, str]) -> Estimated:
    def numbers(key: str) -> tuple[float, ...]:
        return tuple(float(x) for x in row[key].split())

    def number(key: str) -> float | None:
        return float(row[key]) if row[key] else None

    return Estimated(
        row["name"],
        numbers("values"),
        numbers("standard_errors"),
        number("kaplan_yorke"),
        number("kaplan_yorke_standard_error"),
        number("sum_error"),
        int(row["trajectories"]),
        int(row["failed"]),
        float(row["periods"]),
        int(row["steps_per_period"]),
        row["reason"],
    )


def written(entries: dict[str, Estimated]) -> str:
    """The text of a table."""

    def cell(value: object) -> str:
        if isinstance(value, tuple):
            return " ".join(cell(x) for x in value)
        return "" if value is None else f"{value:.7g}" if isinstance(value, float) else str(value)

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(field.name for field in fields(Estimated))
    writer.writerows([cell(value) for value in astuple(entries[name])] for name in sorted(entries))
    return text.getvalue()

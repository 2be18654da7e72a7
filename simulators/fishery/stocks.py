"""Catch and abundance-index series of one fish stock: the shipped ones, and users' CSV files."""

from __future__ import annotations

import csv
import itertools
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from core.errors import InputError

_DATA = Path(__file__).parent / "data"
_HEADER = ["year", "catch", "index"]
_FEWEST_INDEX_VALUES = 5
_MISSING = {"", "na", "nan"}
_PUBLICATION = (
    "Polacheck, Hilborn and Punt (1993), Can. J. Fish. Aquat. Sci. 50, 2597-2607, through data set `pol` of the "
    "R package spict (GPL >= 3); unit labels customary, unconfirmed"
)
# The unit labels of the shipped series (catch, index), from their README.
_SHIPPED_UNITS = {
    "namibian_hake": ("thousand tonnes", "tonnes per standard hour"),
    "nz_rock_lobster": ("tonnes", "kg per pot lift"),
    "south_atlantic_albacore": ("thousand tonnes", "kg per 100 hooks"),
}


@dataclass(frozen=True)
class Stock:
    """Yearly catch and abundance index of one stock.

    Attributes:
        name: the stock.
        year: (T,) int, consecutive.
        catch: (T,) caught in the year, in ``catch_unit``; finite, >= 0, not all zero.
        index: (T,) abundance index at the start of the year, in ``index_unit``; > 0, NaN where there was no survey.
        catch_unit: unit of catch, and of every biomass fitted to it.
        index_unit: unit of the index.
        source: where the numbers come from, and what is not certain about them.
    """

    name: str
    year: NDArray[np.int64]
    catch: NDArray[np.float64]
    index: NDArray[np.float64]
    catch_unit: str
    index_unit: str
    source: str


def shipped_stocks() -> list[str]:
    """Names of the stocks that come with the package."""
    return sorted(_SHIPPED_UNITS)


def read_stock(path_or_name: str | Path, *, catch_unit: str = "catch unit", index_unit: str = "index unit") -> Stock:
    """Read a CSV file with the header ``year,catch,index``, or a shipped stock by its bare name.

    Years are consecutive. An index cell may be empty, ``NA`` or ``NaN``; a catch may not. The file states no units:
    those of a user's file are the arguments, those of a shipped stock are known (and unconfirmed).

    Raises:
        InputError: no such file or stock; a wrong header; a row of the wrong length; missing, duplicate or unsorted
            years; a catch that is missing, negative or not a number; an index that is not a number above 0; fewer
            than five index values; no catch at all. The message names file, line and field.
    """
    name = str(path_or_name)
    if name in _SHIPPED_UNITS:
        path = _DATA / f"{name}.csv"
        (catch_unit, index_unit), source = _SHIPPED_UNITS[name], _PUBLICATION
    else:
        path = Path(path_or_name)
        name, source = path.stem, f"file {path.name}"
    if not path.is_file():
        shipped = ", ".join(shipped_stocks())
        raise InputError(f"{path_or_name}: no such file; allowed is a CSV file or one of the stocks {shipped}")
    rows = [_read_row(path, line, row) for line, row in _read_lines(path)]
    _check_series(path, rows)
    return Stock(
        name=name,
        year=np.array([r.year for r in rows], dtype=np.int64),
        catch=np.array([r.catch for r in rows]),
        index=np.array([r.index for r in rows]),
        catch_unit=catch_unit,
        index_unit=index_unit,
        source=source,
    )


@dataclass(frozen=True)
class _Row:
    line: int
    year: int
    catch: float
    index: float


def _read_lines(path: Path) -> list[tuple[int, list[str]]]:
    """The rows under the header with their line numbers; blank lines are skipped."""
    try:
        # utf-8-sig: spreadsheets write a byte-order mark before the first column's name.
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            lines = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as a CSV file: {error}") from error
    if not lines or lines[0][1] != _HEADER:
        found = f"line {lines[0][0]} is {','.join(lines[0][1])[:80]!r}" if lines else "the file is empty"
        raise InputError(f"{path}: {found}, the header must be 'year,catch,index'")
    return lines[1:]


def _read_row(path: Path, line: int, row: list[str]) -> _Row:
    where = f"{path}: line {line}"
    if len(row) != len(_HEADER):
        raise InputError(f"{where}: has {len(row)} cell(s), expected 3 (year,catch,index)")
    year, catch, index = row
    if not year.isdecimal() or len(year) > 4:
        raise InputError(f"{where}: year is {year!r}, expected a whole number of at most 4 digits")
    caught = _number(where, "catch", catch, "expected a number of at least 0 (no gaps)")
    if not caught >= 0:
        raise InputError(f"{where}: catch is {catch!r}, expected a number of at least 0 (no gaps)")
    surveyed = _number(where, "index", index, "expected a number above 0, or nothing")
    if surveyed <= 0:
        raise InputError(f"{where}: index is {index!r}, expected a number above 0, or nothing")
    return _Row(line, int(year), caught, surveyed)


def _number(where: str, field: str, cell: str, allowed: str) -> float:
    if cell.lower() in _MISSING:
        return math.nan
    try:
        value = float(cell)
    except ValueError:
        value = math.inf
    if not math.isfinite(value):
        raise InputError(f"{where}: {field} is {cell!r}, {allowed}")
    return value


def _check_series(path: Path, rows: list[_Row]) -> None:
    for before, row in itertools.pairwise(rows):
        if row.year == before.year + 1:
            continue
        if row.year == before.year:
            problem = "is given twice"
        elif row.year < before.year:
            problem = f"stands after {before.year}: years must be sorted"
        else:
            problem = f"follows {before.year}: years must not have gaps"
        raise InputError(f"{path}: line {row.line}: year {row.year} {problem}")
    surveys = sum(not math.isnan(r.index) for r in rows)
    if surveys < _FEWEST_INDEX_VALUES:
        raise InputError(f"{path}: index has {surveys} value(s), at least {_FEWEST_INDEX_VALUES} are needed")
    if not any(r.catch > 0 for r in rows):
        raise InputError(f"{path}: catch is 0 in every year, at least one catch must be above 0")

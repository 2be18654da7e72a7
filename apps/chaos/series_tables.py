"""Columns of text and Parquet files, as they stand in the file."""

from __future__ import annotations

import csv
import gzip
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from core.errors import InputError, require

Column: TypeAlias = NDArray[Any]
Numbers: TypeAlias = NDArray[np.float64]
TEXT = (".csv", ".tsv", ".txt", ".dat")
PARQUET = (".parquet", ".pq")
BLANK = ("", "nan", "na", "n/a", "null", "none")
"""What stands for a missing value in text, whatever the case of its letters."""
TIME_NAMES = ("time", "date", "datetime", "timestamp", "year", "years")
"""Of time columns, whatever the case of their letters; and ``t``."""
ENCODING = "utf-8-sig"


@dataclass(frozen=True, eq=False)
class Table:
    """What a file holds, before anything is checked.

    Attributes:
        path: of the file.
        columns: by name, each ``(n,)`` of any type; text as str.
        units: of columns, where the file states them.
        time: name of the column of times; None for none.
        row: what a row is called in messages.
        numbers: of the rows, in messages.
    """

    path: Path
    columns: Mapping[str, Column]
    units: Mapping[str, str]
    time: str | None
    row: str
    numbers: NDArray[np.int64]

    def place(self, index: int, column: str) -> str:
        """Where a value stands."""
        return f"{self.path}: {self.row} {self.numbers[index]}, column {column}"


def read_table(path: Path, time: str | None, channels: Sequence[str], select: Mapping[str, str]) -> Table:
    """The columns of a text or Parquet file.

    Args:
        path: of the file.
        time: name of the column of times; ``none`` for none; None to find it.
        channels: names of columns; empty for all.
        select: keeps the rows whose columns have these values.

    Raises:
        InputError: a file that cannot be read, or an unknown column.
        MissingExtra: a Parquet file without the package pyarrow.
    """
    table = _parquet(path) if path.suffix.lower() in PARQUET else _text(path)
    return _chosen(_with_time(_selected(table, select), time), channels)


def is_text(path: Path) -> bool:
    """Whether the name of a file is one of a table in text."""
    return (path.with_suffix("") if path.suffix == ".gz" else path).suffix.lower() in TEXT


def numeric(text: Column) -> Numbers:
    """Numbers ``(n,)`` of text; NaN where it is none."""
    # Python reads decimals to the nearest number, which pandas does not.
    return np.fromiter(map(_number, text), dtype=np.float64, count=len(text))


def dates(column: Column) -> NDArray[np.datetime64]:
    """Dates ``(n,)`` of ISO text, in UTC; NaT where it is none."""
    found = pd.to_datetime(pd.Series(column), format="ISO8601", errors="coerce", utc=True)
    return found.dt.tz_localize(None).to_numpy()


def is_blank(text: Any) -> bool:
    """Whether a value of a column of text is missing."""
    return not isinstance(text, str) or text.strip().lower() in BLANK


def short(value: Any) -> str:
    """A value of a file in a message."""
    text = repr(str(value))
    return text if len(text) <= 40 else text[:36] + "...'"


def _number(cell: Any) -> float:
    try:
        return float("nan" if "_" in cell else cell)
    except (TypeError, ValueError):
        return float("nan")


def _text(path: Path) -> Table:
    rows, numbers = _rows(path)
    header = any(not is_blank(cell) and not _is_value(cell) for cell in rows[0])
    labels = rows[0] if header else [f"c{i}" for i in range(len(rows[0]))]
    rows, numbers = rows[header:], numbers[header:]
    if not rows:
        raise InputError(f"{path}: has a header but no row of numbers")
    names, units = _named(path, labels)
    columns = {name: np.array(cells, dtype=object) for name, cells in zip(names, zip(*rows, strict=True), strict=True)}
    return Table(path, columns, units, None, "line", np.array(numbers))


def _rows(path: Path) -> tuple[list[list[str]], list[int]]:
    """Cells of all rows and the numbers of their lines."""
    try:
        with gzip.open(path, "rt", encoding=ENCODING) if path.suffix == ".gz" else path.open(encoding=ENCODING) as file:
            lines = file.read().splitlines()
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError) as error:
        raise InputError(f"{path}: not text in UTF-8, must be a table of numbers in text") from error
    kept = [(i, line) for i, line in enumerate(lines, 1) if not line.lstrip().startswith("#")]
    while kept and not kept[-1][1].strip():
        kept.pop()
    filled = [line for _, line in kept[:100] if line.strip()]
    if not filled:
        raise InputError(f"{path}: empty, must hold one row a sample")
    delimiter = _delimiter(filled[min(1, len(filled) - 1)])
    # Alone in its column, a blank line is a missing value; between rows of a wider table it only sets them apart.
    if delimiter is not None:
        kept = [(i, line) for i, line in kept if line.strip()]
    try:
        rows = [[cell.strip() for cell in row] for row in _split([line for _, line in kept], delimiter)]
    except csv.Error as error:
        raise InputError(
            f"{path}: {error} (a quotation mark that is not closed?), must be a table of numbers"
        ) from error
    numbers = [i for i, _ in kept]
    if len(rows) != len(numbers):
        raise InputError(f"{path}: a quoted value spans several lines, must stand in one")
    for number, row in zip(numbers, rows, strict=True):
        if len(row) != len(rows[0]):
            raise InputError(
                f"{path}: line {number}: {len(row)} values, must be {len(rows[0])} as in line {numbers[0]}"
            )
    return rows, numbers


def _delimiter(line: str) -> str | None:
    """What stands between values: a character, `` `` for any white space, None for a single column."""
    for character in "\t;,":
        if character in line:
            return character
    return " " if len(line.split()) > 1 and not _is_value(line.strip()) else None


def _split(lines: Sequence[str], delimiter: str | None) -> Iterator[list[str]]:
    if delimiter is None:
        return ([line] for line in lines)
    return (line.split() for line in lines) if delimiter == " " else csv.reader(lines, delimiter=delimiter, strict=True)


def _is_value(cell: str) -> bool:
    """Whether a cell holds a number or a date, rather than a name."""
    text = np.array([cell], dtype=object)
    return not (np.isnan(numeric(text)[0]) and np.isnat(dates(text)[0]))


def _named(path: Path, labels: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Names and units of columns whose labels may read ``x (mV)`` or ``x [mV]``."""
    names, units = [], {}
    for label in labels:
        parts = re.fullmatch(r"(.+?)\s*[(\[]([^()\[\]]+)[)\]]", label)
        name = parts[1] if parts else label
        if name in names:
            raise InputError(f"{path}: column {name!r} appears twice, names must differ")
        names.append(name)
        if parts:
            units[name] = parts[2]
    return names, units


def _parquet(path: Path) -> Table:
    require("pyarrow", "chaos")
    try:
        frame = pd.read_parquet(path)
    except (OSError, ValueError, TypeError, KeyError, NotImplementedError) as error:
        raise InputError(f"{path}: not a Parquet file that can be read ({str(error).splitlines()[0]})") from error
    if not isinstance(frame.index, pd.RangeIndex):
        frame = frame.reset_index()
    if frame.empty:
        raise InputError(f"{path}: empty, must hold one row a sample")
    names, units = _named(path, [str(name) for name in frame.columns])
    columns = {name: _typed(frame.iloc[:, i]) for i, name in enumerate(names)}
    return Table(path, columns, units, None, "row", np.arange(1, len(frame) + 1))


def _typed(column: pd.Series) -> Column:
    """A column as NumPy holds it; a number that is missing becomes NaN."""
    if isinstance(column.dtype, pd.DatetimeTZDtype):
        column = column.dt.tz_convert("UTC").dt.tz_localize(None)
    if isinstance(column.dtype, pd.api.extensions.ExtensionDtype) and pd.api.types.is_numeric_dtype(column.dtype):
        return column.to_numpy(dtype=np.float64, na_value=np.nan)
    return np.asarray(column.to_numpy())


def _selected(table: Table, select: Mapping[str, str]) -> Table:
    columns = dict(table.columns)
    for name, value in select.items():
        if name not in columns:
            raise InputError(f"{table.path}: select {name}: no such column; there are: {', '.join(columns)}")
        column = columns.pop(name)
        if column.dtype == object:
            kept = np.array([str(cell).strip() == value for cell in column])
        else:
            number = numeric(np.array([value], dtype=object))[0]
            kept = np.asarray(column == number)
        if not kept.any():
            known = ", ".join(str(v) for v in pd.unique(column)[:10])
            raise InputError(f"{table.path}: select {name}={value}: no such row; there are: {known}")
        columns = {n: c[kept] for n, c in columns.items()}
        table = replace(table, columns=columns, numbers=table.numbers[kept])
    if "trajectory" in columns:
        several = pd.unique(columns.pop("trajectory"))
        if len(several) > 1:
            raise InputError(
                f"{table.path}: column trajectory: {len(several)} series, must be one: --select trajectory={several[0]}"
            )
        table = replace(table, columns=columns)
    return table


def _with_time(table: Table, time: str | None) -> Table:
    """With the column of times: the one that is asked for, or named so, or a first one of dates or that increases."""
    names = list(table.columns)
    if time not in names and len(names) > 1 and _counts_rows(names[0], table.columns[names[0]]):
        table = replace(table, columns={name: table.columns[name] for name in names[1:]})
        names = names[1:]
    if time == "none":
        return table
    if time is not None:
        if time not in names:
            raise InputError(f"{table.path}: time {time}: no such column; there are: {', '.join(names)}, or none")
        return replace(table, time=time)
    named = [name for name in names if name == "t" or name.lower() in TIME_NAMES]
    if named:
        return replace(table, time=named[0])
    first = table.columns[names[0]]
    if first.dtype.kind == "M":
        return replace(table, time=names[0])
    increasing = numeric(first) if first.dtype == object else first
    if first.dtype == object and np.isnan(increasing).all() and not np.isnat(dates(first)).all():
        return replace(table, time=names[0])
    # Of chaotic channels none increases from the first row to the last.
    if len(names) > 1 and increasing.dtype.kind in "iuf" and len(first) > 2 and (np.diff(increasing) > 0).all():
        return replace(table, time=names[0])
    return table


def _counts_rows(name: str, column: Column) -> bool:
    """Whether a column is the index that pandas writes unless it is told not to."""
    if name not in ("", "Unnamed: 0", "index"):
        return False
    counted = numeric(column) if column.dtype == object else column
    return counted.dtype.kind in "iuf" and bool((np.diff(counted) == 1).all())


def _chosen(table: Table, channels: Sequence[str]) -> Table:
    """With the time and the channels that are asked for, which may be called by their label with the unit."""
    names = [name for name in table.columns if name != table.time]
    if not names:
        raise InputError(f"{table.path}: no channel besides the time {table.time}")
    labels = {
        f"{name} {bracket.format(unit)}": name for name, unit in table.units.items() for bracket in ("({})", "[{}]")
    }
    wanted = [labels.get(name, name) for name in channels] or names
    for name in wanted:
        if name not in names:
            raise InputError(f"{table.path}: channel {name}: no such channel; there are: {', '.join(names)}")
    kept = wanted if table.time is None else [table.time, *wanted]
    return replace(table, columns={name: table.columns[name] for name in kept})

"""Rows of delimited text, each with its number."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass
from pathlib import Path

from core.errors import InputError
from simulators.crs import json_tables
from simulators.crs.catalogue import Ids

DELIMITERS = (",", ";", "\t")


@dataclass(frozen=True)
class Rows:
    """A table of text.

    Attributes:
        path: of the file.
        header: names of the columns.
        rows: number of the row and its cells, as many as the header has; the header is row 1 and empty rows are left
            out.
    """

    path: Path
    header: list[str]
    rows: list[tuple[int, list[str]]]


def read_rows(path: Path, delimiter: str = "") -> Rows:
    """The rows of a UTF-8 file.

    Args:
        path: of the file.
        delimiter: between cells; without it, whichever of comma, semicolon and tabulator is most frequent in the first
            line.

    Raises:
        InputError: it cannot be read, has no rows, or a row is not as long as the header.
    """
    text = json_tables.read_text(path)
    first = text.partition("\n")[0]
    delimiter = delimiter or max(DELIMITERS, key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    found: list[tuple[int, list[str]]] = []
    number = 0
    try:
        for number, row in enumerate(reader, start=1):
            cells = [cell.strip() for cell in row]
            if found and any(cells) and len(cells) != len(found[0][1]):
                raise InputError(f"{path}: row {number}: {len(cells)} cells; must be {len(found[0][1])}, as the header")
            if any(cells):
                found.append((number, cells))
    except csv.Error as error:
        raise InputError(f"{path}: row {number + 1}: {error}") from error
    if len(found) < 2:
        raise InputError(f"{path}: {len(found)} rows; must be a header and at least one row")
    return Rows(path, found[0][1], found[1:])


def whole_number(where: str, cell: str, count: int | None) -> int:
    """The id in a cell.

    Raises:
        InputError: it is none, or not below ``count``.
    """
    return json_tables.as_id(where, int(cell) if re.fullmatch(r"[0-9]{1,18}", cell) else cell, count)


def read_id_pairs(path: Path, counts: tuple[int, int]) -> tuple[Ids, int]:
    """Pairs of ids of a tabulated file with two columns, in the order of the file.

    Returns:
        ``(n, 2)`` and the number of repeated pairs that were dropped.

    Raises:
        InputError: another number of columns, or a cell that is no id below the count of its column.
    """
    table = read_rows(path, "\t")
    if len(table.header) != 2:
        raise InputError(f"{path}: {len(table.header)} columns; must be 2, tabulated")
    found: dict[tuple[int, int], None] = {}
    for number, (left, right) in table.rows:
        where = f"{path}: row {number}"
        found[whole_number(where, left, counts[0]), whole_number(where, right, counts[1])] = None
    return json_tables.as_pairs(list(found)), len(table.rows) - len(found)

"""Files of text and tables that others made: read whole, and what cannot be read is named in one line."""

from __future__ import annotations

import csv
import io
from itertools import zip_longest
from pathlib import Path

from core.errors import InputError


def read_text(path: Path) -> str:
    """The content of a UTF-8 file, without the byte order mark that some programs write before it.

    Raises:
        InputError: it cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: {(error.strerror or str(error)).lower()}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 text") from error


def read_rows(path: Path) -> list[list[str]]:
    """The cells of a CSV file, by row, its header first.

    Raises:
        InputError: as ``read_text``, or it is no table.
    """
    try:
        return list(csv.reader(io.StringIO(read_text(path), newline="")))
    except csv.Error as error:
        raise InputError(f"{path}: not a table ({error})") from error


def read_records(path: Path) -> list[dict[str, str | None]]:
    """The rows of a CSV file below its header, by the header's names, without blanks around names and cells.

    Empty rows are passed over; a cell that a row lacks is None, and cells beyond the header are left away.

    Raises:
        InputError: as ``read_rows``.
    """
    rows = [[cell.strip() for cell in row] for row in read_rows(path)]
    header, *rest = [row for row in rows if row not in ([], [""])] or [[]]
    return [dict(zip_longest(header, row[: len(header)])) for row in rest]

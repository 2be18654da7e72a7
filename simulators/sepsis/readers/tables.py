"""Tables of records, CSV or Parquet: what a cell must be, and the one line that says where it is not.

Rows are counted from 0. Messages name a row and a column; they show a cell only where it is a code (a step, an action,
a reward, a split), never a patient's value or id.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from core.errors import InputError, require
from simulators.sepsis.readers.column_map import find_columns

Numbers = NDArray[np.float64]
Codes = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Table:
    """The columns of a file that were read.

    Attributes:
        file: they come from.
        columns: ``{name: column in the file}`` of all that the file has, read or not.
        cells: a column a name.
    """

    file: Path
    columns: Mapping[str, str]
    cells: pd.DataFrame

    def __len__(self) -> int:
        return len(self.cells)

    def has(self, *names: str) -> bool:
        """Whether the file has all these columns."""
        return all(name in self.columns for name in names)

    def numbers(self, name: str) -> Numbers:
        """``(N,)`` finite numbers of a column.

        Raises:
            InputError: a cell is empty, NaN, infinite or text.
        """
        cells = self.cells[name]
        values = pd.to_numeric(cells, errors="coerce").to_numpy(np.float64, na_value=np.nan)
        wrong = ~np.isfinite(values)
        if wrong.any():
            row = int(wrong.argmax())
            kind = "infinite" if np.isinf(values[row]) else "not a number"
            if cells.isna().iloc[row]:
                kind = "empty or NaN"
            raise InputError(f"{self.file}: row {row}: {self.columns[name]} is {kind}, must be a finite number")
        return values

    def whole(self, name: str, low: int, high: int | None = None) -> Codes:
        """``(N,)`` whole numbers from ``low`` to ``high``.

        Raises:
            InputError: as ``numbers``, or a cell is not a whole number in the range.
        """
        values = self.numbers(name)
        wrong = (values != np.floor(values)) | (values < low) | (values > (np.inf if high is None else high))
        self.refuse(name, wrong, f"a whole number from {low} {'on' if high is None else f'to {high}'}", show=values)
        return values.astype(np.int64)

    def codes(self, name: str) -> Codes:
        """``(N,)`` 0, 1, ... for the distinct ids of a column, in the order in which they first come.

        Raises:
            InputError: an empty cell.
        """
        codes, _ = pd.factorize(self.cells[name])
        self.refuse(name, codes < 0, "an id, not empty")
        return codes.astype(np.int64)

    def refuse(self, name: str, wrong: NDArray[np.bool_], allowed: str, show: Numbers | None = None) -> None:
        """Raise an error about the first wrong cell of a column, if there is one; ``show`` its code if given."""
        if wrong.any():
            row = int(wrong.argmax())
            given = "" if show is None else f"is {show[row]:g}, "
            raise InputError(f"{self.file}: row {row}: {self.columns[name]} {given}must be {allowed}")


def file_columns(file: Path, renamed: Mapping[str, str]) -> dict[str, str]:
    """``{name: column}`` of a file, without reading its rows.

    Raises:
        InputError: the file cannot be read, has a column twice, or as ``find_columns``.
    """
    try:
        if _is_parquet(file):
            header = require("pyarrow.parquet", "sepsis").read_schema(file).names
        else:
            row = pd.read_csv(file, header=None, nrows=1, dtype=str, keep_default_na=False, encoding="utf-8-sig")
            header = row.iloc[0].str.strip().tolist()
    except (OSError, ValueError) as error:
        raise _unreadable(file, error) from error
    twice = {name for name in header if header.count(name) > 1}
    if twice:
        raise InputError(f"{file}: column {min(twice)} stands there twice")
    return find_columns(file, header, renamed)


def read_table(file: Path, columns: Mapping[str, str], required: Iterable[str], optional: Collection[str]) -> Table:
    """Read some columns of a file.

    Args:
        file: CSV, also compressed, or ``.parquet``.
        columns: from ``file_columns``.
        required: names without which the file is refused.
        optional: names that are read where they are.

    Raises:
        InputError: the file cannot be read, a required column is missing, or it has no rows.
    """
    required = tuple(required)
    missing = [name for name in required if name not in columns]
    if missing:
        several = "columns " + ", ".join(missing) + " are" if missing[1:] else f"column {missing[0]} is"
        raise InputError(f"{file}: {several} missing; a column map can give another name")
    wanted = {columns[name]: name for name in (*required, *optional) if name in columns}
    try:
        if _is_parquet(file):
            require("pyarrow.parquet", "sepsis")
            cells = pd.read_parquet(file, columns=list(wanted))
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("error", pd.errors.ParserWarning)
                # All columns, because pandas counts the cells of a row only then: a decimal comma would shift them.
                cells = pd.read_csv(
                    file, index_col=False, encoding="utf-8-sig", low_memory=False, float_precision="round_trip"
                )
            cells = cells.rename(columns=str.strip)[list(wanted)]
    except pd.errors.ParserWarning as error:
        raise InputError(f"{file}: its rows have more cells than its header has columns") from error
    except (OSError, ValueError) as error:
        raise _unreadable(file, error) from error
    if cells.empty:
        raise InputError(f"{file}: has no rows")
    return Table(file, columns, cells.rename(columns=wanted))


def _is_parquet(file: Path) -> bool:
    return file.suffix == ".parquet"


def _unreadable(file: Path, error: OSError | ValueError) -> InputError:
    if isinstance(error, OSError) and error.strerror:
        return InputError(f"{file}: {error.strerror.lower()}")
    kind = "Parquet" if _is_parquet(file) else "CSV"
    return InputError(f"{file}: cannot be read as a {kind} file: {str(error).strip().splitlines()[0]:.120}")

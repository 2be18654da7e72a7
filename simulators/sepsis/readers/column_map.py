"""Which column of a file is which: prefixes, names that differ between versions of MIMIC, and a user's own map."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path

from core.errors import InputError
from core.study import yaml_file
from simulators.sepsis.features import COHORT_COLUMNS

MORTALITIES = ("died_within_48h_of_out_time", "mortality_90d", "died_in_hosp")
"""Columns of the AI-Clinician table that say who died, 0 or 1."""
PREFIXES = ("m:", "o:", "a:", "r:")
"""Of columns that describe, are observed, are actions, and are rewards."""
ALIASES = {"stay_id": "icustayid", "icustay_id": "icustayid"}
"""What MIMIC-IV and the database tables call the same."""
NAMES = (
    *("traj", "step", "bloc", "icustayid", "subject_id", "split", "action", "reward"),
    *MORTALITIES,
    *COHORT_COLUMNS,
)
"""Every column that a reader looks at."""


def read_column_map(path: Path) -> dict[str, str]:
    """A YAML file that says ``NAME: column in the file`` for what is named otherwise there.

    Names are those of ``NAMES``, with or without the prefix that a layout gives them.

    Raises:
        InputError: not such a file, an unknown name, or one column for two names.
    """
    found: dict[str, str] = {}
    for key, column in yaml_file.read(path).items():
        name = _bare(str(key))
        if name not in NAMES:
            close = difflib.get_close_matches(name, NAMES, 1)
            allowed = f"did you mean {close[0]}?" if close else f"must be one of {', '.join(NAMES)}"
            raise InputError(f"{path}: {key}: no column that is read has this name; {allowed}")
        if not isinstance(column, str):
            raise InputError(f"{path}: {key}: is {column!r:.40}, must be the name of a column, text")
        if column in found.values():
            raise InputError(f"{path}: {key}: the column {column} is already given to another name")
        if name in found:
            raise InputError(f"{path}: {key}: stands there twice, with and without its prefix")
        found[name] = column
    return found


def find_columns(file: Path, header: Sequence[str], renamed: Mapping[str, str]) -> dict[str, str]:
    """``{name: column}`` of the columns in a file's header that a reader may look at.

    Args:
        file: that has the header, for messages.
        header: its columns.
        renamed: from ``read_column_map``.

    Raises:
        InputError: a column of the map is absent, or two columns stand for one name.
    """
    for name, column in renamed.items():
        if column not in header:
            raise InputError(f"{file}: column {column}, which the column map gives for {name}, is missing")
    found = dict(renamed)
    for column in header:
        name = _bare(column)
        if name not in NAMES or name in renamed or column in renamed.values():
            continue
        if name in found:
            raise InputError(f"{file}: columns {found[name]} and {column} both stand for {name}; must be one of them")
        found[name] = column
    return found


def _bare(column: str) -> str:
    bare = column[2:] if column.startswith(PREFIXES) else column
    return ALIASES.get(bare, bare)

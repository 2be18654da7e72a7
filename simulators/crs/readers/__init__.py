"""Catalogues of others: the layouts of published data sets, and a shop's own table."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from core.errors import InputError
from simulators.crs import json_tables, storage
from simulators.crs.catalogue import Catalogue
from simulators.crs.readers.scpr import read_scpr
from simulators.crs.readers.table import ITEMS, read_table
from simulators.crs.readers.tcrs import read_tcrs

Layout = Literal["auto", "canonical", "scpr", "tcrs", "table"]

__all__ = ["Layout", "read", "read_scpr", "read_table", "read_tcrs"]


def read(
    path: Path, layout: Layout = "auto", *, seed: int = 0, bins: int = 5, allow_overlap: bool = False
) -> tuple[Catalogue, list[str]]:
    """A catalogue in any layout, and what one should know about it, a line each.

    Args:
        path: a folder, or the CSV file of a table.
        layout: ``canonical`` is ours (``simulators.crs.storage``); ``auto`` tells by the names of files.
        seed: of a split, and of users, where the data has none.
        bins: ``table``: most ranges of a column of numbers.
        allow_overlap: note pairs that stand in two splits, and do not refuse them.

    Raises:
        InputError: an unknown layout, or a file, row or value that it does not allow.
    """
    if layout not in get_args(Layout):
        raise InputError(f"layout: {layout!r}; must be one of {', '.join(get_args(Layout))}")
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    json_tables.refuse_pickles(path)
    if seed < 0:
        raise InputError(f"seed = {seed}: must be at least 0")
    found = _recognised(path) if layout == "auto" else layout
    if found == "canonical":
        catalogue, notes = storage.load_with_notes(path, seed=seed, allow_overlap=allow_overlap)
        return catalogue, [*notes, *storage.check(catalogue)]
    if found == "scpr":
        catalogue, notes = read_scpr(path, seed=seed)
    elif found == "tcrs":
        catalogue, notes = read_tcrs(path, seed=seed)
    else:
        catalogue, notes = read_table(path, seed=seed, bins=bins)
    storage.check_playable(catalogue, str(path), allow_overlap=allow_overlap)
    return catalogue, [*notes, *storage.check(catalogue)]


def _recognised(path: Path) -> Layout:
    if path.is_file():
        return "table"
    marks: dict[Layout, str] = {
        "canonical": storage.META,
        "scpr": "Graph_generate_data",
        "tcrs": "entities",
        "table": ITEMS,
    }
    for layout, mark in marks.items():
        if (path / mark).exists():
            return layout
    raise InputError(f"{path}: no layout recognised; must have one of {', '.join(marks.values())}")

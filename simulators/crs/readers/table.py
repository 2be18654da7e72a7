"""A shop's own catalogue: ``items.csv`` with a row an item and a column a type, and who took what where it is known."""

from __future__ import annotations

import math
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from core.errors import InputError
from simulators.crs import json_tables
from simulators.crs.catalogue import SPLITS, Catalogue, Ids, Split
from simulators.crs.generated import Generated, draw_interactions
from simulators.crs.readers.csv_rows import Rows, read_rows
from simulators.crs.splits import split_by_user

ITEMS, INTERACTIONS = "items.csv", "interactions.csv"
SEPARATOR = "|"
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_NO_NUMBER = {"nan", "inf", "+inf", "-inf", "infinity", "-infinity"}
_MANY = 10
"""Fewer items than this, and values that one item alone has say nothing about their column."""


@dataclass(frozen=True)
class _Items:
    """Items of a table: what they are called, what they are known by, and their values of each type."""

    names: tuple[str, ...]
    keys: dict[str, int]
    types: tuple[str, ...]
    values: tuple[tuple[str, ...], ...]
    edges: Ids


def read_table(path: Path, *, seed: int = 0, bins: int = 5) -> tuple[Catalogue, list[str]]:
    """A catalogue and notes.

    ``items.csv``: the column ``name`` or ``id`` names the items (with both, ``id`` tells those of one name apart);
    each other column is a type. A cell holds values separated by ``|``, or none. A column of numbers with more than
    ``bins`` different ones becomes ranges that have about equally many items. ``interactions.csv``: the columns
    ``user``, ``item`` (id or name) and perhaps ``split`` (train, valid, test). Without that file users are drawn, see
    ``simulators.crs.generated``.

    Args:
        path: the folder, or the table of items; ``interactions.csv`` is looked for beside it.
        seed: of a split, and of users.
        bins: most ranges of a column of numbers.

    Raises:
        InputError: a row or cell that the layout does not allow; fewer than 2 bins.
    """
    if type(bins) is not int or bins < 2:
        raise InputError(f"bins = {bins!r}: must be a whole number of at least 2")
    notes: list[str] = []
    file = path / ITEMS if path.is_dir() else path
    items = _read_items(read_rows(file), bins, notes)
    n_attributes = sum(map(len, items.values))
    beside = file.with_name(INTERACTIONS)
    if beside.exists():
        users, interactions = _read_interactions(read_rows(beside), items, seed, notes)
    else:
        drawn = _drawn(len(items.names))
        users, interactions = drawn.n_users, draw_interactions(items.edges, n_attributes, drawn, seed)
        notes.append(
            f"no {INTERACTIONS}: {users} users of {drawn.per_user} interactions each are drawn with seed {seed}"
        )
    name = file.resolve().parent.name if file.name == ITEMS else file.stem
    catalogue = Catalogue(
        name=name,
        item_names=items.names,
        attribute_names=tuple(value for values in items.values for value in values),
        type_names=items.types,
        attribute_type=np.repeat(np.arange(len(items.types)), [len(values) for values in items.values]),
        edges=items.edges,
        n_users=users,
        interactions=interactions,
        source=f"table {file.name}",
    )
    return catalogue, notes


def _drawn(items: int) -> Generated:
    """Users for so many items; a quarter of them at most, so that there is something to choose."""
    return Generated(n_items=items, per_user=min(Generated.per_user, max(1, items // 4)))


def _read_items(table: Rows, bins: int, notes: list[str]) -> _Items:
    header = [_tidy(name) for name in table.header]
    for place, name in enumerate(header):
        json_tables.check_name(f"{table.path}: column {place + 1}", name)
        if name.casefold() in (other.casefold() for other in header[:place]):
            raise InputError(f"{table.path}: column {place + 1}: {name!r} stands there twice; must be once")
    known = {name.casefold(): place for place, name in enumerate(header) if name.casefold() in ("id", "name")}
    names, keys = _item_names(table, known, notes)
    types: list[str] = []
    values: list[tuple[str, ...]] = []
    pairs: list[tuple[int, int]] = []
    before = 0
    for place, name in enumerate(header):
        if place in known.values():
            continue
        cells = [[_tidy(part) for part in row[place].split(SEPARATOR) if part.strip()] for _, row in table.rows]
        cells = _binned(table, place, cells, bins, notes)
        order = list(dict.fromkeys(value for cell in cells for value in cell))
        if not order:
            notes.append(f"column {name!r} is empty and left out")
            continue
        if len(cells) >= _MANY and len(order) == sum(map(len, cells)) >= len(cells):
            notes.append(
                f"column {name!r}: no two items share a value, so asking about it tells items apart one by one"
            )
        for (number, _), cell in zip(table.rows, cells, strict=True):
            for value in cell:
                json_tables.check_name(f"{table.path}: row {number}: {name}", value)
        index = {value: before + at for at, value in enumerate(order)}
        pairs += [(item, index[value]) for item, cell in enumerate(cells) for value in dict.fromkeys(cell)]
        types.append(name)
        values.append(tuple(order))
        before += len(order)
    if not types:
        raise InputError(f"{table.path}: no values; must have at least one column beside id and name with some")
    return _Items(names, keys, tuple(types), tuple(values), json_tables.as_pairs(pairs))


def _item_names(table: Rows, known: dict[str, int], notes: list[str]) -> tuple[tuple[str, ...], dict[str, int]]:
    """Names to show, and the item of each id and name by which interactions may call it."""
    if not known:
        notes.append("no column name or id: items are called item 0, item 1 and so on, as the rows come")
        names = tuple(f"item {place}" for place in range(len(table.rows)))
        return names, {name: place for place, name in enumerate(names)}
    column = "id" if "id" in known else "name"
    keys: dict[str, int] = {}
    first: dict[str, int] = {}
    for place, (number, row) in enumerate(table.rows):
        for field, at in known.items():
            json_tables.check_name(f"{table.path}: row {number}: {field}", _tidy(row[at]))
        key = _tidy(row[known[column]])
        if key in keys:
            raise InputError(
                f"{table.path}: row {number}: {column} {key!r} is that of row {first[key]} too; must differ"
            )
        keys[key], first[key] = place, number
    if len(known) < 2:
        return tuple(keys), keys
    ids, shown = list(keys), [_tidy(row[known["name"]]) for _, row in table.rows]
    repeated = {name for name, count in zip(*np.unique(shown, return_counts=True), strict=True) if count > 1}
    for place, name in enumerate(shown):
        if name not in repeated:
            keys.setdefault(name, place)
    unique = (f"{name} ({key})" if name in repeated else name for name, key in zip(shown, ids, strict=True))
    return tuple(unique), keys


def _binned(table: Rows, place: int, cells: list[list[str]], bins: int, notes: list[str]) -> list[list[str]]:
    """Ranges in place of numbers, where a column holds numbers only."""
    name = table.header[place]
    single = [(number, cell[0]) for (number, _), cell in zip(table.rows, cells, strict=True) if len(cell) == 1]
    words = [(number, value) for number, value in single if not _NUMBER.fullmatch(value)]
    if not single or any(len(cell) > 1 for cell in cells) or len(words) == len(single):
        return cells
    if words and any(value.lower() not in _NO_NUMBER for _, value in words):
        if 2 * len(words) < len(single):
            number, value = words[0]
            notes.append(f"column {name!r}: row {number} holds {value!r}, so its numbers are taken as words")
        return cells
    for number, value in single:
        if not math.isfinite(float(value)):  # the words that are left, and numbers such as 1e999
            raise InputError(f"{table.path}: row {number}: {name}: {value!r}; must be finite, or empty where not known")
    values = np.array([float(value) for _, value in single])
    if len(np.unique(values)) <= bins:
        return cells
    inner = np.unique(np.quantile(values, np.arange(1, bins) / bins))
    labels = iter(_range_names(values, np.searchsorted(inner, values, side="right")))
    return [[next(labels)] if cell else [] for cell in cells]


def _range_names(values: np.ndarray, member: Ids) -> list[str]:
    """For each value its range, from the least to the greatest value in it, with as few digits as tell them apart."""
    ends = {int(at): (values[member == at].min(), values[member == at].max()) for at in np.unique(member)}
    for digits in (3, 4, 5, 6, 9, 17):
        named = {}
        for at, (low, high) in ends.items():
            first, last = _digits(low, digits), _digits(high, digits)
            named[at] = first if low == high else f"{first} to {last}"
        if len(set(named.values())) == len(named):
            break
    return [named[int(at)] for at in member]


def _digits(value: float, digits: int) -> str:
    rounded = float(f"{value:.{digits}g}")
    return f"{rounded:.15g}" if digits < 17 else repr(float(value))


def _read_interactions(table: Rows, items: _Items, seed: int, notes: list[str]) -> tuple[int, dict[Split, Ids]]:
    """The number of users, and their interactions."""
    header = [name.casefold() for name in table.header]
    if not {"user", "item"} <= set(header) <= {"user", "item", "split"} or len(set(header)) < len(header):
        raise InputError(f"{table.path}: columns {', '.join(table.header)}; must be user, item and perhaps split")
    user_at, item_at = header.index("user"), header.index("item")
    split_at = header.index("split") if "split" in header else None
    labels = [_tidy(row[user_at]) for _, row in table.rows]
    users = {label: place for place, label in enumerate(_user_order(labels))}
    parts: dict[str, dict[tuple[int, int], None]] = {split: {} for split in SPLITS}
    for (number, row), label in zip(table.rows, labels, strict=True):
        json_tables.check_name(f"{table.path}: row {number}: user", label)
        item = items.keys.get(_tidy(row[item_at]))
        if item is None:
            raise InputError(f"{table.path}: row {number}: item {row[item_at]!r}; must be an id or name of {ITEMS}")
        split = SPLITS[0] if split_at is None else row[split_at].casefold()
        if split not in parts:
            raise InputError(f"{table.path}: row {number}: split {row[split_at or 0]!r}; must be {', '.join(SPLITS)}")
        parts[split][users[label], item] = None
    if dropped := len(table.rows) - sum(map(len, parts.values())):
        notes.append(f"{table.path.name}: {dropped} repeated pairs dropped")
    if split_at is None:
        notes.append(f"{table.path.name}: split 70 : 15 : 15 by user with seed {seed}")
        return len(users), split_by_user(json_tables.as_pairs(list(parts["train"])), seed)
    return len(users), {split: json_tables.as_pairs(list(parts[split])) for split in SPLITS}


def _user_order(labels: list[str]) -> list[str]:
    """Different labels; by their numbers where all are numbers, else as they come."""
    found = list(dict.fromkeys(labels))
    whole = all(re.fullmatch(r"[0-9]{1,18}", label) for label in found)
    return sorted(found, key=lambda label: (int(label), label)) if whole else found


def _tidy(text: str) -> str:
    """Composed characters, and single spaces between words."""
    return " ".join(unicodedata.normalize("NFC", text).split(" ")).strip()

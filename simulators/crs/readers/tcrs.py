"""The layout of TCRS: tabulated entities and relations, and splits in JSON."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from core.errors import InputError
from simulators.crs import json_tables, storage
from simulators.crs.catalogue import SPLITS, Catalogue, Ids, Split, no_pairs
from simulators.crs.readers.csv_rows import read_id_pairs, read_rows, whole_number
from simulators.crs.splits import split_by_user


def read_tcrs(folder: Path, *, seed: int = 0) -> tuple[Catalogue, list[str]]:
    """A catalogue, asked in binary questions as its attributes have no types, and notes.

    Read are ``entities/{users,items,attributes}.csv`` (columns ``map_id`` and ``name``),
    ``relations/item_attribute.csv`` and where they are there ``user_user.csv`` and ``user_attribute.csv``, and
    ``relation_dict/user-item_dict_*.json`` (without splits ``relations/user_item.csv``, which is then split).
    Attributes of one name get their id behind it.

    Raises:
        InputError: a file, row or value that the layout does not allow.
    """
    users, items, attributes = (
        _entities(folder / "entities" / f"{name}.csv") for name in ("users", "items", "attributes")
    )
    notes: list[str] = []
    counts = Counter(attributes)
    if repeated := [name for name, count in counts.items() if count > 1]:
        notes.append(f"attributes.csv: {len(repeated)} names stand there twice or more, the first is {repeated[0]!r}")
        attributes = tuple(f"{name} ({at})" if counts[name] > 1 else name for at, name in enumerate(attributes))

    def related(name: str, left: tuple[str, ...], right: tuple[str, ...]) -> Ids:
        path = folder / "relations" / f"{name}.csv"
        rows, dropped = read_id_pairs(path, (len(left), len(right)))
        if dropped:
            notes.append(f"{path.name}: {dropped} repeated pairs dropped")
        return rows

    def optional(name: str, left: tuple[str, ...], right: tuple[str, ...]) -> Ids:
        return related(name, left, right) if (folder / "relations" / f"{name}.csv").exists() else no_pairs()

    paths: dict[Split, Path] = {s: folder / "relation_dict" / f"user-item_dict_{s}.json" for s in SPLITS}
    if any(path.exists() for path in paths.values()):
        interactions, said = storage.read_splits(paths, paths["train"], len(users), len(items), seed, "drop")
        notes += said
    else:
        interactions = split_by_user(related("user_item", users, items), seed)
        notes.append(f"user_item.csv: split 70 : 15 : 15 by user with seed {seed}")
    catalogue = Catalogue(
        name=folder.resolve().name,
        item_names=items,
        attribute_names=attributes,
        type_names=(storage.UNTYPED,),
        attribute_type=np.zeros(len(attributes), dtype=np.int64),
        edges=related("item_attribute", items, attributes),
        n_users=len(users),
        interactions=interactions,
        friends=optional("user_user", users, users),
        likes=optional("user_attribute", users, attributes),
        source=f"TCRS layout, {folder.resolve().name}",
    )
    return catalogue, notes


def _entities(path: Path) -> tuple[str, ...]:
    """Names by id."""
    table = read_rows(path, "\t")
    if not {"map_id", "name"} <= set(table.header):
        raise InputError(f"{path}: columns {', '.join(table.header)}; must have map_id and name, tabulated")
    place, name = table.header.index("map_id"), table.header.index("name")
    ids, names = [], []
    for number, row in table.rows:
        where = f"{path}: row {number}"
        ids.append(whole_number(where, row[place], None))
        names.append(json_tables.check_name(where, row[name]))
    json_tables.whole_range(path, ids, path.stem)
    return tuple(name for _, name in sorted(zip(ids, names, strict=True)))

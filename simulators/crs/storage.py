"""Catalogues as folders of JSON files: our own layout, and what is wrong with a catalogue.

A folder holds ``meta.json`` (schema, name, counts, question, licence, source, and the types in order),
``attributes.json`` (id, name and type of each), ``items.json`` (id and name), ``item_attributes.json`` (a list for each
item), ``interactions_{train,valid,test}.json`` (items by user; or one ``interactions.json`` that is split when it is
read), and where there are any ``friends.json`` and ``user_likes.json``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np

from core import files
from core.errors import InputError
from simulators.crs import json_tables
from simulators.crs.catalogue import SPLITS, Catalogue, Ids, Split, no_pairs
from simulators.crs.rules import Question
from simulators.crs.splits import overlaps, refuse_overlap, split_by_user

SCHEMA = 1
META, ATTRIBUTES, ITEMS, ITEM_ATTRIBUTES = "meta.json", "attributes.json", "items.json", "item_attributes.json"
INTERACTIONS, FRIENDS, LIKES = "interactions.json", "friends.json", "user_likes.json"
UNTYPED = "attribute"
"""The type of attributes whose source names none."""


def save(catalogue: Catalogue, folder: Path) -> None:
    """Write a catalogue; ``meta.json`` goes first and comes last, so that a folder with it is whole.

    Raises:
        InputError: a name that cannot be shown.
    """
    check_names(catalogue, str(folder))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / META).unlink(missing_ok=True)
    kinds, names = catalogue.attribute_type.tolist(), catalogue.attribute_names
    attributes = [
        {"id": place, "name": name, "type": catalogue.type_names[kind]}
        for place, (name, kind) in enumerate(zip(names, kinds, strict=True))
    ]
    held = _lists(catalogue.edges)
    _write(folder / ATTRIBUTES, attributes)
    _write(folder / ITEMS, [{"id": place, "name": name} for place, name in enumerate(catalogue.item_names)])
    _write(folder / ITEM_ATTRIBUTES, [held.get(item, []) for item in range(catalogue.n_items)])
    for split in SPLITS:
        _write(folder / f"interactions_{split}.json", _lists(catalogue.interactions.get(split, no_pairs())))
    for name, rows in ((FRIENDS, catalogue.friends), (LIKES, catalogue.likes)):
        if len(rows):
            _write(folder / name, _lists(rows))
        else:
            (folder / name).unlink(missing_ok=True)
    (folder / INTERACTIONS).unlink(missing_ok=True)
    meta = {
        "schema": SCHEMA,
        "name": catalogue.name,
        "n_users": catalogue.n_users,
        "n_items": catalogue.n_items,
        "n_attributes": catalogue.n_attributes,
        "n_types": catalogue.n_types,
        "question": catalogue.question,
        "licence": catalogue.licence,
        "source": catalogue.source,
        "types": list(catalogue.type_names),
    }
    files.write_json(folder / META, meta)


def load(folder: Path, *, seed: int = 0, allow_overlap: bool = False) -> Catalogue:
    """Read what ``save`` wrote, or what others wrote in its layout; see ``load_with_notes``."""
    return load_with_notes(folder, seed=seed, allow_overlap=allow_overlap)[0]


def load_with_notes(folder: Path, *, seed: int = 0, allow_overlap: bool = False) -> tuple[Catalogue, list[str]]:
    """A catalogue of our layout, and what was done to read it.

    Args:
        folder: of the catalogue.
        seed: of the split, where the interactions come without one.
        allow_overlap: take pairs that stand in two splits; ``check`` then warns of them.

    Raises:
        InputError: a file, key or value that the layout does not allow; a split without a pair that can be played.
    """
    json_tables.refuse_pickles(folder)
    meta = _meta(folder)
    types, attribute_type, attribute_names = _attributes(folder, meta)
    item_names = _items(folder, meta["n_items"])
    lists = json_tables.read_list(folder / ITEM_ATTRIBUTES)
    if len(lists) != meta["n_items"]:
        raise InputError(f"{folder / ITEM_ATTRIBUTES}: {len(lists)} lists; must be {meta['n_items']}, one for an item")
    edges, _ = json_tables.pairs_of(folder / ITEM_ATTRIBUTES, dict(enumerate(lists)), len(attribute_names))
    users = meta["n_users"]
    optional = {
        name: json_tables.read_pairs(folder / file, users, columns)[0]
        for name, file, columns in (("friends", FRIENDS, users), ("likes", LIKES, len(attribute_names)))
        if (folder / file).exists()
    }
    interactions, notes = _interactions(folder, users, meta["n_items"], seed)
    catalogue = Catalogue(
        name=meta["name"],
        item_names=item_names,
        attribute_names=attribute_names,
        type_names=types,
        attribute_type=attribute_type,
        edges=edges,
        n_users=users,
        interactions=interactions,
        question=meta["question"],
        licence=meta["licence"],
        source=meta["source"],
        **optional,
    )
    check_playable(catalogue, str(folder), allow_overlap=allow_overlap)
    return catalogue, notes


def check_names(catalogue: Catalogue, source: str) -> None:
    """Refuse names that cannot be shown or told apart.

    Raises:
        InputError: the table, id and name are named.
    """
    json_tables.check_name(f"{source}: catalogue", catalogue.name)
    for what in ("item", "attribute", "type"):
        for place, name in enumerate(getattr(catalogue, f"{what}_names")):
            json_tables.check_name(f"{source}: {what} {place}", name)
    if len(set(catalogue.type_names)) < catalogue.n_types:
        again = next(name for name in catalogue.type_names if catalogue.type_names.count(name) > 1)
        raise InputError(f"{source}: two types are called {again!r}; must be one")
    pairs = zip(catalogue.attribute_type.tolist(), catalogue.attribute_names, strict=True)
    json_tables.distinct_names(source, pairs)


def check_playable(catalogue: Catalogue, source: str, *, allow_overlap: bool = False) -> None:
    """Refuse a catalogue on which nothing can be learnt or tested.

    Raises:
        InputError: names as ``check_names``; a split without pairs, or all of them with items that have no attribute;
            a pair in two splits, unless that is allowed.
    """
    check_names(catalogue, source)
    if not allow_overlap:
        refuse_overlap(source, catalogue.interactions)
    for split in SPLITS:
        try:
            catalogue.pairs(split)
        except InputError as error:
            raise InputError(f"{source}: {error}") from error


def check(catalogue: Catalogue) -> list[str]:
    """What one should know about a catalogue that is in order, a line each."""
    found = []
    counts = np.bincount(catalogue.edges[:, 1], minlength=catalogue.n_attributes)
    if idle := np.flatnonzero(counts == 0).tolist():
        found.append(f"{len(idle)} attributes have no item, the first is {catalogue.label(idle[0])!r}")
    if bare := np.flatnonzero(~catalogue.described).tolist():
        dropped = [
            f"{lost} of {split}"
            for split in SPLITS
            if len(rows := catalogue.interactions.get(split, no_pairs()))
            and (lost := int((~catalogue.described[rows[:, 1]]).sum()))
        ]
        pairs = f"; pairs with them that are dropped: {', '.join(dropped)}" if dropped else ""
        found.append(f"{len(bare)} items have no attribute, the first is {catalogue.item_names[bare[0]]!r}{pairs}")
    for a, b, both in overlaps(catalogue.interactions):
        found.append(f"{a} and {b} share {len(both)} pairs")
    for split in SPLITS:
        rows = catalogue.interactions.get(split, no_pairs())
        played = rows[catalogue.described[rows[:, 1]]]
        if lacking := catalogue.n_users - len(np.unique(played[:, 0])):
            found.append(f"{lacking} of {catalogue.n_users} users have no pair in {split}")
    return found


def _write(path: Path, data: Any) -> None:
    files.write(path, json.dumps(data, ensure_ascii=False, allow_nan=False) + "\n")


def _lists(rows: Ids) -> dict[int, list[int]]:
    """The second column by the first."""
    found: dict[int, list[int]] = {}
    for key, value in rows.tolist():
        found.setdefault(key, []).append(value)
    return found


def _meta(folder: Path) -> dict[str, Any]:
    path = folder / META
    meta = json_tables.read_object(path)
    if type(meta.get("schema")) is not int or meta["schema"] != SCHEMA:
        raise InputError(f"{path}: schema: {meta.get('schema')!r}; must be {SCHEMA}")
    for key in ("n_users", "n_items", "n_attributes", "n_types"):
        if type(meta.get(key)) is not int or meta[key] < 1:
            raise InputError(f"{path}: {key}: {meta.get(key)!r}; must be a whole number of at least 1")
    json_tables.check_name(f"{path}: name", meta.get("name"))
    if meta.get("question") not in get_args(Question):
        raise InputError(f"{path}: question: {meta.get('question')!r}; must be one of {', '.join(get_args(Question))}")
    for key in ("licence", "source"):
        if not isinstance(meta.setdefault(key, ""), str):
            raise InputError(f"{path}: {key}: {meta[key]!r}; must be text")
    return meta


def _records(path: Path, count: int, what: str) -> list[Mapping[str, Any]]:
    """The objects of a list by their ids 0 to ``count - 1``."""
    records = json_tables.read_list(path)
    ids = []
    for place, record in enumerate(records):
        if not isinstance(record, dict) or not {"id", "name"} <= set(record):
            raise InputError(f"{path}: entry {place}: {record!r:.60}; must be an object with id and name")
        ids.append(json_tables.as_id(f"{path}: entry {place}", record["id"]))
        json_tables.check_name(f"{path}: {what} {ids[-1]}", record["name"])
    if json_tables.whole_range(path, ids, what) != count:
        raise InputError(f"{path}: {len(ids)} {what}s; must be {count}, as {META} says")
    return [record for _, record in sorted(zip(ids, records, strict=True), key=lambda pair: pair[0])]


def _attributes(folder: Path, meta: Mapping[str, Any]) -> tuple[tuple[str, ...], Ids, tuple[str, ...]]:
    """Names of the types, the type of each attribute, names of the attributes."""
    path = folder / ATTRIBUTES
    records = _records(path, meta["n_attributes"], "attribute")
    for place, record in enumerate(records):
        if record.get("type") is None and meta["question"] == "enumerated":
            raise InputError(f"{path}: attribute {place}: no type; must have one, as the question is enumerated")
        if record.get("type") is not None:
            json_tables.check_name(f"{path}: attribute {place}: type", record["type"])
    named = [UNTYPED if record.get("type") is None else record["type"] for record in records]
    listed = meta.get("types", list(dict.fromkeys(named)))
    if not isinstance(listed, list) or len(set(map(str, listed))) != len(listed):
        raise InputError(f"{folder / META}: types: {listed!r:.60}; must be a list of different names")
    order = {json_tables.check_name(f"{folder / META}: types", name): place for place, name in enumerate(listed)}
    if len(order) != meta["n_types"]:
        raise InputError(f"{folder / META}: n_types: {meta['n_types']}; {len(order)} types are there")
    for place, kind in enumerate(named):
        if kind not in order:
            raise InputError(f"{path}: attribute {place}: type {kind!r}; must be one of those in {META}: types")
    names = tuple(record["name"] for record in records)
    return tuple(order), np.array([order[kind] for kind in named], dtype=np.int64), names


def _items(folder: Path, count: int) -> tuple[str, ...]:
    return tuple(record["name"] for record in _records(folder / ITEMS, count, "item"))


def _interactions(folder: Path, users: int, items: int, seed: int) -> tuple[dict[Split, Ids], list[str]]:
    paths: dict[Split, Path] = {split: folder / f"interactions_{split}.json" for split in SPLITS}
    return read_splits(paths, folder / INTERACTIONS, users, items, seed, "refuse")


def read_splits(
    paths: Mapping[Split, Path],
    whole: Path,
    users: int | None,
    items: int,
    seed: int,
    repeated: json_tables.Repeated,
) -> tuple[dict[Split, Ids], list[str]]:
    """The interactions of three files, or of one that is split by user: ``whole``, or training without the others.

    Args:
        paths: of the splits.
        whole: of interactions without a split, read when there is none of the splits.
        users: number of users, or None when it is not known.
        items: number of items.
        seed: of the split.
        repeated: what to do with an item that a user has twice in a split.

    Returns:
        The splits, and notes.

    Raises:
        InputError: as ``pairs_of``; one of validation and test without the other; no file at all.
    """
    there = [split for split in SPLITS if paths[split].exists()]
    if there and there not in (list(SPLITS), ["train"]):
        absent = next(paths[split] for split in SPLITS if split not in there)
        raise InputError(f"{absent}: absent beside {paths[there[0]].name}; must be all three splits, or training alone")
    read = {split: json_tables.read_pairs(paths[split], users, items, repeated) for split in there}
    notes = [
        f"{paths[split].name}: {dropped} repeated pairs dropped" for split, (_, dropped) in read.items() if dropped
    ]
    if len(there) == len(SPLITS):
        return {split: rows for split, (rows, _) in read.items()}, notes
    source = paths["train"] if there else whole
    rows, dropped = read["train"] if there else json_tables.read_pairs(whole, users, items, repeated)
    if dropped and not there:
        notes.append(f"{whole.name}: {dropped} repeated pairs dropped")
    return split_by_user(rows, seed), [*notes, f"{source.name}: split 70 : 15 : 15 by user with seed {seed}"]

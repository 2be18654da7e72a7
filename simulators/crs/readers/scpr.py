"""The layout of SCPR, which UNICORN and others use: LastFM and LastFM* (binary), Yelp (types over leaves)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from core.errors import InputError
from simulators.crs import json_tables, storage
from simulators.crs.catalogue import SPLITS, Catalogue, Ids, Split, no_pairs
from simulators.crs.rules import Question

GRAPH, SPLIT = "Graph_generate_data", "UI_Interaction_data"
ITEMS, LEAF_ITEMS, TYPE_ITEMS = "item_dict.json", "item_dict-original_tag.json", "item_dict-merged_tag.json"
TAGS = ("original_tag_map.json", "merged_tag_map.json")
LEAVES = ("second-layer_oringinal_tag_map.json", "second-layer_original_tag_map.json")
TYPES, TAXONOMY = "first-layer_merged_tag_map.json", "2-layer taxonomy.json"


@dataclass(frozen=True)
class Tags:
    """Names of attributes and types, the type of each attribute, and how they are asked about."""

    names: tuple[str, ...]
    types: tuple[str, ...]
    type_of: Ids
    question: Question


def read_scpr(folder: Path, *, seed: int = 0) -> tuple[Catalogue, list[str]]:
    """A catalogue and notes; with a taxonomy it is asked in enumerated questions, else in binary ones.

    Friends and likes may be absent. Items have no names in this layout. Repeated pairs are dropped with a note.

    Raises:
        InputError: a file, key or value that the layout does not allow; a taxonomy that leaves a leaf out.
    """
    graph = folder / GRAPH
    layered = (graph / LEAF_ITEMS).exists()
    path = graph / (LEAF_ITEMS if layered else ITEMS)
    held = _by_id(path, "item")
    features = {item: _field(path, item, entry) for item, entry in held.items()}
    edges, dropped = json_tables.pairs_of(path, features, None, "drop")
    notes = [f"{path.name}: {dropped} repeated attributes dropped"] if dropped else []
    tags = _layered(graph, notes) if layered else _flat(graph, edges)
    if edges.size and edges[:, 1].max() >= len(tags.names):
        row = edges[edges[:, 1].argmax()]
        raise InputError(f"{path}: {row[0]}: id {row[1]}; allowed: 0 to {len(tags.names) - 1}")
    users = _by_id(graph / "user_dict.json", "user") if (graph / "user_dict.json").exists() else None
    friends = _user_pairs(graph, users, "friends", None if users is None else len(users))
    likes = _user_pairs(graph, users, "like", len(tags.names))
    paths: dict[Split, Path] = {split: folder / SPLIT / f"review_dict_{split}.json" for split in SPLITS}
    n_users = None if users is None else len(users)
    interactions, said = storage.read_splits(paths, graph / "user_item.json", n_users, len(held), seed, "drop")
    if users is None:
        n_users = 1 + max((int(rows[:, 0].max()) for rows in interactions.values() if len(rows)), default=0)
        said.append("user_dict.json: absent, users are those with interactions")
    if layered:
        said += _compared(graph, edges, tags)
    catalogue = Catalogue(
        name=folder.resolve().name,
        item_names=tuple(f"item {item}" for item in range(len(held))),
        attribute_names=tags.names,
        type_names=tags.types,
        attribute_type=tags.type_of,
        edges=edges,
        n_users=n_users or 1,
        interactions=interactions,
        friends=friends,
        likes=likes,
        question=tags.question,
        source=f"SCPR layout, {folder.resolve().name}",
    )
    return catalogue, [*notes, *said]


def _by_id(path: Path, what: str) -> dict[int, Any]:
    """Entries of an object whose keys are 0 to n - 1, in that order."""
    found = {json_tables.as_key(path, key): entry for key, entry in json_tables.read_object(path).items()}
    json_tables.whole_range(path, list(found), what)
    return dict(sorted(found.items()))


def _field(path: Path, item: int, entry: Any) -> Any:
    """The tags of an item, which stand there alone or as its ``feature_index``."""
    if isinstance(entry, dict) and "feature_index" not in entry:
        raise InputError(f"{path}: {item}: {entry!r:.60}; must be an object with feature_index")
    return entry["feature_index"] if isinstance(entry, dict) else entry


def _user_pairs(graph: Path, users: Mapping[int, Any] | None, field: str, columns: int | None) -> Ids:
    path = graph / "user_dict.json"
    lists = {}
    for user, entry in (users or {}).items():
        if not isinstance(entry, dict):
            raise InputError(f"{path}: {user}: {entry!r:.60}; must be an object with friends and like")
        lists[user] = entry.get(field, [])
    return json_tables.pairs_of(path, lists, columns, "drop", f": {field}")[0] if lists else no_pairs()


def _names(path: Path) -> tuple[str, ...]:
    """Names by id of a map from name to id."""
    found = json_tables.read_object(path)
    ids = [json_tables.as_id(f"{path}: {name!r}", place) for name, place in found.items()]
    for name in found:
        json_tables.check_name(str(path), name)
    json_tables.whole_range(path, ids, "tag")
    return tuple(name for _, name in sorted(zip(ids, found, strict=True)))


def _flat(graph: Path, edges: Ids) -> Tags:
    """Tags of one type; of two maps, the one with fewer tags that has all those of the items."""
    maps = {name: _names(graph / name) for name in TAGS if (graph / name).exists()}
    if not maps:
        raise InputError(f"{graph}: no map of tags; must have {' or '.join(TAGS)}")
    least = 1 + int(edges[:, 1].max()) if len(edges) else 1
    covering = [names for names in maps.values() if len(names) >= least]
    names = min(covering or maps.values(), key=len)
    return Tags(names, (storage.UNTYPED,), np.zeros(len(names), dtype=np.int64), "binary")


def _layered(graph: Path, notes: list[str]) -> Tags:
    """Leaves and the types over them."""
    leaves = next((graph / name for name in LEAVES if (graph / name).exists()), graph / LEAVES[0])
    names, path = _names(leaves), graph / TAXONOMY
    taxonomy = json_tables.read_object(path)
    types = _names(graph / TYPES) if (graph / TYPES).exists() else tuple(taxonomy)
    for name in taxonomy:
        if name not in types:
            raise InputError(f"{path}: type {name!r}; must be one of those in {TYPES}")
    type_of = np.full(len(names), -1, dtype=np.int64)
    ordered = {place: taxonomy[name] for place, name in enumerate(types) if name in taxonomy}
    pairs, _ = json_tables.pairs_of(path, ordered, len(names), "drop")
    for kind, leaf in pairs[::-1].tolist():
        type_of[leaf] = kind
    if twice := len(pairs) - len(np.unique(pairs[:, 1])):
        notes.append(f"{TAXONOMY}: {twice} leaves stand under a second type, the first is taken")
    if len(lost := np.flatnonzero(type_of < 0)):
        raise InputError(f"{path}: leaf {lost[0]} ({names[lost[0]]!r}) has no type; must cover all {len(names)} leaves")
    plain = tuple(
        name.removeprefix(f"{types[kind]}:").strip() or name for name, kind in zip(names, type_of.tolist(), strict=True)
    )
    distinct = len(set(zip(type_of.tolist(), plain, strict=True))) == len(names)
    return Tags(plain if distinct else names, types, type_of, "enumerated")


def _compared(graph: Path, edges: Ids, tags: Tags) -> list[str]:
    """A note where the types that a file gives for items are not those of their leaves."""
    path = graph / TYPE_ITEMS
    if not path.exists():
        return []
    lists = {item: _field(path, item, entry) for item, entry in _by_id(path, "item").items()}
    given, _ = json_tables.pairs_of(path, lists, len(tags.types), "drop")
    implied = np.stack([edges[:, 0], tags.type_of[edges[:, 1]]], axis=1) if len(edges) else no_pairs()
    keys = [set(map(tuple, rows.tolist())) for rows in (given, implied)]
    differing = {item for item, _ in keys[0] ^ keys[1]}
    return [f"{TYPE_ITEMS}: {len(differing)} items have other types there than their leaves have"] if differing else []

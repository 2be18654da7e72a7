"""A catalogue: items and their attributes, users and what they took, and where all of it comes from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from core.errors import InputError
from simulators.crs.relation import Relation
from simulators.crs.rules import Question

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
Ids = NDArray[np.int64]


def no_pairs() -> Ids:
    """``(0, 2)``."""
    return np.empty((0, 2), dtype=np.int64)


@dataclass(frozen=True)
class Catalogue:
    """Items V, attributes P of types G, users U, and interactions in three splits; all ids count from 0.

    Attributes:
        name: in reports.
        item_names: V names.
        attribute_names: P names, unique within a type.
        type_names: G names.
        attribute_type: ``(P,)`` int64, the type of each attribute.
        edges: ``(E, 2)`` int64 (item, attribute), sorted, without duplicates.
        n_users: U.
        interactions: ``(n, 2)`` int64 (user, item) of each split, without duplicates; by user, and those of a user in
            the order they were given.
        friends: ``(n, 2)`` (user, user), sorted.
        likes: ``(n, 2)`` (user, attribute), sorted.
        question: how this catalogue is asked about where a study does not say.
        licence: of the data.
        source: of the data.

    Raises:
        InputError: an id out of range, a duplicate, or tables that do not fit each other; the table, row and value are
            named.
    """

    name: str
    item_names: tuple[str, ...]
    attribute_names: tuple[str, ...]
    type_names: tuple[str, ...]
    attribute_type: Ids
    edges: Ids
    n_users: int
    interactions: Mapping[Split, Ids]
    friends: Ids = field(default_factory=no_pairs)
    likes: Ids = field(default_factory=no_pairs)
    question: Question = "binary"
    licence: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        if not self.item_names or not self.attribute_names or self.n_users < 1:
            raise InputError(
                f"{self.name}: {len(self.item_names)} items, {len(self.attribute_names)} attributes, {self.n_users} "
                "users; must be at least 1 of each"
            )
        if self.attribute_type.shape != (self.n_attributes,):
            raise InputError(
                f"{self.name}: attribute_type: {self.attribute_type.shape}; must be {(self.n_attributes,)}"
            )
        if self.question not in get_args(Question):
            raise InputError(
                f"{self.name}: question: {self.question!r}; must be one of {', '.join(get_args(Question))}"
            )
        self._in_range("attributes: type", self.attribute_type[:, None], (self.n_types,))
        self._in_range("item_attributes", self.edges, (self.n_items, self.n_attributes))
        self._in_range("friends", self.friends, (self.n_users, self.n_users))
        self._in_range("user_likes", self.likes, (self.n_users, self.n_attributes))
        self._distinct("item_attributes", self.edges)
        for split in SPLITS:
            pairs = self.interactions.get(split, no_pairs())
            self._in_range(f"interactions_{split}", pairs, (self.n_users, self.n_items))
            self._distinct(f"interactions_{split}", pairs)
        self._order()

    def _order(self) -> None:
        """Tables of one order, so that neither a file nor the hash depends on how they were listed."""
        for name in ("edges", "friends", "likes"):
            rows = getattr(self, name)
            object.__setattr__(self, name, rows[np.lexsort((rows[:, 1], rows[:, 0]))])
        by_user = {split: rows[rows[:, 0].argsort(kind="stable")] for split, rows in self.interactions.items()}
        object.__setattr__(self, "interactions", by_user)

    def _in_range(self, table: str, rows: Ids, counts: tuple[int, ...]) -> None:
        if rows.ndim != 2 or rows.shape[1] != len(counts) or not np.issubdtype(rows.dtype, np.integer):
            raise InputError(f"{self.name}: {table}: {rows.dtype} {rows.shape}; must be integers (n, {len(counts)})")
        for column, count in enumerate(counts):
            wrong = np.flatnonzero((rows[:, column] < 0) | (rows[:, column] >= count))
            if wrong.size:
                value = rows[wrong[0], column]
                raise InputError(f"{self.name}: {table}: entry {wrong[0]}: id {value}; allowed: 0 to {count - 1}")

    def _distinct(self, table: str, rows: Ids) -> None:
        if not len(rows):
            return
        _, first = np.unique(rows[:, 0] * (rows[:, 1].max() + 1) + rows[:, 1], return_index=True)
        if len(first) < len(rows):
            again = np.setdiff1d(np.arange(len(rows)), first)[0]
            raise InputError(f"{self.name}: {table}: entry {again}: {rows[again].tolist()} stands there twice")

    @property
    def n_items(self) -> int:
        """V."""
        return len(self.item_names)

    @property
    def n_attributes(self) -> int:
        """P."""
        return len(self.attribute_names)

    @property
    def n_types(self) -> int:
        """G."""
        return len(self.type_names)

    @cached_property
    def relation(self) -> Relation:
        """Which item has which attribute, on the CPU."""
        return self.relation_on("cpu")

    def relation_on(self, device: torch.device | str) -> Relation:
        """The same on a device."""
        edges = torch.as_tensor(np.ascontiguousarray(self.edges), device=device)
        return Relation(edges, self.n_items, self.n_attributes)

    @cached_property
    def described(self) -> NDArray[np.bool_]:
        """``(V,)`` whether an item has an attribute at all; one without cannot be a target."""
        found = np.zeros(self.n_items, dtype=bool)
        found[self.edges[:, 0]] = True
        return found

    def pairs(self, split: Split) -> Ids:
        """``(n, 2)`` the (user, item) of a split that can be played.

        Raises:
            InputError: there is none.
        """
        found = self.interactions.get(split, no_pairs())
        played = found[self.described[found[:, 1]]] if len(found) else found
        if not len(played):
            why = "is empty" if not len(found) else f"has {len(found)} pairs, none of an item with attributes"
            raise InputError(f"{self.name}: interactions_{split}: {why}; needs at least one pair")
        return played

    @cached_property
    def hash(self) -> str:
        """First 16 hex digits of the SHA-256 of everything but licence and source."""
        found = hashlib.sha256()
        words = [self.item_names, self.attribute_names, self.type_names, self.n_users]
        found.update(json.dumps(words).encode())
        tables = [self.attribute_type, self.edges, *(self.interactions.get(s, no_pairs()) for s in SPLITS)]
        for table in (*tables, self.friends, self.likes):
            rows = np.ascontiguousarray(table, dtype="<i8")
            found.update(str(rows.shape).encode())
            found.update(rows.tobytes())
        return found.hexdigest()[:16]

    def label(self, attribute: int) -> str:
        """``type: name`` of an attribute, or its name where its type says no more."""
        kind, name = self.type_names[self.attribute_type[attribute]], self.attribute_names[attribute]
        return f"{kind}: {name}" if self.n_types > 1 and kind != name else name

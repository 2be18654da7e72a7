"""A catalogue as (head, relation, tail) triples of one numbered set of entities, and their corruption."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from core.errors import InputError
from simulators.crs.catalogue import Catalogue, Ids, no_pairs

INTERACTS, BELONGS, FRIEND, LIKES = RELATIONS = range(4)
"""(user, item), (item, attribute), (user, user), (user, attribute)."""


@dataclass(frozen=True)
class Batch:
    """Triples, each beside one in which the head or the tail is another entity of the same type; all ``(n,)``.

    Attributes:
        head: int64.
        relation: int64.
        tail: int64.
        other: int64, what replaces the head or the tail.
        replaces_head: bool.
    """

    head: Tensor
    relation: Tensor
    tail: Tensor
    other: Tensor
    replaces_head: Tensor

    def __getitem__(self, chosen: Tensor) -> Batch:
        """Those of a mask or of indices."""
        return Batch(*(x[chosen] for x in self._columns()))

    def __len__(self) -> int:
        return len(self.head)

    def to(self, device: torch.device | str) -> Batch:
        """The same on a device."""
        return Batch(*(x.to(device) for x in self._columns()))

    def split(self, size: int) -> Iterator[Batch]:
        """Parts of ``size`` triples, the last one shorter."""
        return (Batch(*parts) for parts in zip(*(x.split(size) for x in self._columns()), strict=True))

    def _columns(self) -> tuple[Tensor, ...]:
        return self.head, self.relation, self.tail, self.other, self.replaces_head


class Triples:
    """The triples of a catalogue: of its interactions, only those of the train split.

    Entities are numbered users first (0 to U - 1), then items (U to U + V - 1), then attributes.

    Args:
        catalogue: in which V, P and U are counted.
        friends: whether (user, friend, user) belongs to them.
        likes: whether (user, likes, attribute) does.

    Attributes:
        counts: (U, V, P).
        entities: U + V + P.
        head: ``(n,)`` int64, on the CPU.
        relation: ``(n,)`` int64.
        tail: ``(n,)`` int64.

    Raises:
        InputError: the train split is empty, or a table that was asked for is.
    """

    def __init__(self, catalogue: Catalogue, *, friends: bool = False, likes: bool = False) -> None:
        users, items, attributes = counts = (catalogue.n_users, catalogue.n_items, catalogue.n_attributes)
        self.counts, self.entities = counts, sum(counts)
        user, item, attribute = (0, users), (users, items), (users + items, attributes)
        tables: list[tuple[int, str, Ids]] = [
            (INTERACTS, "interactions_train", catalogue.interactions.get("train", no_pairs())),
            (BELONGS, "item_attributes", catalogue.edges),
        ]
        tables += [(FRIEND, "friends", catalogue.friends)] if friends else []
        tables += [(LIKES, "user_likes", catalogue.likes)] if likes else []
        for _, name, pairs in tables:
            if not len(pairs):
                raise InputError(f"{catalogue.name}: {name}: is empty; needs at least one pair")
        # (relation, head or tail, first id and number of ids)
        self._types = torch.tensor([[user, item], [item, attribute], [user, user], [user, attribute]])
        every = torch.as_tensor(np.concatenate([pairs for _, _, pairs in tables]))
        self.relation = torch.cat([torch.full((len(pairs),), relation) for relation, _, pairs in tables])
        self.head, self.tail = (every + self._types[self.relation, :, 0]).unbind(1)
        self._keys = self._key(self.head, self.relation, self.tail).sort().values

    def _key(self, head: Tensor, relation: Tensor, tail: Tensor) -> Tensor:
        return (relation * self.entities + head) * self.entities + tail

    def __len__(self) -> int:
        return len(self.head)

    def epoch(self, generator: torch.Generator, replaces_head: Tensor | None = None) -> Batch:
        """All triples in random order, each with one head or tail replaced, drawn uniformly from the same type.

        What is drawn may be the entity that it replaces, or make a triple that is true (Bordes et al. 2013,
        equation 2, leaves such triples in); ``holds`` tells.

        Args:
            generator: on the CPU, so that every device trains on the same triples.
            replaces_head: ``(4,)`` bool, which end is replaced in each relation; without it a fair coin decides for
                each triple.
        """
        order = torch.randperm(len(self), generator=generator)
        head, relation, tail = self.head[order], self.relation[order], self.tail[order]
        coin = torch.rand(len(self), generator=generator) < 0.5
        at_head = coin if replaces_head is None else replaces_head[relation]
        first, count = self._types[relation, (~at_head).long()].unbind(1)
        other = first + (torch.rand(len(self), generator=generator, dtype=torch.float64) * count).long()
        return Batch(head, relation, tail, other, at_head)

    def holds(self, batch: Batch) -> Tensor:
        """``(n,)`` whether the corrupted triple of each is itself one of the triples."""
        head = torch.where(batch.replaces_head, batch.other, batch.head)
        tail = torch.where(batch.replaces_head, batch.tail, batch.other)
        key = self._key(head, batch.relation, tail)
        place = torch.searchsorted(self._keys, key).clamp(max=len(self._keys) - 1)
        return self._keys[place] == key

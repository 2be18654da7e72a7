"""Which item has which attribute, from both sides, on a device: the sparse table behind every question."""

from __future__ import annotations

import warnings
from functools import cached_property

import torch
from torch import Tensor


class Relation:
    """The pairs (item, attribute), E of them, for lookups of a batch without a table of all items by all attributes.

    Args:
        edges: ``(E, 2)`` int64, (item, attribute), without duplicates.
        items: number V of items.
        attributes: number P of attributes.

    Attributes:
        item_start: ``(V + 1,)``; the attributes of item v stand at ``item_start[v]:item_start[v + 1]``.
        item_attributes: ``(E,)`` ascending within an item.
        attribute_start: ``(P + 1,)``, likewise for the items of an attribute.
        attribute_items: ``(E,)`` ascending within an attribute.
    """

    def __init__(self, edges: Tensor, items: int, attributes: int) -> None:
        self.items, self.attributes = items, attributes
        self._keys = (edges[:, 0] * attributes + edges[:, 1]).sort().values
        item, attribute = self._keys // attributes, self._keys % attributes
        self.item_start = _starts(item, items)
        self.item_attributes = attribute
        order = attribute.argsort(stable=True)
        self.attribute_start = _starts(attribute, attributes)
        self.attribute_items = item[order]

    @property
    def device(self) -> torch.device:
        """Where it lies."""
        return self._keys.device

    def has(self, item: Tensor, attribute: Tensor) -> Tensor:
        """Whether each item has each attribute, bool of the shape that both broadcast to; false where one is -1."""
        key = torch.where((item >= 0) & (attribute >= 0), item * self.attributes + attribute, -1)
        place = torch.searchsorted(self._keys, key).clamp(max=len(self._keys) - 1)
        return self._keys[place] == key

    def items_of(self, attribute: Tensor) -> tuple[Tensor, Tensor]:
        """All pairs (row, item) with ``item`` having ``attribute[row]``, row by row; -1 has no items."""
        return _expand(self.attribute_start, self.attribute_items, attribute)

    def attributes_of(self, item: Tensor) -> tuple[Tensor, Tensor]:
        """All pairs (row, attribute) with ``item[row]`` having ``attribute``, row by row; -1 has none."""
        return _expand(self.item_start, self.item_attributes, item)

    @cached_property
    def _matrix(self) -> Tensor:
        """``(P, V)`` sparse, of ones."""
        ones = torch.ones(len(self.attribute_items), device=self.device)
        if self.device.type == "cpu" and not torch.backends.mkl.is_available():
            # Products of CSR tensors need MKL there; those of COO tensors are some 4 times slower.
            index = torch.stack([torch.repeat_interleave(self.attribute_start.diff()), self.attribute_items])
            shape = (self.attributes, self.items)
            return torch.sparse_coo_tensor(index, ones, shape, is_coalesced=True, check_invariants=False)
        with warnings.catch_warnings():
            # It says once a process that CSR tensors are new.
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support", category=UserWarning)
            return torch.sparse_csr_tensor(
                self.attribute_start,
                self.attribute_items,
                ones,
                (self.attributes, self.items),
                check_invariants=False,
            )

    def mass(self, weight: Tensor) -> Tensor:
        """``(B, P)`` sum over the items of each attribute of weights ``(B, V)``, most of which are not 0."""
        return (self._matrix @ weight.T.contiguous()).T.contiguous()


def _starts(sorted_ids: Tensor, count: int) -> Tensor:
    counts = torch.bincount(sorted_ids, minlength=count)
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def _expand(start: Tensor, data: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """The entries of CSR rows ``ids`` ``(n,)``, with the index of the row that each belongs to.

    ``index_select`` is several times faster than indexing with a tensor, here and elsewhere in this package.
    """
    known = ids.clamp(min=0)
    first = start.index_select(0, known)
    length = torch.where(ids >= 0, start.index_select(0, known + 1) - first, 0)
    row = torch.repeat_interleave(length)
    shift = first - (length.cumsum(0) - length)
    return row, data.index_select(0, torch.arange(len(row), device=ids.device) + shift.index_select(0, row))

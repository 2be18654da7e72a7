"""Boosted trees as arrays, which score all actions of a payment at once.

A tree splits on the context or on a flag bit. So whether a pair (x, a) ends in a leaf is a product: x satisfies the
context splits above the leaf, and a its flag splits. With C the ``(n, leaves)`` indicators of the first and V the
``(leaves, K)`` leaf values times the indicators of the second, the scores of all actions are C V: a payment goes down
the trees once, not once an action, and the product runs on any device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MISSING = 255
"""Code of an unknown level, which no split has on its list."""


@dataclass(frozen=True)
class Node:
    """A node of a tree on the way into ``Trees``.

    Attributes:
        value: of a leaf.
        children: places of the left and the right child in the tree's list; none of a leaf.
        column: that is split on, -1 of a leaf.
        threshold: a value of at most this goes left.
        goes_left: ``(256,)`` bool by code, of a split by level.
    """

    value: float = 0.0
    children: tuple[int, ...] = ()
    column: int = -1
    threshold: float = 0.0
    goes_left: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class Trees:
    """The nodes of all trees, those of a tree after those of the one before.

    Attributes:
        parent: ``(N,)`` int64 node, -1 of a root.
        right: ``(N,)`` bool, the node is its parent's right child.
        column: ``(N,)`` int64 that the node splits on, -1 of a leaf.
        threshold: ``(N,)`` float64; a value of at most this goes left.
        listed: ``(N,)`` int64 row of ``goes_left`` of a split by level, -1 of another.
        goes_left: ``(lists, 256)`` bool by code.
        value: ``(N,)`` float64 score of a leaf, 0 of a split.
        base: ``()`` float64 score before the first tree.
    """

    parent: Tensor
    right: Tensor
    column: Tensor
    threshold: Tensor
    listed: Tensor
    goes_left: Tensor
    value: Tensor
    base: Tensor

    @staticmethod
    def of(trees: Iterator[Sequence[Node]], base: float) -> Trees:
        """The arrays of trees given as lists of nodes, the root first."""
        parent: list[int] = []
        right: list[bool] = []
        nodes: list[Node] = []
        for tree in trees:
            first = len(nodes)
            parent += [-1] * len(tree)
            right += [False] * len(tree)
            for place, node in enumerate(tree, first):
                for is_right, child in enumerate(node.children):
                    parent[first + child], right[first + child] = place, bool(is_right)
            nodes += tree
        lists = [node.goes_left for node in nodes if node.goes_left is not None]
        by_list = torch.tensor([node.goes_left is not None for node in nodes])
        return Trees(
            torch.tensor(parent),
            torch.tensor(right),
            torch.tensor([node.column for node in nodes]),
            torch.tensor([node.threshold for node in nodes], dtype=torch.float64),
            torch.where(by_list, by_list.cumsum(0) - 1, -1),
            torch.from_numpy(np.stack(lists) if lists else np.zeros((0, MISSING + 1), dtype=bool)),
            torch.tensor([node.value for node in nodes], dtype=torch.float64),
            torch.tensor(base, dtype=torch.float64),
        )


class Forest:
    """Scores of all actions by trees, on one device.

    Args:
        trees: the nodes.
        categorical: of the leading columns, whether they hold codes.
        contexts: number of columns of the context.
        bits: ``(K, F)`` of the actions, the columns after those.
        device: of the arithmetic.
    """

    def __init__(
        self, trees: Trees, categorical: Sequence[bool], contexts: int, bits: Tensor, device: torch.device
    ) -> None:
        self.base, self.device = trees.base.to(device), device
        depth = torch.zeros_like(trees.parent)
        above = trees.parent.clone()
        while bool((above >= 0).any()):
            depth += above >= 0
            above = torch.where(above >= 0, trees.parent[above.clamp(min=0)], -1)
        split = trees.column[trees.parent.clamp(min=0)].masked_fill(trees.parent < 0, -1)
        leaf = trees.column < 0
        # A node's pass row says whether a payment takes the branch into it; rows of one column lie together.
        tests: list[Callable[[Tensor], Tensor]] = []
        row = torch.zeros_like(trees.parent)
        count = 1
        for column in range(contexts):
            nodes = (split == column).nonzero().squeeze(1)
            if not len(nodes):
                continue
            row[nodes] = torch.arange(count, count + len(nodes))
            count += len(nodes)
            parents, right = trees.parent[nodes], trees.right[nodes, None].to(device)
            if column < len(categorical) and categorical[column]:
                tests.append(_by_level(column, trees.goes_left[trees.listed[parents]].to(device) ^ right))
            else:
                tests.append(_by_threshold(column, trees.threshold[parents, None].to(device), right))
        self.tests = tests
        # Actions go down the flag splits once and for all; they take both branches of a context split.
        takes = torch.ones(len(depth), len(bits), dtype=torch.bool)
        flagged = (split >= contexts).nonzero().squeeze(1)
        parents = trees.parent[flagged]
        values = bits.T[trees.column[parents] - contexts]
        takes[flagged] = (values <= trees.threshold[parents, None]) ^ trees.right[flagged, None]
        self.steps: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        place = torch.zeros_like(depth)
        for level in range(int(depth.max()) + 1):
            nodes = (depth == level).nonzero().squeeze(1)
            place[nodes] = torch.arange(len(nodes))
            parents = trees.parent[nodes].clamp(min=0)
            if level:
                takes[nodes] &= takes[parents]
            leaves = nodes[leaf[nodes]]
            scores = takes[leaves] * trees.value[leaves, None]
            self.steps.append(tuple(x.to(device) for x in (place[parents], row[nodes], place[leaves], scores)))  # type: ignore[arg-type]

    def scores(self, values: Tensor, dtype: torch.dtype) -> Tensor:
        """``(n, K)`` of the context columns ``(contexts, n)`` of n payments."""
        always = torch.ones(1, values.shape[1], dtype=torch.bool, device=self.device)
        passes = torch.cat([always, *(test(values) for test in self.tests)])
        reached = always
        found = self.base.to(dtype)
        for parents, rows, leaves, scores in self.steps:
            reached = reached[parents] & passes[rows]
            found = found + reached[leaves].T.to(dtype) @ scores.to(dtype)
        return found


def _by_level(column: int, takes: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda values: takes[:, values[column].long()]


def _by_threshold(column: int, threshold: Tensor, right: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda values: (values[column] <= threshold) ^ right

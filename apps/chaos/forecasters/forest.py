"""Decision trees of many fitted models as flat tensors: one step of all series and trees is a few gathers a level."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

Trees = Mapping[str, Tensor]
"""The trees of one model, of M groups of outputs with K trees each and V values a leaf.

``feature`` (N,) int16, ``threshold`` (N,), ``children`` (N, 2) int32 (of a leaf: itself twice), ``value`` (N, V)
float64, ``roots`` (M, K) int32, ``offset`` (M V,) float64.
"""


@dataclass(frozen=True)
class Forest:
    """The trees of G models; features are compared in the precision of the thresholds.

    Attributes:
        feature: ``(N,)`` that a node compares.
        threshold: ``(N,)``: at or below it goes to the first child.
        children: ``(2 N,)``.
        value: ``(N, V)``.
        roots: ``(G, M, K)``.
        offset: ``(G, M V)``, added to the sum over the trees.
        depth: of the deepest tree.
    """

    feature: Tensor
    threshold: Tensor
    children: Tensor
    value: Tensor
    roots: Tensor
    offset: Tensor
    depth: int

    @classmethod
    def join(cls, models: Sequence[Trees], device: torch.device) -> Forest:
        """The forest of several models with equal M, K and V."""
        sizes = torch.tensor([len(trees["feature"]) for trees in models])
        starts = sizes.cumsum(0) - sizes
        shifted = [trees["children"] + start for trees, start in zip(models, starts, strict=True)]
        children = torch.cat(shifted).int()
        roots = torch.stack([trees["roots"] + start for trees, start in zip(models, starts, strict=True)]).long()
        joined = {
            name: torch.cat([trees[name] for trees in models]).to(device) for name in ("feature", "threshold", "value")
        }
        return cls(
            **joined,
            children=children.flatten().to(device),
            roots=roots.to(device),
            offset=torch.stack([trees["offset"] for trees in models]).to(device),
            depth=_depth(children, roots.flatten()),
        )

    def predict(self, features: Tensor) -> Tensor:
        """The outputs ``(G, M V)`` float64 of features ``(G, F)``."""
        models, count = features.shape
        flat = features.to(self.threshold.dtype).flatten()
        row = torch.arange(models, device=features.device)[:, None, None] * count
        node = self.roots
        for _ in range(self.depth):
            above = flat[row + self.feature[node]] > self.threshold[node]
            node = self.children[2 * node + above].long()
        return self.value[node].sum(dim=2).flatten(1) + self.offset


def _depth(children: Tensor, frontier: Tensor) -> int:
    depth = 0
    while True:
        below = children[frontier].long()
        inner = below[:, 0] != frontier
        if not bool(inner.any()):
            return depth
        frontier, depth = below[inner].flatten(), depth + 1


def flatten(
    trees: Sequence[Sequence[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]]], offset: np.ndarray
) -> dict[str, Tensor]:
    """The trees of one model from the arrays of a library.

    Args:
        trees: M groups of K trees, each the arrays ``feature``, ``threshold``, ``left``, ``right`` of its nodes and
            ``value`` ``(nodes, V)``; a leaf has ``left`` equal to ``right``.
        offset: ``(M V,)``.
    """
    flat = [tree for group in trees for tree in group]
    sizes = [len(tree[0]) for tree in flat]
    starts = np.cumsum([0, *sizes[:-1]])
    children = []
    for (_, _, left, right, _), start, size in zip(flat, starts, sizes, strict=True):
        own = np.arange(size)
        leaf = left == right
        children.append(np.stack([np.where(leaf, own, left), np.where(leaf, own, right)], axis=1) + start)
    leaf = np.concatenate([tree[2] == tree[3] for tree in flat])
    return {
        "feature": torch.from_numpy(np.where(leaf, 0, np.concatenate([tree[0] for tree in flat])).astype(np.int16)),
        "threshold": torch.from_numpy(np.concatenate([tree[1] for tree in flat])),
        "children": torch.from_numpy(np.concatenate(children).astype(np.int32)),
        "value": torch.from_numpy(np.concatenate([tree[4] for tree in flat]).astype(np.float64)),
        "roots": torch.from_numpy(starts.reshape(len(trees), -1).astype(np.int32)),
        "offset": torch.from_numpy(np.array(offset, dtype=np.float64)),
    }

"""Graph convolution on the sparse edges of a batch of graphs.

    e_i' = ReLU( sum_j Lam_ij W e_j + B e_i ),    Lam = D^-1/2 A D^-1/2,    D_ii = sum_j A_ij

for a weighted symmetric adjacency matrix A: Kipf & Welling (2017, arXiv 1609.02907, equation 2) with a matrix B of its
own for the node itself in place of a loop in A, as in Deng et al. (2021, arXiv 2105.09710, section 4.1). The nodes of
all graphs are numbered through, so a batch is one graph of many components.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Neighbourhoods:
    """The neighbours of R nodes, E in all, node by node: R rows of the matrix Lam.

    Attributes:
        start: ``(R,)`` int64; those of row r stand at ``start[r]:start[r + 1]``, those of the last one to the end.
        source: ``(E,)`` int64, index of each neighbour among the features.
        weight: ``(E,)``, Lam_ij.
    """

    start: Tensor
    source: Tensor
    weight: Tensor

    @classmethod
    def of(cls, target: Tensor, source: Tensor, weight: Tensor, rows: int) -> Neighbourhoods:
        """From directed edges ``(E,)`` in any order; ``target`` counts the rows, some of which may have no edge."""
        order = target.argsort(stable=True)
        counts = torch.bincount(target, minlength=rows)
        return cls(counts.cumsum(0) - counts, source[order], weight[order])

    def aggregate(self, features: Tensor) -> Tensor:
        """``(R, d)`` sum_j Lam_ij e_j of features ``(n, d)``."""
        if not len(self.source):
            return features.new_zeros(len(self.start), features.shape[1])
        weight = self.weight.to(features.dtype)
        return functional.embedding_bag(self.source, features, self.start, per_sample_weights=weight, mode="sum")


def normalised(first: Tensor, second: Tensor, weight: Tensor, nodes: int) -> Tensor:
    """``(E,)`` A_ij / sqrt(D_ii D_jj) of undirected edges, each of which is listed once; 0 at a node of degree 0.

    Args:
        first: ``(E,)`` int64, a node of each edge.
        second: ``(E,)`` int64, the other one.
        weight: ``(E,)`` A_ij, at least 0.
        nodes: their number.
    """
    degree = torch.zeros(nodes, dtype=weight.dtype, device=weight.device)
    degree = degree.index_add(0, first, weight).index_add(0, second, weight)
    inverse = torch.where(degree > 0, degree, torch.inf).rsqrt()
    return weight * inverse[first] * inverse[second]


class GraphConvolution(nn.Module):
    """One layer; neighbours are aggregated first and projected then, which is cheaper and the same.

    Only the nodes that are asked for are computed: the result at a node needs its own features and those of its
    neighbours. Nodes with equal features, such as one item in several graphs, may share a row of them.

    Args:
        inputs: features of a node.
        outputs: features of a node behind the layer.
        own: with the term B e_i.
        rectified: with the ReLU.
    """

    def __init__(self, inputs: int, outputs: int, *, own: bool = True, rectified: bool = True) -> None:
        super().__init__()
        self.of_neighbours = nn.Linear(inputs, outputs, bias=False)
        self.of_own = nn.Linear(inputs, outputs, bias=False) if own else None
        self.rectified = rectified

    def forward(self, features: Tensor, neighbourhoods: Neighbourhoods, nodes: Tensor) -> Tensor:
        """``(R, outputs)`` at the nodes ``(R,)``.

        Args:
            features: ``(n, inputs)``.
            neighbourhoods: of the R nodes.
            nodes: ``(R,)`` int64, index of each among the features.
        """
        result: Tensor = self.of_neighbours(neighbourhoods.aggregate(features))
        if self.of_own is not None:
            # The smaller of both is projected.
            if len(features) < len(nodes):
                result = result + functional.embedding(nodes, self.of_own(features))
            else:
                result = result + self.of_own(functional.embedding(nodes, features))
        return result.relu() if self.rectified else result

"""TransE: a relation is a translation from its heads to its tails (Bordes et al. 2013)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from apps.crs.triples import RELATIONS, Batch, Triples


def translation_loss(
    head: Tensor, relation: Tensor, tail: Tensor, other: Tensor, replaces_head: Tensor, margin: float
) -> Tensor:
    r"""``(n,)`` max(0, margin + \|h + r - t\| - \|h' + r - t'\|), with the L2 norm (equation 1).

    Args:
        head: ``(n, d)``.
        relation: ``(n, d)``.
        tail: ``(n, d)``.
        other: ``(n, d)`` what stands for the head or the tail in the corrupted triple.
        replaces_head: ``(n,)`` bool.
        margin: by which the corrupted triple must be further off.
    """
    at_head = replaces_head[:, None]
    true = torch.linalg.vector_norm(head + relation - tail, dim=1)
    corrupted = torch.where(at_head, other + relation - tail, head + relation - other)
    return (margin + true - torch.linalg.vector_norm(corrupted, dim=1)).clamp(min=0)


class TransE:
    """TransE as ``fit_embeddings`` trains it: points of the entities, then the vectors of the 4 relations.

    Entities have norm 1, after every step (algorithm 1, line 5); relations are free.

    Args:
        triples: to be learned.
        margin: of the loss.
    """

    def __init__(self, triples: Triples, margin: float) -> None:
        self.triples, self.margin = triples, margin
        self.rows = triples.entities + len(RELATIONS)

    def start(self, dim: int, generator: torch.Generator) -> Tensor:
        """``(rows, dim)`` random directions."""
        return functional.normalize(torch.randn(self.rows, dim, generator=generator), dim=1)

    def epoch(self, generator: torch.Generator) -> Batch:
        """All triples, each with a corrupted head or tail."""
        return self.triples.epoch(generator)

    def ids(self, batch: Batch) -> Tensor:
        """``(4, n)`` the rows that a batch reads: head, relation, tail, other."""
        return torch.stack([batch.head, batch.relation + self.triples.entities, batch.tail, batch.other])

    def loss(self, points: Tensor, batch: Batch) -> Tensor:
        """``(n,)`` of the rows ``ids``, ``(4, n, d)``."""
        head, relation, tail, other = points
        return translation_loss(head, relation, tail, other, batch.replaces_head, self.margin)

    def project(self, rows: Tensor, values: Tensor) -> Tensor:
        """Entities back to norm 1."""
        norm = torch.linalg.vector_norm(values, dim=1).clamp(min=1e-12)
        return values / torch.where(rows < self.triples.entities, norm, 1)[:, None]

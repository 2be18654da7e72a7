"""A factorisation machine of users, items and attributes, trained by Bayesian personalised ranking."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from apps.crs.triples import BELONGS, RELATIONS, Batch, Triples

START = 0.1
"""Standard deviation of each number before the first step."""


def ranking_loss(anchor: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """``(n,)`` -ln sigmoid(e_a.e_+ - e_a.e_-) of points ``(n, d)`` (Rendle et al. 2009, BPR-Opt)."""
    return functional.softplus((anchor * (negative - positive)).sum(dim=1))


class Factorisation:
    """What ``fit_embeddings`` trains for ``mf``: an item v ranks by e_u.e_v, and by e_p.e_v for its attributes p.

    EAR (Lei et al. 2020) ranks by e_u.e_v + sum_p e_p.e_v, the score that the dialogue uses. Both
    kinds of term are learned here one by one, each against an item drawn at random: (u, v, v-) where u took v, and
    (p, v, v-) where v has p. A draw that is a positive itself does not count.

    Args:
        triples: to be learned.
        penalty: times the squared norms of the points of a triple is added to its loss.
    """

    def __init__(self, triples: Triples, penalty: float) -> None:
        self.triples, self.penalty = triples, penalty
        self.rows = triples.entities
        self._replaces_head = torch.tensor([relation == BELONGS for relation in RELATIONS])

    def start(self, dim: int, generator: torch.Generator) -> Tensor:
        """``(rows, dim)`` small random points."""
        return torch.randn(self.rows, dim, generator=generator) * START

    def epoch(self, generator: torch.Generator) -> Batch:
        """The triples, each with another item (likes: attribute, friends: user) that makes no true triple."""
        drawn = self.triples.epoch(generator, self._replaces_head)
        return drawn[~self.triples.holds(drawn)]

    def ids(self, batch: Batch) -> Tensor:
        """``(3, n)`` the rows that a batch reads: what stays, what is true, what is not."""
        anchor = torch.where(batch.replaces_head, batch.tail, batch.head)
        positive = torch.where(batch.replaces_head, batch.head, batch.tail)
        return torch.stack([anchor, positive, batch.other])

    def loss(self, points: Tensor, batch: Batch) -> Tensor:
        """``(n,)`` of the rows ``ids``, ``(3, n, d)``."""
        anchor, positive, negative = points
        return ranking_loss(anchor, positive, negative) + self.penalty * points.square().sum(dim=(0, 2))

    def project(self, rows: Tensor, values: Tensor) -> Tensor:
        """Nothing is projected."""
        return values

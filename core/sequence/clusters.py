"""Answers of a prompt that mean the same, and how a prompt's answers spread over such clusters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

import torch
from pydantic.json_schema import SkipJsonSchema
from torch import Tensor

from core.errors import InputError
from core.sequence.batch import TokenBatch
from core.sequence.edit_distance import edit_distances
from core.sequence.reductions import group_max, group_sum

Cluster = Literal["exact"] | Annotated[Callable[[TokenBatch], Tensor], SkipJsonSchema()]
"""How answers are compared: ``exact`` (the same tokens), or a function from a batch to int64 ids ``(B,)``, equal for
answers that mean the same, such as ``partial(near_clusters, distance=2)``; ids of different prompts need not differ."""


def exact_clusters(batch: TokenBatch) -> Tensor:
    """``(B,)`` int64 ids, equal for sequences of one prompt with the same tokens."""
    tokens = torch.where(batch.valid, batch.tokens, -1)
    return torch.unique(torch.cat([batch.group.unsqueeze(1), tokens], 1), dim=0, return_inverse=True)[1]


def repeated(batch: TokenBatch) -> Tensor:
    """``(B,)`` bool, whether an earlier row is the same sequence for the same prompt."""
    ids = exact_clusters(batch)
    row = torch.arange(len(ids), device=ids.device)
    return torch.full_like(row, len(row)).scatter_reduce(0, ids, row, "amin")[ids] != row


def near_clusters(batch: TokenBatch, distance: int) -> Tensor:
    """``(B,)`` int64 ids of sequences whose edit distance to the first of their cluster is below ``distance``.

    A prompt's sequences are taken in order: the first that is in no cluster begins one, and all later ones that are
    near it and in none join. Nearness is not transitive, so the order of the rows matters.
    """
    rows = torch.arange(len(batch), device=batch.group.device)
    ids = torch.full_like(rows, -1)
    while len(left := (ids < 0).nonzero().squeeze(1)):
        first = -group_max(-rows[left], batch.group[left])
        d = edit_distances(batch.tokens[left], batch.valid[left], batch.tokens[first], batch.length[first])
        near = (d < distance) | (first == left)
        ids[left[near]] = first[near]
    return ids


def cluster_ids(batch: TokenBatch, cluster: Cluster = "exact") -> Tensor:
    """``(B,)`` int64 ids from 0 on, which no two prompts share.

    Raises:
        InputError: the function's result is not ``(B,)`` of whole numbers.
    """
    if not callable(cluster):
        return exact_clusters(batch)
    ids = cluster(batch)
    if ids.shape != batch.group.shape or ids.is_floating_point() or ids.is_complex():
        raise InputError(
            f"cluster: returned {ids.dtype} of shape {tuple(ids.shape)}; whole numbers ({len(batch)},) are allowed"
        )
    return torch.unique(torch.stack([batch.group, ids.to(batch.group)], 1), dim=0, return_inverse=True)[1]


def cluster_mass(ids: Tensor, group: Tensor, log_weight: Tensor | None = None) -> Tensor:
    """``(B,)`` share of a row's cluster in the weight of its group; the shares of a group's clusters add up to 1.

    Args:
        ids: ``(B,)`` clusters, which no two groups share.
        group: ``(B,)``.
        log_weight: ``(B,)`` logarithms of the rows' weights, such as their log-probabilities; None is one each.
    """
    if log_weight is None:
        weight = torch.ones(len(ids), device=ids.device)
    else:
        weight = (log_weight - group_max(log_weight, group)).exp()
    return group_sum(weight, ids) / group_sum(weight, group)


def semantic_entropy(
    ids: Tensor, group: Tensor, log_weight: Tensor | None = None, formula: Literal["entropy", "mean_log"] = "entropy"
) -> Tensor:
    """``(B,)`` entropy in nats of a group over its clusters, the same for all its rows.

    With p_k the shares of ``cluster_mass``: ``entropy`` is -sum_k p_k log p_k, in [0, log G]; ``mean_log`` is
    -(1/K) sum_k log p_k over the K clusters, which exceeds log G where the shares are unequal.

    Args:
        ids: ``(B,)`` clusters, which no two groups share.
        group: ``(B,)``.
        log_weight: as for ``cluster_mass``.
        formula: of the two.
    """
    p = cluster_mass(ids, group, log_weight).clamp(min=torch.finfo(torch.float32).tiny)
    # Each cluster is counted once, in parts that its rows share.
    part = 1 / group_sum(torch.ones_like(p), ids)
    if formula == "entropy":
        return group_sum(-p * p.log() * part, group)
    return group_sum(-p.log() * part, group) / group_sum(part, group)


def tied_groups(reward: Tensor, group: Tensor) -> Tensor:
    """``(B,)`` bool: all rewards ``(B,)`` of the row's group are equal, so that they say nothing."""
    return group_max(reward, group) == -group_max(-reward, group)

"""Action grouping: few groups of actions with like effects, so that exploration pays for groups and not for actions.

Finer groups cut the error of treating the actions of a group alike and raise the error of estimating the groups; the
number of groups balances both. Exploration is first over groups and then within: p(a|x) = p(g|x) p(a|g,x). Groups are
``(K,)`` int64, the group 0 to h-1 of each action.

Source: Li, Ju & Shroff (ICLR 2024, arXiv 2306.12981), in the form that a bandit with a given oracle needs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from scipy.cluster import hierarchy
from torch import Tensor

from core.bandits.exploration import inverse_gap_weighting
from core.bandits.row_checks import refuse_rows
from core.errors import InputError


@dataclass(frozen=True)
class Grouping:
    """A partition of the actions and what speaks for it.

    Attributes:
        groups: ``(K,)`` int64, the group of each action.
        sizes: numbers h of groups that were compared.
        spread: B(h), mean spread of the rewards within a group, of each of ``sizes``.
        criterion: B(h) + c sqrt(h log(n) / n), of each of ``sizes``; the least decides.
    """

    groups: Tensor
    sizes: tuple[int, ...]
    spread: tuple[float, ...]
    criterion: tuple[float, ...]


def effect_vectors(scores: Tensor, mask: Tensor, cluster: Tensor) -> Tensor:
    """Estimated effect of each action in each context cluster, ``(K, C)`` float64.

    The effect is the score less the mean score of the actions available in that row, averaged over the cluster's rows
    where the action is available. In a cluster where it never is, it is the action's average over the others, and 0 for
    an action that never is available.

    Args:
        scores: ``(n, K)`` predicted rewards.
        mask: ``(n, K)`` bool.
        cluster: ``(n,)`` int64 in [0, C), for example the country and scheme of a payment.

    Raises:
        InputError: no rows, shapes that differ, a negative cluster, or an available score that is not finite.
    """
    if scores.shape != mask.shape or scores.ndim != 2 or cluster.shape != scores.shape[:1] or not len(scores):
        raise InputError(
            f"scores {tuple(scores.shape)}, mask {tuple(mask.shape)}, cluster {tuple(cluster.shape)}: "
            "must be (n, K), (n, K) and (n,), with at least 1 row"
        )
    if cluster.dtype != torch.int64 or (cluster < 0).any():
        raise InputError(f"cluster of {cluster.dtype}: must be torch.int64 of at least 0")
    available = mask.to(torch.float64)
    value = torch.where(mask, scores, 0).to(torch.float64)
    refuse_rows("scores", value, value.isfinite(), "finite where an action is available")
    mean = value.sum(1, keepdim=True) / available.sum(1, keepdim=True).clamp(min=1)
    effect = (value - mean) * available
    cells = available.new_zeros(int(cluster.max()) + 1, scores.shape[1])
    total, rows = (cells.index_add(0, cluster, each) for each in (effect, available))
    overall = total.sum(0) / rows.sum(0).clamp(min=1)
    return torch.where(rows > 0, total / rows.clamp(min=1), overall).T


def agglomerate(effects: Tensor, groups: int) -> Tensor:
    """``(K,)`` int64: the actions in ``groups`` groups, numbered by their lowest action.

    Complete linkage, which bounds how far two actions of a group lie apart.

    Args:
        effects: ``(K, C)``.
        groups: h, from 1 to K.

    Raises:
        InputError: an impossible number of groups.
    """
    return _agglomerated(effects, (groups,))[0]


def choose_grouping(
    effects: Tensor,
    scores: Tensor,
    mask: Tensor,
    rows: int,
    *,
    sizes: Iterable[int] | None = None,
    c: float = 1.0,
) -> Grouping:
    """The number of groups h that minimises B(h) + c sqrt(h log(n) / n), and its groups.

    Args:
        effects: ``(K, C)``, what the groups are made from.
        scores: ``(m, K)`` rewards, known or predicted, on rows held out of ``effects``; B(h) is measured on them.
        mask: ``(m, K)`` bool of these rows.
        rows: n, what the oracle learns from.
        sizes: numbers of groups to compare; 1 to K if not given.
        c: weight of the estimation error.

    Raises:
        InputError: an impossible number of groups, ``rows`` below 1, a negative ``c``, or as ``within_group_spread``.
    """
    if rows < 1:
        raise InputError(f"rows = {rows}: must be at least 1")
    if not 0 <= c < math.inf:
        raise InputError(f"c = {c}: must be at least 0 and finite")
    compared = tuple(range(1, len(effects) + 1) if sizes is None else sizes)
    partitions = _agglomerated(effects, compared)
    spread = tuple(within_group_spread(scores, mask, groups) for groups in partitions)
    criterion = tuple(b + c * math.sqrt(h * math.log(rows) / rows) for b, h in zip(spread, compared, strict=True))
    return Grouping(partitions[criterion.index(min(criterion))], compared, spread, criterion)


def within_group_spread(scores: Tensor, mask: Tensor, groups: Tensor, target: Tensor | None = None) -> float:
    """B: highest less lowest reward among a group's available actions, averaged over groups and rows.

    With ``target`` the groups of a row are weighted by the probability that the target policy gives them, and B bounds
    the bias of its value by grouped importance weights, p_target(g|x) / p_log(g|x), whatever the logging policy; else
    all groups with an available action count alike.

    Args:
        scores: ``(n, K)`` rewards, known or predicted on held-out rows.
        mask: ``(n, K)`` bool.
        groups: ``(K,)`` int64.
        target: ``(n, K)`` probabilities.

    Raises:
        InputError: no rows, a row without an available action, an available score that is not finite, or shapes that
            differ.
    """
    groups = _checked_groups(groups, scores, mask)
    high, low = (_extremes(scores, mask, groups, how) for how in ("amax", "amin"))
    opened = group_probabilities(mask.to(scores.dtype), groups) > 0
    spread = torch.where(opened, high - low, 0).to(torch.float64)
    if not len(scores):
        raise InputError("scores: has no rows; at least 1 is needed")
    refuse_rows("available actions", mask.sum(1), mask.any(1), "at least 1")
    refuse_rows("spread of the scores", spread, spread.isfinite(), "finite")
    if target is None:
        share = opened / opened.sum(1, keepdim=True)
    else:
        share = group_probabilities(target, groups).to(torch.float64)
    return float((spread * share).sum(1).mean())


def grouped_inverse_gap_weighting(scores: Tensor, mask: Tensor, groups: Tensor, gamma: float | Tensor) -> Tensor:
    """Inverse-gap weighting over groups, then within the group drawn; ``(n, K)``, p(a|x) = p(g|x) p(a|g,x).

    A group scores what its best available action does, so that the limit of large gamma is greedy; with one group, or
    with one action a group, this is ``inverse_gap_weighting``. Ties go to the lowest group, and in it to the lowest id.

    Args:
        scores: ``(n, K)``.
        mask: ``(n, K)`` bool.
        groups: ``(K,)`` int64.
        gamma: at least 0 and finite, one for all rows or ``(n,)``.

    Raises:
        InputError: as ``inverse_gap_weighting``, or groups that do not number K.
    """
    groups = _checked_groups(groups, scores, mask)
    available = group_probabilities(mask.to(scores.dtype), groups)
    best = _extremes(scores, mask, groups, "amax")
    over = inverse_gap_weighting(best, available > 0, gamma)
    gaps = torch.where(mask, best[:, groups] - scores, math.inf)
    rate = torch.as_tensor(gamma, dtype=scores.dtype, device=scores.device).reshape(-1, 1)
    # Above 0, so that the infinite gap of a masked action always becomes probability 0.
    within = (available[:, groups] + rate.clamp(min=torch.finfo(scores.dtype).tiny) * gaps).reciprocal()
    others = group_probabilities(within, groups) - available.reciprocal()
    # Of the actions without a gap, the lowest id of each group; a group without an available action has none.
    ids = torch.arange(len(groups), device=scores.device).expand_as(mask)
    first = _extremes(ids, gaps == 0, groups, "amin")
    within = torch.cat([within, torch.zeros_like(within[:, :1])], dim=1)
    within.scatter_(1, first, 1 - others)
    return within[:, :-1] * over[:, groups]


def group_probabilities(probabilities: Tensor, groups: Tensor) -> Tensor:
    """p(g|x), ``(n, h)``: the probabilities ``(n, K)`` summed over the actions of each group.

    Raises:
        InputError: groups that do not number K, or are not int64 of at least 0.
    """
    _check_groups(groups, probabilities)
    member = torch.nn.functional.one_hot(groups.to(probabilities.device)).to(probabilities.dtype)
    return probabilities @ member


def _extremes(values: Tensor, mask: Tensor, groups: Tensor, how: Literal["amax", "amin"]) -> Tensor:
    """Largest or smallest of the values ``(n, K)`` where ``mask``, by group, ``(n, h)``.

    Of a group without one it is -inf or inf, and K of whole numbers.
    """
    nothing = len(groups) if not values.is_floating_point() else -math.inf if how == "amax" else math.inf
    found = values.new_full((len(values), int(groups.max()) + 1), nothing)
    return found.scatter_reduce_(1, groups.expand_as(values), values.masked_fill(~mask, nothing), how)


def _checked_groups(groups: Tensor, scores: Tensor, mask: Tensor) -> Tensor:
    _check_groups(groups, scores)
    if scores.shape != mask.shape:
        raise InputError(f"scores {tuple(scores.shape)} and mask {tuple(mask.shape)}: must have one shape")
    return groups.to(scores.device)


def _agglomerated(effects: Tensor, sizes: tuple[int, ...]) -> list[Tensor]:
    actions = len(effects)
    for h in sizes:
        if not 1 <= h <= actions:
            raise InputError(f"groups = {h}: must be between 1 and the number of actions, {actions}")
    if actions == 1:
        return [torch.zeros(1, dtype=torch.int64, device=effects.device) for _ in sizes]
    tree = hierarchy.linkage(effects.detach().cpu().numpy(), method="complete")
    # Of all cuts, column j has K - j groups; asked for several numbers at once, scipy answers some in the wrong place.
    cuts = hierarchy.cut_tree(tree)
    return [torch.as_tensor(cuts[:, actions - h], dtype=torch.int64, device=effects.device) for h in sizes]


def _check_groups(groups: Tensor, table: Tensor) -> None:
    if table.ndim != 2 or groups.shape != table.shape[1:] or groups.dtype != torch.int64 or (groups < 0).any():
        raise InputError(
            f"groups of shape {tuple(groups.shape)}, {groups.dtype}: must be the group, torch.int64 of at least 0, of "
            f"each action of a table {tuple(table.shape)}"
        )

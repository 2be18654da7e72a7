"""Which attributes to ask about: entropies over the candidates, and the short lists that policies choose from.

Deng et al. (2021), section 4.3: of all attributes the K_p of the largest weighted entropy, of all items the K_v of the
largest score.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from simulators.crs.conversation import Conversation
from simulators.crs.dialogue import NONE

Selection = Literal["weighted_entropy", "entropy", "preference", "random"]
Observation = Mapping[str, Tensor]


def item_weights(observation: Observation) -> tuple[Tensor, Tensor, Tensor]:
    """The candidates as pairs (row, item) ``(n,)``, and w = sigmoid(score) of each ``(n,)``."""
    row, item = observation["candidate"].nonzero(as_tuple=True)
    score = observation["score"]
    return row, item, score.flatten().index_select(0, row * score.shape[1] + item).sigmoid()


def shares(world: Conversation, observation: Observation, *, weighted: bool = True) -> Tensor:
    """``(B, P)`` share of the candidates' weight that has each attribute; with ``weighted`` false, of their number."""
    row, item, weight = item_weights(observation)
    if not weighted:
        weight = torch.ones_like(weight)
    batch, p = observation["asked"].shape
    total = torch.zeros(batch, device=weight.device).index_add_(0, row, weight)
    pair, attribute = world.relation.attributes_of(item)
    mass = torch.zeros(batch * p, device=weight.device)
    mass.scatter_add_(0, row.index_select(0, pair) * p + attribute, weight.index_select(0, pair))
    return mass.view(batch, p) / total.clamp(min=torch.finfo(total.dtype).tiny).unsqueeze(1)


def binary_entropy(share: Tensor) -> Tensor:
    """-x log2 x - (1 - x) log2(1 - x), 0 at the ends."""
    share = share.clamp(0, 1)
    return -(torch.xlogy(share, share) + torch.xlogy(1 - share, 1 - share)) / math.log(2)


_FACTORS = (0x9E3779B97F4A7C1, 0x2545F4914F6CDD1D, 0x5851F42D4C957F2D)


def drawn(observation: Observation, count: int, seed: int) -> Tensor:
    """``(B, count)`` numbers in [0, 1) that the user, the opening, the turn and a seed decide, whatever stands beside.

    A hash, not a generator: the same dialogue has the same numbers in every batch and whenever it is looked at.
    """
    ids = torch.arange(count, device=observation["user"].device)
    of_row = observation["user"] * _FACTORS[0] + (observation["turn"] + 17 * seed) * _FACTORS[1]
    of_row = _mixed(of_row + observation["order"][:, 0] * _FACTORS[2])
    # The 24 bits that a float32 holds.
    return ((_mixed(of_row.unsqueeze(1) + ids * _FACTORS[2]) >> 20) & 0xFFFFFF).float() / (1 << 24)


def _mixed(number: Tensor) -> Tensor:
    """The bits of int64 numbers, mixed."""
    for shift in (29, 32):
        number = (number ^ (number >> shift)) * _FACTORS[1]
    return number ^ (number >> 29)


def attribute_values(
    world: Conversation,
    observation: Observation,
    share: Tensor,
    selection: Selection = "weighted_entropy",
    *,
    one_sided: bool = False,
    seed: int = 0,
) -> Tensor:
    """``(B, P)`` how much there is for asking about each attribute; -inf for those that no candidate has or were asked.

    Args:
        world: of the dialogues.
        observation: what the system knows.
        share: of the candidates, from ``shares``, weighted unless the selection is ``entropy``.
        selection: ``weighted_entropy`` of the shares of the candidates' weight, ``entropy`` of the shares of their
            number, ``preference`` e_u.e_p + sum_accepted e_p'.e_p as the published binary environment ranks, or
            ``random``.
        one_sided: -x log2 x alone.
        seed: of ``random``.
    """
    row, attribute = share.nonzero(as_tuple=True)
    place = row * share.shape[1] + attribute
    fresh = (~observation["asked"].bool()).flatten().index_select(0, place).nonzero().squeeze(1)
    row, attribute, place = (x.index_select(0, fresh) for x in (row, attribute, place))
    if selection == "preference":
        at, told = observation["accepted"].nonzero(as_tuple=True)
        wanted = world.users[observation["user"]].index_add(0, at, world.embeddings.attribute[told])
        value = (wanted.index_select(0, row) * world.embeddings.attribute.index_select(0, attribute)).sum(1)
    elif selection == "random":
        value = drawn(observation, share.shape[1], seed)[row, attribute]
    else:
        x = share.flatten().index_select(0, place)
        value = -torch.xlogy(x, x) / math.log(2) if one_sided else binary_entropy(x)
    values = torch.full_like(share, -torch.inf)
    values.view(-1).index_copy_(0, place, value)
    return values


def question_values(world: Conversation, values: Tensor) -> Tensor:
    """``(B, Q)`` values of questions from those of attributes ``(B, P)``; -inf for one that cannot be asked.

    A binary question is one about an attribute, an enumerated one has the sum over the attributes of its type, and a
    multi-choice one that over those of its type that would be named.
    """
    if world.rules.question == "binary":
        return values
    of_type = _by_type(world, values)
    if world.rules.question == "multi_choice":
        of_type = of_type.topk(min(world.width, of_type.shape[2]), dim=2).values
    asked = of_type > -torch.inf
    return torch.where(asked, of_type, 0.0).sum(2).masked_fill(~asked.any(2), -torch.inf)


def _by_type(world: Conversation, values: Tensor) -> Tensor:
    """``(B, G, W)`` values by type."""
    return values[:, world.leaves.clamp(min=0)].masked_fill(world.leaves < 0, -torch.inf)


def named(world: Conversation, question: Tensor, values: Tensor) -> Tensor:
    """``(B, k, W)`` first columns of the actions that ask the questions ``(B, k)``; -1 beside them.

    A multi-choice question names the attributes of its type with the largest values ``(B, P)``.
    """
    if world.rules.question != "multi_choice":
        return question.unsqueeze(2)
    leaves = world.leaves[question.clamp(min=0)]
    row = torch.arange(len(question), device=question.device)[:, None, None]
    of_leaf = values[row, leaves.clamp(min=0)].masked_fill(leaves < 0, -torch.inf)
    best = of_leaf.topk(min(world.width, of_leaf.shape[2]), dim=2)
    there = (best.values > -torch.inf) & (question >= 0).unsqueeze(2)
    return torch.where(there, leaves.gather(2, best.indices), NONE)


def ask(world: Conversation, columns: Tensor) -> Tensor:
    """``(B, A)`` the actions with these first columns ``(B, W)``, of ``named``."""
    action = torch.full((len(columns), world.columns), NONE, device=columns.device)
    action[:, : columns.shape[1]] = columns
    return action


def recommend(world: Conversation, items: Tensor) -> Tensor:
    """``(B, A)`` the actions that recommend these items ``(B, k)``, -1 for none."""
    action = torch.full((len(items), world.columns), NONE, device=items.device)
    action[:, 1 : 1 + items.shape[1]] = items
    return action


def top_items(score: Tensor, candidate: Tensor, count: int) -> Tensor:
    """``(B, count)`` the candidates of the largest scores ``(B, V)``, best first, then -1."""
    best = score.masked_fill(~candidate.bool(), -torch.inf).topk(min(count, score.shape[1]), dim=1)
    items = torch.where(best.values > -torch.inf, best.indices, NONE)
    return torch.nn.functional.pad(items, (0, count - items.shape[1]), value=NONE)

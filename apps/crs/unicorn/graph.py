"""The state as a graph: the user, the candidates, and the attributes that are accepted or open (section 4.1).

A[u, v] = w_v = sigmoid(score of v) for the candidates v, A[v, p] = 1 for the attributes p of v that are not rejected,
symmetric, 0 elsewhere. Lists of edges are all there is: nothing is of size batch times items times attributes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from core.nn.graph import Neighbourhoods, normalised
from simulators.crs.conversation import Conversation
from simulators.crs.selection import Observation


@dataclass(frozen=True)
class StateGraph:
    """Of B dialogues: what the outputs at the n accepted attributes need, layer by layer.

    Attributes:
        rows: number B.
        dialogue: ``(n,)`` int64, which one each accepted attribute belongs to.
        place: ``(n,)`` int64, its place in the order of acceptance.
        accepted: ``(n,)`` int64, its row in the table of embeddings.
        layers: of the layers, first to last, the neighbourhoods of the nodes that are computed, and their own features
            ``(R,)``. The first layer reads the table of embeddings (users, one unknown user, items, attributes), the
            others what the layer before has computed; the last one computes the accepted attributes.
    """

    rows: int
    dialogue: Tensor
    place: Tensor
    accepted: Tensor
    layers: tuple[tuple[Neighbourhoods, Tensor], ...]


def state_graph(
    world: Conversation, observation: Observation, *, layers: int = 2, most_items: int = 5000, official: bool = False
) -> StateGraph:
    """The graph of what the system knows.

    Args:
        world: of the dialogues.
        observation: see ``Conversation.observe``.
        layers: 0, 1 or 2 that will be computed on it.
        most_items: candidates in a graph; of more, those with the largest scores.
        official: with the weights A_ij in place of Lam_ij.
    """
    p, batch = world.catalogue.n_attributes, len(observation["user"])
    dialogue, place = (observation["order"] >= 0).nonzero(as_tuple=True)
    attribute = observation["order"][dialogue, place]
    first_item = len(world.users)
    first_attribute = first_item + world.catalogue.n_items
    accepted = attribute + first_attribute
    if not layers:
        return StateGraph(batch, dialogue, place, accepted, ())

    row, item = _kept(observation, most_items).nonzero(as_tuple=True)
    weight = observation["score"][row, item].sigmoid()
    pair, other = world.relation.attributes_of(item)
    of_pair = row[pair] * p + other
    node = (observation["accepted"].bool() | ~observation["asked"].bool()).view(-1)[of_pair]
    pair, other, of_pair = pair[node], other[node], of_pair[node]

    # Nodes: the users, the candidates, then P places for each dialogue.
    n, count = len(item), len(attribute)
    to_user, to_attribute = weight, torch.ones_like(weight[pair])
    if not official:
        here = torch.arange(n, device=row.device) + batch
        ends = torch.cat([row, of_pair + batch + n]), torch.cat([here, here[pair]])
        lam = normalised(*ends, torch.cat([to_user, to_attribute]), batch + n + batch * p)
        to_user, to_attribute = lam.split([n, len(pair)])

    index = torch.full((batch * p,), -1, device=row.device)
    index[dialogue * p + attribute] = torch.arange(count, device=row.device)
    at = index[of_pair]
    told = at >= 0
    at, told_pair, told_weight = at[told], pair[told], to_attribute[told]
    if layers == 1:
        last = Neighbourhoods.of(at, item[told_pair] + first_item, told_weight, count)
        return StateGraph(batch, dialogue, place, accepted, ((last, accepted),))
    user = observation["user"][row] % first_item
    inner = Neighbourhoods.of(
        torch.cat([torch.arange(n, device=row.device), pair, at + n]),
        torch.cat([user, other + first_attribute, item[told_pair] + first_item]),
        torch.cat([to_user, to_attribute, told_weight]),
        n + count,
    )
    last = Neighbourhoods.of(at, told_pair, told_weight, count)
    computed = torch.cat([item + first_item, accepted])
    own = torch.arange(n, n + count, device=row.device)
    return StateGraph(batch, dialogue, place, accepted, ((inner, computed), (last, own)))


def _kept(observation: Observation, most: int) -> Tensor:
    """``(B, V)`` the candidates that are in the graph."""
    candidate = observation["candidate"].bool()
    if candidate.shape[1] <= most or not bool((candidate.sum(1) > most).any()):
        return candidate
    best = observation["score"].masked_fill(~candidate, -torch.inf).topk(most, dim=1).indices
    return candidate & torch.zeros_like(candidate).scatter(1, best, True)

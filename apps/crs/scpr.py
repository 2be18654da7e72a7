"""SCPR: when to ask is learnt, what to ask is reasoned on the graph (Lei et al. 2020, KDD).

The conversation becomes a world of two actions, ask the best question or recommend the best list, which any learner of
discrete actions can be trained on. Questions are those that a walk can reach: two hops from the attribute accepted
last, through an item that is still a candidate. Of these the one of the largest weighted entropy is asked.
"""

from __future__ import annotations

import torch
from torch import Tensor

from apps.crs.flat_choice import EDGES, FlatChoice, View, history, length_bins
from simulators.crs import selection
from simulators.crs.choice import EntropyRanking, Ranking
from simulators.crs.conversation import Conversation
from simulators.crs.selection import Observation

ASK, RECOMMEND = 0, 1
"""The actions."""


class ScprChoice(FlatChoice):
    """Ask the best question or recommend; seen are the history of T turns and the 8 bins of the candidates' number.

    Args:
        world: the conversation.
        ranking: what is worth asking.
    """

    def __init__(self, world: Conversation, ranking: Ranking = EntropyRanking()) -> None:  # noqa: B008 (frozen)
        super().__init__(world, 1, world.rules.max_turns + len(EDGES) + 1, bound=1.0)
        self.ranking = ranking

    def view(self, observation: Observation) -> View:
        """See the class."""
        value, _, _ = self.ranking(self.world, observation)
        value = value.masked_fill(~reachable(self.world, observation), -torch.inf)
        best = selection.question_values(self.world, value).max(1)
        there = (best.values > -torch.inf).unsqueeze(1)
        seen = torch.cat([history(observation), length_bins(observation)], 1)
        named = selection.named(self.world, best.indices.unsqueeze(1), value)
        return View(seen, self.mask(observation, there), named)


def reachable(world: Conversation, observation: Observation) -> Tensor:
    """``(B, P)`` bool, the attributes of the candidates that have the attribute accepted last.

    Where nothing is accepted yet, those of all candidates. Candidates without the attribute accepted last are left
    where any of several accepted ones suffices, or an answer was wrong.
    """
    order, candidate = observation["order"], observation["candidate"].bool()
    told = (order >= 0).sum(1)
    last = order.gather(1, (told - 1).clamp(min=0).unsqueeze(1)).squeeze(1)
    having = (told == 0).unsqueeze(1).expand_as(candidate).clone()
    having[world.relation.items_of(last)] = True
    row, item = (candidate & having).nonzero(as_tuple=True)
    pair, attribute = world.relation.attributes_of(item)
    found = torch.zeros_like(observation["asked"], dtype=torch.bool)
    found[row[pair], attribute] = True
    return found

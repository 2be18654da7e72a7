"""Dialogues one after the other, with sets and loops, as published code of conversational recommendation plays them."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from simulators.crs import Conversation


class OneUserAtATime:
    """Binary questions by weighted entropy; all scores and entropies are computed anew in every turn.

    Args:
        world: whose catalogue, embeddings and rules it follows, without errors of the user.
        graph: also write the graph of the state as a sparse matrix in every turn, as learners on graphs need it.
    """

    def __init__(self, world: Conversation, *, graph: bool = False) -> None:
        catalogue, self.rules, self.graph = world.catalogue, world.rules, graph
        self.user, self.item, self.attribute = (
            getattr(world.embeddings, name).cpu().numpy() for name in ("user", "item", "attribute")
        )
        self.attributes_of: dict[int, set[int]] = defaultdict(set)
        self.items_of: dict[int, set[int]] = defaultdict(set)
        for item, attribute in catalogue.edges.tolist():
            self.attributes_of[item].add(attribute)
            self.items_of[attribute].add(item)

    def play(self, user: int, target: int, opening: int, recommends: Callable[[int], bool]) -> tuple[int, int]:
        """Turns and rank of one dialogue (T and 0 for a failure).

        Args:
            user: id.
            target: id of the item.
            opening: id of the attribute that the user opens with.
            recommends: whether to recommend with so many candidates.
        """
        candidates, accepted, rejected = set(self.items_of[opening]), [opening], set[int]()
        for turn in range(1, self.rules.max_turns + 1):
            scores = {item: self._score(user, item, accepted, rejected) for item in candidates}
            entropies = self._entropies(scores, {*accepted, *rejected})
            if self.graph:
                self._state_graph(scores, accepted, rejected)
            if turn == self.rules.max_turns or recommends(len(candidates)) or not entropies:
                best = sorted(candidates, key=scores.__getitem__, reverse=True)[: self.rules.list_length]
                if target in best:
                    return turn, best.index(target) + 1
                candidates -= set(best)
                continue
            asked = max(entropies, key=entropies.__getitem__)
            if asked in self.attributes_of[target]:
                accepted.append(asked)
                candidates &= self.items_of[asked]
            else:
                rejected.add(asked)
        return self.rules.max_turns, 0

    def _score(self, user: int, item: int, accepted: list[int], rejected: set[int]) -> float:
        vector = self.item[item]
        score = float(self.user[user] @ vector)
        for attribute in accepted:
            score += float(self.attribute[attribute] @ vector)
        for attribute in rejected & self.attributes_of[item]:
            score -= _sigmoid(float(self.attribute[attribute] @ vector))
        return score

    def _entropies(self, scores: dict[int, float], asked: set[int]) -> dict[int, float]:
        weight: dict[int, float] = defaultdict(float)
        total = 0.0
        for item, score in scores.items():
            of_item = _sigmoid(score)
            total += of_item
            for attribute in self.attributes_of[item]:
                weight[attribute] += of_item
        return {attribute: _entropy(part / total) for attribute, part in weight.items() if attribute not in asked}

    def _state_graph(self, scores: dict[int, float], accepted: list[int], rejected: set[int]) -> Tensor:
        """Adjacency of the user, the candidates, and their attributes that are not rejected."""
        place: dict[tuple[str, int], int] = {("user", 0): 0}
        rows, columns, values = list[int](), list[int](), list[float]()

        def link(a: tuple[str, int], b: tuple[str, int], value: float) -> None:
            ends = [place.setdefault(node, len(place)) for node in (a, b)]
            rows.extend(ends)
            columns.extend(reversed(ends))
            values.extend((value, value))

        for attribute in accepted:
            place.setdefault(("attribute", attribute), len(place))
        for item, score in scores.items():
            link(("user", 0), ("item", item), _sigmoid(score))
            for attribute in self.attributes_of[item] - rejected:
                link(("item", item), ("attribute", attribute), 1.0)
        index: NDArray[np.int64] = np.array([rows, columns])
        size = (len(place), len(place))
        return torch.sparse_coo_tensor(torch.from_numpy(index), torch.tensor(values), size, check_invariants=False)


def max_entropy(length: int, seed: int = 0) -> Callable[[int], bool]:
    """Recommend with probability K / max(|V_cand|, K)."""
    coin = random.Random(seed)
    return lambda size: coin.random() * max(size, length) < length


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def _entropy(share: float) -> float:
    if not 0 < share < 1:
        return 0.0
    return -share * math.log2(share) - (1 - share) * math.log2(1 - share)

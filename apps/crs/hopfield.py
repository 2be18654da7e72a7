"""Items retrieved from a modern Hopfield memory, in place of the score of equation 1.

Ramsauer et al. (2021, arXiv 2008.02217). The memory's rows X are the items' embeddings, the query is

    xi = e_u + sum_{p accepted} e_p,

and a retrieval is xi <- X^T softmax(beta X xi), where the softmax sees the candidates alone. The weights of the last
retrieval are the masses of the candidates: how likely each is the item that the user has in mind. Rejected attributes
do not enter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from apps.crs.active_inference import likeliest
from apps.crs.policies import Threshold
from core.errors import InputError
from core.nn.hopfield import hopfield_update, hopfield_weights
from simulators.crs import selection
from simulators.crs.catalogue import Ids
from simulators.crs.conversation import Conversation
from simulators.crs.selection import Observation

GRID = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0)
"""Inverse temperatures that are tried."""
MOST_RETRIEVALS = 3


@dataclass(frozen=True)
class HopfieldScores:
    """The memory.

    Attributes:
        beta: inverse temperature.
        retrievals: 1 to 3; with 1 the items have the order of equation 1 without its rejected attributes.

    Raises:
        InputError: a number out of its range.
    """

    beta: float = 4.0
    retrievals: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.beta < torch.inf:
            raise InputError(f"hopfield.beta = {self.beta}: must be above 0 and finite")
        if not 1 <= self.retrievals <= MOST_RETRIEVALS:
            raise InputError(f"hopfield.retrievals = {self.retrievals}: must be 1 to {MOST_RETRIEVALS}")

    def query(self, world: Conversation, observation: Observation) -> Tensor:
        """``(B, d)`` the user's embedding and those of the accepted attributes."""
        row, attribute = observation["accepted"].nonzero(as_tuple=True)
        return world.users[observation["user"]].index_add(0, row, world.embeddings.attribute[attribute])

    def log_weights(self, world: Conversation, observation: Observation) -> Tensor:
        """``(B, V)`` logarithms of the candidates' masses, -inf for other items."""
        candidate = observation["candidate"].bool()
        # A softmax over nothing would be NaN.
        seen = candidate | ~candidate.any(1, keepdim=True)
        items, xi = world.embeddings.item, self.query(world, observation)
        if self.retrievals > 1:
            xi = hopfield_update(items, xi, self.beta, steps=self.retrievals - 1, allowed=seen)
        return hopfield_weights(items, xi, self.beta, allowed=seen, log=True).masked_fill(~candidate, -torch.inf)


@dataclass(frozen=True)
class HopfieldRanking:
    """Items by their mass in the memory, questions by the entropy of the mass of those that have an attribute.

    A ``simulators.crs.choice.Ranking``.

    Attributes:
        scores: the memory.
    """

    scores: HopfieldScores = field(default_factory=HopfieldScores)

    def __call__(self, world: Conversation, observation: Observation) -> tuple[Tensor, Tensor, Tensor]:
        """``(B, P)`` entropy in bits, ``(B, P)`` mass of the candidates with an attribute, ``(B, V)`` log masses."""
        log_weights = self.scores.log_weights(world, observation)
        share = world.relation.mass(log_weights.exp()).clamp(0, 1)
        return selection.attribute_values(world, observation, share), share, log_weights


class HopfieldPolicy(Threshold):
    """Ask while there are more than n candidates, then recommend, both by the memory.

    Args:
        world: the conversation.
        scores: the memory.
        n: candidates.
        seed: unused; there are no coins.
    """

    def __init__(
        self,
        world: Conversation,
        scores: HopfieldScores = HopfieldScores(),
        n: int = 100,
        *,
        seed: int = 0,
    ) -> None:
        super().__init__(world, n, ranking=HopfieldRanking(scores), seed=seed)
        self.scores = scores

    def posterior(self, observation: Observation) -> Tensor:
        """The masses ``(B, V)``."""
        return self.scores.log_weights(self.world, observation).exp()


def tune_beta(
    world: Conversation, pairs: Ids, grid: Sequence[float] = GRID, *, retrievals: int = 1, seed: int = 0
) -> float:
    """The inverse temperature under which held-out targets have the largest mass, once the user has opened.

    Args:
        world: of the embeddings.
        pairs: ``(n, 2)`` (user, item), as of the validation split.
        grid: what is tried.
        retrievals: see ``HopfieldScores``.
        seed: of the openings.

    Returns:
        The member of the grid of the largest sum of log masses, the smallest of equals.

    Raises:
        InputError: an empty grid, no pair, or a number out of its range.
    """
    if not len(grid):
        raise InputError("grid: empty; needs at least one beta")
    memories = [HopfieldScores(beta, retrievals) for beta in sorted(grid)]
    return memories[likeliest(world, pairs, [memory.log_weights for memory in memories], seed)].beta

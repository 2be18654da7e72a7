"""The ablation of the items' selection: random candidates in place of those of the largest scores."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from simulators.crs import selection
from simulators.crs.choice import EntropyRanking, Ranking
from simulators.crs.conversation import Conversation
from simulators.crs.selection import Observation


@dataclass(frozen=True)
class RandomItems:
    """Questions as another ranking has them, items in an order that the user, the turn and a seed decide.

    Attributes:
        questions: the other ranking.
        seed: see above.
    """

    questions: Ranking = EntropyRanking()  # noqa: RUF009 (frozen)
    seed: int = 0

    def __call__(self, world: Conversation, observation: Observation) -> tuple[Tensor, Tensor, Tensor]:
        """See ``Ranking``."""
        value, share, score = self.questions(world, observation)
        order = selection.drawn(observation, score.shape[1], self.seed)
        return value, share, order.masked_fill(score == -torch.inf, -torch.inf)

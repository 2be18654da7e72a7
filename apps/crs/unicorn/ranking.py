"""The ablation of the items' selection: random candidates in place of those of the largest scores."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from simulators.crs.choice import EntropyRanking, Ranking
from simulators.crs.conversation import Conversation
from simulators.crs.selection import Observation

_FACTORS = (0x9E3779B97F4A7C1, 0x2545F4914F6CDD1D, 0x5851F42D4C957F2D)


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
        item = torch.arange(score.shape[1], device=score.device)
        of_row = observation["user"] * _FACTORS[0] + (observation["turn"] + 17 * self.seed) * _FACTORS[1]
        mixed = _mixed(_mixed(of_row).unsqueeze(1) + item * _FACTORS[2])
        # The 24 bits that a float32 holds.
        drawn = ((mixed >> 20) & 0xFFFFFF).float()
        return value, share, drawn.masked_fill(score == -torch.inf, -torch.inf)


def _mixed(number: Tensor) -> Tensor:
    """The bits of int64 numbers, mixed."""
    for shift in (29, 32):
        number = (number ^ (number >> shift)) * _FACTORS[1]
    return number ^ (number >> 29)

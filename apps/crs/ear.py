"""EAR: a policy network on the entropies and preferences of all questions (Lei et al. 2020, WSDM).

The action stage of estimation, action, reflection. The scores of the conversation are the estimation; there is no
reflection, which would refit the embeddings in the dialogue.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from apps.crs.flat_choice import EDGES, history, length_bins
from apps.crs.question_policy import EveryQuestion, QuestionPolicy, QuestionSettings
from simulators.crs import selection
from simulators.crs.conversation import Conversation
from simulators.crs.selection import Observation


class EarChoice(EveryQuestion):
    """Seen are of every question its weighted entropy and the user's preference, the history, and the length bins.

    Both are 0 for a question that cannot be asked. The preference for an attribute p is e_u.e_p + sum_accepted
    e_p'.e_p, for a type the largest of its attributes that can be asked about.

    Args:
        world: the conversation.

    Raises:
        InputError: see ``EveryQuestion``.
    """

    def __init__(self, world: Conversation) -> None:
        super().__init__(world, 2 * world.questions + world.rules.max_turns + len(EDGES) + 1)

    def features(self, observation: Observation, share: Tensor, value: Tensor, of_question: Tensor) -> Tensor:
        """See the class."""
        world = self.world
        preference = selection.attribute_values(world, observation, share, "preference")
        if world.rules.question != "binary":
            preference = preference[:, world.leaves.clamp(min=0)].masked_fill(world.leaves < 0, -torch.inf).amax(2)
        there = of_question > -torch.inf
        numbers = [torch.where(there, of_question, 0.0), torch.where(there, preference, 0.0)]
        return torch.cat([*numbers, history(observation), length_bins(observation)], 1)


class EarSettings(QuestionSettings):
    """Of EAR."""


class EarPolicy(QuestionPolicy):
    """A trained EAR."""

    kind: ClassVar[str] = "ear"

    @staticmethod
    def choice_of(world: Conversation) -> EarChoice:
        """What is seen and can be chosen."""
        return EarChoice(world)

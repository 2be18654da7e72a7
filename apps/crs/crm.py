"""CRM: a policy network on what is believed about every attribute (Sun and Zhang 2018, SIGIR)."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from apps.crs.question_policy import EveryQuestion, QuestionPolicy, QuestionSettings
from simulators.crs.conversation import Conversation
from simulators.crs.selection import Observation


class CrmChoice(EveryQuestion):
    """Seen is a number for every attribute: 1 accepted, -1 rejected, else the share of the candidates' weight with it.

    In the paper a recurrent network tracks the belief from the user's sentences; here the answers are exact, and what
    is left open has the probability that the candidates give it. The rest of the dialogue is not seen.

    Args:
        world: the conversation.

    Raises:
        InputError: see ``EveryQuestion``.
    """

    def __init__(self, world: Conversation) -> None:
        super().__init__(world, world.catalogue.n_attributes)

    def features(self, observation: Observation, share: Tensor, value: Tensor, of_question: Tensor) -> Tensor:
        """See the class."""
        told = torch.where(observation["accepted"].bool(), 1.0, share)
        return torch.where(observation["rejected"].bool(), -1.0, told)


class CrmSettings(QuestionSettings):
    """Of CRM; the rewards are those of EAR."""

    learning_rate: float = Field(default=3e-3, gt=0)
    """Of Adam, in REINFORCE."""


class CrmPolicy(QuestionPolicy):
    """A trained CRM."""

    kind: ClassVar[str] = "crm"

    @staticmethod
    def choice_of(world: Conversation) -> CrmChoice:
        """What is seen and can be chosen."""
        return CrmChoice(world)

"""EAR: a policy network on the entropies and preferences of all questions (Lei et al. 2020, WSDM).

The action stage of estimation, action, reflection. The scores of the conversation are the estimation; there is no
reflection, which would refit the embeddings in the dialogue.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from apps.crs.flat_choice import EDGES, history, length_bins
from apps.crs.policy_gradient import Progress
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
    settings_type = EarSettings

    @staticmethod
    def choice_of(world: Conversation) -> EarChoice:
        """What is seen and can be chosen."""
        return EarChoice(world)


def train_ear(
    world: Conversation,
    settings: EarSettings,
    seed: int,
    *,
    device: torch.device | str | None = None,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> EarPolicy:
    """Imitate decisions of ``MaxEntropy``, then follow the policy gradient of EAR's own rewards.

    Args:
        world: the conversation, whose pairs are those to train on; its rewards are not used.
        settings: of the training.
        seed: two trainings with the same seed, on the same kind of device, are equal.
        device: of the network in training; the world's by default.
        checkpoint: a file from which an interrupted training goes on, bit for bit, and which it keeps up to date.
        progress: told the share done and a message.

    Raises:
        InputError: too many questions, or a checkpoint that is damaged or that of another training.
        TrainingDiverged: a loss, gradient or weight is not finite.
    """
    return EarPolicy.train(world, settings, seed, device=device, checkpoint=checkpoint, progress=progress)

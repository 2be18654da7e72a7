"""Policies with an output for every question of a catalogue and one for recommending: what EAR and CRM share."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import ClassVar, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from apps.crs.flat_choice import FlatChoice, FlatPolicy, View, Viewed
from apps.crs.policies import MaxEntropy
from apps.crs.policy_gradient import Choose, PolicyGradient, PolicyGradientSettings, Progress
from core.errors import InputError
from core.seeds import stream
from simulators.crs import selection
from simulators.crs.conversation import Conversation
from simulators.crs.rules import Rewards
from simulators.crs.selection import Observation

MOST_QUESTIONS = 20_000
"""Outputs of a network that still learns which of them is which."""


class EveryQuestion(FlatChoice):
    """Ask any question of the catalogue, or recommend.

    Args:
        world: the conversation.
        width: F, numbers of an observation.

    Raises:
        InputError: more than ``MOST_QUESTIONS`` questions.
    """

    def __init__(self, world: Conversation, width: int) -> None:
        if world.questions > MOST_QUESTIONS:
            raise InputError(
                f"{world.catalogue.name}: {world.questions} questions; must be at most {MOST_QUESTIONS}, because the "
                "network has an output and a weight for each of them"
            )
        super().__init__(world, world.questions, width)

    @abstractmethod
    def features(self, observation: Observation, share: Tensor, value: Tensor, of_question: Tensor) -> Tensor:
        """``(B, F)`` from the shares ``(B, P)`` and values ``(B, P)`` of attributes and those of questions."""

    def view(self, observation: Observation) -> View:
        """See the class."""
        world = self.world
        share = selection.shares(world, observation)
        value = selection.attribute_values(world, observation, share)
        of_question = selection.question_values(world, value)
        seen = self.features(observation, share, value, of_question).clamp(-self.bound, self.bound)
        question = torch.arange(self.slots, device=seen.device).expand(len(seen), -1)
        return View(seen, self.mask(observation, of_question > -torch.inf), selection.named(world, question, value))


class QuestionSettings(PolicyGradientSettings):
    """Of the network, of its training, and of what the training pays."""

    hidden: int = Field(default=64, ge=1)
    """Width of the hidden layer."""
    dropout: float = Field(default=0.2, ge=0, lt=1)
    """Share of its units that is left out in the pretraining."""
    success: float = 1.0
    """Paid for an accepted list."""
    ask: float = 0.1
    """Paid for a question that the user says yes to."""
    quit: float = -0.3
    """Paid when the user leaves."""
    turn: float = -0.01
    """Paid at every turn, in addition."""

    @property
    def rewards(self) -> Rewards:
        """What the world pays in training."""
        left = self.quit + self.turn
        return Rewards(
            ask_success=self.ask + self.turn,
            ask_failure=self.turn,
            recommend_success=self.success + self.turn,
            recommend_failure=self.turn,
            quit=left,
            empty=left,
        )


class QuestionPolicy(FlatPolicy):
    """What a trained network of two linear layers does; subclasses say what it sees.

    Args:
        world: the conversation that is evaluated.
        network: ``(B, F)`` to logits ``(B, Q + 1)``.
        settings: it was trained with.
        samples: draw from its probabilities, which is the policy that was trained, or else take the likeliest action.
        seed: of the draws.
    """

    kind: ClassVar[str]

    def __init__(
        self,
        world: Conversation,
        network: nn.Module,
        settings: QuestionSettings,
        *,
        samples: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(self.choice_of(world), network, samples=samples, seed=seed)
        self.settings = settings

    @staticmethod
    def choice_of(world: Conversation) -> EveryQuestion:
        """What is seen and can be chosen."""
        raise NotImplementedError

    @classmethod
    def train(
        cls,
        world: Conversation,
        settings: QuestionSettings,
        seed: int,
        *,
        device: torch.device | str | None = None,
        checkpoint: Path | None = None,
        progress: Progress | None = None,
    ) -> Self:
        """Imitate decisions of ``MaxEntropy``, then follow the policy gradient of the settings' rewards.

        Args:
            world: the conversation, whose pairs are those to train on; its rewards are not used.
            settings: of the training.
            seed: two trainings with the same seed are equal on the CPU.
            device: of the network in training; the world's by default.
            checkpoint: a file from which an interrupted training goes on, and which it keeps up to date.
            progress: told the share done and a message.

        Raises:
            InputError: too many questions, or a checkpoint that is damaged or that of another training.
            TrainingDiverged: a loss, gradient or weight is not finite.
        """
        choice = cls.choice_of(world.with_rules(rewards=settings.rewards))
        network = new_network(choice, settings, seed).to(world.device if device is None else device)
        training = PolicyGradient(
            choice,
            network,
            settings,
            seed,
            horizon=world.rules.max_turns,
            demonstrator=demonstrator(choice, stream(seed, "demonstrator")),
            world_device=world.device,
        )
        training.train(run=f"{cls.kind} {world.catalogue.hash}", checkpoint=checkpoint, progress=progress)
        return cls(world, network, settings, seed=seed)

    @classmethod
    def untrained(cls, world: Conversation, settings: QuestionSettings, *, seed: int = 0) -> Self:
        """A policy with weights of no meaning, for those of a file."""
        return cls(world, new_network(cls.choice_of(world), settings, seed), settings, seed=seed)


def new_network(choice: EveryQuestion, settings: QuestionSettings, seed: int) -> nn.Sequential:
    """Two linear layers; the weights follow from the seed, the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(stream(seed, "weights"))
        first, last = nn.Linear(choice.width, settings.hidden), nn.Linear(settings.hidden, choice.slots + 1)
    return nn.Sequential(first, nn.ReLU(), nn.Dropout(settings.dropout), last)


def demonstrator(choice: EveryQuestion, seed: int) -> Choose:
    """The decisions of ``MaxEntropy`` as actions of the choice; where it may not ask, it recommends."""
    world = choice.world
    rule = MaxEntropy(world, seed=seed)

    def choose(seen: Tensor, mask: Tensor, state: Viewed) -> Tensor:
        action = rule(world.observe(state.dialogue, None))[:, 0]
        question = world.types[action.clamp(min=0)] if world.rules.question == "multi_choice" else action
        question = torch.where(action >= 0, question, choice.slots)
        allowed = mask.gather(1, question.unsqueeze(1)).squeeze(1)
        return torch.where(allowed, question, choice.slots)

    return choose

"""The world as a choice among few actions: the best questions and lists of the moment, with a mask.

The action set A_t of Deng et al. (2021), section 4.3: the K_p questions of the largest value and, of the candidates,
the K_v items of the largest score; choosing an item recommends a list that begins with it. With K_v = 0 a single
action recommends.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import gymnasium
import torch
from torch import Tensor

from core.errors import InputError
from core.simulation.simulator import Step, Variable
from simulators.crs import selection
from simulators.crs.conversation import Conversation
from simulators.crs.dialogue import NONE, Dialogue, Noise
from simulators.crs.selection import Observation, Selection


@dataclass(frozen=True)
class Options:
    """What can be chosen in B dialogues.

    Attributes:
        question: ``(B, K_p)`` int64 questions, best first; -1 where there are fewer.
        value: ``(B, K_p)`` of each; 0 where there is none.
        share: ``(B, K_p)`` share of the candidates' weight that each concerns.
        item: ``(B, K)`` int64 candidates, best first; -1 where there are fewer.
        named: ``(B, K_p, W)`` int64 first columns of the actions that ask them (``selection.named``).
    """

    question: Tensor
    value: Tensor
    share: Tensor
    item: Tensor
    named: Tensor


@dataclass(frozen=True)
class Choosing:
    """State of the choice: the dialogues, and what can be chosen in them."""

    dialogue: Dialogue
    options: Options


class Ranking(Protocol):
    """What is worth asking and recommending."""

    def __call__(self, world: Conversation, observation: Observation) -> tuple[Tensor, Tensor, Tensor]:
        """``(B, P)`` value of each attribute (-inf: not to be asked), ``(B, P)`` share, ``(B, V)`` score of each item
        (-inf: not to be listed).
        """
        ...


@dataclass(frozen=True)
class EntropyRanking:
    """Questions by ``selection.attribute_values``, items by the score of equation 1.

    Attributes:
        selection: how attributes are valued.
        one_sided: see there.
        seed: of ``random``.
    """

    selection: Selection = "weighted_entropy"
    one_sided: bool = False
    seed: int = 0

    def __call__(self, world: Conversation, observation: Observation) -> tuple[Tensor, Tensor, Tensor]:
        """See ``Ranking``."""
        share = selection.shares(world, observation, weighted=self.selection != "entropy")
        value = selection.attribute_values(
            world, observation, share, self.selection, one_sided=self.one_sided, seed=self.seed
        )
        return value, share, observation["score"].masked_fill(~observation["candidate"].bool(), -torch.inf)


class Features(Protocol):
    """What a learner sees of the dialogues and of each option."""

    def space(self, choice: CandidateChoice) -> gymnasium.spaces.Dict:
        """Of one copy; it has the keys of ``__call__``, without ``mask``."""
        ...

    def __call__(self, choice: CandidateChoice, observation: Observation, options: Options) -> dict[str, Tensor]:
        """The tensors, batch first."""
        ...


class CandidateChoice:
    """A conversation in which the agent picks one of K_p questions or K_v items, all of the moment.

    The observation is a dict of the features and ``mask``. At the last turn of a dialogue with ``paper`` turns only
    recommending is allowed, and at any turn once nothing is left to ask.

    Args:
        world: the conversation.
        features: what the agent sees.
        questions: K_p.
        items: K_v; 0 for one action that recommends the best list.
        ranking: what is worth asking and recommending.

    Raises:
        InputError: K_p below 1, or K_v above the length of a list.
    """

    agents = 1

    def __init__(
        self,
        world: Conversation,
        features: Features,
        *,
        questions: int = 10,
        items: int = 0,
        ranking: Ranking = EntropyRanking(),
    ) -> None:
        if questions < 1:
            raise InputError(f"questions = {questions}: must be at least 1")
        if not 0 <= items <= world.rules.list_length:
            raise InputError(f"items = {items}: must be 0 to {world.rules.list_length}, the length of a list")
        self.world, self.features, self.ranking = world, features, ranking
        self.slots, self.items = questions, items

    @property
    def actions(self) -> int:
        """Number of actions."""
        return self.slots + max(self.items, 1)

    @property
    def action_space(self) -> gymnasium.spaces.Discrete:
        """First the questions, then the items, or the one that recommends."""
        return gymnasium.spaces.Discrete(self.actions)

    @property
    def observation_space(self) -> gymnasium.spaces.Dict:
        """The features and the mask."""
        mask = gymnasium.spaces.MultiBinary(self.actions)
        return gymnasium.spaces.Dict({**self.features.space(self).spaces, "mask": mask})

    @property
    def variables(self) -> dict[str, Variable]:
        """What a roll-out records."""
        named = {name: v for name, v in self.world.variables.items() if name not in ("turn", "action")}
        return {**named, "action": Variable(long_name="place of the choice in the action set")}

    def options(self, observation: Observation) -> Options:
        """The action set of what the system knows."""
        world = self.world
        value, share, score = self.ranking(world, observation)
        of_question = selection.question_values(world, value)
        best = of_question.topk(min(self.slots, of_question.shape[1]), dim=1)
        there = best.values > -torch.inf
        question = torch.where(there, best.indices, NONE)
        if world.rules.question == "binary":
            of_share = share.gather(1, best.indices)
        else:
            leaves = world.leaves[best.indices]
            of_share = share[torch.arange(len(share), device=share.device)[:, None, None], leaves.clamp(min=0)]
            of_share = torch.where(leaves >= 0, of_share, 0.0).sum(2)
        missing = self.slots - question.shape[1]
        pad = torch.nn.functional.pad
        question = pad(question, (0, missing), value=NONE)
        return Options(
            question,
            pad(torch.where(there, best.values, 0.0), (0, missing)),
            pad(torch.where(there, of_share, 0.0), (0, missing)),
            selection.top_items(score, score > -torch.inf, world.rules.list_length),
            selection.named(world, question, value),
        )

    def mask(self, observation: Observation, options: Options) -> Tensor:
        """``(B, K_p + K_v)`` bool, what is allowed."""
        rules = self.world.rules
        asks = (options.question >= 0) & rules.may_ask(observation["turn"]).unsqueeze(1)
        lists = options.item[:, : max(self.items, 1)] >= 0
        lists[:, 0] = True
        return torch.cat([asks, lists], 1)

    def action_of(self, options: Options, choice: Tensor) -> Tensor:
        """``(B, A)`` the world's actions of choices ``(B,)``; a question that is not there recommends instead."""
        row, at = torch.arange(len(choice), device=choice.device), choice.clamp(max=self.slots - 1)
        is_question = (choice < self.slots) & (options.question[row, at] >= 0)
        asks = selection.ask(self.world, options.named[row, at])
        first = (choice - self.slots).clamp(min=0).unsqueeze(1)
        place = torch.arange(options.item.shape[1], device=choice.device)
        # The chosen one first, the others in their order.
        order = torch.where(place == 0, first, torch.where(place <= first, place - 1, place))
        lists = selection.recommend(self.world, options.item.gather(1, order))
        return torch.where(is_question.unsqueeze(1), asks, lists)

    def seen(self, observation: Observation) -> tuple[dict[str, Tensor], Options]:
        """The features and the mask of what the system knows, and the options."""
        options = self.options(observation)
        seen = self.features(self, observation, options)
        return {**seen, "mask": self.mask(observation, options)}, options

    # ---- Simulator

    def reset(self, batch: int, generator: torch.Generator) -> Choosing:
        """Dialogues as the world draws them."""
        return self.choosing(self.world.reset(batch, generator))

    def choosing(self, dialogue: Dialogue) -> Choosing:
        """The state of these dialogues."""
        return Choosing(dialogue, self.options(self.world.observe(dialogue, None)))

    def noise(self, batch: int, generator: torch.Generator) -> Noise:
        """The world's."""
        return self.world.noise(batch, generator)

    def step(self, state: Choosing, action: Tensor, noise: Noise) -> Step:
        """The world's step with the chosen action."""
        step = self.world.step(state.dialogue, self.action_of(state.options, action), noise)
        return Step(self.choosing(step.state), step.reward, step.terminated, step.info)

    def observe(self, state: Choosing, noise: Any = None) -> dict[str, Tensor]:
        """The features and the mask."""
        known = self.world.observe(state.dialogue, None)
        return {**self.features(self, known, state.options), "mask": self.mask(known, state.options)}

    def action_mask(self, state: Choosing) -> Tensor:
        """See ``mask``."""
        return self.mask(self.world.observe(state.dialogue, None), state.options)

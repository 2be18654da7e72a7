"""A conversation in which the agent, who sees one vector, asks one of n questions or recommends the best list."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn

from apps.crs.policies import Policy
from core.simulation.simulator import Step, Variable
from simulators.crs import selection
from simulators.crs.conversation import Conversation
from simulators.crs.dialogue import LIST_REJECTED, NO, YES, Dialogue, Noise
from simulators.crs.selection import Observation

ASK_SUCCEEDED, ASK_FAILED, LIST_FAILED = 1.0, -1.0, -2.0
"""What a turn is in the history (Lei et al. 2020, EAR); 0 is one to come, or a user who did not care."""
EDGES = (10, 50, 100, 200, 300, 500, 700)
"""Numbers of candidates between which the bins lie; an edge belongs to the bin below it."""
BOUND = 32.0
"""No number of an observation is larger."""


def history(observation: Observation) -> Tensor:
    """``(B, T)`` codes of the turns in their order, halved, so that they lie in [-1, 1]."""
    answer = observation["answers"]
    codes = torch.zeros(answer.shape, device=answer.device)
    for said, code in ((YES, ASK_SUCCEEDED), (NO, ASK_FAILED), (LIST_REJECTED, LIST_FAILED)):
        codes[answer == said] = code
    return codes / 2


def length_bins(observation: Observation) -> Tensor:
    """``(B, 8)`` one-hot: how many candidates are left."""
    count = observation["candidate"].sum(1)
    edges = torch.tensor(EDGES, device=count.device)
    return nn.functional.one_hot(torch.bucketize(count, edges), len(EDGES) + 1).float()


@dataclass(frozen=True)
class View:
    """What the agent sees of B dialogues and may do in them.

    Attributes:
        seen: ``(B, F)`` float32.
        mask: ``(B, n + 1)`` bool, the last one recommends.
        named: ``(B, n, W)`` int64 first columns of the actions that ask the questions (``selection.named``).
    """

    seen: Tensor
    mask: Tensor
    named: Tensor


@dataclass(frozen=True)
class Viewed:
    """State of the choice: the dialogues, and what is seen of them."""

    dialogue: Dialogue
    view: View


class FlatChoice(ABC):
    """The simulator; action n, the last one, recommends the K candidates of the largest scores.

    A question can be asked if a candidate has something that it is about and that was not asked yet, but not at the
    last turn where turns are those of the paper. Recommending is always allowed.

    Args:
        world: the conversation.
        questions: n.
        width: F, numbers of an observation.
        bound: none is larger.
    """

    agents = 1

    def __init__(self, world: Conversation, questions: int, width: int, bound: float = BOUND) -> None:
        self.world, self.slots, self.width, self.bound = world, questions, width, bound

    @abstractmethod
    def view(self, observation: Observation) -> View:
        """Of what the system knows."""

    def mask(self, observation: Observation, there: Tensor) -> Tensor:
        """``(B, n + 1)`` bool from whether there is anything to each question ``(B, n)``."""
        there = there & self.world.rules.may_ask(observation["turn"]).unsqueeze(1)
        return torch.cat([there, torch.ones_like(there[:, :1])], 1)

    def action_of(self, observation: Observation, view: View, choice: Tensor) -> Tensor:
        """``(B, A)`` the world's actions of choices ``(B,)``; a question that is not allowed recommends instead."""
        items = selection.top_items(observation["score"], observation["candidate"], self.world.rules.list_length)
        lists = selection.recommend(self.world, items)
        row, at = torch.arange(len(choice), device=choice.device), choice.clamp(max=self.slots - 1)
        asks = (choice < self.slots) & view.mask[row, at]
        return torch.where(asks.unsqueeze(1), selection.ask(self.world, view.named[row, at]), lists)

    # ---- Simulator

    @property
    def action_space(self) -> gymnasium.spaces.Discrete:
        """The questions, then recommending."""
        return gymnasium.spaces.Discrete(self.slots + 1)

    @property
    def observation_space(self) -> gymnasium.spaces.Box:
        """A vector of features."""
        return gymnasium.spaces.Box(-self.bound, self.bound, (self.width,), np.float32)

    @property
    def variables(self) -> dict[str, Variable]:
        """What a roll-out records."""
        named = {name: v for name, v in self.world.variables.items() if name not in ("turn", "action")}
        return {**named, "action": Variable(long_name="number of the question; the last number recommends")}

    def reset(self, batch: int, generator: torch.Generator) -> Viewed:
        """Dialogues as the world draws them."""
        return self.viewed(self.world.reset(batch, generator))

    def viewed(self, dialogue: Dialogue) -> Viewed:
        """The state of these dialogues."""
        return Viewed(dialogue, self.view(self.world.observe(dialogue, None)))

    def noise(self, batch: int, generator: torch.Generator) -> Noise:
        """The world's."""
        return self.world.noise(batch, generator)

    def step(self, state: Viewed, action: Tensor, noise: Noise) -> Step:
        """The world's step with the chosen action."""
        known = self.world.observe(state.dialogue, None)
        step = self.world.step(state.dialogue, self.action_of(known, state.view, action), noise)
        return Step(self.viewed(step.state), step.reward, step.terminated, step.info)

    def observe(self, state: Viewed, noise: Any = None) -> Tensor:
        """``(B, F)``."""
        return state.view.seen

    def action_mask(self, state: Viewed) -> Tensor:
        """See the class."""
        return state.view.mask


class FlatPolicy(Policy):
    """The allowed action to which a network gives the largest number, or one drawn from their softmax.

    Args:
        choice: what can be chosen, as in training.
        network: ``(B, F)`` to ``(B, n + 1)``, values or logits.
        samples: whether to draw.
        seed: of the draws.
    """

    def __init__(self, choice: FlatChoice, network: nn.Module, *, samples: bool = False, seed: int = 0) -> None:
        super().__init__(choice.world, seed=seed)
        self.choice, self.network, self.samples = choice, network.to(choice.world.device), samples

    @torch.no_grad()
    def __call__(self, observation: Observation, state: Any = None) -> Tensor:
        """See the class."""
        view = self.choice.view(observation)
        numbers = self.network.eval()(view.seen).masked_fill(~view.mask, -torch.inf)
        if self.samples:
            chosen = torch.multinomial(numbers.softmax(1), 1, generator=self.generator).squeeze(1)
        else:
            chosen = numbers.argmax(1)
        return self.choice.action_of(observation, view, chosen)

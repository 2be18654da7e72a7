"""The compact view of a dialogue: a vector of the state and one of each option."""

from __future__ import annotations

import math
from dataclasses import dataclass

import gymnasium
import numpy as np
import torch
from torch import Tensor

from simulators.crs.belief import Belief
from simulators.crs.choice import CandidateChoice, Options
from simulators.crs.conversation import Conversation
from simulators.crs.selection import Observation, item_weights

BOUND = 32.0
"""No feature is larger: sums of embeddings of norm 1 over a dialogue are not."""
SHARPNESS = 4.0
"""Of the softmax of scores whose top share is a feature."""


@dataclass(frozen=True)
class CompactFeatures:
    """``state`` ``(B, 3 d + T + 3)`` and ``candidates`` ``(B, K_p + K_v, d + 4)``.

    The state is the user's embedding, the weighted mean embedding of the candidates, the sum of those of the accepted
    attributes, the turn one-hot, log|V_cand| / 8, min(K / |V_cand|, 1), and the share of softmax(4 score) that the best
    list has. An option has its embedding (a list the mean of its items'), two flags of its kind, its value (0 for a
    list), and its share. With a belief the state also has the entropy of q over log V, and an option its q.

    Attributes:
        belief: of the posterior q; None leaves it out.
        embeddings: whether embeddings are there, else d counts as 0. They tell the pairs of training apart, which a
            network learns by heart.
    """

    belief: Belief | None = None
    embeddings: bool = True

    def space(self, choice: CandidateChoice) -> gymnasium.spaces.Dict:
        """See the class."""
        world, more = choice.world, self.belief is not None
        d = world.embeddings.dim if self.embeddings else 0
        width = 3 * d + world.rules.max_turns + 3 + more
        box = gymnasium.spaces.Box
        return gymnasium.spaces.Dict(
            {
                "state": box(-BOUND, BOUND, (width,), np.float32),
                "candidates": box(-BOUND, BOUND, (choice.actions, d + 4 + more), np.float32),
            }
        )

    def __call__(self, choice: CandidateChoice, observation: Observation, options: Options) -> dict[str, Tensor]:
        """See the class."""
        world, kinds = choice.world, choice.actions - choice.slots
        top = _top_share(observation, options)
        size = observation["candidate"].sum(1).clamp(min=1).float()
        state = [
            _one_hot(observation["turn"], world.rules.max_turns),
            torch.stack([size.log() / 8, (world.rules.list_length / size).clamp(max=1), top], 1),
        ]
        numbers = torch.stack([options.value, options.share], 2)
        flags = torch.zeros(len(top), choice.actions, 2, device=top.device)
        flags[:, : choice.slots, 0], flags[:, choice.slots :, 1] = 1.0, 1.0
        of_lists = torch.stack([torch.zeros_like(top), top], 1).unsqueeze(1).expand(-1, kinds, 2)
        candidates = [flags, torch.cat([numbers, of_lists], 1)]
        if self.embeddings:
            user = world.users[observation["user"]]
            state = [user, _mean_candidate(world, observation), _accepted_sum(world, observation), *state]
            asked = _question_embedding(world, observation, options)
            candidates = [torch.cat([asked, _list_embedding(choice, options)], 1), *candidates]
        if self.belief is not None:
            spread, of_option = self._believed(choice, observation, options, kinds)
            state.append(spread)
            candidates.append(of_option)
        seen = {"state": torch.cat(state, 1), "candidates": torch.cat(candidates, 2)}
        return {name: value.clamp(-BOUND, BOUND) for name, value in seen.items()}

    def _believed(
        self, choice: CandidateChoice, observation: Observation, options: Options, kinds: int
    ) -> tuple[Tensor, Tensor]:
        """Entropy of q over its largest ``(B, 1)``, and q of what each option is about ``(B, K, 1)``."""
        assert self.belief is not None
        world = choice.world
        log_q = self.belief.log_posterior(world, observation)
        q = log_q.exp()
        spread = -(q * log_q.clamp(min=-1e4)).sum(1, keepdim=True) / math.log(max(world.catalogue.n_items, 2))
        mass = world.relation.mass(q)
        if world.rules.question != "binary":
            mass = torch.where(world.leaves >= 0, mass[:, world.leaves.clamp(min=0)], 0.0).sum(2)
        asked = mass.gather(1, options.question.clamp(min=0)) * (options.question >= 0)
        listed = (q.gather(1, options.item.clamp(min=0)) * (options.item >= 0)).sum(1, keepdim=True)
        return spread, torch.cat([asked, listed.expand(-1, kinds)], 1).unsqueeze(2)


def _top_share(observation: Observation, options: Options) -> Tensor:
    """``(B,)`` share of softmax(4 score) over the candidates that the items of the best list have."""
    score = observation["score"].masked_fill(~observation["candidate"].bool(), -torch.inf)
    share = torch.nan_to_num((SHARPNESS * score).softmax(1))
    return (share.gather(1, options.item.clamp(min=0)) * (options.item >= 0)).sum(1)


def _mean_candidate(world: Conversation, observation: Observation) -> Tensor:
    """``(B, d)`` mean embedding of the candidates, weighted by w."""
    row, item, weight = item_weights(observation)
    batch = len(observation["user"])
    total = torch.zeros(batch, device=weight.device).index_add_(0, row, weight).clamp(min=1e-12)
    summed = torch.zeros(batch, world.embeddings.dim, device=weight.device)
    summed.index_add_(0, row, world.embeddings.item[item] * weight.unsqueeze(1))
    return summed / total.unsqueeze(1)


def _accepted_sum(world: Conversation, observation: Observation) -> Tensor:
    """``(B, d)`` sum of the embeddings of the accepted attributes."""
    row, attribute = observation["accepted"].nonzero(as_tuple=True)
    summed = torch.zeros(len(observation["user"]), world.embeddings.dim, device=row.device)
    return summed.index_add_(0, row, world.embeddings.attribute[attribute])


def _list_embedding(choice: CandidateChoice, options: Options) -> Tensor:
    """``(B, K_v, d)`` embeddings of the items to choose from, or ``(B, 1, d)`` their mean over the best list."""
    item = options.item[:, : choice.items or None]
    found = choice.world.embeddings.item[item.clamp(min=0)] * (item >= 0).unsqueeze(2)
    if choice.items:
        return found
    return found.sum(1, keepdim=True) / (item >= 0).sum(1).clamp(min=1)[:, None, None]


def _question_embedding(world: Conversation, observation: Observation, options: Options) -> Tensor:
    """``(B, K_p, d)`` embedding of each question; of a type the mean over its attributes that are not asked yet."""
    there = (options.question >= 0).unsqueeze(2)
    question = options.question.clamp(min=0)
    if world.rules.question == "binary":
        return world.embeddings.attribute[question] * there
    leaves = world.leaves[question]
    row = torch.arange(len(question), device=question.device)[:, None, None]
    open_leaves = (leaves >= 0) & ~observation["asked"].bool()[row, leaves.clamp(min=0)]
    summed = (world.embeddings.attribute[leaves.clamp(min=0)] * open_leaves.unsqueeze(3)).sum(2)
    return summed / open_leaves.sum(2).clamp(min=1).unsqueeze(2) * there


def _one_hot(turn: Tensor, turns: int) -> Tensor:
    return torch.nn.functional.one_hot(turn.clamp(max=turns - 1), turns).float()

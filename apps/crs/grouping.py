"""Asking in two stages, which group of attributes and then which of it, so that few actions reach every question."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn

from apps.crs.policies import Policy
from core.errors import InputError
from core.seeds import stream
from core.simulation import tree
from core.simulation.simulator import Step, Variable
from simulators.crs import selection
from simulators.crs.choice import CandidateChoice, EntropyRanking, Options
from simulators.crs.conversation import Conversation
from simulators.crs.dialogue import NONE, Dialogue, Noise
from simulators.crs.features import BOUND, CompactFeatures
from simulators.crs.selection import Observation

_ROUNDS = 100
"""Most rounds of k-means; it has settled long before."""


def spherical_kmeans(x: Tensor, k: int, seed: int) -> Tensor:
    """``(n,)`` int64 cluster of each row of ``x`` ``(n, d)`` by its direction (Dhillon and Modha 2001), all k used.

    It maximises the sum over the rows of the cosine to the mean direction of their cluster, from seeds that are spread
    out as those of k-means++. A cluster that would be left without rows takes the one that fits its own worst.

    Raises:
        InputError: k below 1 or above n.
    """
    if not 1 <= k <= len(x):
        raise InputError(f"groups = {k}: must be 1 to {len(x)}, the number of rows")
    # On the CPU and in double precision, so that no device groups differently.
    unit = nn.functional.normalize(x.detach().cpu().double(), dim=1)
    generator = torch.Generator().manual_seed(stream(seed, "k-means"))
    centres = unit[torch.randint(len(unit), (1,), generator=generator)]
    for _ in range(k - 1):
        far = (1 - (unit @ centres.T).amax(1)).clamp(min=1e-12)
        centres = torch.cat([centres, unit[torch.multinomial(far, 1, generator=generator)]])
    labels = torch.full((len(unit),), NONE)
    for _ in range(_ROUNDS):
        before, (fit, labels) = labels, (unit @ centres.T).max(1)
        for empty in (torch.bincount(labels, minlength=k) == 0).nonzero().flatten():
            alone = torch.bincount(labels, minlength=k)[labels] == 1
            worst = fit.masked_fill(alone, torch.inf).argmin()
            labels[worst], fit[worst] = empty, 1.0
        if torch.equal(labels, before):
            break
        centres = nn.functional.normalize(torch.zeros(k, unit.shape[1]).double().index_add_(0, labels, unit), dim=1)
    return labels.to(x.device)


@dataclass(frozen=True)
class Groups:
    """What can be asked and recommended in B dialogues, grouped.

    Attributes:
        value: ``(B, P)`` of asking about each attribute; 0 where it cannot be asked about.
        share: ``(B, P)`` of the candidates' weight that has it; likewise.
        open: ``(B, P)`` bool, can be asked about.
        item: ``(B, K)`` int64 best candidates, -1 where there are fewer.
    """

    value: Tensor
    share: Tensor
    open: Tensor
    item: Tensor


@dataclass(frozen=True)
class Grouping:
    """State: the dialogues, what can be chosen in them, and the ``(B,)`` int64 group that was chosen, -1 for none."""

    dialogue: Dialogue
    groups: Groups
    group: Tensor


class GroupedChoice:
    """A conversation in binary questions, in which the agent picks a group or recommends, then an attribute of a group.

    Picking the group takes no turn, pays nothing and says nothing to the user. With G groups of at most W attributes
    the agent chooses among G + 1 and then among W actions; both stages share the places of one action space, of which
    the last one recommends. An attribute can be asked about if a candidate has it and it was not asked yet, but not at
    the last turn where turns are those of the paper.

    The observation is a dict as that of ``CandidateChoice`` with ``CompactFeatures``. A group is seen as the mean
    embedding of the attributes in it that can be asked about, the largest of their entropies and the sum of their
    shares. The state also has the stage, and in the second the group that was chosen.

    Args:
        world: the conversation.
        labels: ``(P,)`` int64 group of each attribute; the types of the catalogue by default.

    Raises:
        InputError: questions that are not binary, or labels that are not those of P attributes.
    """

    agents = 1

    def __init__(self, world: Conversation, labels: Tensor | None = None) -> None:
        if world.rules.question != "binary":
            raise InputError(f"rules.question = {world.rules.question!r}: must be 'binary' to be grouped")
        labels = world.types if labels is None else labels
        count = world.catalogue.n_attributes
        if labels.shape != (count,) or bool((labels < 0).any()):
            raise InputError(f"labels: {tuple(labels.shape)}: must be {(count,)}, none below 0")
        self.world, self.ranking = world, EntropyRanking()
        self.members = _members(labels).to(world.device)
        self.slots = max(self.members.shape)
        # Places of the attributes of a group stand where questions do.
        self._flat = CandidateChoice(world, CompactFeatures(), questions=self.slots)

    @property
    def actions(self) -> tuple[int, int]:
        """Numbers of actions of both stages, G + 1 and W."""
        return self.members.shape[0] + 1, self.members.shape[1]

    # ---- what is known

    def groups(self, observation: Observation) -> Groups:
        """Of what the system knows."""
        value, share, score = self.ranking(self.world, observation)
        there = value > -torch.inf
        item = selection.top_items(score, score > -torch.inf, self.world.rules.list_length)
        return Groups(torch.where(there, value, 0.0), torch.where(there, share, 0.0), there, item)

    def mask(self, observation: Observation, groups: Groups, group: Tensor) -> Tensor:
        """``(B, n)`` bool: groups with an attribute to ask about and recommending, or attributes of the group."""
        rules, inside = self.world.rules, self._inside(groups)
        some = inside.any(2)
        some = some & rules.may_ask(observation["turn"]).unsqueeze(1)
        missing = self.slots - some.shape[1]
        first = torch.cat([nn.functional.pad(some, (0, missing)), torch.ones_like(some[:, :1])], 1)
        second = inside[torch.arange(len(group), device=group.device), group.clamp(min=0)]
        second = nn.functional.pad(second, (0, self.slots + 1 - second.shape[1]))
        return torch.where((group >= 0).unsqueeze(1), second, first)

    def attribute(self, group: Tensor, choice: Tensor) -> Tensor:
        """``(B,)`` the attribute at place ``choice`` of a group; -1 where there is none."""
        place = choice.clamp(max=self.members.shape[1] - 1)
        there = (group >= 0) & (choice < self.members.shape[1])
        return torch.where(there, self.members[group.clamp(min=0), place], NONE)

    def action_of(self, groups: Groups, group: Tensor, choice: Tensor) -> Tensor:
        """``(B, A)`` the world's action where an attribute ``choice`` of the group was chosen; else it recommends."""
        asked = self.attribute(group, choice)
        asks = selection.ask(self.world, asked.unsqueeze(1))
        return torch.where((asked >= 0).unsqueeze(1), asks, selection.recommend(self.world, groups.item))

    def seen(self, observation: Observation, groups: Groups, group: Tensor) -> dict[str, Tensor]:
        """The features and the mask."""
        second = (group >= 0).view(-1, 1, 1)
        question = nn.functional.pad(self.members, (0, self.slots - self.members.shape[1]), value=NONE)
        question = torch.where(second[:, 0], question[group.clamp(min=0)], NONE)
        at, there = question.clamp(min=0), question >= 0
        there = there & groups.open.gather(1, at)
        options = Options(
            torch.where(there, question, NONE),
            torch.where(there, groups.value.gather(1, at), 0.0),
            torch.where(there, groups.share.gather(1, at), 0.0),
            groups.item,
            question.unsqueeze(2),
        )
        flat = self._flat.features(self._flat, observation, options)
        of_group = self._of_groups(groups)
        chosen = of_group[torch.arange(len(group), device=group.device), group.clamp(min=0)] * second[:, :, 0]
        state = torch.cat([flat["state"], second[:, :, 0].float(), chosen], 1)
        return {
            "state": state.clamp(-BOUND, BOUND),
            "candidates": torch.where(second, self._padded(flat), self._first(flat, of_group)).clamp(-BOUND, BOUND),
            "mask": self.mask(observation, groups, group),
        }

    def _inside(self, groups: Groups) -> Tensor:
        """``(B, G, W)`` bool, which attributes of each group can be asked about."""
        return groups.open[:, self.members.clamp(min=0)] & (self.members >= 0)

    def _of_groups(self, groups: Groups) -> Tensor:
        """``(B, G, d + 2)`` mean embedding, largest value and sum of the shares of the open attributes."""
        points, at, inside = self.world.embeddings.attribute, self.members.clamp(min=0), self._inside(groups)
        summed = torch.einsum("bgw,gwd->bgd", inside.to(points.dtype), points[at])
        mean = summed / inside.sum(2).clamp(min=1).unsqueeze(2)
        value = torch.where(inside, groups.value[:, at], 0.0).amax(2)
        mass = torch.where(inside, groups.share[:, at], 0.0).sum(2)
        return torch.cat([mean, value.unsqueeze(2), mass.unsqueeze(2)], 2)

    def _padded(self, flat: dict[str, Tensor]) -> Tensor:
        """Candidates with a third flag, of a group, which they are not."""
        return nn.functional.pad(flat["candidates"], (0, 1))

    def _first(self, flat: dict[str, Tensor], of_group: Tensor) -> Tensor:
        """Candidates of the first stage: the groups, then the list."""
        dim = self.world.embeddings.dim
        found = torch.zeros_like(self._padded(flat))
        count = of_group.shape[1]
        found[:, :count, :dim], found[:, :count, dim + 2 : dim + 4] = of_group[..., :dim], of_group[..., dim:]
        found[:, :count, -1] = 1.0
        found[:, -1, :-1] = flat["candidates"][:, -1]
        return found

    # ---- Simulator

    @property
    def action_space(self) -> gymnasium.spaces.Discrete:
        """The groups or the attributes of one, then recommending."""
        return gymnasium.spaces.Discrete(self.slots + 1)

    @property
    def observation_space(self) -> gymnasium.spaces.Dict:
        """The features and the mask."""
        flat = self._flat.observation_space
        state, candidates = flat["state"].shape, flat["candidates"].shape
        assert state is not None
        assert candidates is not None
        dim, box = self.world.embeddings.dim, gymnasium.spaces.Box
        return gymnasium.spaces.Dict(
            {
                "state": box(-BOUND, BOUND, (state[0] + 1 + dim + 2,), np.float32),
                "candidates": box(-BOUND, BOUND, (candidates[0], candidates[1] + 1), np.float32),
                "mask": gymnasium.spaces.MultiBinary(self.slots + 1),
            }
        )

    @property
    def variables(self) -> dict[str, Variable]:
        """What a roll-out records."""
        return {**self._flat.variables, "action": Variable(long_name="group, or place of the attribute in its group")}

    def reset(self, batch: int, generator: torch.Generator) -> Grouping:
        """Dialogues as the world draws them."""
        return self.grouping(self.world.reset(batch, generator))

    def grouping(self, dialogue: Dialogue) -> Grouping:
        """The state of these dialogues, in which no group is chosen."""
        groups = self.groups(self.world.observe(dialogue, None))
        return Grouping(dialogue, groups, torch.full_like(dialogue.turn, NONE))

    def noise(self, batch: int, generator: torch.Generator) -> Noise:
        """The world's."""
        return self.world.noise(batch, generator)

    def step(self, state: Grouping, action: Tensor, noise: Noise) -> Step:
        """Choose a group, or the world's step."""
        picks = (state.group < 0) & (action < self.members.shape[0])
        turn = self.world.step(state.dialogue, self.action_of(state.groups, state.group, action), noise)
        after = self.grouping(turn.state)
        picked = replace(state, group=torch.where(picks, action, NONE))
        nothing = {name: torch.zeros_like(value) for name, value in turn.info.items()}
        nothing["candidates"] = state.dialogue.candidate.sum(1)
        return Step(
            tree.where(picks, picked, after),
            torch.where(picks, 0.0, turn.reward),
            turn.terminated & ~picks,
            tree.where(picks, nothing, turn.info),
        )

    def observe(self, state: Grouping, noise: Any = None) -> dict[str, Tensor]:
        """The features and the mask."""
        return self.seen(self.world.observe(state.dialogue, None), state.groups, state.group)

    def action_mask(self, state: Grouping) -> Tensor:
        """See ``mask``."""
        return self.mask(self.world.observe(state.dialogue, None), state.groups, state.group)


class GroupedPolicy(Policy):
    """In both stages the allowed action of the largest value.

    Args:
        choice: what can be chosen, as in training.
        q_net: maps the observations of ``choice`` to values.
    """

    def __init__(self, choice: GroupedChoice, q_net: nn.Module) -> None:
        super().__init__(choice.world)
        self.choice, self.q_net = choice, q_net

    @torch.no_grad()
    def __call__(self, observation: Observation, state: Any = None) -> Tensor:
        """See the class."""
        groups = self.choice.groups(observation)
        none = torch.full_like(observation["turn"], NONE)
        first = self._best(observation, groups, none)
        group = torch.where(first < self.choice.members.shape[0], first, NONE)
        return self.choice.action_of(groups, group, self._best(observation, groups, group))

    def _best(self, observation: Observation, groups: Groups, group: Tensor) -> Tensor:
        seen = self.choice.seen(observation, groups, group)
        values: Tensor = self.q_net.eval()(seen)
        return values.masked_fill(~seen["mask"], -torch.inf).argmax(1)


def _members(labels: Tensor) -> Tensor:
    """``(G, W)`` the attributes of each group that has any, ascending, then -1."""
    _, group, counts = labels.unique(return_inverse=True, return_counts=True)
    order = group.argsort(stable=True)
    place = torch.arange(len(order), device=order.device) - (counts.cumsum(0) - counts)[group[order]]
    found = torch.full((len(counts), int(counts.max())), NONE, device=labels.device)
    found[group[order], place] = order
    return found

"""Policies that are rules: they ask by entropy, recommend by score, and differ in when they do which.

A policy is ``policy(observation, state) -> action``; it sees what the system knows (``Conversation.observe``), and only
``OracleAsk`` looks at the state. ``recommend`` is what it recommends where it has to.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from core.errors import InputError
from core.simulation import tree
from simulators.crs import selection
from simulators.crs.choice import CandidateChoice, EntropyRanking, Ranking
from simulators.crs.conversation import Conversation
from simulators.crs.dialogue import NONE, Dialogue
from simulators.crs.features import CompactFeatures
from simulators.crs.selection import Observation, Selection


class Policy:
    """A policy for a conversation; subclasses say what to do.

    Args:
        world: the conversation.
        seed: of the policy's own coins.

    Attributes:
        relaxes: whether it goes on when contradictory answers leave no candidate.
    """

    relaxes: bool = False

    def __init__(self, world: Conversation, *, seed: int = 0) -> None:
        self.world, self.seed = world, seed
        self.reset(0)

    def reset(self, batch: int) -> None:
        """Begin new dialogues."""
        self.generator = torch.Generator(self.world.device).manual_seed(self.seed)

    def __call__(self, observation: Observation, state: Any = None) -> Tensor:
        """``(B, A)`` what to do."""
        raise NotImplementedError

    def recommend(self, observation: Observation) -> Tensor:
        """``(B, A)`` the recommendation of the K candidates of the largest scores."""
        items = selection.top_items(observation["score"], observation["candidate"], self.world.rules.list_length)
        return selection.recommend(self.world, items)

    def posterior(self, observation: Observation) -> Tensor | None:
        """``(B, V)`` what it believes the target to be; None if it has no such belief."""
        return None

    def _uniform(self, rows: int) -> Tensor:
        return torch.rand(rows, generator=self.generator, device=self.world.device)


class RandomPolicy(Policy):
    """Any allowed member of the action set, ten questions and ten items."""

    def __init__(self, world: Conversation, *, questions: int = 10, seed: int = 0) -> None:
        super().__init__(world, seed=seed)
        self.choice = CandidateChoice(world, CompactFeatures(), questions=questions, items=world.rules.list_length)

    def __call__(self, observation: Observation, state: Any = None) -> Tensor:
        """See the class."""
        options = self.choice.options(observation)
        mask = self.choice.mask(observation, options)
        drawn = torch.rand(mask.shape, generator=self.generator, device=mask.device)
        return self.choice.action_of(options, drawn.masked_fill(~mask, -1.0).argmax(1))


class AbsGreedy(Policy):
    """Recommend at every turn (Christakopoulou et al. 2016)."""

    def __call__(self, observation: Observation, state: Any = None) -> Tensor:
        """See the class."""
        return self.recommend(observation)


class Asking(Policy):
    """Ask the question of the largest value, or recommend, as ``recommends`` says.

    Args:
        world: the conversation.
        selection: how questions are valued.
        ranking: of questions and items, in place of the selection and of the score of equation 1.
        seed: of the policy's own coins.

    Attributes:
        privileged: whether ``values`` looks at the state, which is None otherwise.
    """

    privileged: ClassVar[bool] = False

    def __init__(
        self,
        world: Conversation,
        *,
        selection: Selection = "weighted_entropy",
        ranking: Ranking | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(world, seed=seed)
        self.ranking = EntropyRanking(selection, seed=seed) if ranking is None else ranking

    def recommend(self, observation: Observation) -> Tensor:
        """``(B, A)`` the recommendation of the K items that the ranking puts first."""
        if isinstance(self.ranking, EntropyRanking):
            # Its score is the world's, which needs no entropies.
            return super().recommend(observation)
        score = self.ranking(self.world, observation)[2]
        items = selection.top_items(score, score > -torch.inf, self.world.rules.list_length)
        return selection.recommend(self.world, items)

    def recommends(self, observation: Observation) -> Tensor:
        """``(B,)`` bool, whether to recommend although there is something to ask."""
        raise NotImplementedError

    def values(self, observation: Observation, state: Any) -> Tensor:
        """``(B, P)`` value of asking about each attribute; -inf for those not to be asked about."""
        return self.ranking(self.world, observation)[0]

    def __call__(self, observation: Observation, state: Any = None) -> Tensor:
        """See the class."""
        lists = self.recommends(observation)
        asking = (~lists).nonzero().squeeze(1)
        action = torch.full((len(lists), self.world.columns), NONE, device=lists.device)
        if len(asking):
            seen = tree.take(state, asking) if self.privileged else None
            value = self.values(_Rows(observation, asking), seen)
            best = selection.question_values(self.world, value).max(1)
            asks = selection.ask(self.world, selection.named(self.world, best.indices.unsqueeze(1), value)[:, 0])
            action[asking] = asks
            # Where nothing is left to ask there is the list.
            lists = lists.index_put((asking,), best.values == -torch.inf)
        listing = lists.nonzero().squeeze(1)
        if len(listing):
            action[listing] = self.recommend(_Rows(observation, listing))
        return action


class MaxEntropy(Asking):
    """Recommend with probability K / max(|V_cand|, K), else ask what has the largest entropy (Lei et al. 2020, EAR)."""

    def recommends(self, observation: Observation) -> Tensor:
        """See the class."""
        size = observation["candidate"].sum(1)
        length = self.world.rules.list_length
        return self._uniform(len(size)) * size.clamp(min=length) < length


class Threshold(Asking):
    """Ask while there are more than n candidates, then recommend.

    Args:
        world: the conversation.
        n: candidates.
        selection, ranking: see ``Asking``.
        seed: of the policy's own coins.

    Raises:
        InputError: n below 0.
    """

    def __init__(
        self,
        world: Conversation,
        n: int = 100,
        *,
        selection: Selection = "weighted_entropy",
        ranking: Ranking | None = None,
        seed: int = 0,
    ) -> None:
        if n < 0:
            raise InputError(f"threshold: n = {n}: must be at least 0")
        super().__init__(world, selection=selection, ranking=ranking, seed=seed)
        self.n = n

    def recommends(self, observation: Observation) -> Tensor:
        """See the class."""
        return observation["candidate"].sum(1) <= self.n


class OracleAsk(Threshold):
    """Knows the target and asks for its attributes only, the rarest among the candidates first: a bound on asking."""

    privileged: ClassVar[bool] = True

    def values(self, observation: Observation, state: Dialogue) -> Tensor:
        """See the class."""
        rarity = -selection.shares(self.world, observation, weighted=False)
        value = torch.full_like(rarity, -torch.inf)
        row, attribute = self.world.relation.attributes_of(state.targets[:, 0])
        fresh = ~observation["asked"].bool()[row, attribute]
        row, attribute = row[fresh], attribute[fresh]
        value[row, attribute] = 1 + rarity[row, attribute]
        return value


class _Rows(Mapping[str, Tensor]):
    """What the system knows of some of the dialogues; copied when it is read, for few of the tensors are."""

    def __init__(self, observation: Observation, rows: Tensor) -> None:
        self._all, self._rows = observation, rows
        self._read: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._read:
            self._read[name] = self._all[name].index_select(0, self._rows)
        return self._read[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

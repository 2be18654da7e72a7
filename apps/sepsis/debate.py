"""The debate game: two players lay features of a patient before a judge, each for its own action.

Sukovic & Radanovic, Reward Design for Justifiable Sequential Decision-Making, ICLR 2024 (arXiv 2402.15826), section 3:
an item of evidence is a feature of the state; after L items the judge, who sees nothing else, says which action it
prefers. The game is zero-sum.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Tensor

from core.errors import InputError

Order = Literal["alternating", "upfront"]
"""Item by item in turns, or the starter's half of the items first."""
Utility = Literal["sign", "difference", "wins"]
"""Of the judge's two scores: the sign of their difference, the difference, or 1 if the first is larger, else 0."""


class Scorer(Protocol):
    """A judge, as far as a debate needs one: it sees the revealed features and one action."""

    def score(self, state: Tensor, mask: Tensor, action: Tensor) -> Tensor:
        """``(...)`` of states ``(..., F)``, revealed items ``(..., F)`` bool and actions ``(...)``, broadcast."""
        ...

    def candidate_scores(self, state: Tensor, mask: Tensor, action: Tensor) -> Tensor:
        """``(N, F)``: the score of ``(N, F)`` states with one more item revealed, for each item.

        The entries of items that are revealed already have no meaning.
        """
        ...


@dataclass(frozen=True)
class Position:
    """What a debater sees when it is its turn in N debates.

    Attributes:
        state: ``(N, F)`` normalised; the debater sees all of it.
        revealed: ``(N, F)`` bool, the items on the table.
        own: ``(N,)`` int64, the action that the debater argues for.
        rival: ``(N,)`` int64, the action that it argues against; learned debaters do not look at it.
        remaining: items still to be revealed by both players, this one included.
        row: ``(N,)`` int64, which debates of the batch these are; None if they are all, in order.
    """

    state: Tensor
    revealed: Tensor
    own: Tensor
    rival: Tensor
    remaining: int
    row: Tensor | None = None

    def take(self, rows: Tensor) -> Position:
        """The positions at the indices ``(K,)``."""
        row = rows if self.row is None else self.row[rows]
        return replace(
            self,
            state=self.state[rows],
            revealed=self.revealed[rows],
            own=self.own[rows],
            rival=self.rival[rows],
            row=row,
        )


class Debater(Protocol):
    """A player."""

    def choose(self, position: Position) -> Tensor:
        """``(N,)`` int64, the item to reveal in each debate; one that is not revealed yet."""
        ...


@dataclass(frozen=True)
class Debate:
    """N finished debates of L items.

    Attributes:
        state: ``(N, F)`` normalised.
        first: ``(N,)`` int64, the action of player 1.
        second: ``(N,)`` int64, the action of player 2.
        items: ``(N, L)`` int64, the revealed features in order.
        speaker: ``(N, L)`` int64, 1 or 2, who revealed each.
    """

    state: Tensor
    first: Tensor
    second: Tensor
    items: Tensor
    speaker: Tensor

    def __len__(self) -> int:
        return len(self.items)

    @property
    def evidence(self) -> Tensor:
        """``(N, F)`` bool, what the judge sees."""
        revealed = torch.zeros(self.state.shape, dtype=torch.bool, device=self.state.device)
        return revealed.scatter(1, self.items, True)

    @property
    def swapped(self) -> Debate:
        """The same debates seen from the other side: player 1 is player 2."""
        return replace(self, first=self.second, second=self.first, speaker=3 - self.speaker)

    def take(self, rows: Tensor) -> Debate:
        """The debates at the indices ``(K,)``."""
        return Debate(self.state[rows], self.first[rows], self.second[rows], self.items[rows], self.speaker[rows])


def speakers(starter: Tensor, items: int, order: Order = "alternating") -> Tensor:
    """Who speaks when: ``(N, L)`` int64, 1 or 2, from who starts ``(N,)``."""
    turn = torch.arange(items, device=starter.device)
    other = turn % 2 if order == "alternating" else (turn >= items // 2).long()
    return torch.where(other.bool(), 3 - starter[:, None], starter[:, None])


def draw_starter(n: int, generator: torch.Generator | None = None, device: torch.device | str = "cpu") -> Tensor:
    """``(n,)`` int64, 1 or 2 with equal probability; without a generator the draw of seed 0."""
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    return torch.randint(1, 3, (n,), generator=generator, device=generator.device).to(device)


def hold_debate(
    state: Tensor,
    first: Tensor,
    second: Tensor,
    debater_1: Debater,
    debater_2: Debater,
    items: int = 6,
    *,
    order: Order = "alternating",
    starter: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Debate:
    """Let two debaters reveal half of the items each.

    Args:
        state: ``(N, F)`` normalised.
        first: ``(N,)`` action of player 1.
        second: ``(N,)`` action of player 2.
        debater_1: plays for ``first``.
        debater_2: plays for ``second``.
        items: L, even and at most F.
        order: ``upfront`` has the starter reveal its half before the other answers with the rest.
        starter: ``(N,)`` int64, 1 or 2; None: drawn for each debate if alternating, player 1 if upfront.
        generator: of the draw of the starter.

    Raises:
        InputError: ``items`` is odd or out of range, or a debater revealed an item twice.
    """
    check_items(items, state.shape[-1], players=2)
    if starter is None and order == "alternating":
        starter = draw_starter(len(state), generator, state.device)
    elif starter is None:
        starter = torch.ones(len(state), dtype=torch.long, device=state.device)
    return _play(state, first, second, (debater_1, debater_2), speakers(starter, items, order))


def argue_alone(state: Tensor, own: Tensor, rival: Tensor, debater: Debater, items: int = 6) -> Debate:
    """Let one debater reveal all items for its action, as player 1; player 2 is silent.

    Args:
        state: ``(N, F)`` normalised.
        own: ``(N,)`` action of the debater.
        rival: ``(N,)`` action that the judge compares it with.
        debater: reveals each item.
        items: L, 1 to F.

    Raises:
        InputError: ``items`` is out of range, or the debater revealed an item twice.
    """
    check_items(items, state.shape[-1], players=1)
    speaker = torch.ones(len(state), items, dtype=torch.long, device=state.device)
    return _play(state, own, rival, (debater, debater), speaker)


def compare(
    judge: Scorer, state: Tensor, evidence: Tensor, first: Tensor, second: Tensor, utility: Utility = "sign"
) -> Tensor:
    """Utility ``(N,)`` of player 1 when the judge has seen the evidence.

    Where both actions are the same it is 0, and the judge is not asked.

    Args:
        judge: scores both actions.
        state: ``(N, F)`` normalised.
        evidence: ``(N, F)`` bool.
        first: ``(N,)`` action of player 1.
        second: ``(N,)`` action of player 2.
        utility: ``sign`` and ``difference`` are zero-sum, u2 = -u1; ``wins`` counts those of player 1 alone.
    """
    value = torch.zeros(state.shape[:1], dtype=state.dtype, device=state.device)
    rows = torch.nonzero(first != second)[:, 0]
    if not len(rows):
        return value
    state, evidence = state[rows], evidence[rows]
    difference = judge.score(state, evidence, first[rows]) - judge.score(state, evidence, second[rows])
    value[rows] = payoff(difference, utility).to(value)
    return value


def payoff(difference: Tensor, utility: Utility) -> Tensor:
    """Utility of player 1 from the judge's score of its action less that of the other, of the same shape."""
    if utility == "sign":
        return difference.sign()
    return difference if utility == "difference" else (difference > 0).to(difference)


def verdict(judge: Scorer, debate: Debate, utility: Utility = "sign") -> Tensor:
    """Utility ``(N,)`` of player 1 in finished debates; see ``compare``."""
    return compare(judge, debate.state, debate.evidence, debate.first, debate.second, utility)


def check_items(items: int, features: int, players: int = 2) -> None:
    """Refuse a number of items that cannot be shared or does not exist.

    Raises:
        InputError: odd with two players, below 1 a player, or more than there are features.
    """
    if items % players or not players <= items <= features:
        even = "an even number, " if players == 2 else ""
        raise InputError(f"items: {items}; must be {even}{players} to {features}")


def _play(state: Tensor, first: Tensor, second: Tensor, debaters: tuple[Debater, Debater], speaker: Tensor) -> Debate:
    revealed = torch.zeros(state.shape, dtype=torch.bool, device=state.device)
    items = torch.empty_like(speaker)
    turns = speaker.shape[1]
    for turn in range(turns):
        one = speaker[:, turn] == 1
        own, rival = torch.where(one, first, second), torch.where(one, second, first)
        position = Position(state, revealed, own, rival, turns - turn)
        item = torch.empty_like(first)
        for debater, rows in zip(debaters, (torch.nonzero(one)[:, 0], torch.nonzero(~one)[:, 0]), strict=True):
            if len(rows):
                item[rows] = debater.choose(position.take(rows))
        items[:, turn] = item
        revealed = revealed.scatter(1, item[:, None], True)
    if not bool((revealed.sum(1) == turns).all()):
        raise InputError("debater: revealed an item twice; must choose one that is not revealed")
    return Debate(state, first, second, items, speaker)

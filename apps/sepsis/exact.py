"""Perfect play of the debate game, and how far a debater is from it.

The judge sees a set of items, not their order, so the game is a graph over subsets: with k items to choose from and r
turns left there are C(k, r) outcomes to score, and backward induction over the smaller subsets gives the value.
C(44, 4) = 135 751 outcomes are solved with all features; six turns are solved on the 16 items that speak most for
either side (8 008 outcomes), or on all 44 (7 million) by a GPU. The best reply to a given debater needs its replies
alone and is a tree over the opponent's choices.

Both players' optimal moves for the difference of the judge's scores are optimal for its sign too, since the sign is
monotone: one solution serves every utility.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import combinations
from math import comb

import numpy as np
import torch
from torch import Tensor

from apps.sepsis.debate import (
    Debate,
    Debater,
    Order,
    Position,
    Scorer,
    Utility,
    check_items,
    compare,
    draw_starter,
    payoff,
    speakers,
    verdict,
)
from apps.sepsis.debaters import candidate_gains
from core.errors import InputError

CANDIDATES = 16
"""Items that exact play chooses from, unless told otherwise."""
OUTCOMES = 2**18
"""Outcomes scored at a time; bounds the memory."""

Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class Solution:
    """Perfect play from N positions.

    Attributes:
        items: ``(N, k)`` int64, the items that both players choose from.
        value: ``(N, k)``, the judge's score of the mover's action less its rival's at the end, if it reveals that item
            now and both play perfectly from there.
    """

    items: Tensor
    value: Tensor

    @property
    def best(self) -> Tensor:
        """``(N,)`` the best item."""
        return self.items.gather(1, self.value.argmax(1, keepdim=True))[:, 0]


@dataclass(frozen=True)
class ExactDebater:
    """Reveals the best item of an alternating debate against a perfect rival.

    Attributes:
        judge: scores both actions.
        candidates: items that it considers, half of them those that speak most for it, half for the rival; None: all,
            and then no debater does better against a perfect rival.
    """

    judge: Scorer
    candidates: int | None = CANDIDATES

    def choose(self, position: Position) -> Tensor:
        """``(N,)`` item."""
        return solve(self.judge, position, self.candidates).best


def solve(
    judge: Scorer,
    position: Position,
    candidates: int | None = CANDIDATES,
    *,
    order: Order = "alternating",
    progress: Progress | None = None,
) -> Solution:
    """Perfect play of both players from given positions.

    Args:
        judge: scores both actions.
        position: the players move in turns from here on, ``own`` first.
        candidates: items that both choose from, half of them those that, revealed next, speak most for one side and
            half for the other; None: all that are not revealed.
        order: ``upfront`` lets ``own`` reveal the first half of what remains, and its rival the rest.
        progress: told the share that is done.

    Raises:
        InputError: fewer candidates than turns.
    """
    n, features = position.state.shape
    free = features - int(position.revealed.sum(1).max())
    k = free if candidates is None else min(candidates, free)
    if k < position.remaining:
        raise InputError(f"candidates: {k}; must be {position.remaining} or more, the items still to be revealed")
    mover = torch.ones(1, dtype=torch.long)
    mine = (speakers(mover, position.remaining, order)[0] == 1).tolist()
    solutions = []
    rows = torch.arange(n, device=position.state.device)
    for part in rows.split(max(1, OUTCOMES // comb(k, position.remaining))):
        solutions.append(_solve(judge, position.take(part), k, mine))
        if progress is not None:
            progress((int(part[-1]) + 1) / n, "exact debates")
    return Solution(torch.cat([s.items for s in solutions]), torch.cat([s.value for s in solutions]))


def game_value(
    judge: Scorer,
    state: Tensor,
    first: Tensor,
    second: Tensor,
    items: int = 6,
    *,
    order: Order = "alternating",
    starter: Tensor | None = None,
    candidates: int | None = CANDIDATES,
    generator: torch.Generator | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Value ``(N,)`` of the game for player 1: the difference of the judge's scores when both play perfectly.

    Args:
        judge: scores both actions.
        state: ``(N, F)`` normalised.
        first: ``(N,)`` action of player 1.
        second: ``(N,)`` action of player 2.
        items: L, even.
        order: as in ``hold_debate``.
        starter: as in ``hold_debate``.
        candidates: items that both choose from; see ``solve``.
        generator: of the draw of the starter.
        progress: told the share that is done.

    Raises:
        InputError: ``items`` is odd or out of range, or fewer candidates than items.
    """
    check_items(items, state.shape[-1], players=2)
    starter = _starter(len(state), order, starter, generator, state.device)
    leads = starter == 1
    own, rival = torch.where(leads, first, second), torch.where(leads, second, first)
    revealed = torch.zeros(state.shape, dtype=torch.bool, device=state.device)
    opening = Position(state, revealed, own, rival, items)
    value = solve(judge, opening, candidates, order=order, progress=progress).value.amax(1)
    return torch.where(leads, value, -value)


def best_reply(
    judge: Scorer,
    state: Tensor,
    own: Tensor,
    rival: Tensor,
    debater: Debater,
    items: int = 6,
    *,
    order: Order = "alternating",
    starter: Tensor | None = None,
    candidates: int | None = CANDIDATES,
    generator: torch.Generator | None = None,
    progress: Progress | None = None,
) -> Debate:
    """The debates that a debater, as player 1, holds against the opponent that hurts it most.

    All choices of the opponent are tried with the debater's answers to each; no opponent with the same candidates
    leaves the debater less, measured by the difference of the scores or by its sign.

    Args:
        judge: scores both actions.
        state: ``(N, F)`` normalised.
        own: ``(N,)`` action of the debater.
        rival: ``(N,)`` action of the opponent.
        debater: any that always answers a position in the same way, with 44 features or fewer.
        items: L, even.
        order: as in ``hold_debate``.
        starter: as in ``hold_debate``; 1 is the debater.
        candidates: items that the opponent chooses from, half of them those that alone speak most for one side and
            half for the other; None: all. The debater may reveal any.
        generator: of the draw of the starter.
        progress: told the share that is done.

    Raises:
        InputError: ``items`` is odd or out of range, fewer candidates than items, or the debater repeated an item.
    """
    check_items(items, state.shape[-1], players=2)
    starter = _starter(len(state), order, starter, generator, state.device)
    k = state.shape[1] if candidates is None else min(candidates, state.shape[1])
    if k < items:
        raise InputError(f"candidates: {k}; must be {items} or more, the items to be revealed")
    speaker = speakers(starter, items, order)
    lines = torch.empty_like(speaker)
    done = 0
    for who in (1, 2):
        for rows in torch.nonzero(starter == who)[:, 0].split(max(1, OUTCOMES // k ** (items // 2))):
            if not len(rows):
                continue
            revealed = torch.zeros(len(rows), state.shape[1], dtype=torch.bool, device=state.device)
            opening = Position(state[rows], revealed, own[rows], rival[rows], items, rows)
            lines[rows] = _worst_lines(judge, opening, debater, k, (speaker[rows[0]] == 1).tolist())
            done += len(rows)
            if progress is not None:
                progress(done / len(state), "best replies")
    debate = Debate(state, own, rival, lines, speaker)
    if not bool((debate.evidence.sum(1) == items).all()):
        raise InputError("debater: revealed an item twice; must choose one that is not revealed")
    return debate


def exploitability(
    judge: Scorer,
    state: Tensor,
    own: Tensor,
    rival: Tensor,
    debater: Debater,
    items: int = 6,
    *,
    order: Order = "alternating",
    starter: Tensor | None = None,
    candidates: int | None = CANDIDATES,
    generator: torch.Generator | None = None,
    utility: Utility = "difference",
    progress: Progress | None = None,
) -> Tensor:
    """Utility ``(N,)`` that a debater loses to perfect play when its opponent knows how it plays.

    The value of the game less what the best reply leaves. It is at least 0 if ``candidates`` is None; with fewer, the
    debater may leave them and gain.

    Args:
        judge: as in ``best_reply``; so are the others.
        state: ``(N, F)``.
        own: ``(N,)``.
        rival: ``(N,)``.
        debater: player 1.
        items: L.
        order: of speech.
        starter: ``(N,)``.
        candidates: items that the opponent, and both players of the perfect game, choose from.
        generator: of the draw of the starter.
        utility: what is lost.
        progress: told the share that is done.

    Raises:
        InputError: as ``best_reply``.
    """
    starter = _starter(len(state), order, starter, generator, state.device)
    half = None if progress is None else lambda share, message: progress(share / 2, message)
    rest = None if progress is None else lambda share, message: progress(0.5 + share / 2, message)
    value = game_value(
        judge, state, own, rival, items, order=order, starter=starter, candidates=candidates, progress=half
    )
    reply = best_reply(
        judge, state, own, rival, debater, items, order=order, starter=starter, candidates=candidates, progress=rest
    )
    lost = payoff(value, utility) - verdict(judge, reply, utility)
    return torch.where(own == rival, torch.zeros_like(lost), lost)


def _starter(
    n: int, order: Order, starter: Tensor | None, generator: torch.Generator | None, device: torch.device
) -> Tensor:
    if starter is not None:
        return starter
    if order == "upfront":
        return torch.ones(n, dtype=torch.long, device=device)
    return draw_starter(n, generator, device)


def _pool(judge: Scorer, position: Position, k: int) -> Tensor:
    """``(N, k)`` items that are not revealed: half of them those best for the mover, half those best for its rival."""
    gains = candidate_gains(judge, position)
    upper = gains.topk(k - k // 2, dim=1).indices
    taken = position.revealed.scatter(1, upper, True)
    return torch.cat([upper, gains.masked_fill(taken, torch.inf).topk(k // 2, dim=1, largest=False).indices], 1)


def _solve(judge: Scorer, position: Position, k: int, mine: Sequence[bool]) -> Solution:
    pool = _pool(judge, position, k)
    n, turns = len(pool), position.remaining
    device = pool.device
    parts = []
    for subset in _subsets(k, turns, device).split(max(1, OUTCOMES // n)):
        shape = (n, len(subset), k)
        evidence = position.revealed[:, None].expand(n, len(subset), -1).clone()
        evidence.scatter_(2, pool[:, None].expand(shape), subset.expand(shape))
        state, own, rival = position.state[:, None], position.own[:, None], position.rival[:, None]
        parts.append(judge.score(state, evidence, own) - judge.score(state, evidence, rival))
    value = torch.cat(parts, 1)
    for turn in reversed(range(turns)):
        child, free = _children(k, turn, device)
        after = value[:, child].masked_fill(~free, -torch.inf if mine[turn] else torch.inf)
        value = after.amax(2) if mine[turn] else after.amin(2)
    return Solution(pool, after[:, 0])


def _worst_lines(judge: Scorer, opening: Position, debater: Debater, k: int, mine: Sequence[bool]) -> Tensor:
    """``(N, L)`` items of the debates that are worst for the debater, which speaks where ``mine``."""
    pool = _pool(judge, opening, k)
    assert opening.row is not None
    row, items = torch.arange(len(pool), device=pool.device), pool[:, :0]
    revealed = opening.revealed
    for turn, debater_speaks in enumerate(mine):
        if debater_speaks:
            position = replace(opening.take(row), revealed=revealed, remaining=len(mine) - turn)
            item = debater.choose(position)
        else:
            node, choice = torch.nonzero(~revealed.gather(1, pool[row]), as_tuple=True)
            row, items, revealed = row[node], items[node], revealed[node]
            item = pool[row, choice]
        items = torch.cat([items, item[:, None]], 1)
        revealed = revealed.scatter(1, item[:, None], True)
        one = _one_of_each(row, revealed)
        row, items, revealed = row[one], items[one], revealed[one]
    end = opening.take(row)
    value = compare(judge, end.state, revealed, end.own, end.rival, "difference")
    least = value.new_full((len(pool),), torch.inf).scatter_reduce(0, row, value, "amin")
    worst = torch.nonzero(value <= least[row])[:, 0]
    return items[worst[_first_of_each(row[worst])]]


def _one_of_each(row: Tensor, revealed: Tensor) -> Tensor:
    """Indices of distinct positions: the order in which a set came about matters no more."""
    bits = torch.arange(revealed.shape[1], device=row.device)
    return _first_of_each((revealed.long() << bits).sum(1) + (row << revealed.shape[1]))


def _first_of_each(key: Tensor) -> Tensor:
    """Where each value of ``key`` stands first, by increasing value."""
    values, group = torch.unique(key, return_inverse=True)
    index = torch.arange(len(key), device=key.device)
    return torch.full_like(values, len(key)).scatter_reduce(0, group, index, "amin")


@lru_cache(maxsize=32)
def _subsets(k: int, size: int, device: torch.device) -> Tensor:
    """``(C(k, size), k)`` bool, every subset of a size, in the order of ``_rank``."""
    count = comb(k, size)
    chosen = np.fromiter((i for c in combinations(range(k), size) for i in c), np.int64, count * size)
    members = torch.from_numpy(chosen).view(count, size)
    mask = torch.zeros(count, k, dtype=torch.bool).scatter(1, members, True)
    ordered = torch.empty_like(mask)
    ordered[_ranks(mask).sum(1)] = mask
    return ordered.to(device)


@lru_cache(maxsize=32)
def _children(k: int, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Where each subset of a size, with each further item, stands among those of one more: index and whether it is.

    Both ``(C(k, size), k)``. An item moves the members above it up by one place; the rank changes accordingly.
    """
    mask = _subsets(k, size, torch.device("cpu"))
    below, above = _ranks(mask), _ranks(mask, shift=1)
    before = below.cumsum(1) - below
    after = above.sum(1, keepdim=True) - above.cumsum(1)
    item = _binomials(k, size + 1).gather(1, mask.long().cumsum(1).T + 1).T
    free = ~mask
    index = torch.where(free, before + item + after, 0)
    return index.to(device), free.to(device)


def _ranks(mask: Tensor, shift: int = 0) -> Tensor:
    """What each member adds to the rank of its subset, sum over members c_1 < c_2 < ... of C(c_j, j + shift)."""
    place = mask.long().cumsum(1) + shift
    k = mask.shape[1]
    return torch.where(mask, _binomials(k, int(place.max()) if len(mask) else shift).gather(1, place.T).T, 0)


def _binomials(k: int, largest: int) -> Tensor:
    """``(k, largest + 1)`` int64: C(c, j)."""
    return torch.tensor([[comb(c, j) for j in range(largest + 1)] for c in range(k)])

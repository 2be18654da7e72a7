"""Reach a target from a few numbers by arithmetic: the task that needs search, small enough to be enumerated."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from core.errors import InputError
from core.sequence.batch import TokenBatch, TokenScores
from core.sequence.policy import NOTHING, Stepwise, scores_of
from core.sequence.rollouts import Prompts

OPERATIONS = 3
"""Sum, difference (the larger less the smaller) and product."""
GONE = -1
"""Stands in a place whose number has been used."""


@dataclass(frozen=True)
class CountDown:
    """Prompt: ``n`` numbers and a target. A token puts the sum, difference or product of two numbers in their place.

    After n - 1 tokens one number is left; reward 1 if it is the target. Token 0 is an end symbol that no right answer
    has; token 1 + 3 k + o applies operation o to the k-th pair of places (i, j), i < j, and puts the result in place i.
    A pair with a place that is empty may not be taken: such answers have reward 0. Every target can be reached, since
    it comes from an answer drawn at random.

    Attributes:
        n: numbers of a prompt, at least 2.
        largest: numbers are 1..largest.
        device: of the prompts.
    """

    n: int = 4
    largest: int = 9
    device: torch.device | str = "cpu"

    def __post_init__(self) -> None:
        if self.n < 2 or self.largest < 1:
            raise InputError(f"CountDown: n = {self.n}, largest = {self.largest}; allowed: at least 2 and at least 1")

    @property
    def max_length(self) -> int:
        """Tokens of an answer."""
        return self.n - 1

    @property
    def vocabulary(self) -> int:
        """V, the end symbol among them."""
        return 1 + OPERATIONS * self.n * (self.n - 1) // 2

    @cached_property
    def pairs(self) -> Tensor:
        """``(V, 2)`` int64 places that a token takes; those of the end symbol mean nothing."""
        pairs = torch.triu_indices(self.n, self.n, 1, device=self.device).T.repeat_interleave(OPERATIONS, 0)
        return torch.cat([pairs[:1], pairs])

    def allowed(self, numbers: Tensor) -> Tensor:
        """``(B, V)`` bool: which tokens take two numbers of ``(B, n)`` that are there."""
        here: Tensor = (numbers != GONE)[:, self.pairs].all(-1)
        here[:, 0] = False
        return here

    def apply(self, numbers: Tensor, token: Tensor) -> Tensor:
        """``(B, n)`` numbers after a token ``(B,)`` that is allowed; one that is not empties all places."""
        pair = self.pairs[token]
        x, y = numbers.gather(1, pair).unbind(1)
        result = torch.stack([x + y, (x - y).abs(), x * y], 1).gather(1, ((token - 1) % OPERATIONS).unsqueeze(1))
        new = numbers.scatter(1, pair[:, :1], result).scatter(1, pair[:, 1:], GONE)
        legal = self.allowed(numbers).gather(1, token.unsqueeze(1))
        return torch.where(legal, new, GONE)

    def left(self, context: Tensor, tokens: Tensor) -> Tensor:
        """``(B,)`` what answers ``(B, n - 1)`` to prompts ``(B, n + 1)`` leave; ``GONE`` where not allowed."""
        numbers = context[:, :-1]
        for token in tokens.unbind(1):
            numbers = self.apply(numbers, token)
        return numbers.amax(1)

    def prompts(self, n: int, step: int, generator: torch.Generator) -> Prompts:
        """See ``Task.prompts``; the reference is one of the right answers."""
        size, where = (n, self.n), generator.device
        numbers = torch.randint(1, self.largest + 1, size, generator=generator, device=where).to(self.device)
        tokens = []
        reached = numbers
        for _ in range(self.max_length):
            chance = self.allowed(reached).float().to(where)
            tokens.append(torch.multinomial(chance, 1, generator=generator).squeeze(1).to(self.device))
            reached = self.apply(reached, tokens[-1])
        answer = torch.stack(tokens, 1)
        context = torch.cat([numbers, reached.amax(1, keepdim=True)], 1)
        group = torch.arange(n, device=self.device)
        return Prompts(context, TokenBatch(answer, torch.ones_like(answer, dtype=torch.bool), group))

    def reward(self, batch: TokenBatch, prompts: Prompts) -> Tensor:
        """See ``Task.reward``."""
        return self.verify(batch.with_(context=prompts.context))

    def verify(self, batch: TokenBatch) -> Tensor:
        """``(B,)`` 1 for answers of n - 1 tokens that leave the target, else 0; a score for search."""
        wider = batch.pad_to(self.max_length)
        context = wider.context[wider.group]
        left = self.left(context, wider.tokens[:, : self.max_length])
        return ((left == context[:, -1]) & (wider.length == self.max_length)).float()

    def answers(self) -> Tensor:
        """``(N, n - 1)`` all answers that are allowed; they are the same for all prompts."""
        found, numbers = torch.zeros(1, 0, dtype=torch.int64), torch.zeros(1, self.n, dtype=torch.int64)
        numbers, found = numbers.to(self.device), found.to(self.device)
        for _ in range(self.max_length):
            row, token = self.allowed(numbers).nonzero().unbind(1)
            numbers, found = self.apply(numbers[row], token), torch.cat([found[row], token.unsqueeze(1)], 1)
        return found

    def share_right(self, context: Tensor) -> Tensor:
        """``(P,)`` share of all allowed answers that are right, by trying them all."""
        answers, prompts = self.answers(), len(context)
        group = torch.arange(prompts, device=answers.device).repeat_interleave(len(answers))
        tokens = answers.repeat(prompts, 1)
        batch = TokenBatch(tokens, torch.ones_like(tokens, dtype=torch.bool), group, context)
        return self.verify(batch).view(prompts, -1).mean(1)


@dataclass(frozen=True)
class Board:
    """What is left of the numbers ``(B, n)`` and the targets ``(B,)``."""

    numbers: Tensor
    target: Tensor


class MovesPolicy(nn.Module, Stepwise):
    """A policy for ``CountDown`` that sees the numbers that are left, and plays only what is allowed.

    A token's logit is ``bonus`` where it makes the target and 0 elsewhere. Bonus 0 draws evenly from what is allowed;
    a bonus of some units knows how to finish but not how to begin.

    Args:
        task: what is played.
        bonus: in nats.
    """

    eos = 0

    def __init__(self, task: CountDown, bonus: float = 0.0) -> None:
        super().__init__()
        self.task, self.vocabulary, self.bonus = task, task.vocabulary, bonus

    def start(self, context: Tensor, group: Tensor) -> tuple[Tensor, Board]:
        """See ``StepwisePolicy.start``."""
        board = Board(context[group, :-1], context[group, -1])
        return self._logits(board), board

    def advance(self, state: Board, tokens: Tensor) -> tuple[Tensor, Board]:
        """See ``StepwisePolicy.advance``."""
        board = Board(self.task.apply(state.numbers, tokens), state.target)
        return self._logits(board), board

    def score(self, batch: TokenBatch, temperature: float = 1.0, need: frozenset[str] = NOTHING) -> TokenScores:
        """See ``SequencePolicy.score``; fills entropy and logits."""
        logits, state = self.start(batch.context, batch.group)
        steps = [logits]
        for token in batch.tokens.unbind(1)[:-1]:
            logits, state = self.advance(state, token)
            steps.append(logits)
        return scores_of(torch.stack(steps, 1), batch, temperature, need)

    def _logits(self, board: Board) -> Tensor:
        allowed = self.task.allowed(board.numbers)
        rows = torch.arange(len(allowed), device=allowed.device).repeat_interleave(self.vocabulary)
        tokens = torch.arange(self.vocabulary, device=allowed.device).repeat(len(allowed))
        after = self.task.apply(board.numbers[rows], tokens).view(len(allowed), self.vocabulary, -1)
        last = (after != GONE).sum(-1) == 1
        makes = last & (after.amax(-1) == board.target.unsqueeze(1))
        # Where nothing is left to be done the end symbol is all that may follow.
        stuck = ~allowed.any(1, keepdim=True)
        first = torch.arange(self.vocabulary, device=allowed.device) == 0
        return torch.where(allowed | stuck & first, self.bonus * makes, -torch.inf)

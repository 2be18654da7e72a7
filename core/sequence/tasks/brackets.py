"""Open brackets that must be closed: answers of different lengths, of which almost none is right by chance."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from core.errors import InputError
from core.sequence.batch import PAD, TokenBatch
from core.sequence.rollouts import Prompts
from core.sequence.tasks.toy_policy import ToyPolicy


@dataclass(frozen=True)
class Brackets:
    """Prompt: a row of open brackets; answer: the closing ones in reverse order, then the end symbol.

    Prompts are ``(P, depth)`` with the last bracket first: 1 to ``kinds``, 0 where there is none. Tokens 0 to
    ``kinds - 1`` close a bracket of kind 1 to ``kinds``; ``kinds`` ends an answer, and one of full length need not be
    ended. Reward 1 if the brackets are balanced, else 0.

    Attributes:
        depth: most open brackets.
        kinds: of brackets.
        shallowest: fewest open brackets.
        distinct: prompts there are, the same ones in all updates; None draws new ones each time.
        device: of the prompts.
    """

    depth: int = 10
    kinds: int = 4
    shallowest: int = 1
    distinct: int | None = None
    device: torch.device | str = "cpu"

    def __post_init__(self) -> None:
        if self.kinds < 1:
            raise InputError(f"Brackets.kinds: {self.kinds}; allowed: at least 1")
        if not 0 <= self.shallowest <= self.depth or self.depth < 1:
            raise InputError(f"Brackets.shallowest: {self.shallowest}; allowed: 0 to the depth {self.depth} >= 1")
        if self.distinct is not None and self.distinct < 1:
            raise InputError(f"Brackets.distinct: {self.distinct}; allowed: at least 1, or None")

    @property
    def max_length(self) -> int:
        """Tokens of the longest answer; at full depth the end symbol is left out."""
        return self.depth

    def policy(self, *, value: bool = False, seed: int = 0) -> ToyPolicy:
        """A policy for it that knows nothing."""
        return ToyPolicy(self.depth, self.kinds + 1, self.kinds + 1, self.kinds, value=value, seed=seed).to(self.device)

    def prompts(self, n: int, step: int, generator: torch.Generator) -> Prompts:
        """See ``Task.prompts``; depth and kinds are uniform."""
        if self.distinct is None:
            return self.of(self._drawn(n, generator))
        every = self._drawn(self.distinct, torch.Generator().manual_seed(0))
        return self.of(
            every[torch.randint(self.distinct, (n,), generator=generator, device=generator.device).to(every.device)]
        )

    def _drawn(self, n: int, generator: torch.Generator) -> Tensor:
        device = generator.device
        open_ = torch.randint(self.shallowest, self.depth + 1, (n, 1), generator=generator, device=device)
        kind = torch.randint(1, self.kinds + 1, (n, self.depth), generator=generator, device=device)
        return torch.where(torch.arange(self.depth, device=device) < open_, kind, 0).to(self.device)

    def of(self, context: Tensor) -> Prompts:
        """Prompts ``(P, depth)`` with their answers."""
        tokens, mask = self.answers(context)
        return Prompts(context, TokenBatch(tokens, mask, torch.arange(len(context), device=context.device)))

    def answers(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """``(P, depth)`` right answers to prompts, and their mask."""
        length = (context > 0).sum(1, keepdim=True)
        at = torch.arange(self.depth, device=context.device)
        tokens = torch.where(at < length, context - 1, torch.where(at == length, self.kinds, PAD))
        return tokens, at <= length

    def reward(self, batch: TokenBatch, prompts: Prompts) -> Tensor:
        """See ``Task.reward``."""
        tokens, mask = self.answers(prompts.context)
        batch = batch.pad_to(self.depth)
        tokens, mask = tokens[batch.group], mask[batch.group]
        given, more = batch.tokens[:, : self.depth], batch.tokens[:, self.depth :]
        valid, longer = batch.valid[:, : self.depth], batch.valid[:, self.depth :]
        right = (((given == tokens) & (valid == mask)) | ~(valid | mask)).all(1)
        # Of what is longer than the depth, only the end symbol of an answer of full depth is right.
        full = (prompts.context > 0).all(1)[batch.group].unsqueeze(1)
        ends = full & (more == self.kinds) & (torch.arange(more.shape[1], device=more.device) == 0)
        return (right & ~(longer & ~ends).any(1)).float()

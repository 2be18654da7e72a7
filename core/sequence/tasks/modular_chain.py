"""Four numbers, each of which follows from those before it: a task whose right answers take several steps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from core.errors import InputError
from core.sequence.batch import TokenBatch
from core.sequence.rollouts import Prompts
from core.sequence.tasks.toy_policy import ToyPolicy


@dataclass(frozen=True)
class ModularChain:
    """Prompt (a, b, c); answer a + b, a c, (a + b) + a c and its product with b plus a, all modulo p.

    Reward 1 if all four are right, else 0. The token p is an end symbol that no right answer has.

    Attributes:
        p: modulus; there are ``p ** 3`` prompts.
        device: of the prompts.
    """

    p: int = 11
    device: torch.device | str = "cpu"
    max_length: int = 4

    def __post_init__(self) -> None:
        if self.p < 2:
            raise InputError(f"ModularChain.p: {self.p}; allowed: at least 2")

    @property
    def every(self) -> Tensor:
        """``(p ** 3, 3)`` all prompts."""
        numbers = torch.arange(self.p, device=self.device)
        return torch.cartesian_prod(numbers, numbers, numbers)

    def policy(self, *, value: bool = False, seed: int = 0) -> ToyPolicy:
        """A policy for it that knows nothing."""
        return ToyPolicy(3, self.p, self.p + 1, self.p, value=value, seed=seed).to(self.device)

    def prompts(self, n: int, step: int, generator: torch.Generator) -> Prompts:
        """See ``Task.prompts``; all prompts are equally likely, and none comes twice unless n exceeds their number."""
        drawn = torch.randperm(self.p**3, generator=generator, device=generator.device)[:n].to(self.device)
        if n > len(drawn):
            more = torch.randint(self.p**3, (n - len(drawn),), generator=generator, device=generator.device)
            drawn = torch.cat((drawn, more.to(self.device)))
        return self.of(torch.stack((drawn // self.p**2, drawn // self.p % self.p, drawn % self.p), 1))

    def of(self, context: Tensor) -> Prompts:
        """Prompts ``(P, 3)`` with their answers."""
        tokens = self.answers(context)
        group = torch.arange(len(context), device=context.device)
        return Prompts(context, TokenBatch(tokens, torch.ones_like(tokens, dtype=torch.bool), group))

    def answers(self, context: Tensor) -> Tensor:
        """``(P, 4)`` right answers to prompts ``(P, 3)``."""
        a, b, c = context.unbind(1)
        s, q = a + b, a * c
        u = s + q
        return torch.stack((s, q, u, u * b + a), 1) % self.p

    def reward(self, batch: TokenBatch, prompts: Prompts) -> Tensor:
        """See ``Task.reward``."""
        written = batch.pad_to(self.max_length)
        right = written.tokens[:, : self.max_length] == self.answers(prompts.context)[batch.group]
        return (right.all(1) & (written.length == self.max_length)).float()

"""Scheduled sampling: a decoder learns on inputs that are partly its own symbols."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from core.sequence.batch import TokenBatch, TokenScores
from core.sequence.policy import NOTHING, draw_tokens


class ScheduledSampling(nn.Module):
    """A policy whose inputs are replaced while references are scored (Bengio et al. 2015, arXiv 1506.03099).

    A first pass without a graph gives the model's distribution at each place under the references; with the
    probability of the update, the symbol that the model reads next is one of its own. At a ratio of 1 and with the most
    probable symbols this is training on one's own output, place by place.

    Args:
        policy: whose ``score`` takes ``replace``: ``(B, T)`` symbols read in place of the sequence's.
        share: probability of an update from 0 on.
        greedy: the most probable symbol instead of a sampled one.

    Attributes:
        update: the number of the update, which the trainer sets.
    """

    def __init__(self, policy: nn.Module, share: Callable[[int], float], *, greedy: bool = False) -> None:
        super().__init__()
        self.policy, self.share, self.greedy, self.update = policy, share, greedy, 0

    def sample(self, *arguments: Any, **named: Any) -> TokenBatch:
        """The policy's."""
        return self.policy.sample(*arguments, **named)  # type: ignore[operator]

    def score(self, batch: TokenBatch, temperature: float = 1.0, need: frozenset[str] = NOTHING) -> TokenScores:
        """Scores of the sequences, read with replaced inputs."""
        replaced = self.replaced(batch, temperature)
        return self.policy.score(batch, temperature, need, replace=replaced)  # type: ignore[operator]

    @torch.no_grad()
    def replaced(self, batch: TokenBatch, temperature: float = 1.0) -> Tensor:
        """``(B, T)`` the symbols that are read; PyTorch's own generator draws, which a trainer seeds."""
        share = self.share(self.update)
        if share <= 0:
            return batch.tokens
        logits = self.policy.score(batch, temperature, frozenset({"logits"})).need("logits")  # type: ignore[operator]
        if self.greedy:
            own = logits.argmax(-1)
        else:
            own = draw_tokens(logits.flatten(0, 1), 1.0, None)[0].view_as(batch.tokens)
        return torch.where((torch.rand_like(logits[..., 0]) < share) & batch.mask, own, batch.tokens)

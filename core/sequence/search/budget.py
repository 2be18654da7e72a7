"""What a search costs, in tokens."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from core.sequence.batch import TokenBatch
from core.sequence.policy import StepwisePolicy


class Counted:
    """A policy that counts the next-token distributions it has computed, those of sequences that have ended too.

    Two searches of the same ``tokens`` cost the same, whatever they call a sample, a width or a simulation.
    """

    def __init__(self, policy: StepwisePolicy) -> None:
        self.policy = policy
        self.tokens = 0

    def start(self, context: Any, group: Tensor) -> tuple[Tensor, Any]:
        """See ``StepwisePolicy.start``."""
        self.tokens += len(group)
        return self.policy.start(context, group)

    def advance(self, state: Any, tokens: Tensor) -> tuple[Tensor, Any]:
        """See ``StepwisePolicy.advance``."""
        self.tokens += len(tokens)
        return self.policy.advance(state, tokens)

    def sample(self, *args: Any, **kwargs: Any) -> TokenBatch:
        """See ``SequencePolicy.sample``."""
        batch = self.policy.sample(*args, **kwargs)
        self.tokens += batch.tokens.numel()
        return batch

    def __getattr__(self, name: str) -> Any:
        return getattr(self.policy, name)

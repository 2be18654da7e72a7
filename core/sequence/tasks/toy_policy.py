"""A policy of some ten thousand weights for prompts that are short rows of symbols."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from core.sequence.batch import TokenBatch, TokenScores
from core.sequence.policy import NOTHING, Stepwise, scores_of


class ToyPolicy(nn.Module, Stepwise):
    """Embeddings of the prompt's symbols, a perceptron that makes them the first state of a GRU, and that GRU.

    Its context is a tensor ``(P, slots)`` int64 of symbols, each slot with embeddings of its own.

    Args:
        slots: symbols of a prompt.
        symbols: that each of them may be.
        vocabulary: V, number of tokens, the end symbol among them.
        eos: the end symbol.
        embedding: width of the embeddings.
        hidden: width of the GRU.
        value: whether ``score`` can fill ``value``.
        seed: of the first weights.
    """

    def __init__(
        self,
        slots: int,
        symbols: int,
        vocabulary: int,
        eos: int,
        *,
        embedding: int = 32,
        hidden: int = 128,
        value: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.eos, self.vocabulary, self.symbols = eos, vocabulary, symbols
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.prompt = nn.Embedding(slots * symbols, embedding)
            self.encoder = nn.Sequential(nn.Linear(slots * embedding, hidden), nn.ReLU(), nn.Linear(hidden, hidden))
            # The last entry stands before the first token.
            self.token = nn.Embedding(vocabulary + 1, embedding)
            self.gru = nn.GRU(embedding, hidden, batch_first=True)
            self.head = nn.Linear(hidden, vocabulary)
            self.value = nn.Linear(hidden, 1) if value else None

    def encode(self, context: Tensor) -> Tensor:
        """``(P, hidden)`` first states."""
        offsets = self.symbols * torch.arange(context.shape[1], device=context.device)
        found: Tensor = self.encoder(self.prompt(context + offsets).flatten(1)).tanh()
        return found

    def start(self, context: Tensor, group: Tensor) -> tuple[Tensor, Any]:
        """See ``StepwisePolicy.start``."""
        return self.advance(self.encode(context)[group], torch.full_like(group, self.vocabulary))

    def advance(self, state: Tensor, tokens: Tensor) -> tuple[Tensor, Any]:
        """See ``StepwisePolicy.advance``."""
        weights = [getattr(self.gru, f"{name}_l0") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        after = torch.gru_cell(self.token(tokens), state, *weights)
        return self.head(after), after

    def score(self, batch: TokenBatch, temperature: float = 1.0, need: frozenset[str] = NOTHING) -> TokenScores:
        """See ``SequencePolicy.score``; fills logits, entropy, hidden and, if there is a head for it, value."""
        before = torch.cat((torch.full_like(batch.tokens[:, :1], self.vocabulary), batch.tokens[:, :-1]), 1)
        first = self.encode(batch.context)[batch.group].unsqueeze(0)
        hidden, _ = self.gru(self.token(before), first)
        value = self.value(hidden).squeeze(-1) if self.value is not None and "value" in need else None
        return scores_of(self.head(hidden), batch, temperature, need, hidden=hidden, value=value)

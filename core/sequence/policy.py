"""What a policy over token sequences can do, and sampling for those that advance token by token."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from core.errors import InputError
from core.sequence.batch import PAD, TokenBatch, TokenScores, count_prompts
from core.sequence.reductions import wide
from core.simulation import tree

NOTHING: frozenset[str] = frozenset()


class SequencePolicy(Protocol):
    """A distribution over token sequences given a context; in general also a ``torch.nn.Module``."""

    eos: int
    """The symbol that ends a sequence."""
    vocabulary: int
    """V, number of symbols."""

    def sample(
        self,
        context: Any,
        n: int,
        max_length: int,
        temperature: float = 1.0,
        prefix: TokenBatch | None = None,
        generator: torch.Generator | None = None,
    ) -> TokenBatch:
        """Draw n sequences a prompt, without a graph; row ``p * n + i`` is the i-th of prompt p.

        Args:
            context: of P prompts.
            n: sequences a prompt.
            max_length: T at most, the forced tokens included; a sequence that has not ended by then is cut.
            temperature: divides the logits; 0 takes the most probable token.
            prefix: ``P * n`` rows of tokens that are forced first; they are ``present`` but not in the ``mask``.
            generator: of the draws.
        """
        ...

    def score(self, batch: TokenBatch, temperature: float = 1.0, need: frozenset[str] = NOTHING) -> TokenScores:
        """One parallel pass over the sequences, with a graph unless the caller has switched it off.

        Args:
            batch: the sequences; padding gets log-probability 0.
            temperature: the one they were sampled at.
            need: names of further fields of ``TokenScores`` that are to be filled.
        """
        ...


class StepwisePolicy(SequencePolicy, Protocol):
    """A policy that can also be advanced by one token at a time, for sampling and search."""

    def start(self, context: Any, group: Tensor) -> tuple[Tensor, Any]:
        """Logits ``(B, V)`` of the first tokens of answers to the prompts ``group`` ``(B,)``, and a state."""
        ...

    def advance(self, state: Any, tokens: Tensor) -> tuple[Tensor, Any]:
        """Logits ``(B, V)`` after appending ``tokens`` ``(B,)``, and the next state; the old one stays usable."""
        ...

    def select(self, state: Any, rows: Tensor) -> Any:
        """The state of some sequences, in a given order, with repetitions where a row stands twice."""
        ...


class Stepwise:
    """Gives a policy with ``start`` and ``advance`` its ``sample`` and ``select``; its states are trees of tensors."""

    eos: int

    def select(self, state: Any, rows: Tensor) -> Any:
        """The state of some sequences."""
        return tree.take(state, rows)

    def sample(
        self,
        context: Any,
        n: int,
        max_length: int,
        temperature: float = 1.0,
        prefix: TokenBatch | None = None,
        generator: torch.Generator | None = None,
    ) -> TokenBatch:
        """See ``SequencePolicy.sample``."""
        return sample_stepwise(self, context, n, max_length, temperature, prefix, generator)  # type: ignore[arg-type]


@torch.no_grad()
def sample_stepwise(
    policy: StepwisePolicy,
    context: Any,
    n: int,
    max_length: int,
    temperature: float = 1.0,
    prefix: TokenBatch | None = None,
    generator: torch.Generator | None = None,
) -> TokenBatch:
    """Draw sequences one token after the other; see ``SequencePolicy.sample``.

    Logits that are not finite give uniform draws of log-probability NaN, so that the loss shows them.

    Raises:
        InputError: max_length < 1, or a context without a tensor.
    """
    if max_length < 1:
        raise InputError(f"max_length: is {max_length}; at least 1 is needed")
    prompts, device = count_prompts(context)
    group = torch.arange(prompts, device=device).repeat_interleave(n)
    forced = None if prefix is None else prefix.length
    logits, state = policy.start(context, group)
    ended = torch.zeros_like(group, dtype=torch.bool)
    tokens, log_prob, present, mask = [], [], [], []
    for t in range(max_length):
        token, lp = draw_tokens(logits, temperature, generator)
        drawn = ~ended
        if prefix is not None and forced is not None and t < prefix.tokens.shape[1]:
            given = t < forced
            token = torch.where(given, prefix.tokens[:, t], token)
            drawn = drawn & ~given
        tokens.append(torch.where(ended, PAD, token))
        log_prob.append(torch.where(drawn, lp, 0.0))
        present.append(~ended)
        mask.append(drawn)
        ended = ended | (token == policy.eos)
        # Asking a GPU whether all have ended makes the CPU wait for it.
        if t + 1 == max_length or ((t % 8 == 7 or not ended.is_cuda) and bool(ended.all())):
            break
        logits, state = policy.advance(state, token)
    seen = torch.stack(present, 1)
    return TokenBatch(
        torch.stack(tokens, 1),
        torch.stack(mask, 1),
        group,
        context,
        present=None if prefix is None else seen,
        log_prob_old=torch.stack(log_prob, 1),
    )


def scores_of(
    logits: Tensor,
    batch: TokenBatch,
    temperature: float = 1.0,
    need: frozenset[str] = NOTHING,
    *,
    hidden: Tensor | None = None,
    value: Tensor | None = None,
    numbers_at_once: int = 2**27,
) -> TokenScores:
    """What a policy's ``score`` returns, from the logits ``(B, T, V)`` of the tokens; in single precision or better.

    Args:
        logits: before each token, not yet divided by the temperature; -inf rules a symbol out.
        batch: the sequences.
        temperature: divides the logits; 0 counts as 1.
        need: fields to be filled; ``hidden`` and ``value`` are passed on where they are in it.
        hidden: ``(B, T, D)``.
        value: ``(B, T)``.
        numbers_at_once: of the B T V that are turned into log-probabilities at once; more are done in parts of rows,
            whose intermediate results the backward pass computes again.
    """

    def work(logits: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        log_probs = (wide(logits) / (temperature or 1.0)).log_softmax(-1)
        log_prob = log_probs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
        if "entropy" not in need:
            return log_prob, log_prob
        p = log_probs.exp()
        return log_prob, -(p * torch.where(p > 0, log_probs, 0.0)).sum(-1)

    rows = max(1, numbers_at_once // max(1, logits.shape[1] * logits.shape[2]))
    if rows >= len(logits):
        log_prob, entropy = work(logits, batch.tokens)
    else:
        pairs = zip(logits.split(rows), batch.tokens.split(rows), strict=True)
        found = [checkpoint(work, *pair, use_reentrant=False) for pair in pairs]
        log_prob, entropy = (torch.cat(x) for x in zip(*found, strict=True))
    return TokenScores(
        torch.where(batch.valid, log_prob, 0.0),
        entropy if "entropy" in need else None,
        wide(logits) / (temperature or 1.0) if "logits" in need else None,
        value if "value" in need else None,
        hidden if "hidden" in need else None,
    )


def draw_tokens(logits: Tensor, temperature: float, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Tokens ``(B,)`` drawn from logits ``(B, V)`` and their log-probabilities, in single precision or better.

    Temperature 0 takes the largest.
    """
    scaled = wide(logits) / (temperature or 1.0)
    log_probs = scaled.log_softmax(-1)
    if temperature == 0:
        token = log_probs.argmax(-1)
    else:
        good = torch.isfinite(log_probs).any(-1, keepdim=True) & ~torch.isnan(log_probs).any(-1, keepdim=True)
        weights = torch.where(good, log_probs.exp(), 1.0)
        token = torch.multinomial(weights, 1, generator=generator).squeeze(-1)
    return token, log_probs.gather(-1, token.unsqueeze(-1)).squeeze(-1)

"""Answers from independent draws: the most probable token at each step, and the best of n samples."""

from __future__ import annotations

from typing import Any

import torch

from core.errors import InputError
from core.sequence.batch import TokenBatch
from core.sequence.policy import SequencePolicy
from core.sequence.search.ranking import Score, mean_log_prob, ranked


def greedy(policy: SequencePolicy, context: Any, max_length: int) -> TokenBatch:
    """One sequence a prompt, always the most probable next token; ``reward`` is its mean log-probability."""
    batch = policy.sample(context, 1, max_length, temperature=0.0)
    return batch.with_(reward=mean_log_prob(batch))


@torch.no_grad()
def best_of_n(
    policy: SequencePolicy,
    context: Any,
    n: int,
    max_length: int,
    score: Score = mean_log_prob,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> TokenBatch:
    """Draw n sequences a prompt and put those of the highest score first.

    With a verifier as the score and a chance p that a sample passes, the first one passes with 1 - (1 - p)^n.

    Args:
        policy: what draws.
        context: of P prompts.
        n: samples a prompt.
        max_length: tokens at most.
        score: a verifier, a reward model, ``mean_log_prob``, ``majority_vote``, or ``lambda batch: -mbr(batch)``; it
            sees all n of every prompt at once.
        temperature: of the draws.
        generator: of the draws.

    Returns:
        ``P * n`` sequences, ``reward`` their scores.

    Raises:
        InputError: n < 1.
    """
    if n < 1:
        raise InputError(f"n: is {n}; at least one sample a prompt is needed")
    batch = policy.sample(context, n, max_length, temperature, generator=generator)
    return ranked(batch, score(batch))

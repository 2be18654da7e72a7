"""Small ragged batches of token sequences with random numbers in them."""

from __future__ import annotations

import torch
from torch import Tensor

from core.sequence.batch import TokenBatch, TokenScores


def ragged(
    rows: int = 12,
    length: int = 7,
    prompts: int = 3,
    *,
    vocabulary: int = 5,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> TokenBatch:
    """Sequences of 1 to ``length`` tokens, the first of full length; row b answers prompt b modulo ``prompts``."""
    g = torch.Generator().manual_seed(seed)
    n = torch.randint(1, length + 1, (rows,), generator=g)
    n[0] = length
    mask = torch.arange(length) < n.unsqueeze(1)

    def normal(offset: float = 0.0) -> Tensor:
        return torch.where(mask, torch.randn(rows, length, generator=g, dtype=dtype) + offset, 0.0)

    return TokenBatch(
        tokens=torch.where(mask, torch.randint(1, vocabulary, (rows, length), generator=g), 0),
        mask=mask,
        group=torch.arange(rows) % prompts,
        reward=normal(),
        log_prob_old=-normal().abs(),
        log_prob_ref=-normal().abs(),
        advantage=normal(),
    )


def scores_of(batch: TokenBatch, *, step: float = 0.1, seed: int = 1) -> TokenScores:
    """Scores of a policy near the old one; ``log_prob`` is a leaf that asks for its gradient."""
    g = torch.Generator().manual_seed(seed)
    old = batch.need("log_prob_old")
    moved = old + step * torch.randn(old.shape, generator=g, dtype=old.dtype)
    entropy = torch.rand(old.shape, generator=g, dtype=old.dtype)
    leaf = torch.where(batch.mask, moved, 0.0).requires_grad_()
    return TokenScores(leaf, entropy=torch.where(batch.mask, entropy, 0.0).requires_grad_())


def gradient(value: Tensor, of: Tensor) -> Tensor:
    """Of a scalar."""
    return torch.autograd.grad(value, of, retain_graph=True)[0]

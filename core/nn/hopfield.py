"""Modern Hopfield networks: associative memories with continuous states, whose update rule is attention.

Ramsauer et al. (2021), "Hopfield networks is all you need", arXiv 2008.02217. Stored patterns are the rows of
X ``(..., N, d)``, states those of xi ``(..., B, d)``; leading dimensions are those of independent memories.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from core.errors import InputError

Similarity = Literal["dot", "euclidean"]


def hopfield_energy(patterns: Tensor, state: Tensor, beta: float) -> Tensor:
    """E = -lse(beta, X xi) + |xi|^2 / 2 + log(N) / beta + M^2 / 2, ``(..., B)`` (equation 2).

    Here lse(beta, z) = log sum exp(beta z) / beta and M = max |x_i|. For states in the convex hull of the patterns
    0 <= E <= 2 M^2, and an update never raises it.
    """
    largest = patterns.square().sum(-1).amax(-1)[..., None]
    evidence = torch.logsumexp(beta * (state @ patterns.mT), -1) - math.log(patterns.shape[-2])
    return -evidence / beta + (state.square().sum(-1) + largest) / 2


def hopfield_weights(
    patterns: Tensor,
    state: Tensor,
    beta: float,
    similarity: Similarity = "dot",
    squares: Tensor | None = None,
    allowed: Tensor | None = None,
    *,
    log: bool = False,
) -> Tensor:
    """Association of each state with each pattern, softmax(beta s(x_i, xi)), ``(..., B, N)``.

    Args:
        patterns: ``(..., N, d)``.
        state: ``(..., B, d)``.
        beta: inverse temperature, above 0.
        similarity: x.xi, or -|x - xi|^2, under which patterns of any norm are nearest to themselves.
        squares: ``(..., N)``, |x_i|^2 for the Euclidean similarity, where they are known.
        allowed: ``(..., B, N)`` bool, the patterns that each state may see, at least one; all if not given.
        log: the logarithms instead, which do not underflow.

    Raises:
        InputError: beta is not above 0.
    """
    if not beta > 0:
        raise InputError(f"beta = {beta}: must be above 0")
    scores = state @ patterns.mT
    if similarity == "euclidean":
        # |xi|^2 is common to all patterns and drops out.
        squares = patterns.square().sum(-1) if squares is None else squares
        scores = 2 * scores - squares[..., None, :]
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -torch.inf)
    return torch.log_softmax(beta * scores, -1) if log else torch.softmax(beta * scores, -1)


def hopfield_update(
    patterns: Tensor,
    state: Tensor,
    beta: float,
    similarity: Similarity = "dot",
    *,
    steps: int = 1,
    tolerance: float = 1e-4,
    allowed: Tensor | None = None,
) -> Tensor:
    """The states after xi <- X^T softmax(beta X xi), ``(..., B, d)`` (equation 3).

    Args:
        patterns: ``(..., N, d)``.
        state: ``(..., B, d)``.
        beta: inverse temperature, above 0.
        similarity: as in ``hopfield_weights``.
        steps: most updates; 1 usually retrieves.
        tolerance: a state rests once its weights move by less than this (in norm) from one update to the next.
        allowed: as in ``hopfield_weights``.

    Raises:
        InputError: beta or steps out of range.
    """
    if steps < 1:
        raise InputError(f"steps = {steps}: must be at least 1")
    weights = hopfield_weights(patterns, state, beta, similarity, allowed=allowed)
    for _ in range(steps - 1):
        following = hopfield_weights(patterns, weights @ patterns, beta, similarity, allowed=allowed)
        moving = (following - weights).norm(dim=-1, keepdim=True) >= tolerance
        if not moving.any():
            break
        weights = torch.where(moving, following, weights)
    return weights @ patterns


def retrieve(
    query: Tensor, keys: Tensor, values: Tensor, beta: float | None = None, allowed: Tensor | None = None
) -> Tensor:
    """One retrieval of what is stored with the patterns: softmax(beta query keys^T) values, ``(n, v)``.

    Args:
        query: ``(n, d)`` state patterns.
        keys: ``(M, d)`` stored patterns.
        values: ``(M, v)`` what is stored with each; the keys themselves for the associative memory.
        beta: inverse temperature; 1 / sqrt(d) if not given.
        allowed: ``(n, M)`` bool, the patterns that each query may see; all if not given.
    """
    return functional.scaled_dot_product_attention(query, keys, values, attn_mask=allowed, scale=beta)


def separation(patterns: Tensor) -> Tensor:
    """D_i = x_i.x_i - max_{j != i} x_i.x_j, ``(..., N)`` (definition 2): how well a pattern can be told apart.

    One update leads from xi to within 2 (N - 1) exp(-beta (D_i - 2 r M)) M of x_i, where M is the largest norm of a
    pattern and r the larger distance from x_i of xi and of the fixed point near x_i (theorem 4).
    """
    products = patterns @ patterns.mT
    own = products.diagonal(dim1=-2, dim2=-1)
    itself = torch.eye(patterns.shape[-2], dtype=torch.bool, device=patterns.device)
    return own - products.masked_fill(itself, -torch.inf).amax(-1)


def metastable_size(weights: Tensor, mass: float = 0.9) -> Tensor:
    """The fewest patterns whose weights ``(..., N)`` sum to ``mass``, ``(...)`` int64.

    Near 1 the state is a stored pattern, near N the mean of all, in between a metastable state that averages some.
    """
    largest = weights.sort(-1, descending=True).values
    return ((largest.cumsum(-1) < mass).sum(-1) + 1).clamp(max=weights.shape[-1])

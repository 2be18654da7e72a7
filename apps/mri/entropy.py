"""How much an action would tell: scores of the particles' disagreement about what it would measure.

Particles j = 1..P predict samples Y_j (A, R). The belief about an action's samples is the mixture
(1/P) sum_j N(Y_j, sigma^2 I); with fixed noise its entropy is, up to a constant, the information the action brings
about the image. The entropy of a mixture has no closed form; the pairwise distances d_ij = ||Y_i - Y_j||^2 bound it
(Hershey and Olsen 2007; Kolchinsky and Tracey 2017).
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from core.errors import InputError

Score = Literal["kl", "bhattacharyya", "reference_positive", "kl_pixelwise", "variance", "noise_aware"]
"""``kl`` and ``bhattacharyya`` bound the entropy from above and below; ``reference_positive`` is the score of the
reference code (positive exponent); ``kl_pixelwise`` sums the upper bound point by point, as zea does; ``variance`` is
the greedy-variance baseline; ``noise_aware`` is the Gaussian information sum log(1 + Var / sigma^2) / 2."""

SCORES: tuple[Score, ...] = get_args(Score)


def pairwise_distances(y: Tensor) -> Tensor:
    """Squared distances (S, A, P, P) between the particles' samples ``y`` (S, P, A, R), by a Gram matrix an action.

    The particles' mean is taken off first: the distances are small against the samples, and would cancel.
    """
    centred = (y - y.mean(1, keepdim=True)).transpose(1, 2)
    gram = centred @ centred.transpose(-1, -2)
    norms = gram.diagonal(dim1=-2, dim2=-1)
    return (norms[..., :, None] + norms[..., None, :] - 2 * gram).clamp(min=0)


def entropy_scores(y: Tensor, sigma: float, score: Score = "kl", *, point: int = 1) -> Tensor:
    """Score of every action (S, A): the higher, the more it tells.

    Args:
        y: ``(S, P, A, R)`` predicted samples of P particles.
        sigma: belief width of a real component (not the scanner's noise).
        score: one of ``SCORES``.
        point: components of one point (pixel or k-space position), side by side in R; read by ``kl_pixelwise``.

    Raises:
        InputError: fewer than two particles, sigma not positive, or an unknown score.
    """
    if y.shape[1] < 2:
        raise InputError("particles: 1, but one particle has no entropy; at least 2 are needed")
    if not sigma > 0:
        raise InputError(f"sigma: {sigma}, must be above 0")
    if score not in SCORES:
        raise InputError(f"score: {score!r}, must be one of {', '.join(SCORES)}")
    if score == "kl_pixelwise":
        subjects, particles, actions, components = y.shape
        points = y.reshape(subjects, particles, actions * components // point, point)
        return _excess(pairwise_distances(points), 2 * sigma**2).view(subjects, actions, -1).sum(-1)
    if score in ("variance", "noise_aware"):
        variance = y.var(1, correction=0)
        return variance.sum(-1) if score == "variance" else 0.5 * torch.log1p(variance / sigma**2).sum(-1)
    distances = pairwise_distances(y)
    if score == "reference_positive":
        # float64: beside P log P small distances would vanish.
        return (distances.double() / (2 * sigma**2)).logsumexp(-1).sum(-1)
    noise_entropy = 0.5 * y.shape[-1] * math.log(2 * math.pi * math.e * sigma**2)
    # float64: beside the noise's entropy, hundreds of nats, small distances would vanish.
    return noise_entropy + _excess(distances, (2 if score == "kl" else 8) * sigma**2).double()


def _excess(distances: Tensor, width: float) -> Tensor:
    """-(1/P) sum_i log (1/P) sum_j exp(-d_ij / width), in [0, log P]: entropy beyond the noise's."""
    # expm1 and log1p keep distances that are small against the width, where log P would cancel.
    return -torch.expm1(-distances / width).mean(-1).log1p().mean(-1)

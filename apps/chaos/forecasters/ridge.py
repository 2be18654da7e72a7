"""Ridge and least squares regression of many series at once."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

ILL_CONDITIONED = 3e6
"""Condition number of the design from which its normal equations are not trusted in float64."""
BLOCKS = 4


@dataclass(frozen=True)
class Regression:
    """y = intercept + x weights, for each of G series.

    Attributes:
        weights: ``(G, F, K)``; NaN where features or targets are not finite.
        intercept: ``(G, 1, K)``.
        condition: ``(G,)``, condition number of the centred design with the rows sqrt(penalty) I below it: exact from
            the singular values, else an estimate good to a factor of ten.
    """

    weights: Tensor
    intercept: Tensor
    condition: Tensor


def ridge(features: Tensor, targets: Tensor, penalty: float) -> Regression:
    """Minimise sum |y - c - x W|^2 + penalty |W|^2 over W and c; the intercept c is not penalised.

    By the Cholesky factor of the normal equations, or by the singular values of the design where the penalty is 0 (the
    solution of least norm, singular values cut as numpy's ``lstsq`` cuts them) or the condition number is too large.

    Args:
        features: ``(G, n, F)`` float64; they are centred in place.
        targets: ``(G, n, K)`` float64.
        penalty: at least 0.
    """
    mean_x, mean_y = features.mean(1, keepdim=True), targets.mean(1, keepdim=True)
    usable = (mean_x.isfinite().all(2) & mean_y.isfinite().all(2))[:, 0]
    features -= mean_x
    targets = targets - mean_y
    if penalty > 0:
        weights, condition = _by_cholesky(features, targets, penalty)
        again = usable & ~(condition < ILL_CONDITIONED)
    else:
        weights = features.new_empty(len(features), features.shape[2], targets.shape[2])
        condition, again = features.new_empty(len(features)), usable
    rows = again.nonzero()[:, 0]
    if len(rows):
        weights[rows], condition[rows] = _by_singular_values(features[rows], targets[rows], penalty)
    weights[~usable] = torch.nan
    condition[~usable] = torch.nan
    return Regression(weights, mean_y - mean_x @ weights, condition)


def _by_cholesky(features: Tensor, targets: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    series, _, width = features.shape
    # Of the symmetric matrix the factor reads the lower triangle alone.
    normal = features.new_empty(series, width, width)
    ends = [width * i // BLOCKS for i in range(BLOCKS + 1)]
    for start, end in pairwise(ends):
        torch.bmm(features[:, :, start:].mT, features[:, :, start:end], out=normal[:, start:, start:end])
    diagonal = normal.diagonal(dim1=1, dim2=2)
    diagonal += penalty
    largest = diagonal.sum(1)
    factor, _ = torch.linalg.cholesky_ex(normal)
    # |A^-1 v| / |v| of a vector that favours no direction estimates the inverse of the least eigenvalue.
    signs = torch.randint(2, (width, 1), generator=torch.Generator().manual_seed(0)).to(features) * 2 - 1
    right = torch.cat([features.mT @ targets, signs.expand(series, -1, -1)], 2)
    solved = torch.cholesky_solve(right, factor)
    condition = (largest * solved[:, :, -1].norm(dim=1) / width**0.5).sqrt()
    return solved[:, :, :-1].contiguous(), condition


def _by_singular_values(features: Tensor, targets: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    tolerance = torch.finfo(features.dtype).eps * max(features.shape[1:])
    if features.shape[1] > features.shape[2]:
        orthogonal, features = torch.linalg.qr(features)
        targets = orthogonal.mT @ targets
    left, singular, right = torch.linalg.svd(features, full_matrices=False)
    kept = singular > tolerance * singular[:, :1]
    gain = torch.where(kept, singular / (singular.square() + penalty), 0.0)
    weights = right.mT @ (gain[:, :, None] * (left.mT @ targets))
    squares = singular.square() + penalty
    return weights, (squares[:, 0] / squares[:, -1]).sqrt()

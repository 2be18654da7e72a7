"""Metrics that compare two orbits as wholes: their densities, spectra, shared information, and warped in time."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import KDTree
from torch import Tensor

from apps.chaos.paired import batched, each
from core.errors import InputError, require

_AT_ONCE = 1 << 24
_NEIGHBOURS = 10
_LEAST_VARIANCE = 1e-6


@batched
def mutual_information(y: Tensor, p: Tensor) -> Tensor:
    """Estimate of the mutual information of truth and forecast at equal times, in nats, mean over channels.

    From nearest neighbours (Kraskov, Stögbauer and Grassberger 2004) by scikit-learn, whose tie-breaking noise is
    always the same here.

    Raises:
        MissingExtra: scikit-learn is not installed.
    """
    estimate = require("sklearn.feature_selection", "chaos").mutual_info_regression

    def compute(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
        channels = range(a.shape[1])
        return float(np.mean([estimate(a[:, i : i + 1], b[:, i], random_state=0)[0] for i in channels]))

    return each(compute, y, p)


@batched
def kl_divergence(
    y: Tensor,
    p: Tensor,
    *,
    samples: int = 1000,
    bandwidth: Literal["unit", "neighbours"] = "unit",
    standardise: bool = True,
    seed: int = 0,
) -> Tensor:
    """Kullback-Leibler divergence of the densities of two orbits, truth from forecast (Hess et al. 2023, ICML).

    Each density is a mixture of Gaussians around the points of the orbit; the mean log ratio over ``samples`` draws
    from that of the truth. The draws are the same for every series of a batch.

    Args:
        y: truth.
        p: forecast.
        samples: draws.
        bandwidth: variance 1 around every point, or a scale by its 10 nearest neighbours (as in UMAP), the variance.
        standardise: divide both by the standard deviations of the truth; the published code does not, and its
            result depends on the units.
        seed: of the draws.

    Raises:
        InputError: no draws, or too few points to have 10 neighbours.
    """
    if samples < 1:
        raise InputError(f"samples: {samples} is below 1")
    horizon, channels = y.shape[-2:]
    if bandwidth == "neighbours" and horizon <= _NEIGHBOURS:
        raise InputError(f"bandwidth neighbours: {horizon} samples, needs more than {_NEIGHBOURS}")
    generator = torch.Generator().manual_seed(seed)
    points = torch.randint(horizon, (samples,), generator=generator).to(y.device)
    noise = torch.randn(samples, channels, generator=generator, dtype=torch.float64).to(y)
    if standardise:
        std = y.std(-2, correction=0, keepdim=True)
        std = torch.where(std > 0, std, 1.0)
        y, p = y / std, p / std
    size = max(1, _AT_ONCE // (samples * horizon))
    flat = (y.reshape(-1, horizon, channels), p.reshape(-1, horizon, channels))
    parts = []
    for truth, forecast in zip(*(x.split(size) for x in flat), strict=True):
        variances = [_variances(x, bandwidth) for x in (truth, forecast)]
        drawn = truth[:, points] + variances[0][:, points, None].sqrt() * noise
        parts.append((_log_density(drawn, truth, variances[0]) - _log_density(drawn, forecast, variances[1])).mean(-1))
    return torch.cat(parts).reshape(y.shape[:-2])


@batched
def hellinger_distance(y: Tensor, p: Tensor, *, bins: int = 100) -> Tensor:
    """Hellinger distance of the power spectra, mean over channels, from 0 to 1 (Mikhaeil et al. 2022, NeurIPS).

    A spectrum is |FFT|^2 of the first ``bins`` frequencies, zero among them, with sum 1. Fewer than 2 ``bins``
    samples have no more frequencies than half of their number: the rest of the bins mirrors them.
    """
    spectra = [torch.fft.fft(x, dim=-2)[..., :bins, :].abs().square() for x in (y, p)]
    a, b = (s / s.sum(-2, keepdim=True) for s in spectra)
    return (1 - (a * b).sqrt().sum(-2)).clamp_min(0).sqrt().mean(-1)


@batched
def dtw(y: Tensor, p: Tensor) -> Tensor:
    """Dynamic time warping: the least sum of Euclidean distances along a monotone matching, over 2 H + 2.

    H is the number of samples; the divisor is that of dysts. Diagonal by diagonal, so that 2 H steps of whole
    vectors do the work.
    """
    horizon = y.shape[-2]
    backwards = p.flip(-2)
    blank = torch.full((*y.shape[:-2], horizon + 1), math.inf, dtype=y.dtype, device=y.device)
    # Element i of a diagonal is the cost of matching the first i samples of the truth and s - i of the forecast.
    before, last = blank.clone(), blank
    before[..., 0] = 0.0
    for s in range(2, 2 * horizon + 1):
        low, high = max(1, s - horizon), min(horizon, s - 1) + 1
        distance = y[..., low - 1 : high - 1, :] - backwards[..., horizon - s + low : horizon - s + high, :]
        best = torch.minimum(last[..., low - 1 : high - 1], last[..., low:high])
        best = torch.minimum(best, before[..., low - 1 : high - 1])
        diagonal = blank.clone()
        diagonal[..., low:high] = distance.square().sum(-1).sqrt() + best
        before, last = last, diagonal
    return last[..., horizon] / (2 * horizon + 2)


def _variances(orbit: Tensor, bandwidth: str) -> Tensor:
    if bandwidth == "unit":
        return torch.ones(orbit.shape[:2], dtype=orbit.dtype, device=orbit.device)
    found = [_neighbour_scale(x) if np.isfinite(x).all() else np.ones(len(x)) for x in orbit.cpu().numpy()]
    return torch.from_numpy(np.stack(found)).to(orbit)


def _neighbour_scale(orbit: NDArray[np.float64]) -> NDArray[np.float64]:
    """The s with sum_j exp(-(d_j - d_1) / s) = log2(10) over the distances d to the 10 nearest neighbours."""
    distances = KDTree(orbit).query(orbit, _NEIGHBOURS + 1)[0][:, 1:]
    excess = distances - distances[:, :1]
    wanted = math.log2(_NEIGHBOURS)
    high = excess[:, -1] / math.log(_NEIGHBOURS / wanted)
    low = np.zeros_like(high)
    for _ in range(60):
        middle = (low + high) / 2
        sums = np.exp(-excess / np.where(middle > 0, middle, 1.0)[:, None]).sum(1)
        low, high = np.where(sums < wanted, middle, low), np.where(sums < wanted, high, middle)
    return np.asarray((low + high) / 2 + _LEAST_VARIANCE)


def _log_density(at: Tensor, centres: Tensor, variances: Tensor) -> Tensor:
    """Log density ``(B, N)`` of mixtures around ``centres`` (B, H, D) at points ``(B, N, D)``."""
    square = torch.cdist(at, centres, compute_mode="donot_use_mm_for_euclid_dist").square()
    spread = variances[:, None]
    logs = -square / (2 * spread) - centres.shape[-1] / 2 * torch.log(2 * math.pi * spread)
    return torch.logsumexp(logs, -1) - math.log(centres.shape[1])

"""A mixture small enough to be written out densely, and rotations that measure it."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from core.diffusion import CosineAngle, GaussianMixturePrior

SHAPE = (2, 3, 4)
D = math.prod(SHAPE)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@dataclass(frozen=True)
class Rotation:
    """Rows of an orthogonal matrix (D, D), so many of them an action."""

    matrix: Tensor
    actions: int
    shape: tuple[int, int, int] = SHAPE
    unitary: bool = True

    def forward(self, x):
        return (x.flatten(-3) @ self.matrix.to(x).T).unflatten(-1, (self.actions, -1))

    def adjoint(self, y):
        return (y.flatten(-2) @ self.matrix.to(y)).unflatten(-1, self.shape)

    def rows(self, mask):
        """The rows (m, D) that a mask (A,) selects."""
        return self.matrix[mask.repeat_interleave(D // self.actions)]


def rotation(actions=6, seed=7):
    """A random one: every sample depends on every pixel."""
    return Rotation(torch.linalg.qr(torch.randn(D, D, generator=seeded(seed), dtype=torch.float64))[0], actions)


def pixels():
    """One pixel an action, both channels of it."""
    order = torch.arange(D).view(2, -1).T.flatten()
    return Rotation(torch.eye(D, dtype=torch.float64)[order], D // 2)


def mixture(components=3, rank=4, seed=0, dtype=torch.float64, spread=0.7, schedule=None):
    """Clusters of unequal weight that overlap, each long in ``rank`` random directions."""
    g = seeded(seed)
    weights = torch.arange(1, components + 1, dtype=torch.float64)
    means = spread * torch.randn(components, D, generator=g, dtype=torch.float64)
    basis = torch.linalg.qr(torch.randn(components, D, rank, generator=g, dtype=torch.float64))[0]
    residual = 0.02 + 0.05 * torch.rand(components, generator=g, dtype=torch.float64)
    eigenvalues = 0.2 + torch.rand(components, rank, generator=g, dtype=torch.float64)
    parts = (weights / weights.sum(), means, basis, eigenvalues, residual)
    return GaussianMixturePrior(SHAPE, *(part.to(dtype) for part in parts), schedule or CosineAngle())


def covariances(prior):
    """Dense covariances (K, D, D), float64."""
    basis, v = prior.basis.double(), prior.residual.double()[:, None]
    scaled = basis * (prior.eigenvalues.double() - v)[:, None]
    return scaled @ basis.mT + v[..., None] * torch.eye(basis.shape[1], dtype=torch.float64)


def log_normal(x, mean, covariance):
    """Log densities (..., K) of x (..., D) under K normals, by Cholesky factors of the dense matrices."""
    return torch.distributions.MultivariateNormal(mean, covariance).log_prob(x[..., None, :])


def conditioned(prior, rows, y, sigma):
    """Log weights (K,), means (K, D) and covariances (K, D, D) of p(x | y), y = rows x + n, by dense algebra."""
    c, mu, w = covariances(prior), prior.means.double(), prior.weights.double()
    seen = rows @ c @ rows.T + sigma**2 * torch.eye(len(rows), dtype=torch.float64)
    log = w.log() + (log_normal(y, mu @ rows.T, seen) if len(rows) else 0)
    gain = torch.linalg.solve(seen, rows @ c).mT
    means = mu + (gain @ (y - mu @ rows.T)[..., None])[..., 0]
    return torch.log_softmax(log, -1), means, c - gain @ rows @ c


def mixed(log_weights, means, covariances):
    """Mean (D,) and covariance (D, D) of a mixture of normals."""
    w = log_weights.exp()
    mean = w @ means
    away = means - mean
    return mean, torch.einsum("k,kde->de", w, covariances) + torch.einsum("k,kd,ke->de", w, away, away)

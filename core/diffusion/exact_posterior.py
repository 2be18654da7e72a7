"""The posterior of a mixture prior given masked linear samples: again a mixture, in closed form."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from core.diffusion.measurement import Measurement
from core.diffusion.mixture import GaussianMixturePrior
from core.errors import InputError

NOISELESS = 1e-2
"""Standard deviation that stands for none: the closed form needs a measurement noise above zero."""


@dataclass(frozen=True)
class PosteriorNoise:
    """All that is random in a draw from the posterior of S subjects, P particles each.

    Attributes:
        uniform: ``(S, P)``, chooses the component.
        latent: ``(S, P, r)``, standard normal, along the component's basis.
        image: ``(S, P, C, H, W)``, standard normal, in every direction.
        samples: ``(S, P, A, R)``, standard normal, the measurement's noise.
    """

    uniform: Tensor
    latent: Tensor
    image: Tensor
    samples: Tensor


@dataclass(frozen=True)
class _Conditioned:
    """What the masks of S subjects fix: Cholesky factors of I + E^1/2 B^T B E^1/2 / t, (S, K, r, r)."""

    factor: Tensor
    log_det: Tensor


class ExactPosterior:
    """p(x | y) for y = M (T x + n), T with orthonormal rows, n ~ N(0, sigma^2).

    With B_k = M T U_k, e = L - v and t = v + sigma^2 every component's covariance is t I + B diag(e) B^T, which
    Woodbury's identity inverts in the r dimensions of the basis. Everything is computed in float64: the residual
    variances are small against the images.

    Args:
        prior: the mixture.
        measurement: of images of the prior's shape.
        sigma: noise of a real component; 0 stands for ``NOISELESS``.

    Attributes:
        means: ``(K, A, R)`` samples T mu_k of the components' means.
        basis: ``(K, r, A, R)`` samples of their bases.

    Raises:
        InputError: a measurement whose rows are not orthonormal, of another image shape, or a negative sigma.
    """

    def __init__(self, prior: GaussianMixturePrior, measurement: Measurement, sigma: float = 0.0) -> None:
        if not measurement.unitary:
            raise InputError("the exact posterior needs a measurement with orthonormal rows, not several coils")
        if measurement.shape != prior.shape:
            raise InputError(f"prior of shape {prior.shape}, but images of shape {measurement.shape}")
        if not sigma >= 0:
            raise InputError(f"sigma: {sigma}, must be at least 0")
        self.prior, self.measurement, self.sigma = prior, measurement, sigma or NOISELESS
        k, _, r = prior.basis.shape
        self._log_weights = prior.weights.double().log()
        self._v = prior.residual.double()
        self._t = self._v + self.sigma**2
        self._root = (prior.eigenvalues.double() - self._v[:, None]).clamp(min=0).sqrt()
        self.means = measurement.forward(prior.means.double().view(k, *prior.shape))
        columns = prior.basis.double().transpose(1, 2).reshape(k, r, *prior.shape)
        self.basis = measurement.forward(columns)
        by_action = self.basis.permute(2, 0, 1, 3)
        self._gram = by_action @ by_action.transpose(-1, -2)
        self._cross = torch.einsum("akrc,kac->akr", by_action, self.means)
        self._mean_squares = self.means.square().sum(-1)

    def noise(self, batch: int, particles: int, generator: torch.Generator) -> PosteriorNoise:
        """Draw the random numbers of ``batch`` subjects with ``particles`` each, on the generator's device."""
        rank, components = self._root.shape[1], self.means.shape[-1]
        shapes = {"latent": (rank,), "image": self.prior.shape, "samples": (self.measurement.actions, components)}

        def normal(shape: tuple[int, ...]) -> Tensor:
            size = (batch, particles, *shape)
            return torch.randn(size, generator=generator, device=generator.device, dtype=torch.float64)

        uniform = torch.rand((batch, particles), generator=generator, device=generator.device, dtype=torch.float64)
        return PosteriorNoise(uniform, **{name: normal(shape) for name, shape in shapes.items()})

    def log_weights(self, y: Tensor, mask: Tensor) -> Tensor:
        """Log posterior weights of the components (S, K), given samples (S, A, R) where ``mask`` (S, A) is true."""
        taken = mask.double()
        return self._weights_and_shift(_seen(y, mask), taken, self._condition(taken))[0]

    def mean(self, y: Tensor, mask: Tensor) -> Tensor:
        """Posterior mean (S, C, H, W) given samples (S, A, R) where ``mask`` (S, A) is true."""
        return self.measurement.adjoint(self.mean_samples(y, mask)).to(self.prior.means.dtype)

    def mean_samples(self, y: Tensor, mask: Tensor) -> Tensor:
        """T of the posterior mean (S, A, R), float64."""
        taken, seen = mask.double(), _seen(y, mask)
        log_weights, shift = self._weights_and_shift(seen, taken, self._condition(taken))
        share = log_weights.exp()
        measured = share * (self._v / self._t)
        whole = self._combine(share, share[..., None] * shift)
        # On measured actions the residual of the low-rank part is pulled towards the data by v / (v + sigma^2).
        at = self._combine(measured, measured[..., None] * shift)
        return whole + taken[..., None] * (measured.sum(-1)[:, None, None] * seen - at)

    def sample(self, y: Tensor, mask: Tensor, noise: PosteriorNoise) -> Tensor:
        """Exact posterior samples (S, P, C, H, W), deterministic given ``noise``.

        A sample of the prior's component is corrected by the gain on its own simulated measurement (Matheron's rule),
        which needs no posterior covariance.
        """
        taken, seen = mask.double(), _seen(y, mask)
        given = self._condition(taken)
        share = self._weights_and_shift(seen, taken, given)[0].exp()
        component = torch.searchsorted(share.cumsum(-1), noise.uniform).clamp(max=len(self._v) - 1)
        subjects, particles = component.shape
        # T turns white noise into white noise: all is done in the samples' space, with one adjoint at the end.
        white = self.measurement.forward(noise.image).flatten(0, 1).flatten(1)
        luck = self.sigma * noise.samples.flatten(0, 1).flatten(1)
        k, s = component.flatten(), torch.arange(subjects, device=mask.device).repeat_interleave(particles)
        latent = self._root[k] * noise.latent.flatten(0, 1)
        drawn = torch.empty_like(white)
        # Particles of one component share its basis: gathering a basis for each would cost more than all the rest.
        for c in k.unique().tolist():
            rows = (k == c).nonzero().squeeze(1)
            basis, root, v, t = self.basis[c].flatten(1), self._root[c], self._v[c], self._t[c]
            prior = self.means[c].flatten() + latent[rows] @ basis + v.sqrt() * white[rows]
            held = taken[s[rows], :, None].expand(-1, -1, seen.shape[-1]).flatten(1)
            d = held * (seen[s[rows]].flatten(1) - prior - luck[rows])
            projected = (root * (d @ basis.T))[..., None]
            h = root * torch.cholesky_solve(projected, given.factor[s[rows], c])[..., 0] / t
            shift = h @ basis
            drawn[rows] = prior + shift + v / t * (d - held * shift)
        return self.measurement.adjoint(drawn.view(subjects, particles, *seen.shape[1:])).to(self.prior.means.dtype)

    def _condition(self, taken: Tensor) -> _Conditioned:
        root = self._root
        inner = torch.einsum("sa,akrq->skrq", taken, self._gram) * root[:, :, None] * root[:, None, :]
        inner = inner / self._t[:, None, None]
        factor = torch.linalg.cholesky(inner + torch.eye(root.shape[1], dtype=inner.dtype, device=inner.device))
        return _Conditioned(factor, 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1))

    def _weights_and_shift(self, seen: Tensor, taken: Tensor, given: _Conditioned) -> tuple[Tensor, Tensor]:
        """Log weights (S, K) and the shifts h_k (S, K, r) of the components' means along their bases."""
        projected = torch.einsum("krac,sac->skr", self.basis, seen) - torch.einsum("sa,akr->skr", taken, self._cross)
        squared = seen.square().sum((1, 2))[:, None] - 2 * torch.einsum("kac,sac->sk", self.means, seen)
        squared = squared + taken @ self._mean_squares.T
        log, h = self._weigh(projected[..., None], squared[..., None], taken, given)
        return log[..., 0], h[..., 0]

    def weigh(self, projected: Tensor, squared: Tensor, taken: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior weights (S, K, N) and shifts along the bases (S, K, r, N) of N images under each of S masks.

        Args:
            projected: ``(S, K, r, N)`` float64 products of the bases with the measured samples less the means'.
            squared: ``(S, K, N)`` squared distances of the measured samples from the means'.
            taken: ``(S, A)`` the masks as float64.
        """
        log, h = self._weigh(projected, squared, taken, self._condition(taken))
        return log.exp(), h

    def _weigh(self, projected: Tensor, squared: Tensor, taken: Tensor, given: _Conditioned) -> tuple[Tensor, Tensor]:
        root, t = self._root[..., None], self._t[:, None]
        h = root * torch.cholesky_solve(root * projected, given.factor) / t[..., None]
        quadratic = (squared - (projected * h).sum(-2)) / t
        count = taken.sum(-1)[:, None] * self.means.shape[-1]
        constant = self._log_weights - 0.5 * (given.log_det + count * self._t.log())
        log = constant[..., None] - 0.5 * quadratic
        return log - log.logsumexp(1, keepdim=True), h

    def _combine(self, on_means: Tensor, on_basis: Tensor) -> Tensor:
        """Sum over the components of coefficients (S, K) on T mu and (S, K, r) on T U: (S, A, R)."""
        shape = self.means.shape[1:]
        means = on_means @ self.means.flatten(1)
        return (means + on_basis.flatten(1) @ self.basis.flatten(2).flatten(0, 1)).view(-1, *shape)


def _seen(y: Tensor, mask: Tensor) -> Tensor:
    """Samples (S, A, R) in float64, zero where ``mask`` (S, A) is false: there they may be anything."""
    return torch.where(mask[..., None], y.double(), 0.0)

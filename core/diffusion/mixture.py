"""The analytic prior: a mixture of probabilistic PCA, whose denoiser and whose posterior are known in closed form."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Self

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from core import files
from core.diffusion.prior import Prior
from core.diffusion.schedule import CosineAngle
from core.errors import InputError, require

_LEAST_VARIANCE = 1e-4
_SCORES = 40  # k-means sees this many principal scores of large images


class GaussianMixturePrior(Prior):
    """p(x) = sum_k w_k N(mu_k, v_k I + U_k diag(L_k - v_k) U_k^T) (Tipping and Bishop 1999, "Mixtures of PPCA").

    Under x_tau = s x + q eps every component stays Gaussian, so that Tweedie's estimate is exact. D = C H W.

    Args:
        shape: (C, H, W) of an image.
        weights: ``(K,)``, positive, summing to one.
        means: ``(K, D)``.
        basis: ``(K, D, r)``, orthonormal columns U_k.
        eigenvalues: ``(K, r)`` variances L_k along the basis, at least the residual's.
        residual: ``(K,)`` variance v_k of every other direction.
        schedule: of the diffusion.

    Raises:
        InputError: shapes that do not agree, or variances that are not positive and ordered.
    """

    weights: Tensor
    means: Tensor
    basis: Tensor
    eigenvalues: Tensor
    residual: Tensor

    def __init__(
        self,
        shape: tuple[int, int, int],
        weights: Tensor,
        means: Tensor,
        basis: Tensor,
        eigenvalues: Tensor,
        residual: Tensor,
        schedule: CosineAngle | None = None,
    ) -> None:
        super().__init__()
        self.shape = (int(shape[0]), int(shape[1]), int(shape[2]))
        self.schedule = schedule or CosineAngle()
        k, d, r = len(weights), math.prod(shape), basis.shape[-1]
        wanted = {"means": (k, d), "basis": (k, d, r), "eigenvalues": (k, r), "residual": (k,)}
        given = {"means": means, "basis": basis, "eigenvalues": eigenvalues, "residual": residual}
        for name, expected in wanted.items():
            if tuple(given[name].shape) != expected:
                raise InputError(f"{name}: has shape {tuple(given[name].shape)}, expected {expected}")
        if not bool((residual > 0).all()) or not bool((eigenvalues >= residual[:, None]).all()):
            raise InputError("eigenvalues, residual: need 0 < residual <= eigenvalues")
        for name, tensor in {"weights": weights, **given}.items():
            self.register_buffer(name, tensor.detach().clone())
        # Matrix products with all components at once: columns U (D, K r), and their projections of the means.
        self.register_buffer("_stack", self.basis.permute(1, 0, 2).reshape(d, k * r).contiguous(), persistent=False)
        self.register_buffer("_projected", torch.einsum("kdr,kd->kr", self.basis, self.means), persistent=False)
        self.register_buffer("_norms", self.means.square().sum(1), persistent=False)
        within = self.eigenvalues.sum(1) + (d - r) * self.residual
        self.training_norm = float((self.weights @ (self._norms + within)).sqrt())

    _stack: Tensor
    _projected: Tensor
    _norms: Tensor

    @property
    def dimension(self) -> int:
        """D = C H W."""
        return math.prod(self.shape)

    @classmethod
    def fit(
        cls,
        images: Tensor,
        *,
        components: int,
        rank: int,
        seed: int = 0,
        schedule: CosineAngle | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Self:
        """Cluster the images by k-means and take the principal directions of each cluster.

        Args:
            images: ``(N, C, H, W)``.
            components: number of clusters K.
            rank: principal directions r kept in each; the rest of its variance is spread evenly, at least 1e-4.
            seed: of k-means and of the principal components that it sees of images with more than 300 numbers.
            schedule: of the diffusion.
            dtype: of the prior's numbers.

        Raises:
            InputError: fewer images (or fewer that differ) than clusters, an impossible rank, or images that are not
                finite.
            MissingExtra: scikit-learn is not installed.
        """
        cluster, decomposition = require("sklearn.cluster", "mri"), require("sklearn.decomposition", "mri")
        x = images.flatten(1).double()
        count, dimension = x.shape
        if not bool(torch.isfinite(x).all()):
            raise InputError("images: every number must be finite")
        if not 1 <= components <= count:
            raise InputError(f"components: {components}, must be between 1 and the number of images, {count}")
        if not 1 <= rank < dimension:
            raise InputError(f"rank: {rank}, must be between 1 and {dimension - 1}")
        seen = x.cpu().numpy()
        if dimension > 300:
            scores = min(_SCORES, count, dimension)
            seen = decomposition.PCA(scores, svd_solver="randomized", random_state=seed).fit_transform(seen)
        labels = cluster.KMeans(components, n_init=1, random_state=seed).fit_predict(seen)
        if (found := len(np.unique(labels))) < components:
            raise InputError(f"components: {components}, but the images form only {found}: too many are alike")
        parts = [_principal(x[torch.as_tensor(np.flatnonzero(labels == k))], rank) for k in range(components)]
        means, basis, eigenvalues, residual = (torch.stack(p).to(dtype) for p in zip(*parts, strict=True))
        weights = torch.as_tensor(np.bincount(labels, minlength=components) / count, dtype=dtype, device=x.device)
        return cls(tuple(images.shape[1:]), weights, means, basis, eigenvalues, residual, schedule)  # type: ignore[arg-type]

    def noise(self, x: Tensor, tau: Tensor) -> Tensor:
        """The exact eps_hat (N, C, H, W); ``tau`` is () or (N,)."""
        signal, noise = (rate.reshape(-1, 1) for rate in self.schedule.rates(tau))
        x0 = self._posterior_mean(x.flatten(1), signal, noise)
        return ((x.flatten(1) - signal * x0) / noise).view_as(x)

    def _posterior_mean(self, x: Tensor, s: Tensor, q: Tensor) -> Tensor:
        """E[x_0 | x_tau = x] for x (N, D); s and q are (1 or N, 1)."""
        k, r = self.eigenvalues.shape
        tv = s**2 * self.residual + q**2
        tl = s[..., None] ** 2 * self.eigenvalues + q[..., None] ** 2
        c = (x @ self._stack).view(-1, k, r) - s[..., None] * self._projected
        squared = x.square().sum(1, keepdim=True) - 2 * s * (x @ self.means.T) + s**2 * self._norms
        quadratic = squared / tv + (c.square() * (1 / tl - 1 / tv[..., None])).sum(-1)
        log_det = tl.log().sum(-1) + (self.dimension - r) * tv.log()
        share = torch.softmax(self.weights.log() - 0.5 * (quadratic + log_det), dim=-1)
        shrink = self.residual / tv
        along = (share[..., None] * (self.eigenvalues / tl - shrink[..., None]) * c).flatten(1)
        plain = (share * shrink).sum(-1, keepdim=True)
        return (share * (1 - s**2 * shrink)) @ self.means + s * (plain * x + along @ self._stack.T)

    @torch.no_grad()
    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """``count`` exact samples (count, C, H, W), without diffusion, on the device of ``generator``."""
        device, dtype = generator.device, self.means.dtype
        k = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        latent = torch.randn((count, self.eigenvalues.shape[1]), generator=generator, device=device, dtype=dtype)
        rest = torch.randn((count, self.dimension), generator=generator, device=device, dtype=dtype)
        scale = (self.eigenvalues - self.residual[:, None]).sqrt()[k]
        x = self.means[k] + self.along(k, scale * latent) + self.residual[k, None].sqrt() * rest
        return x.view(count, *self.shape)

    def along(self, component: Tensor, coefficients: Tensor) -> Tensor:
        """U_k a (N, D) for components k (N,) and coefficients a (N, r)."""
        # One product with all bases costs less than gathering a basis of D x r numbers for every row.
        k, r = self.eigenvalues.shape
        rows = coefficients.new_zeros(len(component), k, r)
        rows[torch.arange(len(component), device=component.device), component] = coefficients
        return rows.flatten(1) @ self._stack.T.to(coefficients.dtype)

    def moments(self) -> tuple[Tensor, Tensor, Tensor]:
        """Mean (D,), factor F (D, K r + K) and residual variance v () of the mixture: covariance F F^T + v I."""
        mean = self.weights @ self.means
        scale = (self.weights[:, None] * (self.eigenvalues - self.residual[:, None])).sqrt()
        within = self._stack * scale.reshape(-1)
        between = (self.weights.sqrt()[:, None] * (self.means - mean)).T
        return mean, torch.cat((within, between), dim=1), self.weights @ self.residual

    def save(self, directory: Path) -> None:
        """Write ``weights.safetensors`` and ``prior.json`` into ``directory``, which is made if need be."""
        directory.mkdir(parents=True, exist_ok=True)
        state = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        files.write(directory / "weights.safetensors", lambda path: save_file(state, path))
        rates = [self.schedule.max_signal_rate, self.schedule.min_signal_rate]  # type: ignore[attr-defined]
        files.write_json(directory / "prior.json", {"kind": "gmm", "shape": self.shape, "signal_rates": rates})

    @classmethod
    def load(cls, directory: Path, device: torch.device | str = "cpu") -> Self:
        """The prior that ``save`` wrote.

        Raises:
            InputError: no such files, or they do not hold a mixture prior.
        """
        source = directory / "prior.json"
        said = files.read_json(source, ["kind", "shape", "signal_rates"])
        if said["kind"] != "gmm":
            raise InputError(f"{source}: kind is {said['kind']!r}, expected 'gmm'")
        shape, rates = said["shape"], said["signal_rates"]
        try:
            channels, height, width = (int(size) for size in shape)
            most, least = rates
            schedule = CosineAngle(most, least)
        except (TypeError, ValueError) as error:
            raise InputError(f"{source}: shape {shape!r}, signal_rates {rates!r}: {error}") from error
        path = directory / "weights.safetensors"
        try:
            tensors = load_file(path, device=str(device))
        except Exception as error:
            raise InputError(f"{path}: not a readable safetensors file ({error})") from error
        names = ("weights", "means", "basis", "eigenvalues", "residual")
        if absent := [name for name in names if name not in tensors]:
            raise InputError(f"{path}: lacks {', '.join(absent)}")
        weights, means, basis, eigenvalues, residual = (tensors[name] for name in names)
        try:
            return cls((channels, height, width), weights, means, basis, eigenvalues, residual, schedule)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error


def _principal(x: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean, basis (D, rank), variances along it, and the mean variance of the other directions of points (n, D)."""
    count, dimension = x.shape
    mean = x.mean(0)
    centred = x - mean
    _, singular, v = torch.linalg.svd(centred, full_matrices=False)
    variances = singular.square() / count
    kept = min(rank, int((variances > _LEAST_VARIANCE).sum()))
    residual = ((variances.sum() - variances[:kept].sum()) / (dimension - kept)).clamp(min=_LEAST_VARIANCE)
    # A cluster of few images has fewer directions than the rank: the others are empty columns of residual variance.
    basis = x.new_zeros(dimension, rank)
    basis[:, :kept] = v[:kept].T
    eigenvalues = residual.repeat(rank)
    eigenvalues[:kept] = variances[:kept].clamp(min=float(residual))
    return mean, basis, eigenvalues, residual

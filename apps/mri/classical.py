"""Reconstructions without training: zero-filled, and compressed sensing with total variation or wavelets."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from core.errors import InputError, require
from simulators.mri.operators import Operator
from simulators.mri.quality import magnitude, nmse

Reconstruction = Callable[[Tensor, Tensor], Tensor]
"""From samples (S, A, R) and masks (S, A) to images (S, C, H, W); entries outside the mask are not used."""


@dataclass(frozen=True)
class ZeroFilled:
    """The adjoint of what was measured, with zeros for what was not.

    Attributes:
        operator: the measurement.
    """

    operator: Operator

    def __call__(self, samples: Tensor, mask: Tensor) -> Tensor:
        """Images (S, C, H, W) of samples (S, A, R) under masks (S, A), binary or, in training, differentiable."""
        return self.operator.adjoint(mask.to(samples.dtype)[..., None] * samples)


class Penalty(Protocol):
    """A convex function of images that favours plausible ones; real and imaginary part are penalised together."""

    def value(self, x: Tensor) -> Tensor:
        """R(x) of each image: (S,) of (S, C, H, W)."""
        ...

    def prox(self, x: Tensor, weight: Tensor) -> Tensor:
        """argmin_u |u - x|^2 / 2 + weight R(u), with one weight (S,) an image."""
        ...


@dataclass(frozen=True)
class TotalVariation:
    """Isotropic total variation: the sum over pixels of the length of the gradient, over both axes and all channels.

    Its prox is the fast gradient projection of Beck and Teboulle (2009, "Fast gradient-based algorithms for constrained
    total variation image denoising and deblurring problems").

    Attributes:
        iterations: of the gradient projection.
    """

    iterations: int = 10

    def value(self, x: Tensor) -> Tensor:
        """Total variation (S,)."""
        return _length(_gradient(x), (-4, -3)).flatten(1).sum(1)

    def prox(self, x: Tensor, weight: Tensor) -> Tensor:
        """Denoised images."""
        radius = weight.reshape(-1, 1, 1, 1, 1)
        dual = ahead = torch.zeros_like(_gradient(x))
        t = 1.0
        for _ in range(self.iterations):
            # The squared norm of the gradient is below 8, whence the step.
            moved = ahead + _gradient(x - _gradient_adjoint(ahead)) / 8
            length = _length(moved, (-4, -3))
            after = moved * (radius / length).clamp(max=1)
            t_after = (1 + math.sqrt(1 + 4 * t * t)) / 2
            ahead = after + (t - 1) / t_after * (after - dual)
            dual, t = after, t_after
        return x - _gradient_adjoint(dual)


@dataclass(frozen=True)
class Wavelet:
    """The sum of the moduli of the coefficients of an orthonormal wavelet transform, periodic at the edges.

    The coarsest approximation is penalised too: that favours an empty background.

    Attributes:
        name: an orthogonal wavelet of PyWavelets, such as ``haar``, ``db2`` or ``sym4``.
        levels: of the decomposition; height and width must be multiples of 2^levels.

    Raises:
        InputError: no orthogonal wavelet of that name, or no level.
        MissingExtra: PyWavelets is not installed.
    """

    name: str = "db4"
    levels: int = 1

    def __post_init__(self) -> None:
        pywt = require("pywt", "mri")
        if self.name not in pywt.wavelist(kind="discrete") or not pywt.Wavelet(self.name).orthogonal:
            raise InputError(f"wavelet {self.name!r}: must be an orthogonal one, such as haar, db2, db4 or sym4")
        if self.levels < 1:
            raise InputError(f"levels {self.levels}: must be at least 1")

    def transform(self, x: Tensor) -> Tensor:
        """Coefficients, shaped like the images (..., H, W); the coarsest approximation is the top left corner.

        Raises:
            InputError: height or width is not a multiple of 2^levels.
        """
        height, width = x.shape[-2:]
        if height % 2**self.levels or width % 2**self.levels:
            raise InputError(
                f"image of {height} x {width}: {self.levels} wavelet levels need multiples of {2**self.levels}"
            )
        coefficients = x.clone()
        for level in range(self.levels):
            h, w = height >> level, width >> level
            rows, columns = _analysis(self.name, h, x.dtype, x.device), _analysis(self.name, w, x.dtype, x.device)
            coefficients[..., :h, :w] = rows @ coefficients[..., :h, :w] @ columns.T
        return coefficients

    def inverse(self, coefficients: Tensor) -> Tensor:
        """The images of coefficients; inverse and adjoint of ``transform``."""
        height, width = coefficients.shape[-2:]
        x = coefficients.clone()
        for level in reversed(range(self.levels)):
            h, w = height >> level, width >> level
            rows, columns = _analysis(self.name, h, x.dtype, x.device), _analysis(self.name, w, x.dtype, x.device)
            x[..., :h, :w] = rows.T @ x[..., :h, :w] @ columns
        return x

    def value(self, x: Tensor) -> Tensor:
        """Sum of the moduli of the coefficients (S,)."""
        return _length(self.transform(x), (-3,)).flatten(1).sum(1)

    def prox(self, x: Tensor, weight: Tensor) -> Tensor:
        """Images whose coefficients are shrunk by ``weight``."""
        coefficients = self.transform(x)
        kept = (1 - weight.reshape(-1, 1, 1, 1) / _length(coefficients, (-3,))).clamp(min=0)
        return self.inverse(coefficients * kept)


@dataclass(frozen=True)
class CompressedSensing:
    """argmin_x |M (T x - y)|^2 / 2 + weight p R(x), with p the largest modulus of the zero-filled image.

    So the result scales with the data, and one weight serves subjects of unequal brightness. Solved by the monotone
    FISTA of Beck and Teboulle (2009, as ``TotalVariation``), from the zero-filled image: the objective never rises.

    Attributes:
        operator: the measurement.
        penalty: R.
        weight: of the penalty, relative to the data.
        iterations: of FISTA, each with one ``forward`` and one ``adjoint``.

    Raises:
        InputError: a weight that is negative or not finite, or no iteration.
    """

    operator: Operator
    penalty: Penalty
    weight: float = 0.005
    iterations: int = 100

    def __post_init__(self) -> None:
        if not 0 <= self.weight < math.inf:
            raise InputError(f"weight {self.weight}: must be a finite number, not negative")
        if self.iterations < 1:
            raise InputError(f"iterations {self.iterations}: must be at least 1")

    def __call__(self, samples: Tensor, mask: Tensor) -> Tensor:
        """Images (S, C, H, W) of samples (S, A, R) under masks (S, A)."""
        taken = mask.to(samples.dtype)[..., None]
        measured = taken * samples
        x = self.operator.adjoint(measured)
        weight, step = self._weight(x), self._step(x)
        # T is linear: the samples of an extrapolation are the extrapolation of the samples.
        seen = taken * self.operator.forward(x)
        value = self._objective(x, seen - measured, weight)
        ahead, ahead_seen, t = x, seen, 1.0
        for _ in range(self.iterations):
            z = self.penalty.prox(ahead - step * self.operator.adjoint(ahead_seen - measured), step * weight)
            z_seen = taken * self.operator.forward(z)
            z_value = self._objective(z, z_seen - measured, weight)
            lower = z_value <= value
            kept = torch.where(lower[:, None, None, None], z, x)
            kept_seen = torch.where(lower[:, None, None], z_seen, seen)
            t_after = (1 + math.sqrt(1 + 4 * t * t)) / 2
            ahead = kept + t / t_after * (z - kept) + (t - 1) / t_after * (kept - x)
            ahead_seen = kept_seen + t / t_after * (z_seen - kept_seen) + (t - 1) / t_after * (kept_seen - seen)
            x, seen, value, t = kept, kept_seen, torch.minimum(value, z_value), t_after
        return x

    def objective(self, x: Tensor, samples: Tensor, mask: Tensor) -> Tensor:
        """What is minimised, of images (S, C, H, W): (S,)."""
        taken = mask.to(samples.dtype)[..., None]
        weight = self._weight(self.operator.adjoint(taken * samples))
        return self._objective(x, taken * (self.operator.forward(x) - samples), weight)

    def _objective(self, x: Tensor, residual: Tensor, weight: Tensor) -> Tensor:
        return residual.square().flatten(1).sum(1) / 2 + weight * self.penalty.value(x)

    def _weight(self, zero_filled: Tensor) -> Tensor:
        return self.weight * peak(zero_filled).flatten()

    def _step(self, like: Tensor) -> float:
        # T^H T of every operator multiplies the image by a positive one (by 1 where it is unitary): its norm is the
        # largest value.
        ones = torch.ones(self.operator.shape, dtype=like.dtype, device=like.device)
        return 1 / float(self.operator.adjoint(self.operator.forward(ones)).max())


def tune(
    method: CompressedSensing,
    weights: Sequence[float],
    images: Tensor,
    masks: Tensor,
    samples: Tensor | None = None,
) -> tuple[CompressedSensing, dict[float, float]]:
    """The method with the weight that reconstructs training images best, and the mean NMSE of every weight.

    Args:
        method: what is tuned; its weight is replaced.
        weights: the ones tried.
        images: training images (S, C, H, W).
        masks: one an image (S, A), like those of the comparison.
        samples: what is measured of the images (S, A, R), with the comparison's noise; without it, none.

    Raises:
        InputError: no weight to try, or a bad one.
    """
    if not weights:
        raise InputError("weights: must be at least one")
    samples = method.operator.forward(images) if samples is None else samples
    tried = [replace(method, weight=weight) for weight in weights]
    target = magnitude(images)
    errors = [float(nmse(target, magnitude(candidate(samples, masks))).mean()) for candidate in tried]
    best = min(range(len(tried)), key=errors.__getitem__)
    return tried[best], dict(zip(weights, errors, strict=True))


def peak(x: Tensor) -> Tensor:
    """The largest modulus of each image, (S, 1, 1, 1) of (S, C, H, W); positive even for an empty image."""
    return _length(x, (-3,)).amax((-2, -1), keepdim=True)


def _length(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    # Above zero, where the square root has a derivative; many times faster than vector_norm over leading axes.
    return x.square().sum(axes, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny).sqrt()


def _gradient(x: Tensor) -> Tensor:
    """Forward differences (S, 2, C, H, W) along H and W, zero at the far edge."""
    return torch.stack((pad(x.diff(dim=-2), (0, 0, 0, 1)), pad(x.diff(dim=-1), (0, 1))), dim=-4)


def _gradient_adjoint(p: Tensor) -> Tensor:
    down, right = p[..., 0, :, :-1, :], p[..., 1, :, :, :-1]
    return pad(down, (0, 0, 1, 0)) - pad(down, (0, 0, 0, 1)) + pad(right, (1, 0)) - pad(right, (0, 1))


@lru_cache(maxsize=64)
def _analysis(name: str, size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """One level of the periodic transform as an orthogonal matrix (size, size): approximation above detail."""
    pywt = require("pywt", "mri")
    identity = torch.eye(size, dtype=torch.float64).numpy()
    parts = pywt.dwt(identity, name, mode="periodization", axis=0)
    return torch.cat([torch.from_numpy(part) for part in parts]).to(device=device, dtype=dtype)

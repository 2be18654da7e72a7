"""Diffusion posterior sampling: particles that follow the prior and are pulled towards what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from core.diffusion.measurement import Measurement
from core.diffusion.prior import Prior, times
from core.errors import InputError


@dataclass(frozen=True)
class Guidance:
    """How strongly the measurement pulls.

    Attributes:
        omega: weight of the gradient of the residual's norm.
        norm: ``joint`` takes one norm over all particles of a subject, as the reference does, so that the pull on one
            particle shrinks like 1/sqrt(particles); ``per_particle`` takes one norm each.

    Raises:
        InputError: omega is negative, or an unknown norm.
    """

    omega: float = 1.0
    norm: Literal["joint", "per_particle"] = "per_particle"

    def __post_init__(self) -> None:
        if not self.omega >= 0:
            raise InputError(f"omega: {self.omega}, must be at least 0")
        if self.norm not in ("joint", "per_particle"):
            raise InputError(f"norm: {self.norm!r}, must be joint or per_particle")


@dataclass(frozen=True)
class Particles:
    """The particles of S subjects in the middle of a diffusion.

    Attributes:
        x: ``(S, P, C, H, W)`` noisy images.
        omega: ``(S, P)`` guidance weight of each; halved when guidance blew it up.
        restarts: ``(S, P)`` how often that happened.
    """

    x: Tensor
    omega: Tensor
    restarts: Tensor


@dataclass(frozen=True)
class Estimate:
    """What one step believes, before its guidance.

    Attributes:
        x0: ``(S, P, C, H, W)`` Tweedie estimates of the clean images.
        samples: ``(S, P, A, R)`` their predicted samples T x0.
        residual: ``(S, P)`` norm of measured minus predicted samples.
    """

    x0: Tensor
    samples: Tensor
    residual: Tensor


class GuidedSampler:
    """DPS (Chung et al. 2023) with deterministic DDIM steps, in the order of Active Diffusion Subsampling.

    Step k of T goes from tau = 1 - k/T to 1 - (k+1)/T: x <- s' x0_hat + q' eps_hat - omega grad_x ||y - M T x0_hat||,
    the gradient taken through the network.

    Args:
        prior: of the images.
        measurement: of images of the prior's shape.
        steps: T.
        guidance: strength of the pull.

    Raises:
        InputError: shapes that differ, or fewer than one step.
    """

    def __init__(self, prior: Prior, measurement: Measurement, steps: int, guidance: Guidance | None = None) -> None:
        if tuple(prior.shape) != tuple(measurement.shape):
            raise InputError(f"prior of shape {tuple(prior.shape)}, but data of shape {tuple(measurement.shape)}")
        if steps < 1:
            raise InputError(f"steps: {steps}, must be at least 1")
        self.prior, self.measurement, self.steps = prior, measurement, steps
        self.guidance = guidance or Guidance()

    def start(self, particles: int, generators: Sequence[torch.Generator]) -> Particles:
        """Pure noise; one generator a subject, so that a batch of subjects equals its single ones."""
        x = self._normal((particles, *self.prior.shape), generators)
        omega = torch.full(x.shape[:2], self.guidance.omega, device=x.device)
        return Particles(x, omega, torch.zeros_like(omega, dtype=torch.long))

    def step(
        self, k: int, particles: Particles, y: Tensor, mask: Tensor, generators: Sequence[torch.Generator]
    ) -> tuple[Particles, Estimate]:
        """One step of all particles.

        A particle that guidance made non-finite, or so large that its residual is, restarts from the mean of its
        subject's others with fresh noise, and with half its guidance; its estimate, where that or its residual is not
        finite, is the mean of the others'.

        Args:
            k: number of the step, 0 to T - 1.
            particles: before the step.
            y: ``(S, A, R)`` measured samples; where ``mask`` is false they are not read.
            mask: ``(S, A)`` what was measured.
            generators: one a subject; drawn from only in a restart.
        """
        x = particles.x.detach().requires_grad_()
        now, then = times(k, self.steps, x)
        with torch.enable_grad():
            x0, eps = (part.view_as(x) for part in self.prior.denoise(x.flatten(0, 1), now))
            samples = self.measurement.forward(x0)
            squared = _missed(samples, y, mask)
            # Of residuals that are all zero the root has no gradient.
            total = squared.sum(1) if self.guidance.norm == "joint" else squared
            (gradient,) = torch.autograd.grad((total + 1e-12).sqrt().sum(), x)
        pull = particles.omega[..., None, None, None] * torch.nan_to_num(gradient, 0.0, 0.0, 0.0)
        x0, eps, squared = x0.detach(), eps.detach(), squared.detach()
        signal, noise = self.prior.schedule.rates(then)
        moved = replace(particles, x=signal * x0 + noise * eps - pull)
        if not bool(torch.isfinite(moved.x.sum() + squared.sum())):
            moved, x0 = self._restart(moved, x0, squared, signal, noise, generators)
            samples = self.measurement.forward(x0)
            squared = _missed(samples, y, mask)
        return moved, Estimate(x0, samples.detach(), squared.sqrt())

    def _restart(
        self,
        particles: Particles,
        x0: Tensor,
        squared: Tensor,
        signal: Tensor,
        noise: Tensor,
        generators: Sequence[torch.Generator],
    ) -> tuple[Particles, Tensor]:
        finite = torch.isfinite(x0).flatten(2).all(-1) & torch.isfinite(squared)
        sound = torch.isfinite(particles.x).flatten(2).all(-1) & finite
        kept = sound[..., None, None, None]
        count = kept.sum(1, keepdim=True).clamp(min=1)
        mean = torch.where(kept, x0, 0.0).sum(1, keepdim=True) / count
        # A subject whose particles are all sound draws nothing, as it would not alone.
        struck = (~sound).any(1)
        hands = [g for g, s in zip(generators, struck.tolist(), strict=True) if s]
        drawn = torch.zeros_like(x0)
        if hands:  # none where a sum alone overflowed
            drawn[struck] = self._normal(tuple(x0.shape[1:]), hands).to(x0)
        fresh = signal * mean + noise * drawn
        restarted = Particles(
            torch.where(kept, particles.x, fresh),
            torch.where(sound, particles.omega, particles.omega / 2),
            particles.restarts + ~sound,
        )
        return restarted, torch.where(finite[..., None, None, None], x0, mean)

    @staticmethod
    def _normal(shape: tuple[int, ...], generators: Sequence[torch.Generator]) -> Tensor:
        return torch.stack([torch.randn(shape, generator=g, device=g.device) for g in generators])


def _missed(samples: Tensor, y: Tensor, mask: Tensor) -> Tensor:
    """Squared distance (S, P) of predicted samples (S, P, A, R) from the measured ones."""
    return torch.where(mask[:, None, :, None], y[:, None] - samples, 0.0).square().sum((-2, -1))


def consistent(measurement: Measurement, x: Tensor, y: Tensor, mask: Tensor, iterations: int = 10) -> Tensor:
    """Data consistency: images (S, P, C, H, W) moved as little as the measured samples ``y`` (S, A, R) demand.

    Where the rows of T are orthonormal the measured samples replace the images' own ("hard" consistency). With several
    coils conjugate gradients on ||M (y - T x)||^2 start from the images; few iterations also keep noise out, as in
    iterative SENSE (Pruessmann et al. 2001).

    Args:
        measurement: T and its adjoint.
        x: images.
        y: measured samples.
        mask: ``(S, A)`` what was measured.
        iterations: of the conjugate gradients.
    """
    taken = mask[:, None, :, None]
    predicted = measurement.forward(x)
    if measurement.unitary:
        return measurement.adjoint(torch.where(taken, y[:, None], predicted))
    axes = (-3, -2, -1)
    descent = measurement.adjoint(torch.where(taken, y[:, None] - predicted, 0.0))
    direction, squared = descent, descent.square().sum(axes, keepdim=True)
    # Below rounding the directions mean nothing any more, and following them would undo the rest.
    least = torch.finfo(x.dtype).eps * squared
    for _ in range(iterations):
        seen = torch.where(taken, measurement.forward(direction), 0.0)
        length = squared / seen.square().sum((-2, -1))[..., None, None, None].clamp(min=1e-30)
        length = torch.where(squared > least, length, 0.0)
        x = x + length * direction
        descent = descent - length * measurement.adjoint(seen)
        after = descent.square().sum(axes, keepdim=True)
        direction = descent + after / squared.clamp(min=1e-30) * direction
        squared = after
    return x


def sample_posterior(
    sampler: GuidedSampler, y: Tensor, mask: Tensor, particles: int, generators: Sequence[torch.Generator]
) -> Tensor:
    """Approximate posterior samples (S, P, C, H, W) for a mask that does not change; no hard consistency.

    Args:
        sampler: prior, measurement, steps and guidance.
        y: ``(S, A, R)`` measured samples.
        mask: ``(S, A)`` what was measured.
        particles: P.
        generators: one a subject.
    """
    current = sampler.start(particles, generators)
    x0 = current.x
    for k in range(sampler.steps):
        current, estimate = sampler.step(k, current, y, mask, generators)
        x0 = estimate.x0
    return x0

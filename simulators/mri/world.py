"""The scan as a decision process: choose the next line of k-space, see what the posterior then believes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol, get_args

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from core.diffusion.measurement import Measurement
from core.diffusion.mixture import GaussianMixturePrior
from core.diffusion.prior import Prior
from core.errors import InputError
from core.rl.submodular import LogDet, LogDetState
from core.simulation import Step, Variable, tree
from simulators.mri.quality import magnitude, psnr, ssim

Reward = Literal["info_gain", "ssim_gain", "psnr_gain"]
View = Literal["lines", "images"]

REPEATED = -1.0
"""Reward of choosing a line that was taken already."""


class Posterior(Protocol):
    """Redraws particles given what was measured: ``ExactPosterior`` or ``GuidedPosterior``."""

    prior: Any
    measurement: Measurement
    sigma: float

    def noise(self, batch: int, particles: int, generator: torch.Generator) -> Any:
        """All that is random in one ``sample``: a tree of tensors with the batch first."""
        ...

    def sample(self, y: Tensor, mask: Tensor, noise: Any) -> Tensor:
        """Particles (B, P, C, H, W) given samples (B, A, R) where ``mask`` (B, A) is true; others have no effect.

        Deterministic given ``noise``.
        """
        ...


@dataclass(frozen=True)
class MRILineState:
    """A scan under way; W lines of R real components, P particles.

    Attributes:
        target: ``(B, 2, H, W)``, the image in the scanner, which the agent never sees.
        samples: ``(B, W, R)``, its lines with the scanner's noise; the agent sees those in ``mask`` only.
        mask: ``(B, W)`` bool, the lines taken.
        particles: ``(B, P, 2, H, W)``, drawn from the posterior given the taken lines.
        information: belief of the Gaussian fit that pays ``info_gain``; None with another reward.
    """

    target: Tensor
    samples: Tensor
    mask: Tensor
    particles: Tensor
    information: LogDetState | None


@dataclass(frozen=True, eq=False)
class MRILineWorld:
    """Acquisition of an image line by line, one phase-encode line a step, the central one first.

    A step acquires a line, redraws the particles from the posterior, and pays what the line was worth:

    - ``info_gain``: F(A + a) - F(A) with F(A) = (1/2) logdet(I + Sigma_AA / belief^2) in nats, Sigma the covariance of
      the prior's samples (moments of the mixture; its own entropy has no closed form). It is monotone submodular, and
      does not depend on what is measured.
    - ``ssim_gain``, ``psnr_gain``: growth of the estimate's SSIM, or PSNR in dB.

    The estimate is the mean of the particles' magnitudes. A line that was taken already changes nothing and pays -1.
    The episode terminates when ``budget`` lines are taken.

    The agent sees ``lines``: the mask (W), a score of each line (W) and the share of the budget spent; or ``images``:
    a Dict of recon (2, H, W), the particles' mean, mask (W) and std (H, W), the root of their total variance. The
    score is log(1 + V / belief^2) with V the total variance over particles of a line's predicted samples: to first
    order the entropy of the next measurement by which Active Diffusion Subsampling (Nolan et al. 2025) chooses.

    Attributes:
        posterior: of images given lines, with its prior and measurement; all of it on the device of the generators.
        budget: lines in all, the first included.
        particles: P, posterior samples.
        belief: width sigma_y of the belief about a real component of a sample, in the image's unit.
        reward: see above.
        observation: "lines" or "images".
        images: ``(N, 2, H, W)`` to draw targets from; without them they are drawn from the mixture prior.
        bound: largest absolute value that the ``images`` view shows.

    Raises:
        InputError: a value outside its range, images of another shape, or a prior that is not a mixture where its
            moments or samples are needed.
    """

    posterior: Posterior
    budget: int = 8
    particles: int = 8
    belief: float = 1.0
    reward: Reward = "info_gain"
    observation: View = "lines"
    images: Tensor | None = None
    bound: float = 2.0
    agents: int = 1

    def __post_init__(self) -> None:
        for name, allowed in (("reward", get_args(Reward)), ("observation", get_args(View))):
            if getattr(self, name) not in allowed:
                raise InputError(f"{name}: {getattr(self, name)!r}; allowed: {', '.join(allowed)}")
        if not 2 <= self.budget <= self.lines:
            raise InputError(f"budget: {self.budget}; allowed: 2 to {self.lines}, the number of lines")
        if self.particles < 2:
            raise InputError(f"particles: {self.particles}; allowed: at least 2, one alone has no variance")
        for name in ("belief", "bound"):
            if not 0 < getattr(self, name) < float("inf"):
                raise InputError(f"{name}: {getattr(self, name)}; allowed: greater than 0 and finite")
        if self.images is not None and (self.images.dim() != 4 or tuple(self.images.shape[1:]) != self.shape):
            raise InputError(
                f"images of shape {tuple(self.images.shape)}; allowed: (N, {', '.join(map(str, self.shape))})"
            )
        analytic = isinstance(self.prior, GaussianMixturePrior)
        if not analytic and (self.reward == "info_gain" or self.observation == "lines" or self.images is None):
            raise InputError(
                f"prior: {type(self.prior).__name__}; allowed: GaussianMixturePrior, or another one with images, "
                "observation 'images' and a reward other than 'info_gain'"
            )

    @property
    def prior(self) -> Prior:
        """Of the images."""
        prior: Prior = self.posterior.prior
        return prior

    @property
    def shape(self) -> tuple[int, int, int]:
        """(2, H, W) of an image."""
        return self.posterior.measurement.shape

    @property
    def lines(self) -> int:
        """Number of lines, W."""
        return self.posterior.measurement.actions

    @property
    def center(self) -> int:
        """The line that every scan begins with, W // 2."""
        return self.lines // 2

    @cached_property
    def observation_space(self) -> spaces.Space[Any]:
        """Of the chosen view; scores end at the most uncertain line's without any data."""
        if self.observation == "images":
            return spaces.Dict(
                {
                    "recon": spaces.Box(-self.bound, self.bound, self.shape, np.float32),
                    "mask": spaces.MultiBinary(self.lines),
                    "std": spaces.Box(0.0, self.bound, self.shape[1:], np.float32),
                }
            )
        largest = float(self._score(self._prior_variance.max()))
        high = np.array([1.0] * self.lines + [largest] * self.lines + [1.0], np.float32)
        return spaces.Box(np.zeros_like(high), high)

    @cached_property
    def action_space(self) -> spaces.Discrete:
        """The next line."""
        return spaces.Discrete(self.lines)

    @cached_property
    def variables(self) -> Mapping[str, Variable]:
        """What a roll-out records."""
        unit = {"info_gain": "nat", "ssim_gain": "1", "psnr_gain": "dB"}[self.reward]
        return {
            "mask": Variable(("line",), "1", "lines taken before the step", {"line": range(self.lines)}),
            "action": Variable((), "1", "line chosen"),
            "psnr": Variable((), "dB", "PSNR of the estimate's magnitude after the step"),
            "ssim": Variable((), "1", "SSIM of the estimate's magnitude after the step"),
            "reward": Variable((), unit, f"reward: {self.reward.replace('_', ' ')}, or {REPEATED:g} for a taken line"),
        }

    @cached_property
    def information(self) -> LogDet:
        """F of ``info_gain`` over sets of lines."""
        _, factor, residual = self._moments
        lines = self.posterior.measurement.forward(factor.T.reshape(-1, *self.shape))
        return LogDet(lines.permute(1, 2, 0).contiguous(), self.belief, float(residual))

    @cached_property
    def _moments(self) -> tuple[Tensor, Tensor, Tensor]:
        assert isinstance(self.prior, GaussianMixturePrior)
        return self.prior.moments()

    @cached_property
    def _prior_variance(self) -> Tensor:
        """Total variance of the samples of each line but the first, under the prior."""
        features = self.information.features
        variance = features.square().sum((1, 2)) + self.information.residual * features.shape[1]
        return variance[torch.arange(self.lines, device=variance.device) != self.center]

    @cached_property
    def _first_information(self) -> LogDetState:
        start = self.information.start(1)
        _, state = self.information.gain(start, torch.full((1,), self.center, device=start.taken.device))
        return state

    def reset(self, batch: int, generator: torch.Generator) -> MRILineState:
        """Put images into the scanner and take their central line."""
        if self.images is None:
            assert isinstance(self.prior, GaussianMixturePrior)
            return self.reset_to(self.prior.draw(batch, generator), generator)
        index = torch.randint(len(self.images), (batch,), generator=generator, device=generator.device)
        return self.reset_to(self.images.to(generator.device)[index], generator)

    def reset_to(self, target: Tensor, generator: torch.Generator) -> MRILineState:
        """Begin to scan the given images (B, 2, H, W)."""
        clean = self.posterior.measurement.forward(target)
        noise = torch.randn(clean.shape, generator=generator, dtype=clean.dtype, device=clean.device)
        samples = clean + self.posterior.sigma * noise
        mask = torch.zeros(samples.shape[:2], dtype=torch.bool, device=target.device)
        mask[:, self.center] = True
        particles = self.posterior.sample(samples, mask, self.noise(len(target), generator))
        information = None
        if self.reward == "info_gain":
            information = tree.map_tensors(lambda x: x.expand(len(target), *x.shape[1:]), self._first_information)
        return MRILineState(target, samples, mask, particles, information)

    def noise(self, batch: int, generator: torch.Generator) -> Any:
        """What redraws the particles."""
        return self.posterior.noise(batch, self.particles, generator)

    def step(self, state: MRILineState, action: Tensor, noise: Any) -> Step:
        """Acquire line ``action`` (B,).

        Returns:
            Step with info ``psnr`` and ``ssim`` of the estimate after it, and ``repeated``; all ``(B,)``.

        Raises:
            InputError: an action of another shape.
        """
        if action.shape != state.mask.shape[:1]:
            raise InputError(f"action of shape {tuple(action.shape)}: must be ({len(state.mask)},)")
        chosen = action.unsqueeze(1)
        repeated = state.mask.gather(1, chosen).squeeze(1)
        mask = state.mask.scatter(1, chosen, True)
        drawn = self.posterior.sample(state.samples, mask, noise)
        particles = tree.where(repeated, state.particles, drawn)
        quality = self._quality(state.target, particles)
        information = state.information
        if self.reward == "info_gain":
            gain, information = self.information.gain(state.information, action)  # type: ignore[arg-type]
        else:
            metric = self.reward.removesuffix("_gain")
            gain = quality[metric] - self._quality(state.target, state.particles)[metric]
        reward = torch.where(repeated, REPEATED, gain)
        after = MRILineState(state.target, state.samples, mask, particles, information)
        return Step(after, reward, mask.sum(1) >= self.budget, {**quality, "repeated": repeated})

    def observe(self, state: MRILineState, noise: Any | None = None) -> Tensor | dict[str, Tensor]:
        """The chosen view of the taken lines."""
        if self.observation == "images":
            variance, mean = torch.var_mean(state.particles, dim=1, correction=0)
            return {"recon": mean, "mask": state.mask, "std": variance.sum(1).sqrt()}
        predicted = self.posterior.measurement.forward(state.particles)
        score = self._score(predicted.var(dim=1, correction=0).sum(-1))
        mask = state.mask.to(score)
        return torch.cat([mask, score, mask.sum(1, keepdim=True) / self.budget], dim=1)

    def action_mask(self, state: MRILineState) -> Tensor:
        """The lines not yet taken."""
        return ~state.mask

    def _score(self, variance: Tensor) -> Tensor:
        return torch.log1p(variance / self.belief**2)

    @staticmethod
    def _quality(target: Tensor, particles: Tensor) -> dict[str, Tensor]:
        true, estimate = magnitude(target), magnitude(particles).mean(1)
        return {"psnr": psnr(true, estimate), "ssim": ssim(true, estimate)}

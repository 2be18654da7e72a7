"""Active Diffusion Subsampling: posterior particles that choose, while they diffuse, what is measured next.

Nolan, Stevens, van Nierop and van Sloun (2025), "Active Diffusion Subsampling", TMLR; arXiv 2406.14388.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from apps.mri.batch_design import BatchRule
from apps.mri.board import Acquisition, Board, Stop
from apps.mri.entropy import Score
from apps.mri.ledger import Ledger
from apps.mri.schedule import Schedule, acquisition_steps
from core.diffusion.exact_posterior import ExactPosterior, PosteriorNoise
from core.diffusion.guided import Guidance, GuidedSampler, consistent
from core.diffusion.mixture import GaussianMixturePrior
from core.diffusion.prior import Prior
from core.errors import InputError
from core.study import Config
from simulators.mri.operators import Operator
from simulators.mri.scanner import Instrument


class Sampling(Config):
    """How the posterior is sampled and how the next action is chosen."""

    sampler: Literal["dps", "exact"] = "dps"
    """Diffusion posterior sampling, or exact samples of a mixture prior."""
    steps: int = Field(default=40, ge=1, le=100_000)
    """Diffusion steps T."""
    particles: int = Field(default=8, ge=1, le=4096)
    """Particles of a subject."""
    omega: float = Field(default=1.0, ge=0)
    """Guidance weight."""
    guidance_norm: Literal["joint", "per_particle"] = "per_particle"
    """One residual norm over all particles of a subject, as the reference, or one each."""
    window: tuple[float, float] = (0.0, 0.8)
    """Share of the diffusion steps, from and to, in which actions are chosen."""
    schedule: Schedule = "exact"
    """``exact`` takes exactly the budget; ``reference`` is the reference code's rule."""
    score: Score = "kl"
    """What the next action maximises."""
    sigma: float = Field(default=1.0, gt=0)
    """Belief width of a real component."""
    batch_rule: BatchRule = "residual"
    """How several actions of one step are chosen."""
    hard_consistency: bool = False
    """Put the measured samples into the final particles; with several coils by conjugate gradients."""
    noise: float = Field(default=0.0, ge=0)
    """Standard deviation of the scanner's noise that the exact sampler assumes; 0 stands for 0.01."""


@dataclass(frozen=True)
class Progress:
    """What a caller may look at after each step.

    Attributes:
        step: number of the diffusion step.
        steps: of how many.
        mask: ``(S, A)`` what is acquired.
        x0: ``(S, P, C, H, W)`` the particles' current estimates.
        residual: ``(S, P)`` their distance from the measured samples.
    """

    step: int
    steps: int
    mask: Tensor
    x0: Tensor
    residual: Tensor


@dataclass(frozen=True)
class ADS:
    """Active Diffusion Subsampling of a batch of subjects.

    The order of a step is the reference's: denoise, guide with what is measured so far, and only then, from the
    unguided estimates, choose and acquire. With a full budget in the initial mask this is plain posterior sampling
    with a fixed mask.

    Attributes:
        prior: of the images.
        operator: the measurement.
        settings: of the sampler and of the choice.
        weights: ``(H, W)`` importance of each pixel in the choice (a region of interest); None: all alike.
        fallback: ``(A,)`` priority of the actions when the particles do not differ, such as the training variance.
        stop: when a subject needs no more; None: never before its budget.

    Raises:
        InputError: one particle, an empty window, a prior of another shape, or an exact sampler without a mixture.
    """

    prior: Prior
    operator: Operator
    settings: Sampling = field(default_factory=Sampling)
    weights: Tensor | None = None
    fallback: Tensor | None = None
    stop: Stop | None = None

    def __post_init__(self) -> None:
        s = self.settings
        self.acquisition_steps(1)
        if tuple(self.prior.shape) != tuple(self.operator.shape):
            raise InputError(f"prior of shape {tuple(self.prior.shape)}, but data of shape {self.operator.shape}")
        if s.sampler == "exact" and not isinstance(self.prior, GaussianMixturePrior):
            raise InputError("sampler: exact needs the mixture prior (kind gmm)")

    def acquisition_steps(self, count: int) -> list[int]:
        """The diffusion step of each of ``count`` acquisitions."""
        s = self.settings
        if s.sampler == "exact":
            return list(range(count))
        window = (int(s.window[0] * s.steps + 1e-9), int(s.window[1] * s.steps + 1e-9))
        return acquisition_steps(count, window, s.steps, s.schedule)

    def run(
        self,
        scanner: Instrument,
        initial: Tensor,
        budget: int,
        generators: Sequence[torch.Generator],
        on_step: Callable[[Progress], None] | None = None,
    ) -> Acquisition:
        """Acquire until every subject has its budget, and sample the posterior.

        A subject ends with fewer actions than its budget only where the stop rule says so or where the scanner has
        delivered nothing else; ``mask`` and ``dropped`` of the outcome tell.

        Args:
            scanner: delivers the samples; nothing else of the subjects is seen.
            initial: ``(S, A)`` bool, what is acquired before the first step, as many actions for every subject.
            budget: actions a subject, the initial ones included.
            generators: one a subject, on the device of the prior.
            on_step: called after each step.

        Raises:
            InputError: a budget below the initial actions or above all, or one particle to choose with.
        """
        held = initial.sum(-1)
        count = int(held.max())
        if int(held.min()) != count:
            raise InputError("initial mask: every subject needs as many initial actions")
        most = int(scanner.available.sum(-1).min())
        if not count <= budget <= most:
            raise InputError(f"budget: {budget}, must be between {count} initial and {most} actions that can be taken")
        if budget > count and self.settings.particles < 2:
            raise InputError("particles: 1, but one particle has no entropy; at least 2 are needed")
        board = Board(self, Ledger(scanner, initial), generators)
        planned = self.acquisition_steps(budget - count)
        with torch.no_grad():
            if self.settings.sampler == "exact":
                return self._exact(board, planned, generators, on_step)
            return self._dps(board, planned, generators, on_step)

    def _dps(
        self,
        board: Board,
        planned: list[int],
        generators: Sequence[torch.Generator],
        on_step: Callable[[Progress], None] | None,
    ) -> Acquisition:
        s = self.settings
        ledger = board.ledger
        sampler = GuidedSampler(self.prior, self.operator, s.steps, Guidance(s.omega, s.guidance_norm))
        due = Counter(planned)
        particles = sampler.start(s.particles, generators)
        residuals = []
        for k in range(s.steps):
            particles, estimate = sampler.step(k, particles, ledger.samples, ledger.mask, generators)
            residuals.append(estimate.residual.mean(1))
            if due[k]:
                board.acquire(k, due[k], estimate.x0, estimate.samples)
            if on_step is not None:
                on_step(Progress(k, s.steps, ledger.mask, estimate.x0, estimate.residual))
        x = consistent(self.operator, estimate.x0, ledger.samples, ledger.mask) if s.hard_consistency else estimate.x0
        return board.result(x, torch.stack(residuals, 1), particles.restarts.sum(1), s.steps)

    def _exact(
        self,
        board: Board,
        planned: list[int],
        generators: Sequence[torch.Generator],
        on_step: Callable[[Progress], None] | None,
    ) -> Acquisition:
        assert isinstance(self.prior, GaussianMixturePrior)
        ledger = board.ledger
        posterior = ExactPosterior(self.prior, self.operator, self.settings.noise)
        residuals = []
        for k in (*planned, len(planned)):
            noises = [posterior.noise(1, self.settings.particles, g) for g in generators]
            names = ("uniform", "latent", "image", "samples")
            noise = PosteriorNoise(*(torch.cat([getattr(n, name) for n in noises]) for name in names))
            x = posterior.sample(ledger.samples, ledger.mask, noise)
            predicted = self.operator.forward(x)
            missed = torch.where(ledger.mask[:, None, :, None], ledger.samples[:, None] - predicted, 0.0)
            residual = missed.square().sum((-2, -1)).sqrt()
            residuals.append(residual.mean(1))
            if k < len(planned):
                board.acquire(k, 1, x, predicted)
            if on_step is not None:
                on_step(Progress(k, len(planned) + 1, ledger.mask, x, residual))
        if self.settings.hard_consistency:
            x = consistent(self.operator, x, ledger.samples, ledger.mask)
        return board.result(x, torch.stack(residuals, 1), torch.zeros_like(ledger.dropped), 0)

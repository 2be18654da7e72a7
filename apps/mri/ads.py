"""Active Diffusion Subsampling: posterior particles that choose, while they diffuse, what is measured next.

Nolan, Stevens, van Nierop and van Sloun (2025), "Active Diffusion Subsampling", TMLR; arXiv 2406.14388.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from apps.mri.batch_design import BatchRule, choose
from apps.mri.entropy import Score, entropy_scores
from apps.mri.schedule import Schedule, acquisition_steps
from core.diffusion.exact_posterior import ExactPosterior, PosteriorNoise
from core.diffusion.guided import Guidance, GuidedSampler, consistent
from core.diffusion.mixture import GaussianMixturePrior
from core.diffusion.prior import Prior
from core.errors import InputError
from core.study import Config
from simulators.mri.operators import Operator
from simulators.mri.scanner import Instrument

RETRIES = 2
"""How often a dropped action is asked for again before the next best is taken."""


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
class Stop:
    """When a subject needs no more samples.

    Attributes:
        nmse: target of the normalised mean squared error.
        calibration: true over predicted error, from training images: one number, or one for each diffusion step.
            Early in the diffusion the particles' estimates hardly differ, and predict far too small an error.
    """

    nmse: float
    calibration: float | Sequence[float] = 1.0

    def enough(self, step: int, x0: Tensor) -> Tensor:
        """Whether (S,) particles ``x0`` (S, P, C, H, W) of a diffusion step predict an error within the target."""
        ratio = self.calibration if isinstance(self.calibration, int | float) else self.calibration[step]
        return ratio * predicted_nmse(x0) <= self.nmse


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
class Acquisition:
    """What came of it, for S subjects and n chosen actions.

    Attributes:
        particles: ``(S, P, C, H, W)`` posterior samples.
        mask: ``(S, A)`` acquired actions.
        samples: ``(S, A, R)`` what was measured; zero elsewhere.
        order: ``(S, n)`` actions in the order of their acquisition, the initial ones not counted; -1: stopped before.
        step: ``(n,)`` diffusion step of each.
        scores: ``(S, n, A)`` scores from which each was chosen.
        residual: ``(S, T)`` mean residual norm of the particles at each step.
        restarts: ``(S,)`` particles that guidance blew up.
        collapsed: ``(S,)`` whether the particles once agreed on everything and the fallback order was used.
        dropped: ``(S,)`` actions that the scanner did not deliver.
        forwards: evaluations of the prior a particle.
    """

    particles: Tensor
    mask: Tensor
    samples: Tensor
    order: Tensor
    step: Tensor
    scores: Tensor
    residual: Tensor
    restarts: Tensor
    collapsed: Tensor
    dropped: Tensor
    forwards: int


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
        board = _Board(self, scanner, initial, generators)
        planned = self.acquisition_steps(budget - count)
        with torch.no_grad():
            if self.settings.sampler == "exact":
                return self._exact(board, planned, generators, on_step)
            return self._dps(board, planned, generators, on_step)

    def _dps(
        self,
        board: _Board,
        planned: list[int],
        generators: Sequence[torch.Generator],
        on_step: Callable[[Progress], None] | None,
    ) -> Acquisition:
        s = self.settings
        sampler = GuidedSampler(self.prior, self.operator, s.steps, Guidance(s.omega, s.guidance_norm))
        due = Counter(planned)
        particles = sampler.start(s.particles, generators)
        residuals = []
        for k in range(s.steps):
            particles, estimate = sampler.step(k, particles, board.samples, board.mask, generators)
            residuals.append(estimate.residual.mean(1))
            if due[k]:
                board.acquire(k, min(due[k], board.left()), estimate.x0, estimate.samples)
            if on_step is not None:
                on_step(Progress(k, s.steps, board.mask, estimate.x0, estimate.residual))
        x = consistent(self.operator, estimate.x0, board.samples, board.mask) if s.hard_consistency else estimate.x0
        return board.result(x, torch.stack(residuals, 1), particles.restarts.sum(1), s.steps)

    def _exact(
        self,
        board: _Board,
        planned: list[int],
        generators: Sequence[torch.Generator],
        on_step: Callable[[Progress], None] | None,
    ) -> Acquisition:
        assert isinstance(self.prior, GaussianMixturePrior)
        posterior = ExactPosterior(self.prior, self.operator, self.settings.noise)
        residuals = []
        for k in (*planned, len(planned)):
            noises = [posterior.noise(1, self.settings.particles, g) for g in generators]
            names = ("uniform", "latent", "image", "samples")
            noise = PosteriorNoise(*(torch.cat([getattr(n, name) for n in noises]) for name in names))
            x = posterior.sample(board.samples, board.mask, noise)
            predicted = self.operator.forward(x)
            missed = torch.where(board.mask[:, None, :, None], board.samples[:, None] - predicted, 0.0)
            residual = missed.square().sum((-2, -1)).sqrt()
            residuals.append(residual.mean(1))
            if k < len(planned):
                board.acquire(k, 1, x, predicted)
            if on_step is not None:
                on_step(Progress(k, len(planned) + 1, board.mask, x, residual))
        if self.settings.hard_consistency:
            x = consistent(self.operator, x, board.samples, board.mask)
        return board.result(x, torch.stack(residuals, 1), torch.zeros_like(board.dropped), 0)


class _Board:
    """What was acquired so far, and in which order."""

    def __init__(self, ads: ADS, scanner: Instrument, initial: Tensor, generators: Sequence[torch.Generator]) -> None:
        self.ads, self.scanner, self.generators = ads, scanner, generators
        subjects, device = len(initial), initial.device
        self.mask = torch.zeros_like(initial)
        self.lost = ~scanner.available
        self.active = torch.ones(subjects, dtype=torch.bool, device=device)
        self.collapsed = torch.zeros(subjects, dtype=torch.bool, device=device)
        self.dropped = torch.zeros(subjects, dtype=torch.long, device=device)
        blank = ads.operator.forward(torch.zeros(1, *ads.operator.shape, device=device))
        self.samples = blank.repeat(subjects, 1, 1)
        self.order: list[Tensor] = []
        self.steps: list[int] = []
        self.scores: list[Tensor] = []
        delivered, held = scanner.measured() if bool(scanner.counts.any()) else (self.samples, self.mask)
        # Asked for before, as calibration lines are: they are not acquired twice.
        self.mask = initial & held
        self.samples = torch.where(self.mask[..., None], delivered, 0.0)
        order = torch.where(initial & ~held, torch.arange(initial.shape[1], device=device), -1)
        self._take(order.sort(-1, descending=True).values[:, : int((order >= 0).sum(-1).max())].flip(-1))

    def left(self) -> int:
        """Actions that every subject can still take."""
        return int((~(self.mask | self.lost)).sum(1).min())

    def acquire(self, step: int, count: int, x0: Tensor, samples: Tensor) -> None:
        """Choose ``count`` actions from the estimates ``x0`` and their ``samples``, and take them."""
        if count < 1:
            return
        ads = self.ads
        if ads.stop is not None:
            self.active &= ~ads.stop.enough(step, x0)
        y = samples if ads.weights is None else ads.operator.forward(ads.weights * x0)
        allowed = ~(self.mask | self.lost)
        rule = ads.settings.batch_rule
        actions, scores = choose(y, allowed, count, ads.settings.sigma, self._score, rule, self.generators)
        actions = self._unless_collapsed(actions, scores, allowed, count)
        taken = self._take(torch.where(self.active[:, None], actions, -1), scores)
        self.order.append(taken)
        self.steps += [step] * count
        self.scores += [scores] * count

    def _score(self, y: Tensor) -> Tensor:
        s = self.ads.settings
        scores = entropy_scores(y, s.sigma, s.score, point=self.ads.operator.shape[0])
        if s.score in ("kl", "bhattacharyya"):
            scores = scores - 0.5 * y.shape[-1] * math.log(2 * math.pi * math.e * s.sigma**2)
        if s.score == "reference_positive":
            scores = scores - y.shape[1] * math.log(y.shape[1])
        return scores

    def _unless_collapsed(self, actions: Tensor, scores: Tensor, allowed: Tensor, count: int) -> Tensor:
        """The fallback's order for subjects whose particles value every action alike."""
        high = torch.where(allowed, scores, -math.inf).amax(-1)
        low = torch.where(allowed, scores, math.inf).amin(-1)
        # Scores that tie high are saturated, at log P: there the particles disagree on everything.
        agreed = high < 0.5 * math.log(self.ads.settings.particles)
        tied = agreed & ((high - low) <= 1e-9 * high.abs().clamp(min=1e-3)) & (allowed.sum(-1) > count)
        self.collapsed |= tied & self.active
        if self.ads.fallback is None or not bool(tied.any()):
            return actions
        priority = torch.where(allowed, self.ads.fallback.to(scores), -math.inf)
        order = priority.argsort(dim=-1, descending=True, stable=True)[:, :count]
        return torch.where(tied[:, None], order, actions)

    def _take(self, actions: Tensor, scores: Tensor | None = None) -> Tensor:
        """Acquire (S, n) actions (-1: none), again where they were dropped, and others where they stay away."""
        wanted = actions >= 0
        got = self.samples.new_full((*actions.shape, self.samples.shape[-1]), math.nan)
        attempt = 0
        while bool((missing := wanted & ~torch.isfinite(got).all(-1)).any()):
            if attempt > 0:
                self.dropped += missing.sum(1)
            if attempt and attempt % (RETRIES + 1) == 0:
                actions = self._others(actions, missing, scores)
            for place in missing.any(0).nonzero().squeeze(1).tolist():
                rows = missing[:, place].nonzero().squeeze(1)
                delivered = self.scanner.acquire(actions[rows, place], rows)
                got[rows, place] = self.ads.operator.components(delivered).to(got)
            attempt += 1
        rows, places = wanted.nonzero(as_tuple=True)
        at = actions[rows, places]
        self.mask[rows, at] = True
        self.samples[rows, at] = got[rows, places]
        return actions

    def _others(self, actions: Tensor, missing: Tensor, scores: Tensor | None) -> Tensor:
        """Replace the missing actions by the next best that is neither taken, lost nor asked for."""
        if scores is None:
            raise InputError("the scanner did not deliver an initial action")
        actions = actions.clone()
        for subject, place in missing.nonzero().tolist():
            self.lost[subject, actions[subject, place]] = True
            free = ~(self.mask[subject] | self.lost[subject])
            free[actions[subject][actions[subject] >= 0]] = False
            if not bool(free.any()):
                raise InputError(f"the scanner delivered no action that subject {subject} had left")
            actions[subject, place] = torch.where(free, scores[subject], -math.inf).argmax()
        return actions

    def result(self, particles: Tensor, residual: Tensor, restarts: Tensor, forwards: int) -> Acquisition:
        """All of it."""
        subjects, actions = self.mask.shape
        none = self.mask.new_zeros((subjects, 0), dtype=torch.long)
        return Acquisition(
            particles=particles,
            mask=self.mask,
            samples=self.samples,
            order=torch.cat(self.order, 1) if self.order else none,
            step=torch.tensor(self.steps, dtype=torch.long),
            scores=torch.stack(self.scores, 1) if self.scores else residual.new_zeros(subjects, 0, actions),
            residual=residual,
            restarts=restarts,
            collapsed=self.collapsed,
            dropped=self.dropped,
            forwards=forwards,
        )


def predicted_nmse(x: Tensor) -> Tensor:
    """Normalised mean squared error (S,) that particles (S, P, C, H, W) predict of their mean: variance over energy."""
    mean = x.mean(1)
    variance = x.var(1, correction=1 if x.shape[1] > 1 else 0).flatten(1).sum(1)
    return variance / mean.flatten(1).square().sum(1).clamp(min=1e-30)

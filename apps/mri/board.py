"""How the next actions of a batch of subjects are chosen, and what came of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from apps.mri.batch_design import choose
from apps.mri.entropy import entropy_scores
from apps.mri.ledger import Ledger

if TYPE_CHECKING:
    from apps.mri.ads import ADS


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
class Acquisition:
    """What came of it, for S subjects and n chosen actions.

    Attributes:
        particles: ``(S, P, C, H, W)`` posterior samples.
        mask: ``(S, A)`` acquired actions.
        samples: ``(S, A, R)`` what was measured; zero elsewhere.
        order: ``(S, n)`` actions in the order of their acquisition, the initial ones not counted; -1: stopped before,
            or nothing was left that could be had.
        step: ``(n,)`` diffusion step of each; -1: before the diffusion.
        scores: ``(S, n, A)`` scores from which each was chosen.
        residual: ``(S, T)`` mean residual norm of the particles at each step.
        restarts: ``(S,)`` particles that guidance blew up.
        collapsed: ``(S,)`` whether the particles once agreed on everything and the fallback order was used.
        saturated: ``(S,)`` whether they once disagreed on everything beyond what the score can tell, with the same end.
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
    saturated: Tensor
    dropped: Tensor
    forwards: int


class Board:
    """Chooses, has the ledger take, and remembers in which order."""

    def __init__(self, ads: ADS, ledger: Ledger, generators: Sequence[torch.Generator]) -> None:
        self.ads, self.ledger, self.generators = ads, ledger, generators
        self.active = torch.ones(len(ledger.mask), dtype=torch.bool, device=ledger.mask.device)
        self.collapsed, self.saturated = torch.zeros_like(self.active), torch.zeros_like(self.active)
        self.order: list[Tensor] = []
        self.steps: list[int] = []
        self.scores: list[Tensor] = []

    def acquire(self, step: int, count: int, x0: Tensor, samples: Tensor) -> None:
        """Choose ``count`` actions from the estimates ``x0`` and their ``samples``, and take them."""
        if count < 1:
            return
        ads = self.ads
        if ads.stop is not None:
            self.active &= ~ads.stop.enough(step, x0)
        y = samples if ads.weights is None else ads.operator.forward(ads.weights * x0)
        allowed = self.ledger.free
        rule = ads.settings.batch_rule
        actions, scores = choose(y, allowed, count, ads.settings.sigma, self._score, rule, self.generators)
        actions = self._unless_tied(actions, scores, allowed, count)
        taken = self.ledger.take(torch.where(self.active[:, None], actions, -1), scores)
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

    def _unless_tied(self, actions: Tensor, scores: Tensor, allowed: Tensor, count: int) -> Tensor:
        """The fallback's order for subjects whose particles value every action alike."""
        high = torch.where(allowed, scores, -math.inf).amax(-1)
        low = torch.where(allowed, scores, math.inf).amin(-1)
        tied = ((high - low) <= 1e-9 * high.abs().clamp(min=1e-3)) & (allowed.sum(-1) > count)
        # Scores that tie high are saturated, at log P: there the particles disagree on everything.
        agreed = high < 0.5 * math.log(self.ads.settings.particles)
        self.collapsed |= tied & agreed & self.active
        self.saturated |= tied & ~agreed & self.active
        if self.ads.fallback is None or not bool(tied.any()):
            return actions
        priority = torch.where(allowed, self.ads.fallback.to(scores), -math.inf)
        order = priority.argsort(dim=-1, descending=True, stable=True)[:, :count]
        return torch.where(tied[:, None], order, actions)

    def result(self, particles: Tensor, residual: Tensor, restarts: Tensor, forwards: int) -> Acquisition:
        """All of it."""
        ledger = self.ledger
        subjects, actions = ledger.mask.shape
        none = ledger.mask.new_zeros((subjects, 0), dtype=torch.long)
        return Acquisition(
            particles=particles,
            mask=ledger.mask,
            samples=ledger.samples,
            order=torch.cat(self.order, 1) if self.order else none,
            step=torch.tensor(self.steps, dtype=torch.long),
            scores=torch.stack(self.scores, 1) if self.scores else residual.new_zeros(subjects, 0, actions),
            residual=residual,
            restarts=restarts,
            collapsed=self.collapsed,
            saturated=self.saturated,
            dropped=ledger.dropped,
            forwards=forwards,
        )


def predicted_nmse(x: Tensor) -> Tensor:
    """Normalised mean squared error (S,) that particles (S, P, C, H, W) predict of their mean: variance over energy."""
    mean = x.mean(1)
    variance = x.var(1, correction=1 if x.shape[1] > 1 else 0).flatten(1).sum(1)
    return variance / mean.flatten(1).square().sum(1).clamp(min=1e-30)

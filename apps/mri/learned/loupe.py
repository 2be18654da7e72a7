"""LOUPE: a probability for each line, learned together with the reconstruction."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from apps.mri.learned.operator_network import OperatorNetwork
from apps.mri.learned.unet import Masks, Progress, UNetReconstruction, UNetSettings, fit
from apps.mri.masks import MaskProblem, fixed_masks
from core.errors import InputError
from core.rl import TrainingDiverged
from core.seeds import stream
from simulators.mri.operators import Operator

REDRAWS = 32
"""Redraws tried at once for a mask of the wrong count."""


class LOUPESettings(UNetSettings):
    """Settings of LOUPE; SeqMRI's published run has a learning rate of 5e-5 for lines and network alike."""

    budget: int = Field(ge=1)
    """Actions taken in all, with the preselected ones."""
    center_lines: int = Field(default=4, ge=0)
    """Actions around DC that are always taken."""
    slope: float = Field(default=5.0, gt=0)
    """Slope of the sigmoid from weights to probabilities."""
    straight_through_slope: float = Field(default=10.0, gt=0)
    """Slope of the sigmoid that stands for the threshold in the backward pass."""
    mask_learning_rate: float = Field(default=1e-2, gt=0)
    """Step size of Adam for the weights of the lines."""


class LOUPE(OperatorNetwork):
    """Line probabilities and the U-Net trained with them.

    Bahadir et al. (2020, "Deep-learning-based optimization of the under-sampling pattern in MRI"), with the exact count
    and the straight-through threshold of Yin et al. (2021, "End-to-end sequential sampling and reconstruction for
    MRI"; SeqMRI).

    Args:
        operator: the measurement.
        settings: of probabilities, network and training.

    Raises:
        InputError: the budget leaves nothing to choose, or DC lines are asked of an operator that has none.
    """

    settings_class = LOUPESettings
    preselected: Tensor

    def __init__(self, operator: Operator, settings: LOUPESettings) -> None:
        super().__init__(operator, settings)
        if not settings.center_lines < settings.budget < operator.actions:
            raise InputError(
                f"budget {settings.budget}: must be more than the {settings.center_lines} preselected and less than "
                f"all {operator.actions} actions"
            )
        self.reconstruction = UNetReconstruction(operator, settings)
        self.register_buffer("preselected", center_block(operator, settings.center_lines), persistent=False)
        first = torch.empty(operator.actions - settings.center_lines).uniform_(0.01, 0.99)
        self.weights = nn.Parameter(first.logit() / settings.slope)

    def probabilities(self) -> Tensor:
        """The chance (A,) that each action is taken: 1 for preselected ones, and B in sum."""
        return self._with_preselected(self._free())

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Masks (count, A) of zeros and ones with exactly B ones, differentiable by the straight-through rule.

        Raises:
            TrainingDiverged: a probability is not finite.
        """
        p = self._free()
        u = threshold_uniforms(p.detach(), self._wanted, count, generator)
        soft = torch.sigmoid(self.settings.straight_through_slope * (p - u))
        return self._with_preselected((p > u).to(p.dtype) + soft - soft.detach())

    @torch.no_grad()
    def masks(self, count: int, generator: torch.Generator) -> Tensor:
        """Binary masks (count, A) from the sampler."""
        return self.sample(count, generator) > 0.5

    @torch.no_grad()
    def top_mask(self) -> Tensor:
        """The binary mask (A,) of the preselected and the most probable actions, B in all; the lowest index first."""
        order = self.weights.argsort(descending=True, stable=True)
        chosen = torch.zeros_like(self.weights)
        chosen[order[: self._wanted]] = 1
        return self._with_preselected(chosen) > 0.5

    def _free(self) -> Tensor:
        return rescale(torch.sigmoid(self.settings.slope * self.weights), self._wanted)

    @property
    def _wanted(self) -> int:
        return self.settings.budget - self.settings.center_lines

    def _with_preselected(self, chosen: Tensor) -> Tensor:
        whole = self.preselected.to(chosen.dtype).expand(*chosen.shape[:-1], -1)
        return whole.masked_scatter(~self.preselected.expand_as(whole), chosen)


def train(
    operator: Operator,
    images: Tensor,
    settings: LOUPESettings,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> LOUPE:
    """Train probabilities and U-Net together; a function of its arguments, on the device of the images.

    Args:
        operator: the measurement.
        images: training images (N, C, H, W).
        settings: of LOUPE.
        seed: of first weights, order, masks and noise.
        progress: told once an epoch.

    Raises:
        InputError: see ``LOUPE``.
        TrainingDiverged: the loss or a probability is not finite.
    """
    loupe = LOUPE.drawn(operator, settings, seed).to(images.device)
    generator = torch.Generator(images.device).manual_seed(stream(seed, "loupe training"))
    groups = [
        {"params": loupe.reconstruction.parameters(), "lr": settings.learning_rate},
        {"params": [loupe.weights], "lr": settings.mask_learning_rate},
    ]
    sampler: Masks = loupe.sample
    fit(loupe.reconstruction, images, sampler, settings, groups, generator, progress)
    return loupe.eval()


def center_block(operator: Operator, count: int) -> Tensor:
    """The mask (A,) of the ``count`` actions nearest to DC.

    Raises:
        InputError: more actions than there are, or an operator without DC.
    """
    none = torch.zeros(operator.actions, dtype=torch.bool)
    if not count:
        return none
    _, height, width = operator.shape
    row = width if operator.actions == height * width else None
    problem = MaskProblem(operator.actions, count, none, center=operator.center, width=row)
    return fixed_masks("lowpass", problem, [torch.Generator()])[0]


def rescale(p: Tensor, wanted: int) -> Tensor:
    """Probabilities (n,) whose sum is ``wanted``, still in [0, 1] and in the same order (Bahadir et al. 2020)."""
    mean, rate, tiny = p.mean(), wanted / p.shape[-1], torch.finfo(p.dtype).tiny
    shrunk = p * (rate / mean.clamp(min=tiny))
    # The clamps keep the branch not taken, and with it the gradient, finite where all lines are certain.
    grown = 1 - (1 - p) * ((1 - rate) / (1 - mean).clamp(min=tiny))
    return torch.where(mean > rate, shrunk, grown)


def threshold_uniforms(p: Tensor, wanted: int, count: int, generator: torch.Generator) -> Tensor:
    """Uniform numbers u (count, n), redrawn row by row until exactly ``wanted`` of p > u.

    The sum of p is ``wanted``, so that this count is the likeliest and redrawing ends.

    Raises:
        TrainingDiverged: a probability is not finite, for which redrawing would not end.
    """
    if not bool(p.isfinite().all()):
        raise TrainingDiverged("LOUPE: the probability of a line is not finite")
    u = torch.rand((count, len(p)), generator=generator, device=p.device, dtype=p.dtype)
    wrong = ((p > u).sum(-1) != wanted).nonzero().squeeze(1)
    while len(wrong):
        again = torch.rand((len(wrong), REDRAWS, len(p)), generator=generator, device=p.device, dtype=p.dtype)
        right = (p > again).sum(-1) == wanted
        first = right.to(torch.uint8).argmax(1)
        u[wrong] = again[torch.arange(len(wrong), device=p.device), first]
        wrong = wrong[~right.any(1)]
    return u

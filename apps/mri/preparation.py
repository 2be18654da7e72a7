"""What a method is prepared with on training images: a searched mask, a tuned weight, a calibrated stop rule."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
import xarray as xr
from torch import Tensor

from apps.mri.ads import ADS, Progress, Sampling
from apps.mri.board import predicted_nmse
from apps.mri.classical import CompressedSensing, Penalty, TotalVariation, Wavelet, tune
from apps.mri.greedy_fixed import greedy_fixed
from apps.mri.learned.products import subject_seeds, training_set
from apps.mri.masks import FixedRule, fixed_masks
from apps.mri.methods import generators
from apps.mri.problem import MixtureSettings, PriorSettings, Problem, prior_of
from core import files
from core.diffusion.exact_posterior import ExactPosterior
from core.diffusion.mixture import GaussianMixturePrior
from core.study import Context, Product, Run
from simulators.mri.acquisition_noise import noise_std
from simulators.mri.operators import Operator
from simulators.mri.quality import nmse
from simulators.mri.scanner import Scanner

WEIGHTS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
"""Regularisation weights among which compressed sensing is tuned."""
PENALTIES: dict[str, Callable[[], Penalty]] = {"wavelet": Wavelet, "tv": TotalVariation}


class TunedWeight(Product):
    """The weight of compressed sensing that is best for training images under masks of the same rule."""

    problem: Problem
    penalty: Literal["wavelet", "tv"]
    rule: FixedRule
    seed: int

    @property
    def label(self) -> str:
        """Name on the screen."""
        return f"{self.problem.name} {self.penalty} weight"

    def make(self, directory: Path, context: Context) -> None:
        """Write ``weight.json``, with the mean NMSE of every weight tried."""
        images, operator = training_set(self.problem, 64, context)
        luck = generators(subject_seeds(self.seed, "tuning", 0, len(images)), context.device)
        masks = fixed_masks(self.rule, self.problem.known(operator, context), luck)
        samples = operator.forward(images)
        if self.problem.snr is not None:
            normal = torch.stack([torch.randn(samples.shape[1:], generator=g, device=g.device) for g in luck])
            samples = samples + noise_std(images, self.problem.snr)[:, None, None] * normal
        tuned, tried = tune(self.method(operator), WEIGHTS, images, masks, samples)
        files.write_json(
            directory / "weight.json", {"weight": tuned.weight, "nmse": {str(k): v for k, v in tried.items()}}
        )

    def method(self, operator: Operator) -> CompressedSensing:
        """With the default weight."""
        return CompressedSensing(operator, PENALTIES[self.penalty]())

    def load(self, operator: Operator, context: Context) -> CompressedSensing:
        """With the tuned weight."""
        weight = files.read_json(context.product(self) / "weight.json", ["weight"])["weight"]
        return replace(self.method(operator), weight=weight)


class Search(Run):
    """The one mask that is best for training images, by forward selection."""

    problem: Problem
    """Where."""
    prior: MixtureSettings
    """Whose exact posterior mean reconstructs."""
    images: int
    """Training images of the search."""

    @property
    def label(self) -> str:
        """Name on the screen."""
        return f"{self.problem.name} search"

    def execute(self, inputs: Mapping[str, xr.Dataset], context: Context) -> xr.Dataset:
        """The actions in order of their choice, and the error after each."""
        images, operator = training_set(self.problem, self.images, context)
        prior = prior_of(self.prior, self.problem.images, context)
        assert isinstance(prior, GaussianMixturePrior)
        posterior = ExactPosterior(prior, operator)
        initial = self.problem.mask_problem(operator, None, context.device).initial
        order, errors = greedy_fixed(posterior, images, initial, self.problem.budget, context.progress)
        return xr.Dataset({"order": ("choice", order.cpu().numpy()), "error": ("choice", errors.cpu().numpy())})


class Calibrate(Run):
    """How the error that particles predict compares with the true one, on images that no test sees."""

    problem: Problem
    """Where."""
    prior: PriorSettings
    """Of the particles."""
    sampling: Sampling
    """How they are sampled."""
    images: int
    """Images from the training part."""
    seed: int
    """Of the particles."""

    @property
    def label(self) -> str:
        """Name on the screen."""
        return f"{self.problem.name} calibrate"

    def execute(self, inputs: Mapping[str, xr.Dataset], context: Context) -> xr.Dataset:
        """True and predicted NMSE of every image at every step, and the ratio of their means at each."""
        images, operator = training_set(self.problem, self.images, context)
        prior = prior_of(self.prior, self.problem.images, context)
        luck = generators(subject_seeds(self.seed, "calibration", 0, len(images)), context.device)
        initial = self.problem.mask_problem(operator, None, context.device).initial.repeat(len(images), 1)
        ads = ADS(prior, operator, self.sampling)
        predicted, true = errors_on_the_way(ads, images, initial, self.problem.budget, luck, context.progress)
        data = {"predicted": predicted, "true": true}
        found = xr.Dataset({name: (("subject", "step"), value.cpu().numpy()) for name, value in data.items()})
        return found.assign(ratio=("step", (true.mean(0) / predicted.mean(0)).cpu().numpy()))


def errors_on_the_way(
    ads: ADS,
    images: Tensor,
    initial: Tensor,
    budget: int,
    luck: Sequence[torch.Generator],
    progress: Callable[[float], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Predicted and true NMSE (S, steps) of images (S, C, H, W) at every step, while ADS acquires them.

    Args:
        ads: without a stop rule.
        images: known ones.
        initial: ``(S, A)`` actions held from the start.
        budget: actions a subject.
        luck: one generator a subject.
        progress: called with the share of the work done.
    """
    predicted, true = [], []

    def look(step: Progress) -> None:
        predicted.append(predicted_nmse(step.x0))
        true.append(_complex_nmse(images, step.x0.mean(1)))
        if progress is not None:
            progress((step.step + 1) / step.steps)

    ads.run(Scanner(ads.operator, images), initial, budget, luck, look)
    return torch.stack(predicted, 1), torch.stack(true, 1)


def _complex_nmse(target: Tensor, estimate: Tensor) -> Tensor:
    if target.shape[1] == 1:
        return nmse(target[:, 0], estimate[:, 0])
    return (target - estimate).square().sum((1, 2, 3)) / target.square().sum((1, 2, 3))

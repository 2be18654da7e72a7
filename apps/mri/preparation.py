"""What a method is prepared with on training images: the searched mask, and the calibration of the stop rule."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import xarray as xr
from torch import Tensor

from apps.mri.ads import ADS, Progress, Sampling, predicted_nmse
from apps.mri.greedy_fixed import greedy_fixed
from apps.mri.learned.products import subject_seeds, training_set
from apps.mri.methods import generators
from apps.mri.problem import MixtureSettings, PriorSettings, Problem, prior_of
from core.diffusion.exact_posterior import ExactPosterior
from core.diffusion.mixture import GaussianMixturePrior
from core.study import Context, Run
from simulators.mri.quality import nmse
from simulators.mri.scanner import Scanner


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
        predicted, true = [], []

        def look(progress: Progress) -> None:
            predicted.append(predicted_nmse(progress.x0))
            true.append(_complex_nmse(images, progress.x0.mean(1)))
            context.progress((progress.step + 1) / progress.steps)

        ADS(prior, operator, self.sampling).run(Scanner(operator, images), initial, self.problem.budget, luck, look)
        found = {"predicted": torch.stack(predicted, 1), "true": torch.stack(true, 1)}
        data = {name: (("subject", "step"), value.cpu().numpy()) for name, value in found.items()}
        ratio = found["true"].mean(0) / found["predicted"].mean(0)
        return xr.Dataset(data).assign(ratio=("step", ratio.cpu().numpy()))


def _complex_nmse(target: Tensor, estimate: Tensor) -> Tensor:
    if target.shape[1] == 1:
        return nmse(target[:, 0], estimate[:, 0])
    return (target - estimate).square().sum((1, 2, 3)) / target.square().sum((1, 2, 3))

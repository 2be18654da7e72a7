"""What is trained for the learned baselines, once for all runs that use it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from apps.mri.learned import loupe, policy_gradient, unet
from apps.mri.learned.loupe import LOUPE, LOUPESettings
from apps.mri.learned.policy_gradient import LinePolicy, PolicyGradientSettings
from apps.mri.learned.unet import UNetReconstruction, UNetSettings
from apps.mri.masks import FixedRule, fixed_masks
from apps.mri.methods import generators
from apps.mri.problem import Problem, TrainingImages
from core.seeds import stream
from core.study import Context, Product
from simulators.mri.operators import Operator


def training_set(problem: Problem, limit: int | None, context: Context) -> tuple[Tensor, Operator]:
    """The training images on the device, at most ``limit`` of them spread over all, and the operator."""
    images = TrainingImages(images=problem.images).load(context)
    if limit is not None:
        images = images[:: max(1, len(images) // limit)][:limit]
    images = images.to(context.device)
    return images, problem.measurement((images.shape[1], images.shape[2], images.shape[3]))


class TrainedUNet(Product):
    """A U-Net that reconstructs the samples of random masks of one rule."""

    problem: Problem
    rule: FixedRule
    fewest: int | None
    """Actions of the smallest training masks; all have the budget's if null."""
    settings: UNetSettings
    limit: int | None
    seed: int

    @property
    def label(self) -> str:
        """Name on the screen."""
        return f"{self.problem.name} U-Net"

    def make(self, directory: Path, context: Context) -> None:
        """Train and write ``unet.*``."""
        images, operator = training_set(self.problem, self.limit, context)
        problem = self.problem.known(operator, context)

        def masks(count: int, generator: torch.Generator) -> Tensor:
            device, most = generator.device, problem.budget
            draws = torch.randint(2**62, (count,), generator=generator, device=device).tolist()
            least = most if self.fewest is None else self.fewest
            budget = int(torch.randint(least, most + 1, (), generator=generator, device=device))
            return fixed_masks(self.rule, replace(problem, budget=budget), generators(draws, device))

        train = unet.train
        network = train(operator, images, masks, self.settings, seed=self.seed, progress=context.progress)
        network.save(directory / "unet")

    def load(self, operator: Operator, context: Context) -> UNetReconstruction:
        """The network, trained if need be."""
        return UNetReconstruction.load(context.product(self) / "unet", operator).to(context.device)


class TrainedLOUPE(Product):
    """Line probabilities and the U-Net trained with them."""

    problem: Problem
    settings: LOUPESettings
    limit: int | None
    seed: int

    @property
    def label(self) -> str:
        """Name on the screen."""
        return f"{self.problem.name} LOUPE"

    def make(self, directory: Path, context: Context) -> None:
        """Train and write ``loupe.*``."""
        images, operator = training_set(self.problem, self.limit, context)
        loupe.train(operator, images, self.settings, seed=self.seed, progress=context.progress).save(
            directory / "loupe"
        )

    def load(self, operator: Operator, context: Context) -> LOUPE:
        """The sampler, trained if need be."""
        return LOUPE.load(context.product(self) / "loupe", operator).to(context.device)


class TrainedPolicy(Product):
    """The greedy policy gradient, on top of a trained U-Net."""

    problem: Problem
    settings: PolicyGradientSettings
    unet: TrainedUNet
    limit: int | None
    seed: int

    @property
    def label(self) -> str:
        """Name on the screen."""
        return f"{self.problem.name} policy gradient"

    def make(self, directory: Path, context: Context) -> None:
        """Train and write ``policy.*``."""
        images, operator = training_set(self.problem, self.limit, context)
        reconstruct = self.unet.load(operator, context)
        train = policy_gradient.train
        policy = train(operator, reconstruct, images, self.settings, seed=self.seed, progress=context.progress)
        policy.save(directory / "policy")

    def load(self, operator: Operator, context: Context) -> LinePolicy:
        """The policy, trained if need be."""
        return LinePolicy.load(context.product(self) / "policy", operator).to(context.device)


def subject_seeds(seed: int, purpose: str, first: int, count: int) -> Sequence[int]:
    """A seed for each subject: its numbers do not depend on the batch it is in."""
    return [stream(seed, f"{purpose} of subject {first + i}") for i in range(count)]

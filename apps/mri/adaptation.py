"""Adapting a trained prior to images of another kind, from these images alone, and what that gained and cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from apps.mri.ads import ADS, Sampling
from apps.mri.masks import MaskProblem, fixed_masks
from apps.mri.methods import display, generators, point_estimate
from core.diffusion.diffusers_prior import DiffusersPrior
from core.diffusion.preference import DiffusionPreference, Preference
from core.diffusion.prior import Prior
from core.diffusion.training import Training, diffuse, draw, seed_all
from core.diffusion.unet import NetworkPrior
from core.errors import InputError
from core.seeds import stream
from core.stats import mean_interval, paired_difference
from core.study import Row
from simulators.mri.operators import KSpaceLines, Operator, Pixels
from simulators.mri.quality import ssim
from simulators.mri.scanner import Scanner

TIMES = 8
"""Diffusion times at which each image of the old prior is denoised."""


class Adaptation(StrEnum):
    """How a prior is adapted."""

    finetune = "finetune"
    seppo = "seppo"


def adapt(
    prior: Prior,
    winners: Tensor,
    how: Adaptation,
    training: Training,
    device: torch.device | str = "cpu",
    *,
    checkpoint: Path | None = None,
    progress: Callable[[float, str], None] | None = None,
) -> dict[str, NetworkPrior | DiffusersPrior]:
    """The prior adapted to ``winners`` (N, C, H, W), such as fully sampled scans of one's own site, by name.

    ``finetune`` trains on the winners as before; ``seppo`` is self-play preference optimisation (Zhang et al. 2024).
    Plain fine-tuning was the stronger of the two wherever it was measured here, so ``seppo`` comes with it. Killed,
    either goes on from the file ``checkpoint``, fine-tuning beside SePPO from ``<checkpoint>.finetune``.

    Raises:
        InputError: the prior is a mixture, which is fitted anew in seconds, images of another shape, or a checkpoint
            of another adaptation.
        TrainingDiverged: a loss is not finite.
    """
    if not isinstance(prior, NetworkPrior | DiffusersPrior):
        raise InputError("--start: a mixture is not adapted; fit one to the new images (seconds)")
    settings = Preference(
        mode="seppo",
        updates=training.steps or 300,
        batch=training.batch,
        learning_rate=training.learning_rate,
        seed=training.seed,
    )
    aligned = DiffusionPreference(prior, settings, device=device)
    if how is Adaptation.finetune:
        return {"finetune": aligned.finetune(winners, checkpoint=checkpoint, progress=progress)}
    beside = None if checkpoint is None else checkpoint.with_name(f"{checkpoint.name}.finetune")
    return {
        "finetune": aligned.finetune(winners, checkpoint=beside, progress=progress),
        "seppo": aligned.fit(winners, checkpoint=checkpoint, progress=progress),
    }


def judge(priors: Mapping[str, Prior], images: Tensor, seed: int = 0) -> list[Row]:
    """What an adaptation gained on ``images`` (N, C, H, W) that it has not seen, and what it forgot.

    SSIM is that of posterior sampling from a quarter of the samples: k-space lines of complex images (fastMRI masks),
    else random pixels. Drift is the growth of the error of the predicted noise on images that the first prior draws.
    All priors meet the same masks, particles and noise; intervals are over images, 95 %.

    Args:
        priors: the one before first, then the adapted ones.
        images: of the new kind, at least two.
        seed: of masks, particles and noise.

    Raises:
        InputError: fewer than two images, or of another shape.
    """
    if len(images) < 2:
        raise InputError(f"{len(images)} test images: at least 2 are needed to judge an adaptation")
    before, old = next(iter(priors)), next(iter(priors.values()))
    luck = torch.Generator(images.device).manual_seed(stream(seed, "old images"))
    drawn = old.sample(len(images), steps=50, generator=luck)
    quality = {name: _quality(prior, images, seed) for name, prior in priors.items()}
    error = {name: _denoising_error(prior, drawn, seed) for name, prior in priors.items()}
    rows = []
    for metric, values in (("SSIM, new images", quality), ("denoising error, old images", error)):
        for name in priors:
            i = mean_interval(values[name])
            rows.append(Row("adaptation", name, metric, "1", i.mean, i.low, i.high, i.n))
        for name in priors:
            if name != before:
                i = paired_difference(values[name], values[before])
                change = "gain in SSIM" if values is quality else "drift"
                rows.append(Row("adaptation", name, change, "1", i.mean, i.low, i.high, i.n))
    return rows


def _quality(prior: Prior, images: Tensor, seed: int) -> np.ndarray:
    """SSIM (N,) of posterior sampling from a quarter of the samples."""
    shape, complex_valued = prior.shape, prior.shape[0] == 2
    operator: Operator = KSpaceLines(shape) if complex_valued else Pixels(shape)
    none = torch.zeros(operator.actions, dtype=torch.bool, device=images.device)
    width = None if complex_valued else shape[2]
    problem = MaskProblem(operator.actions, max(1, operator.actions // 4), none, operator.center, width=width)
    numbers = range(len(images))
    mask = fixed_masks(
        "fastmri" if complex_valued else "random",
        problem,
        generators([stream(seed, f"mask {i}") for i in numbers], images.device),
    )
    sampling = Sampling(steps=50, particles=4, hard_consistency=complex_valued)
    luck = generators([stream(seed, f"particles {i}") for i in numbers], images.device)
    found = ADS(prior, operator, sampling).run(Scanner(operator, images), mask, problem.budget, luck)
    return np.asarray(ssim(display(images), point_estimate(found.particles)).double().cpu())


def _denoising_error(prior: Prior, images: Tensor, seed: int) -> np.ndarray:
    """Mean squared error (N,) of the predicted noise, over the same times and noise for every prior."""
    device = images.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad():
        seed_all(device, stream(seed, "drift"))
        many = images.repeat(TIMES, 1, 1, 1)
        tau, eps = draw(prior, many)
        error = (prior.noise(diffuse(prior, many, tau, eps), tau) - eps).square().flatten(1).mean(1)
    return np.asarray(error.view(TIMES, -1).mean(0).double().cpu())

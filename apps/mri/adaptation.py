"""Adapting a trained prior to images of another kind, from these images alone."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path

import torch
from torch import Tensor

from core.diffusion.diffusers_prior import DiffusersPrior
from core.diffusion.preference import DiffusionPreference, Preference
from core.diffusion.prior import Prior
from core.diffusion.training import Training
from core.diffusion.unet import NetworkPrior
from core.errors import InputError


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
) -> NetworkPrior | DiffusersPrior:
    """The prior adapted to ``winners`` (N, C, H, W), such as fully sampled scans of one's own site.

    ``finetune`` trains on the winners as before; ``seppo`` is self-play preference optimisation (Zhang et al. 2024).
    Plain fine-tuning was the stronger of the two wherever it was measured here: report both. Killed, either goes on
    from the file ``checkpoint``.

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
    learn = aligned.finetune if how is Adaptation.finetune else aligned.fit
    return learn(winners, checkpoint=checkpoint, progress=progress)

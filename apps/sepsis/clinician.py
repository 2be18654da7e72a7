"""The clinician's policy, estimated from the log: what off-policy estimates divide by where it is not known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from apps.sepsis.settings import ClinicianSettings
from core.offline import BehaviourCloning, NearestNeighbourBehaviour
from simulators.sepsis.cohort import Cohort

Clinician = BehaviourCloning | NearestNeighbourBehaviour
"""Anything with ``probabilities(state (N, 44)) -> (N, 25)``."""


def train_clinician(
    cohort: Cohort,
    settings: ClinicianSettings,
    seed: int,
    *,
    device: str | torch.device = "cpu",
    checkpoint: Path | None = None,
    progress: Callable[[float, str], None] | None = None,
) -> Clinician:
    """Fit the clinician's actions in the training split; the published settings are the defaults.

    Args:
        cohort: the log.
        settings: network or neighbours.
        seed: of the network.
        device: where.
        checkpoint: file that survives a kill.
        progress: told the share done and a message.

    Raises:
        MissingExtra: neighbours without scikit-learn.
        TrainingDiverged: the loss is not finite.
    """
    dataset = cohort.dataset(cohort.rewards(), "train")
    if settings.kind == "neighbours":
        return NearestNeighbourBehaviour(settings.neighbours, settings.smoothing).fit(dataset)
    model = BehaviourCloning(
        hidden=settings.hidden,
        batch_norm=True,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        epochs=settings.epochs,
        batch=settings.batch,
        seed=seed,
        device=device,
    )
    return model.fit(dataset, checkpoint=checkpoint, progress=progress)

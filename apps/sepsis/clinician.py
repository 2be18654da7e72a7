"""The clinician's policy, estimated from the log: what off-policy estimates divide by where it is not known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from apps.sepsis.evidence import share
from apps.sepsis.settings import ClinicianSettings
from apps.sepsis.table import row_of
from core import files
from core.errors import InputError
from core.offline import BehaviourCloning, NearestNeighbourBehaviour
from core.study import Row
from simulators.sepsis.cohort import Cohort
from simulators.sepsis.features import ACTIONS, feature_hash

RECORD, NETWORK = "clinician.json", "network"

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


def save_clinician(folder: Path, clinician: Clinician) -> None:
    """Write a clinician into a folder; of neighbours only how they are found, since they are records of patients."""
    folder.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {"features": feature_hash(), "neighbours": None, "smoothing": None}
    if isinstance(clinician, BehaviourCloning):
        clinician.save(folder / NETWORK)
    else:
        record |= {"neighbours": clinician.k, "smoothing": clinician.smoothing}
    files.write_json(folder / RECORD, record)


def load_clinician(folder: Path, cohort: Cohort, device: str | torch.device = "cpu") -> Clinician:
    """Read what ``save_clinician`` wrote; neighbours are found anew in the cohort's training split.

    Raises:
        InputError: missing or damaged files, or a clinician for other features.
        MissingExtra: neighbours without scikit-learn.
    """
    record = files.read_json(folder / RECORD, ("features", "neighbours", "smoothing"))
    if record["features"] != feature_hash():
        raise InputError(f"{folder / RECORD}: made for another list of features; allowed: {feature_hash()}")
    if record["neighbours"] is None:
        return BehaviourCloning.load(folder / NETWORK, device)
    known = NearestNeighbourBehaviour(int(record["neighbours"]), float(record["smoothing"]))
    return known.fit(cohort.dataset(cohort.rewards(), "train"))


def clinician_rows(cohort: Cohort, clinician: Clinician) -> list[Row]:
    """Accuracy and log-loss on the test steps, beside the most frequent action's; patients are resampled."""
    test = cohort.steps("test")
    probabilities = clinician.probabilities(test.state)
    frequency = torch.bincount(cohort.steps("train").action, minlength=ACTIONS).double() + 1
    constant = (frequency / frequency.sum()).expand(len(test), -1)
    rows = []
    for method, likely in (("clinician", probabilities), ("frequencies alone", constant)):
        right = (likely.argmax(1) == test.action).double()
        loss = -likely.double().clamp(min=1e-12).gather(1, test.action[:, None])[:, 0].log()
        for metric, unit, value, factor in (("accuracy", "%", right, 100.0), ("log-loss", "nats", loss, 1.0)):
            if (found := share(value, test.patient)) is not None:
                rows.append(row_of("test steps", method, metric, unit, found, factor))
    return rows

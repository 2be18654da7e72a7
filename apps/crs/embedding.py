"""Embeddings of a catalogue: what can be set, and how they are fitted."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from apps.crs.factorisation import Factorisation
from apps.crs.row_adam import RowAdam
from apps.crs.transe import TransE
from apps.crs.triples import Batch, Triples
from core.checkpoint import Checkpoint
from core.errors import InputError
from core.rl import TrainingDiverged
from core.seeds import stream
from core.study import Config
from simulators.crs.catalogue import Catalogue
from simulators.crs.embeddings import Embeddings

Progress = Callable[[float, str], None]
EPOCHS, RUN = "epochs", "run"
"""Names in a checkpoint: epochs done, and a number that tells which fit it belongs to."""


class EmbeddingSettings(Config):
    """How users, items and attributes get their points."""

    method: Literal["transe", "mf", "random"] = "transe"
    """TransE (Bordes et al. 2013); a factorisation machine trained by BPR, as in EAR; or random directions."""
    dim: int = Field(default=64, ge=1)
    """Numbers of a point."""
    epochs: int = Field(default=40, ge=1)
    """Passes through all triples; of transe and mf."""
    margin: float = Field(default=1.0, gt=0)
    """By which a corrupted triple must be further off than the true one; of transe."""
    penalty: float = Field(default=0.03, ge=0)
    """Times the squared norms of the points of a triple is added to its loss; of mf."""
    learning_rate: float = Field(default=0.01, gt=0)
    """Of Adam."""
    batch: int = Field(default=4096, ge=1)
    """Triples of a step."""
    use_friends: bool = False
    """Whether friendships are triples too."""
    use_likes: bool = False
    """Whether attributes that a user likes are."""


def fit_embeddings(
    catalogue: Catalogue,
    settings: EmbeddingSettings,
    seed: int,
    *,
    device: torch.device | str,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> Embeddings:
    """Points of the users, items and attributes of a catalogue, from its attributes and its train split alone.

    Args:
        catalogue: whose valid and test splits are not read.
        settings: of the fit.
        seed: two fits with the same seed, on the same kind of device, are equal bit for bit.
        device: on which to compute; the points lie there.
        checkpoint: a file from which an interrupted fit goes on, bit for bit, and which it keeps up to date.
        progress: told the share done and a message with the mean loss, after every epoch.

    Raises:
        InputError: the train split, or a table that the settings ask for, is empty; or the checkpoint is damaged or
            belongs to another fit.
        TrainingDiverged: the loss or a point is not finite; ``checkpoint`` keeps the last good state that was saved.
    """
    counts = [catalogue.n_users, catalogue.n_items, catalogue.n_attributes]
    if settings.method == "random":
        generator = torch.Generator().manual_seed(stream(seed, "embedding start"))
        points = functional.normalize(torch.randn(sum(counts), settings.dim, generator=generator), dim=1)
        return Embeddings(*points.to(device).split(counts))
    triples = Triples(catalogue, friends=settings.use_friends, likes=settings.use_likes)
    model: TransE | Factorisation
    if settings.method == "transe":
        model = TransE(triples, settings.margin)
    else:
        model = Factorisation(triples, settings.penalty)
    run = stream(seed, f"embedding {catalogue.hash} {settings.hash}")
    adam = _fit(model, settings, seed, run, device, Checkpoint(checkpoint), progress)
    return Embeddings(*adam.table[: triples.entities].split(counts))


def _fit(
    model: TransE | Factorisation,
    settings: EmbeddingSettings,
    seed: int,
    run: int,
    device: torch.device | str,
    checkpoint: Checkpoint,
    progress: Progress | None,
) -> RowAdam:
    """All epochs. What is drawn in one follows from the seed and its number, so a resumed fit repeats nothing."""
    start = torch.Generator().manual_seed(stream(seed, "embedding start"))
    adam = RowAdam(model.start(settings.dim, start).to(device), settings.learning_rate, model.project)
    done = 0
    if (saved := checkpoint.load()) is not None:
        if {EPOCHS, RUN, *adam.tensors()} - set(saved) or int(saved[RUN]) != run:
            raise InputError(
                f"{checkpoint.path}: is the state of another fit; allowed: one of the same catalogue, settings and "
                "seed, or no file"
            )
        done = int(saved[EPOCHS])
        adam.load(saved)
    for epoch in range(done, settings.epochs):
        generator = torch.Generator().manual_seed(stream(seed, f"embedding epoch {epoch}"))
        mean = _epoch(model, adam, model.epoch(generator).to(device), settings.batch)
        if not math.isfinite(mean) or not bool(torch.isfinite(adam.table).all()):
            raise TrainingDiverged(f"embeddings: loss or points not finite in epoch {epoch + 1} of {settings.epochs}")
        if checkpoint.due:
            checkpoint.save({EPOCHS: torch.tensor(epoch + 1), RUN: torch.tensor(run), **adam.tensors()})
        if progress is not None:
            progress((epoch + 1) / settings.epochs, f"epoch {epoch + 1} of {settings.epochs}: mean loss {mean:.4f}")
    return adam


def _epoch(model: TransE | Factorisation, adam: RowAdam, drawn: Batch, size: int) -> float:
    """A step for each ``size`` triples; the mean loss of a triple, each before the step it is part of."""
    total = torch.zeros((), dtype=torch.float64, device=adam.table.device)
    for batch in drawn.split(size):
        found = adam.step(model.ids(batch), partial(_mean_loss, model, batch))
        total += found.double() * len(batch)
    return float(total) / max(len(drawn), 1)


def _mean_loss(model: TransE | Factorisation, batch: Batch, points: Tensor) -> Tensor:
    return model.loss(points, batch).mean()

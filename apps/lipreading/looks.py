"""Looks at validation clips while a model learns, and the choice of its best weights."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch

from apps.lipreading.metrics import character_errors
from apps.lipreading.models import LipReader
from apps.lipreading.sources import Corpus, Split
from core import files
from core.rl.checkpoint import read_tensors
from core.seeds import stream
from core.sequence.batch import TokenBatch
from core.sequence.train import Record, SequencePolicyOptimization


@dataclass(frozen=True)
class Look:
    """Error rates of characters in a set of clips: all edits over all characters.

    Attributes:
        update: updates done.
        greedy: of the most probable symbols.
        sampled: of one transcript a clip, drawn at temperature 1.
    """

    update: int
    greedy: float
    sampled: float


def transcribed(
    model: LipReader,
    corpus: Corpus,
    split: Split,
    seed: int,
    temperatures: tuple[float, ...] = (0.0, 1.0),
    batch: int = 512,
) -> list[tuple[TokenBatch, ...]]:
    """References and a transcript at each temperature (0: most probable symbols) of all clips of a split, in parts."""
    found = []
    for part, seen in enumerate(corpus.batches(split, batch)):
        generator = torch.Generator(seen.reference.tokens.device).manual_seed(stream(seed, f"transcripts {part}"))
        made = (model.sample(seen.clips, 1, corpus.max_length + 4, t, generator=generator) for t in temperatures)
        found.append((seen.reference, *(batch.with_(context=None) for batch in made)))
    return found


def look(model: LipReader, corpus: Corpus, split: Split, seed: int, update: int = 0) -> Look:
    """The error rates of a model; the draws are the same for every model of a seed."""
    edits, count = torch.zeros(2, dtype=torch.long), 0
    training = model.training
    model.eval()
    for reference, *read in transcribed(model, corpus, split, seed):
        found = [character_errors(x, reference) for x in read]
        edits += torch.stack([errors.edits.sum() for errors in found]).cpu()
        count += int(found[0].length.sum())
    model.train(training)
    return Look(update, *(edits / count).tolist())


def evenly(updates: int, looks: int) -> set[int]:
    """After which of the updates, counted from 1, to look so many times; the last is after the last update.

    Where there are fewer updates than looks, after each.
    """
    return {round(i * updates / looks) for i in range(1, looks + 1)}


class Looks:
    """A callback of the trainer.

    Args:
        model: that learns.
        corpus: whose validation clips are looked at.
        at: numbers of updates done after which to look, see ``evenly``.
        folder: in which looks and best weights survive a kill.
        keep: keep the weights of the smallest greedy error rate.
        seed: of the samples.
    """

    RECORD, BEST = "looks.json", "best.safetensors"

    def __init__(
        self, model: LipReader, corpus: Corpus, at: Collection[int], folder: Path, *, keep: bool, seed: int
    ) -> None:
        self.model, self.corpus, self.at, self.folder, self.keep, self.seed = model, corpus, at, folder, keep, seed
        folder.mkdir(parents=True, exist_ok=True)
        record = folder / self.RECORD
        self.found = [Look(**x) for x in json.loads(record.read_text())] if record.exists() else []

    def __call__(self, trainer: SequencePolicyOptimization, record: Record) -> None:
        """After an update."""
        if trainer.step in self.at:
            self.look(trainer.step)

    def look(self, update: int) -> None:
        """Look, unless that was done before a kill."""
        if any(done.update == update for done in self.found):
            return
        new = look(self.model, self.corpus, "validation", self.seed, update)
        if self.keep and all(new.greedy < done.greedy for done in self.found):
            weights = {name: x.detach().cpu().contiguous() for name, x in self.model.state_dict().items()}
            files.write(self.folder / self.BEST, safetensors.torch.save(weights))
        self.found.append(new)
        files.write(self.folder / self.RECORD, json.dumps([vars(x) for x in self.found]))

    def take_best(self) -> None:
        """Give the model its best weights, where these were kept."""
        if (best := self.folder / self.BEST).exists():
            self.model.load_state_dict(read_tensors(best)[0])

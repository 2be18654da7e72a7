"""A trained lip-reader with all it needs to read clips from elsewhere, and how one is made."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from apps.lipreading.clips import Clips
from apps.lipreading.features import EigenLips
from apps.lipreading.grammars import GRAMMARS
from apps.lipreading.looks import Look, Looks, evenly
from apps.lipreading.methods import Method
from apps.lipreading.models import LipReader, build
from apps.lipreading.models.saving import load_model, save_model
from apps.lipreading.models.settings import ModelSettings
from apps.lipreading.sources import Augmentation, Corpus, PackCorpus, Source
from apps.lipreading.training import Progress, TrainingSettings, train
from core import files
from core.errors import InputError
from core.seeds import stream
from core.study import Config
from simulators.lips.grammar import Grammar

MODEL, CURVE = "model.safetensors", "curve.jsonl"


class ReaderConfig(Config):
    """A lip-reader and its training."""

    source: Source
    """Of the clips."""
    model: ModelSettings
    """That learns."""
    method: Method = Method(name="cross-entropy")
    """The objective."""
    training: TrainingSettings = TrainingSettings()
    """How long and how fast."""
    looks: int = Field(default=0, ge=0)
    """At validation clips, evenly over the updates."""
    best: bool = False
    """Whether the weights of the best look are kept, in place of the last."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Of weights, order of the clips, noise and dropout."""

    @model_validator(mode="after")
    def _looked_at(self) -> Self:
        if self.best and not self.looks:
            raise InputError("best: true needs looks, of which the best is kept; looks is 0")
        return self


@dataclass(frozen=True)
class Reader:
    """A model that reads clips.

    Attributes:
        model: in evaluation mode.
        grammar: of what it has learnt from, None where there is none.
        max_length: symbols of its longest transcript.
        lips: features of frames; None where it sees the frames.
        augmentation: whose middle cut it sees.
        inputs: ``features``, ``landmarks`` or ``frames``, what it has learnt from.
        frame_size: height and width in pixels of the frames that ``features`` takes; None where it takes none.
        crop: how the mouths that it has learnt from were found, as ``prepare --crop`` says it; None where not known.
        looks: at validation clips while it learnt.
        config: of its training.
    """

    model: LipReader
    grammar: Grammar | None
    max_length: int
    lips: EigenLips | None
    augmentation: Augmentation
    inputs: str
    frame_size: tuple[int, int] | None
    crop: str | None
    looks: list[Look]
    config: ReaderConfig

    def features(self, frames: Tensor, length: Tensor | None = None) -> Clips:
        """What the model sees of uint8 frames ``(n, T, H, W)``, of which ``length`` ``(n,)`` are valid.

        Raises:
            InputError: the model has learnt from something else, or from frames of another size.
        """
        if self.inputs != "frames":
            raise InputError(f"model: has learnt from simulated {self.inputs}; a clip needs one that has from frames")
        if length is None:
            length = torch.full((len(frames),), frames.shape[1])
        frames = self.augmentation.middle(frames)
        clips = Clips(frames.float() / 255, length) if self.lips is None else self.lips(frames, length)
        device = next(self.model.parameters()).device
        return Clips(clips.frames.to(device), clips.length.to(device))


def make_reader(
    config: ReaderConfig,
    folder: Path,
    checkpoint: Path,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> None:
    """Train a reader and write ``model.safetensors`` and ``curve.jsonl``, one line an update.

    Args:
        config: of the training.
        folder: to write into.
        checkpoint: folder from which an interrupted training goes on, bit for bit.
        device: to compute on.
        progress: told the share done and a message.

    Raises:
        InputError: clips that cannot be read, or that the model does not take.
        TrainingDiverged: losses stay without a number; the checkpoint has the last good state.
    """
    folder.mkdir(parents=True, exist_ok=True)
    corpus = config.source.open(device)
    check_inputs(config, corpus)
    model = fresh_model(config).to(device)
    callbacks = []
    if config.looks:
        at = evenly(config.training.updates, config.looks)
        callbacks.append(Looks(model, corpus, at, checkpoint, keep=config.best, seed=config.seed))
    records = train(
        model,
        corpus,
        config.method,
        config.training,
        config.seed,
        run=config.hash,
        checkpoint=checkpoint / "state.safetensors",
        progress=progress,
        callbacks=callbacks,
    )
    extra: dict[str, object] = {"config": config.model_dump(mode="json"), **record_of(corpus)}
    for looks in callbacks:
        looks.take_best()
        extra["looks"] = [vars(x) for x in looks.found]
    files.write(folder / CURVE, "".join(f"{json.dumps(files.jsonable(record))}\n" for record in records))
    lips = corpus.lips if isinstance(corpus, PackCorpus) else None
    save_model(folder / MODEL, model.eval(), extra, None if lips is None else lips.tensors())


def fresh_model(config: ReaderConfig) -> LipReader:
    """The model of a config with the weights that its seed draws."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream(config.seed, "weights"))
        return build(config.model)


def check_inputs(config: ReaderConfig, corpus: Corpus) -> None:
    """Refuse a model that does not take what the source gives.

    Raises:
        InputError: so it is.
    """
    first = corpus.training(torch.zeros(1, dtype=torch.long), torch.Generator().manual_seed(0))
    shape = tuple(first.clips.frames.shape[2:])
    model = config.model
    given = f"{shape[0]} features a frame" if len(shape) == 1 else f"frames of {shape[0]} x {shape[1]} pixels"
    if model.name == "fast" and model.front_end == "features":
        if len(shape) == 2:
            raise InputError(f"model.front_end: features; the source gives {given}; must be frames")
        if shape != (model.inputs,):
            raise InputError(f"model.inputs: {model.inputs}; the source gives {given}; must be {shape[0]}")
    elif len(shape) == 1:
        raise InputError(f"model: {model.name} reads frames; the source gives {given}")
    elif model.name == "stcnn" and shape != (model.height, model.width):
        raise InputError(f"model.height, model.width: {model.height}, {model.width}; the source gives {given}")


def grammar_of(corpus: Corpus) -> str | None:
    """Name of the grammar of its transcripts, None where there is none."""
    return next((name for name, known in GRAMMARS.items() if known is corpus.grammar), None)


def record_of(corpus: Corpus) -> dict[str, object]:
    """What must be known of a corpus to read like clips."""
    lips = corpus.lips.record() if isinstance(corpus, PackCorpus) and corpus.lips is not None else None
    return {
        "grammar": grammar_of(corpus),
        "max_length": corpus.max_length,
        "lips": lips,
        "frame_size": corpus.frame_size,
        "crop": corpus.pack.crop if isinstance(corpus, PackCorpus) else None,
    }


def open_reader(folder: Path, device: torch.device | str = "cpu") -> Reader:
    """The reader in a folder that ``make_reader`` has written.

    Raises:
        InputError: it is absent or damaged.
    """
    saved = load_model(folder / MODEL, device)
    try:
        config, lips = ReaderConfig.model_validate(saved.extra["config"]), saved.extra["lips"]
        grammar, longest = saved.extra["grammar"], int(saved.extra["max_length"])
        size = saved.extra["frame_size"] and tuple(map(int, saved.extra["frame_size"]))
        eigen = None
        if lips is not None:
            eigen = EigenLips(
                saved.tensors["components"].cpu(),
                saved.tensors["scale"].cpu(),
                float(lips["explained"]),
                int(lips["height"]),
                int(lips["width"]),
                bool(lips["differences"]),
            )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{folder / MODEL}: the record in its header is damaged ({error})") from error
    source = config.source
    return Reader(
        saved.model,
        GRAMMARS[grammar] if grammar else None,
        longest,
        eigen,
        Augmentation() if source.kind == "simulated" else source.augmentation,
        source.mode if source.kind == "simulated" else "frames",
        size,
        saved.extra.get("crop"),
        [Look(**x) for x in saved.extra.get("looks", [])],
        config,
    )

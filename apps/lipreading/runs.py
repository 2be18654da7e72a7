"""The runs of a study: reading with a trained model, and training it further by an objective."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Self

import numpy as np
import torch
import xarray as xr
from pydantic import Field, model_validator

from apps.lipreading.evidence import rate
from apps.lipreading.looks import Look, Looks, evenly, transcribed
from apps.lipreading.methods import Method
from apps.lipreading.metrics import character_errors, word_errors
from apps.lipreading.models import LipReader
from apps.lipreading.products import ReaderProduct
from apps.lipreading.reader import grammar_of
from apps.lipreading.sources import Corpus, Source, Split
from apps.lipreading.training import TrainingSettings, train
from core.errors import InputError
from core.seeds import stream
from core.sequence.batch import TokenBatch
from core.sequence.windows import Windowed
from core.simulation import tree
from core.study import Context, Run

CURVES = ("loss", "reward", "entropy", "grad_norm", "in_grammar")
"""Of each update, what is kept."""
SHOWN = 4
"""Clips whose attention is kept."""
TEMPERATURES = (0.9, 0.8, 0.7, 0.6, 0.5)
"""At which a reader is sampled too: what a policy gains by being surer, without any training."""


class Transcribe(Run):
    """Transcripts of a trained reader."""

    name: str
    """Of the experiment."""
    product: ReaderProduct
    """Which."""
    source: Source | None = None
    """Of the clips; null takes the reader's."""
    split: Split = "test"
    """Which of them."""

    @property
    def label(self) -> str:
        """Name on the screen."""
        return f"{self.name}: the reader"

    def execute(self, inputs: Mapping[str, xr.Dataset], context: Context) -> xr.Dataset:
        """What ``transcripts`` returns, with the attention at a few clips and the looks of the training; attribute
        ``grammar``, the name of that of the clips, empty where there is none.
        """
        reader = self.product.open(context)
        corpus = (self.source or self.product.reader.source).open(context.device)
        found = transcripts(reader.model, corpus, self.split, seed=0)
        for further in (tempered, attention):
            found = found.merge(further(reader.model, corpus, self.split))
        found = found.merge(looks_of(reader.looks))
        return found.assign_attrs(grammar=grammar_of(corpus) or "")


class Fork(Run):
    """Further training of a reader by an objective, and the transcripts of what comes of it."""

    name: str
    """Of the experiment."""
    product: ReaderProduct
    """Where it starts."""
    method: Method
    """The objective."""
    training: TrainingSettings
    """How long and how fast; the same for all objectives."""
    seed: int
    """Of the order of the clips, noise and samples."""
    looks: int = Field(default=5, ge=0)
    """At validation clips, evenly over the updates."""
    split: Split = "test"
    """On what it is judged."""
    source: Source | None = None
    """Of the clips to learn from and to be judged on; null takes the reader's."""
    weight: float | None = None
    """Of the policy loss; null takes the best of the trials."""
    trials: tuple[Fork, ...] = ()
    """The same with given weights, judged on validation clips."""

    @model_validator(mode="after")
    def _weighed(self) -> Self:
        if (self.weight is None) == (not self.trials):
            raise InputError("weight: needs either a value or trials")
        return self

    @property
    def label(self) -> str:
        """Name on the screen."""
        weight = "" if self.weight is None or self.method.loss is None else f", weight {self.weight:g}"
        return f"{self.name}: {self.method.name}, seed {self.seed}{weight}"

    def execute(self, inputs: Mapping[str, xr.Dataset], context: Context) -> xr.Dataset:
        """What ``transcripts`` returns, with curves ``(update)`` and looks ``(look)``; attribute ``weight``."""
        weight = self.weight if self.weight is not None else chosen_weight(list(inputs.values()))
        reader = self.product.open(context)
        corpus = (self.source or self.product.reader.source).open(context.device)
        callbacks = []
        if self.looks:
            at = evenly(self.training.updates, self.looks)
            callbacks.append(Looks(reader.model, corpus, at, context.checkpoint, keep=False, seed=0))
            callbacks[0].look(0)
        records = train(
            reader.model,
            corpus,
            self.method,
            self.training,
            stream(self.seed, "fork"),
            weight=weight,
            run=self.hash,
            checkpoint=context.checkpoint / "state.safetensors",
            progress=context.progress,
            callbacks=callbacks,
        )
        found = transcripts(reader.model, corpus, self.split, seed=0)
        curves = {
            name: ("update", curve([record.get(name, np.nan) for record in records], self.training.updates))
            for name in CURVES
        }
        found = found.assign(curves).merge(looks_of(callbacks[0].found if callbacks else []))
        loss = self.method.loss
        told: dict[str, float | str] = {"weight": weight, "reward": "" if loss is None else self.method.reward}
        if isinstance(loss, Windowed):
            told |= {"kernel": loss.kernel, "stride": loss.stride}
        return found.assign_attrs(told)


def curve(values: Sequence[float], updates: int) -> np.ndarray:
    """A number of each update; NaN after the end of a training that was ended early."""
    return np.array([*values, *[np.nan] * (updates - len(values))], dtype=np.float32)


def chosen_weight(trials: Sequence[xr.Dataset]) -> float:
    """The weight of the trial with the smallest error rate of sampled transcripts; the smaller weight of equal ones."""
    return min((rate(x, "CER sampled"), float(x.attrs["weight"])) for x in trials)[1]


def transcripts(model: LipReader, corpus: Corpus, split: Split, seed: int) -> xr.Dataset:
    """What a model reads in the clips of a split.

    Returns:
        By ``utterance``: ``reference``, ``greedy`` and ``sampled`` symbols ``(utterance, symbol)``, ``confidence`` of
        the greedy ones (their probabilities), ``characters``, ``words``, and for greedy and sampled ones ``*_edits``
        and ``*_word_edits``; ``speaker``.
    """
    model.eval()
    parts = transcribed(model, corpus, split, seed)
    names = ("reference", "greedy", "sampled")
    width = max(batch.tokens.shape[1] for part in parts for batch in part)
    found = {name: torch.cat([part[i].pad_to(width).tokens.cpu() for part in parts]) for i, name in enumerate(names)}
    columns: dict[str, tuple[tuple[str, ...], np.ndarray]] = {
        name: (("utterance", "symbol"), tokens.numpy().astype(np.uint8)) for name, tokens in found.items()
    }
    for name in ("greedy", "sampled"):
        edits, length = character_errors(found[name], found["reference"])
        word_edits, words = word_errors(found[name], found["reference"])
        columns[f"{name}_edits"] = (("utterance",), edits.numpy().astype(np.int32))
        columns[f"{name}_word_edits"] = (("utterance",), word_edits.numpy().astype(np.int32))
        columns["characters"] = (("utterance",), length.numpy().astype(np.int32))
        columns["words"] = (("utterance",), words.numpy().astype(np.int32))
    columns["confidence"] = (("utterance", "symbol"), confidence(model, corpus, split, parts, width))
    speaker = torch.cat([seen.speaker.cpu() for seen in corpus.batches(split)])
    return xr.Dataset({**columns, "speaker": (("utterance",), speaker.numpy().astype(np.int32))})


def tempered(model: LipReader, corpus: Corpus, split: Split) -> xr.Dataset:
    """``tempered_edits`` ``(temperature, utterance)`` of one transcript a clip at each of ``TEMPERATURES``."""
    edits = []
    for temperature in TEMPERATURES:
        parts = transcribed(model, corpus, split, 0, temperatures=(temperature,))
        edits.append(torch.cat([character_errors(read, reference).edits.cpu() for reference, read in parts]))
    return xr.Dataset(
        {"tempered_edits": (("temperature", "utterance"), torch.stack(edits).numpy().astype(np.int32))},
        coords={"temperature": list(TEMPERATURES)},
    )


@torch.no_grad()
def confidence(
    model: LipReader, corpus: Corpus, split: Split, parts: Sequence[tuple[TokenBatch, ...]], width: int
) -> np.ndarray:
    """``(utterance, symbol)`` probability of each greedy symbol; 0 after the end, NaN where the model gives none."""
    found = []
    for (_, greedy, _), seen in zip(parts, corpus.batches(split), strict=True):
        if model.ctc:
            lp = torch.full_like(greedy.tokens, torch.nan, dtype=torch.float32)
        else:
            lp = model.score(greedy.with_(context=seen.clips)).log_prob
        probability = torch.where(greedy.mask, lp.exp(), 0.0)
        found.append(torch.nn.functional.pad(probability, (0, width - probability.shape[1])).cpu())
    return torch.cat(found).numpy()


def attention(model: LipReader, corpus: Corpus, split: Split) -> xr.Dataset:
    """Where the decoder looked ``(example, written, step)`` while it wrote the first clips, and when words begin."""
    if model.ctc:
        return xr.Dataset()
    # Of parts of the size that ``transcripts`` reads: the noise of simulated clips hangs on it.
    seen = tree.take(next(corpus.batches(split)), slice(SHOWN))
    greedy = model.sample(seen.clips, 1, corpus.max_length + 4, 0.0)
    weights = model.attention(greedy).cpu().numpy()
    return xr.Dataset(
        {
            # Of the variable: those of a dataset are lost where it is merged into another.
            "attention": (
                ("example", "written", "step"),
                weights.astype(np.float32),
                {"frames": int(seen.clips.steps)},
            ),
            "written": (("example", "written"), greedy.tokens.cpu().numpy().astype(np.uint8)),
            "word_frames": (("example", "word", "end"), seen.words.cpu().numpy().astype(np.float32)),
        }
    )


def looks_of(looks: Sequence[Look]) -> xr.Dataset:
    """Looks as columns ``(look)``."""
    return xr.Dataset(
        {
            f"look_{name}": ("look", np.array([getattr(x, name) for x in looks], dtype=np.float64))
            for name in ("update", "greedy", "sampled")
        }
    )

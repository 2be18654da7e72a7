"""Training of a lip-reader: from scratch by cross-entropy, and further by any objective from given weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from apps.lipreading.methods import Method
from apps.lipreading.models import LipReader
from apps.lipreading.rewards import UNLABELLED, characters, reward
from apps.lipreading.sources import Corpus
from core.errors import InputError
from core.sequence import schedules
from core.sequence.batch import TokenBatch
from core.sequence.losses import CTC, CrossEntropy
from core.sequence.rollouts import Prompts, Rollouts, Source, Supervised
from core.sequence.scheduled import ScheduledSampling
from core.sequence.train import Callback, Objective, Record, SequencePolicyOptimization
from core.study import Config
from simulators.lips import alphabet

Progress = Callable[[float, str], None]


class Constant(Config):
    """The same learning rate throughout."""

    kind: Literal["constant"] = "constant"
    rate: float = Field(default=1e-3, gt=0)
    """Of Adam."""

    def schedule(self, updates: int) -> schedules.Schedule:
        """Of a training of so many updates."""
        return schedules.constant(self.rate)


class Cosine(Config):
    """A learning rate that falls as half a period of a cosine."""

    kind: Literal["cosine"] = "cosine"
    rate: float = Field(default=4e-3, gt=0)
    """At first."""
    final: float = Field(default=5e-4, ge=0)
    """At last."""

    def schedule(self, updates: int) -> schedules.Schedule:
        """Of a training of so many updates."""
        return schedules.cosine(self.rate, self.final, updates)


class Drop(Config):
    """A learning rate that is lowered once."""

    kind: Literal["drop"] = "drop"
    rate: float = Field(default=2e-3, gt=0)
    """At first."""
    final: float = Field(default=5e-4, gt=0)
    """At last."""
    share: float = Field(default=0.3, gt=0, lt=1)
    """Of the updates that are made with the last."""

    def schedule(self, updates: int) -> schedules.Schedule:
        """Of a training of so many updates."""
        return schedules.steps(self.rate, {round((1 - self.share) * updates): self.final})


class Decay(Config):
    """A learning rate that is multiplied by a factor after each so many updates (an epoch, as published)."""

    kind: Literal["decay"] = "decay"
    rate: float = Field(default=5e-5, gt=0)
    """At first."""
    factor: float = Field(default=0.8, gt=0, le=1)
    """Of each step."""
    every: int = Field(default=1500, ge=1)
    """Updates between two."""

    def schedule(self, updates: int) -> schedules.Schedule:
        """Of a training of so many updates."""
        places = range(self.every, updates, self.every)
        return schedules.steps(self.rate, {at: self.rate * self.factor**k for k, at in enumerate(places, 1)})


Rates = Annotated[Constant | Cosine | Drop | Decay, Field(discriminator="kind")]


class TrainingSettings(Config):
    """How long, how fast, and on how many clips at once."""

    updates: int = Field(default=1500, ge=1)
    """Batches of clips; an optimiser step each, or one for each of a method's minibatches."""
    batch: int = Field(default=64, ge=1)
    """Clips of an update; all of them where there are fewer."""
    micro_batch: int | None = Field(default=None, ge=1)
    """Transcripts that pass through the model at once; the memory is less, the gradient is the same but for batch
    normalisation (model paper), whose statistics are then of the parts.
    """
    learning_rate: Rates = Cosine()
    """Of Adam."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Times the weights is added to the gradient."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """To which a gradient is cut."""
    dropout: bool = True
    """Whether the model's dropout acts while transcripts are scored; it never does while they are sampled."""


@dataclass
class LipTask:
    """Clips to be transcribed, for the core's trainer.

    Args:
        corpus: whose training clips are drawn.
        method: what a transcript earns.
    """

    corpus: Corpus
    method: Method
    in_grammar: float = math.nan
    """Share of the last transcripts that were sentences of the grammar, where no labels are read."""

    @property
    def max_length(self) -> int:
        """Symbols of a transcript at most; a little more than any reference needs."""
        return self.corpus.max_length + 4

    def prompts(self, n: int, step: int, generator: torch.Generator) -> Prompts:
        """N clips, all different where there are as many."""
        rows = torch.randperm(self.corpus.size, generator=generator, device=generator.device)[:n].cpu()
        seen = self.corpus.training(rows, generator)
        reference = seen.reference.with_(context=seen.clips)
        return Prompts(seen.clips, reference)

    def reward(self, batch: TokenBatch, prompts: Prompts) -> Tensor:
        """See ``method_reward``."""
        assert prompts.reference is not None
        found = method_reward(self.method, batch, prompts.reference)
        if self.method.reward in UNLABELLED and self.corpus.grammar is not None:
            # What is no sentence cannot be right, whoever agrees on it.
            parses = self.corpus.grammar.parses(batch.tokens).to(found)
            self.in_grammar = float(parses.mean())
            found = found * parses
        return found


def method_reward(method: Method, batch: TokenBatch, reference: TokenBatch) -> Tensor:
    """What the loss of a method reads: of a transcript ``(B,)`` or of its symbols ``(B, T)``.

    Losses that add up symbols get rewards over n, so that a long clip weighs no more than a short one. PCPG gets what a
    transcript earns as a whole in equal parts over its symbols.
    """
    found = reward(method.reward, batch, reference)
    assert method.loss is not None
    per_symbol = found.dim() == 2
    if method.loss.name == "reinforce" or (method.loss.name == "pcpg" and not per_symbol):
        n = characters(reference)[batch.group]
        found = found / (n[:, None] if per_symbol else n)
    if method.loss.name == "pcpg" and not per_symbol:
        found = found[:, None] * batch.mask
    return found


class Guard:
    """Ends a training without labels when its transcripts leave the grammar or agree less (a callback of the trainer).

    Args:
        task: whose share of sentences in the grammar is watched, beside the reward.
        fall: from the best mean of ten updates to the last one, at which the training ends.
    """

    WINDOW = 10

    def __init__(self, task: LipTask, fall: float) -> None:
        self.task, self.fall = task, fall

    def __call__(self, trainer: SequencePolicyOptimization, record: Record) -> bool:
        """Whether to go on."""
        record["in_grammar"] = self.task.in_grammar
        return not self.fell(trainer.records)

    def fell(self, records: Sequence[Record]) -> bool:
        """Whether these updates are such that the training ends."""
        return any(self.fallen([x.get(name, math.nan) for x in records]) for name in ("in_grammar", "reward"))

    def fallen(self, values: Sequence[float]) -> bool:
        """Whether the last full window lies too far below the best one; updates without a number are left out."""
        known = [value for value in values if math.isfinite(value)]
        windows = [known[i : i + self.WINDOW] for i in range(0, len(known) - self.WINDOW + 1, self.WINDOW)]
        means = [sum(window) / self.WINDOW for window in windows]
        return len(means) > 1 and max(means) - means[-1] > self.fall


def trainer(
    model: LipReader, task: LipTask, settings: TrainingSettings, seed: int, weight: float | None = None
) -> SequencePolicyOptimization:
    """The core's trainer of a model on a task.

    Args:
        model: a lip-reader; it is changed in place.
        task: the clips, and the method.
        settings: of the training.
        seed: of clips, noise and samples.
        weight: of the policy loss; the method's first if None.

    Raises:
        InputError: the method acts on single symbols, and the model gives their probabilities no parts.
    """
    method = task.method
    if model.ctc and method.by_symbol:
        raise InputError(
            f"method {method.name}: acts on single symbols, and {model.settings.name} scores whole transcripts"
        )
    supervised = CTC(blank=alphabet.PAD, eos=alphabet.EOS) if model.ctc else CrossEntropy()
    policy = method.loss
    source: Source = Supervised(task, settings.batch)
    if policy is not None:
        source = Rollouts(task, prompts=settings.batch, group=method.group)
    learner: nn.Module = model
    if max(method.replaced) > 0:
        share = schedules.linear(*method.replaced, settings.updates)
        learner = ScheduledSampling(model, share, greedy=method.own_argmax)
    objective = Objective(
        policy=policy,
        weight=method.weights[0] if weight is None else weight,
        estimator=method.estimator,
        supervised=supervised if method.supervised else None,
        supervised_weight=method.supervised,
        minibatches=method.minibatches,
    )
    return SequencePolicyOptimization(
        learner,
        source,
        objective,
        learning_rate=settings.learning_rate.schedule(settings.updates),
        max_grad_norm=settings.max_grad_norm,
        weight_decay=settings.weight_decay,
        optimizer=torch.optim.Adam,
        micro_batch=settings.micro_batch,
        dropout=settings.dropout,
        seed=seed,
    )


def train(
    model: LipReader,
    corpus: Corpus,
    method: Method,
    settings: TrainingSettings,
    seed: int,
    *,
    weight: float | None = None,
    run: str = "",
    checkpoint: Path | None = None,
    progress: Progress | None = None,
    callbacks: Sequence[Callback] = (),
) -> list[Record]:
    """Train a model in place and return a record of each update.

    Args:
        model: a lip-reader; it is changed in place.
        corpus: what it learns from.
        method: the objective.
        settings: of the training.
        seed: of clips, noise and samples.
        weight: of the policy loss; the method's first if None.
        run: a text that tells this training from others whose checkpoint it might be given.
        checkpoint: a file from which an interrupted training goes on, bit for bit.
        progress: told the share done and a message.
        callbacks: called after each update.

    Raises:
        InputError: a checkpoint of another training.
        TrainingDiverged: losses stay without a number.
    """
    task = LipTask(corpus, method)
    guards = [] if method.guard is None else [Guard(task, method.guard)]
    made = trainer(model, task, settings, seed, weight)
    return made.train(
        settings.updates, run=run, checkpoint=checkpoint, progress=progress, callbacks=[*callbacks, *guards]
    )

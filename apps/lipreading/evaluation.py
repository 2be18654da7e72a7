"""Reading the clips of a corpus with a model, and how well it did."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from apps.lipreading.alignment import align, aligned, slots_right
from apps.lipreading.calibration import calibration_error
from apps.lipreading.confusion import viseme_errors
from apps.lipreading.metrics import (
    Errors,
    character_errors,
    corpus_rate,
    exact,
    texts,
    utterance_mean,
    word_errors,
)
from apps.lipreading.models import LipReader
from apps.lipreading.rewards import spelled
from apps.lipreading.sources import Examples
from apps.lipreading.transcripts import Transcript, transcripts
from core.errors import InputError
from core.seeds import stream
from core.sequence.batch import TokenBatch
from core.sequence.search import beam, best, greedy
from core.stats import Interval
from core.study import Row
from simulators.lips.grammar import Grammar
from simulators.lips.phonemes import PRONUNCIATIONS

Decode = Literal["greedy", "beam", "mbr"]
Progress = Callable[[float, str], None]


@dataclass
class Reading:
    """What a model has read from N clips.

    Attributes:
        names: of the clips.
        speakers: who spoke.
        references: what was said.
        hypotheses: what was read.
        sampled: one sample each at temperature 1.
        entropy: ``(N,)`` nats a symbol, mean over the symbols of that sample; NaN where the model has none.
        unit: what is as sure as ``confidence`` says, a symbol or a word.
        confidence: by clip, of each unit of the hypothesis.
        right: by clip, whether it is in its place in the reference.
        in_grammar: whether a hypothesis is a sentence of the grammar, None where there is no grammar.
        transcripts: with their confidences, for ``mbr``.
    """

    names: list[str] = field(default_factory=list)
    speakers: list[str] = field(default_factory=list)
    references: list[str] = field(default_factory=list)
    hypotheses: list[str] = field(default_factory=list)
    sampled: list[str] = field(default_factory=list)
    entropy: list[float] = field(default_factory=list)
    unit: Literal["symbol", "word"] = "symbol"
    confidence: list[NDArray[np.float64]] = field(default_factory=list)
    right: list[NDArray[np.bool_]] = field(default_factory=list)
    in_grammar: list[bool] | None = None
    transcripts: list[Transcript] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.references)

    @property
    def pronounced(self) -> bool:
        """Whether the visemes of all words of the references are known."""
        return all(word in PRONUNCIATIONS for text in self.references for word in text.split())


@torch.no_grad()
def read(
    model: LipReader,
    parts: Iterable[Examples],
    max_length: int,
    *,
    decode: Decode = "greedy",
    grammar: Grammar | None = None,
    names: Sequence[str] | None = None,
    speakers: Sequence[str] | None = None,
    width: int = 8,
    samples: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
) -> Reading:
    """Read clips with a model.

    Args:
        model: on the device of the clips.
        parts: the clips with their references, some at a time.
        max_length: symbols of a transcript at most, the end symbol included.
        decode: the most probable symbol each time, the best of a beam, or the sample of least risk.
        grammar: of the sentences, if any.
        names: of all clips; their numbers by default.
        speakers: names by the numbers in the clips; these numbers by default.
        width: of the beam.
        samples: of each clip, for ``mbr``.
        seed: of the samples.
        progress: told the share of ``names`` that is done.

    Raises:
        InputError: no clip, or a model that cannot be decoded so.
    """
    if decode == "beam" and not hasattr(model, "advance"):
        name = model.settings.name
        raise InputError(f"decode: beam needs a model that reads symbol by symbol; {name} allows greedy, mbr")
    if decode == "mbr" and samples < 2:
        raise InputError(f"samples: {samples}; mbr needs at least 2")
    found = Reading(unit="word" if decode == "mbr" else "symbol", in_grammar=None if grammar is None else [])
    model.eval()
    for number, part in enumerate(parts):
        device = part.reference.tokens.device
        generator = torch.Generator(device).manual_seed(stream(seed, f"samples {number}"))
        drawn = model.sample(part.clips, samples if decode == "mbr" else 1, max_length, generator=generator)
        if decode == "mbr":
            _least_risk(found, drawn, part, grammar)
            drawn = drawn[torch.arange(len(part), device=device) * samples]
        elif decode == "beam":
            ranked = beam(model, part.clips, width, max_length)  # type: ignore[arg-type]
            _most_probable(found, model, best(ranked), part, grammar)
        else:
            _most_probable(found, model, greedy(model, part.clips, max_length), part, grammar)
        found.sampled += texts(drawn)
        found.entropy += _entropy(model, drawn.with_(context=part.clips))
        found.references += texts(part.reference)
        found.speakers += [str(n) if speakers is None else speakers[n] for n in part.speaker.tolist()]
        if progress is not None:
            progress(len(found) / len(names) if names else 0.0, f"{len(found):,} clips")
    if not found.references:
        raise InputError("data: has no clips")
    found.names = [str(i) for i in range(len(found))] if names is None else list(names)
    if len(found.names) != len(found):
        raise InputError(f"names: {len(found.names)} for {len(found)} clips; must be as many")
    return found


def _least_risk(found: Reading, drawn: TokenBatch, part: Examples, grammar: Grammar | None) -> None:
    """Add what the samples of some clips say."""
    made = transcripts(drawn, grammar)
    found.transcripts += made
    found.hypotheses += [one.text for one in made]
    found.confidence += [np.array(one.confidence) for one in made]
    found.right += words_right([one.text for one in made], texts(part.reference))
    if found.in_grammar is not None:
        found.in_grammar += [bool(one.in_grammar) for one in made]


def _most_probable(
    found: Reading, model: LipReader, batch: TokenBatch, part: Examples, grammar: Grammar | None
) -> None:
    """Add one transcript for each of some clips."""
    found.hypotheses += texts(batch)
    if _by_symbol(model):
        confidence, right = _symbols(model, batch.with_(context=part.clips), part.reference)
        found.confidence += confidence
        found.right += right
    if found.in_grammar is not None and grammar is not None:
        found.in_grammar += grammar.parses(batch.tokens).tolist()


def rates(reading: Reading, *, by_speaker: bool = False, scenario: str = "", method: str = "") -> list[Row]:
    """All error rates with 95 % bootstrap intervals, over clips or over speakers with all their clips.

    Without an interval where there is but one clip or speaker; the calibration error has none over speakers. Of what
    cannot be known (visemes of words without a pronunciation, confidences of a model that has none) there is no row.
    """
    who = reading.speakers if by_speaker else None
    count = len(set(reading.speakers)) if by_speaker else len(reading)
    rows: list[Row] = []

    def add(metric: str, interval: Callable[[], Interval], mean: float) -> None:
        if count < 2:
            rows.append(Row(scenario, method, metric, "1", mean, n=count))
        else:
            found = interval()
            rows.append(Row(scenario, method, metric, "1", found.mean, found.low, found.high, found.n))

    def add_errors(metric: str, errors: Errors) -> None:
        add(metric, lambda: corpus_rate(errors, who), float(errors.edits.sum() / errors.length.sum()))
        add(f"{metric}, mean of clips", lambda: utterance_mean(errors.rate, who), float(errors.rate.mean()))

    def add_mean(metric: str, values: ArrayLike) -> None:
        numbers = np.asarray(values, dtype=np.float64)
        add(metric, lambda: utterance_mean(numbers, who), float(numbers.mean()))

    add_errors("CER", character_errors(reading.hypotheses, reading.references))
    add_errors("WER", word_errors(reading.hypotheses, reading.references))
    add_mean("exact", exact(reading.hypotheses, reading.references).double())
    sampled = character_errors(reading.sampled, reading.references)
    add("CER sampled", lambda: corpus_rate(sampled, who), float(sampled.edits.sum() / sampled.length.sum()))
    if reading.pronounced:
        visemes = viseme_errors(reading.hypotheses, reading.references)
        add("viseme error rate", lambda: corpus_rate(visemes, who), float(visemes.edits.sum() / visemes.length.sum()))
    if reading.in_grammar is not None:
        add_mean("in grammar", reading.in_grammar)
    if np.isfinite(reading.entropy).all():
        add_mean("entropy of a symbol (nat)", reading.entropy)
    if len(reading) > 1 and sum(map(len, reading.confidence)) > 1:
        error = calibration_error(reading.confidence, reading.right)
        metric = f"calibration error of a {reading.unit}"
        # Its interval is over clips, and must not stand for one over speakers.
        low, high = (None, None) if by_speaker else (error.low, error.high)
        rows.append(Row(scenario, method, metric, "1", error.mean, low, high, count))
    return rows


def slot_rates(
    reading: Reading, grammar: Grammar, *, by_speaker: bool = False, scenario: str = "", method: str = ""
) -> list[Row]:
    """Share of the clips whose word of each slot was read, with 95 % bootstrap intervals over clips or speakers.

    Without an interval where there is but one of them.
    """
    who = reading.speakers if by_speaker else None
    count = len(set(reading.speakers)) if by_speaker else len(reading)
    right = slots_right(reading.hypotheses, reading.references).double()
    rows = []
    for slot, values in zip(grammar.slots, right.unbind(1), strict=True):
        if count < 2:
            rows.append(Row(scenario, method, f"{slot} right", "1", float(values.mean()), n=count))
        else:
            found = utterance_mean(values, who)
            rows.append(Row(scenario, method, f"{slot} right", "1", found.mean, found.low, found.high, found.n))
    return rows


def words_right(hypotheses: Sequence[str], references: Sequence[str]) -> list[NDArray[np.bool_]]:
    """By clip, which words of the hypothesis are in their place in the reference."""
    read, right = ([text.split() for text in given] for given in (hypotheses, references))
    path = aligned(read, right)
    return [_right(path.partner[i], path.right[i], len(words)) for i, words in enumerate(read)]


def _by_symbol(model: LipReader) -> bool:
    """Whether the model gives each symbol a probability of its own; CTC gives it to transcripts as a whole."""
    return "entropy" in model.fields


def _symbols(
    model: LipReader, batch: TokenBatch, reference: TokenBatch
) -> tuple[list[NDArray[np.float64]], list[NDArray[np.bool_]]]:
    """By clip, the probabilities of the characters that were read, and whether each is right."""
    return symbols_right(batch, model.score(batch).log_prob.exp(), reference)


def symbols_right(
    batch: TokenBatch, sure: Tensor, reference: TokenBatch
) -> tuple[list[NDArray[np.float64]], list[NDArray[np.bool_]]]:
    """By clip, the probabilities ``sure`` ``(N, T)`` of the characters of transcripts, and whether each is right."""
    keep, known = spelled(batch), spelled(reference)
    # Characters stand before the end symbol; a padding or start symbol that was read among them is moved out.
    order = (~keep).to(torch.uint8).sort(dim=1, stable=True).indices
    count = keep.sum(1)
    path = align(batch.tokens.gather(1, order), count, reference.tokens, known.sum(1))
    sure = sure.gather(1, order).double().cpu()
    partner, right = path.partner.cpu(), path.right.cpu()
    counts = count.tolist()
    confidence = [sure[i, :n].clamp(max=1.0).numpy() for i, n in enumerate(counts)]
    return confidence, [_right(partner[i], right[i], n) for i, n in enumerate(counts)]


def _right(partner: Tensor, right: Tensor, count: int) -> NDArray[np.bool_]:
    """Which of ``count`` units of a hypothesis are right, from which each of the reference's stands for."""
    found = np.zeros(count, dtype=bool)
    found[partner[right].numpy()] = True
    return found


def _entropy(model: LipReader, batch: TokenBatch) -> list[float]:
    """By clip, the mean entropy of the model over the symbols of a sample, in nats; NaN where it has none."""
    if not _by_symbol(model):
        return [float("nan")] * len(batch)
    entropy = model.score(batch, need=frozenset({"entropy"})).need("entropy")
    valid = batch.valid
    mean = entropy.where(valid, 0.0).sum(1) / valid.sum(1).clamp(min=1)
    found: list[float] = mean.double().tolist()
    return found

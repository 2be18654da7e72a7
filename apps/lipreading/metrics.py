"""How wrong transcripts are: edits of characters and words by utterance, and their rates with intervals."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from apps.lipreading import rewards
from core.errors import InputError
from core.sequence.batch import TokenBatch
from core.sequence.edit_distance import edit_distances
from core.stats import Interval, mean_interval, nested_ratio
from core.stats.interval import Sample
from simulators.lips import alphabet

Transcripts: TypeAlias = Sequence[str] | Tensor | TokenBatch
"""Texts, or symbols ``(N, T)`` of the alphabet; what follows an end symbol does not count."""


class Errors(NamedTuple):
    """Edits that turn each hypothesis into its reference; ``edits, length = character_errors(...)`` takes it apart.

    Attributes:
        edits: ``(N,)`` int64, insertions, deletions and substitutions (Levenshtein).
        length: ``(N,)`` int64, symbols of the reference, at least 1.
    """

    edits: Tensor
    length: Tensor

    @property
    def rate(self) -> Tensor:
        """``(N,)`` float64, edits by symbol of the reference; above 1 where a hypothesis is much too long."""
        return self.edits.double() / self.length.double()


def character_errors(hypotheses: Transcripts, references: Transcripts) -> Errors:
    """Edits of characters, spaces among them; symbols are compared on their device.

    Raises:
        InputError: numbers of hypotheses and references differ, or a reference is empty (named by its row).
    """
    if not isinstance(hypotheses, Tensor | TokenBatch) or not isinstance(references, Tensor | TokenBatch):
        return sequence_errors(texts(hypotheses), texts(references))
    found, right = _paired(hypotheses, references)
    length = rewards.characters(right)
    return Errors(edit_distances(found.tokens, rewards.spelled(found), right.tokens, length), length)


def word_errors(hypotheses: Transcripts, references: Transcripts) -> Errors:
    """Edits of words, split at white space; symbols are compared on their device.

    Raises:
        InputError: as ``character_errors``.
    """
    if not isinstance(hypotheses, Tensor | TokenBatch) or not isinstance(references, Tensor | TokenBatch):
        return sequence_errors([x.split() for x in texts(hypotheses)], [x.split() for x in texts(references)])
    found, right = _paired(hypotheses, references)
    rewards.characters(right)
    return Errors(*rewards.word_edits(found, right))


def sequence_errors(hypotheses: Sequence[Sequence[Hashable]], references: Sequence[Sequence[Hashable]]) -> Errors:
    """Edits of sequences of anything that can be compared.

    Raises:
        InputError: as ``character_errors``.
    """
    check_rows(len(hypotheses), len(references))
    for row, right in enumerate(references):
        if not right:
            raise InputError(f"references[{row}]: is empty, its error rate is not defined; at least one word")
    numbers: dict[Hashable, int] = {}
    (found, count), (right_numbers, length) = numbered(hypotheses, numbers), numbered(references, numbers)
    keep = torch.arange(found.shape[1]) < count.unsqueeze(1)
    return Errors(edit_distances(found, keep, right_numbers, length), length)


def exact(hypotheses: Transcripts, references: Transcripts) -> Tensor:
    """``(N,)`` bool, whether a hypothesis has all characters right; of single words, their accuracy.

    Raises:
        InputError: as ``character_errors``.
    """
    return character_errors(hypotheses, references).edits == 0


def texts(transcripts: Transcripts) -> list[str]:
    """The transcripts as texts."""
    if isinstance(transcripts, TokenBatch):
        transcripts = transcripts.tokens
    return alphabet.decode(transcripts) if isinstance(transcripts, Tensor) else list(transcripts)


def corpus_rate(
    errors: Errors,
    speakers: Sequence[Hashable] | Tensor | None = None,
    *,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """All edits by all symbols of the references, with its bootstrap interval.

    Args:
        errors: of the utterances.
        speakers: ``(N,)`` who spoke; if given, speakers are resampled with all they said, as new speakers ask for.
        level: of the interval.
        resamples: draws.
        seed: of the draws.

    Raises:
        InputError: fewer than two utterances or speakers, or numbers that differ.
    """
    top, bottom = _array(errors.edits), _array(errors.length)
    return _ratio(top, bottom, speakers, level, resamples, seed)


def utterance_mean(
    values: Sample,
    speakers: Sequence[Hashable] | Tensor | None = None,
    *,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Mean over utterances of a number each (``errors.rate``, ``exact(...)``), with its bootstrap interval.

    Arguments and errors as ``corpus_rate``.
    """
    found = _array(values)
    if speakers is None:
        return mean_interval(found, level=level, resamples=resamples, seed=seed)
    return _ratio(found, np.ones(len(found)), speakers, level, resamples, seed)


def _ratio(
    top: NDArray[np.float64],
    bottom: NDArray[np.float64],
    speakers: Sequence[Hashable] | Tensor | None,
    level: float,
    resamples: int,
    seed: int,
) -> Interval:
    if speakers is not None:
        names = speakers.tolist() if isinstance(speakers, Tensor) else list(speakers)
        if len(names) != len(top):
            raise InputError(f"speakers: {len(names)} for {len(top)} utterances; must be as many")
        numbers = {name: i for i, name in enumerate(dict.fromkeys(names))}
        rows = np.array([numbers[name] for name in names], dtype=np.int64)
        if len(numbers) < 2:
            raise InputError(f"speakers: {len(numbers)}; at least 2 are needed for an interval over speakers")
        top, bottom = (np.bincount(rows, x).astype(np.float64) for x in (top, bottom))
    found = nested_ratio([top], [bottom], level=level, resamples=resamples, seed=seed)
    return dataclasses.replace(found, p=None)


def _paired(hypotheses: Tensor | TokenBatch, references: Tensor | TokenBatch) -> tuple[TokenBatch, TokenBatch]:
    """The characters of symbols, moved to the left, as batches whose row i answers reference i."""
    found = []
    for given in (hypotheses, references):
        tokens = given.tokens if isinstance(given, TokenBatch) else given
        keep = (tokens > alphabet.EOS) & ((tokens == alphabet.EOS).cumsum(1) == 0)
        order = (~keep).to(torch.uint8).sort(dim=1, stable=True).indices
        rows = torch.arange(len(tokens), device=tokens.device)
        found.append(TokenBatch(tokens.gather(1, order), keep.gather(1, order), rows))
    check_rows(len(found[0]), len(found[1]))
    return found[0], found[1]


def numbered(rows: Iterable[Sequence[Hashable]], numbers: dict[Hashable, int]) -> tuple[Tensor, Tensor]:
    """Rows of things as numbers ``(N, T)`` from 1, 0 after the end, and lengths ``(N,)``; new things are added."""
    found = [[numbers.setdefault(item, len(numbers) + 1) for item in row] for row in rows]
    length = torch.tensor([len(row) for row in found], dtype=torch.int64)
    longest = int(length.max()) if found else 0
    symbols = torch.tensor([row + [0] * (longest - len(row)) for row in found], dtype=torch.int64)
    return symbols.reshape(len(found), longest), length


def check_rows(hypotheses: int, references: int) -> None:
    """Refuse numbers of transcripts that differ.

    Raises:
        InputError: they do.
    """
    if hypotheses != references:
        raise InputError(f"references: {references} for {hypotheses} hypotheses; must be as many")


def _array(values: Sample) -> NDArray[np.float64]:
    if isinstance(values, Tensor):
        values = values.detach().cpu().numpy()
    return np.asarray(values, dtype=np.float64)

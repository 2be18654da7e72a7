"""Which visemes are taken for which, and which wrong words no eye could have told from the right ones.

Words whose phonemes show the same visemes in the same order (homophemes: b and p, d and t) differ on the lips in
durations at most. A word that was read as a homopheme of itself is a visually ambiguous error; any other was avoidable.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from apps.lipreading.alignment import Alignment, aligned
from apps.lipreading.metrics import Errors, Transcripts, sequence_errors, texts
from core.errors import InputError
from simulators.lips.visemes import VISEMES, viseme_string, viseme_strings

UNKNOWN, NOTHING = "?", "–"
"""What stands for a word without a pronunciation, and for a viseme that was left out or put in."""


@dataclass(frozen=True)
class WordErrors:
    """Words of the references, and what became of them.

    Attributes:
        words: number of them.
        ambiguous: read as a homopheme.
        avoidable: read as another word, or as none that there is.
        omitted: left out.
        inserted: words of the hypotheses that stand for none.
        pairs: reference, hypothesis, how often, and whether they are homophemes; the most frequent first.
    """

    words: int
    ambiguous: int
    avoidable: int
    omitted: int
    inserted: int
    pairs: tuple[tuple[str, str, int, bool], ...]

    @property
    def edits(self) -> int:
        """All errors of words."""
        return self.ambiguous + self.avoidable + self.omitted + self.inserted


@dataclass(frozen=True)
class Confusion:
    """Visemes of the references against those that were read in their place.

    Attributes:
        visemes: names, then ``UNKNOWN`` and ``NOTHING``.
        counts: ``(V + 2, V + 2)`` int64, reference by hypothesis; in the row of ``NOTHING`` what was put in, in its
            column what was left out.
    """

    visemes: tuple[str, ...]
    counts: NDArray[np.int64]

    @property
    def shares(self) -> NDArray[np.float64]:
        """The counts by the sum of their row; NaN in a row without any."""
        total = self.counts.sum(1, keepdims=True)
        return np.divide(self.counts, total, out=np.full(self.counts.shape, np.nan), where=total > 0)


def least_error(words: Sequence[str], weakest: float = 0.0) -> float:
    """Error rate of the best guess of one of these words, all as frequent, by who sees no more than its visemes.

    Raises:
        InputError: as ``simulators.lips.visemes.viseme_string``.
    """
    known = set(words)
    return 1 - len({viseme_string(word, weakest) for word in known}) / len(known)


def viseme_errors(hypotheses: Transcripts, references: Transcripts, weakest: float = 0.0) -> Errors:
    """Edits of visemes; a word without a pronunciation is one viseme that is never right.

    Args:
        hypotheses: that were read.
        references: of words with pronunciations.
        weakest: visemes of a lower dominance do not count, see ``simulators.lips.visemes.viseme_string``.

    Raises:
        InputError: the pronunciation of a reference's word is not known, or as ``metrics.character_errors``.
    """
    return sequence_errors(*_visemes(texts(hypotheses), texts(references), weakest))


def confusion(hypotheses: Transcripts, references: Transcripts, weakest: float = 0.0) -> Confusion:
    """Count visemes against those that were read in their place; arguments and errors as ``viseme_errors``."""
    read, right = _visemes(texts(hypotheses), texts(references), weakest)
    pairs = _pairs(read, right, aligned(read, right))
    seen = {viseme for row in (*read, *right) for viseme in row if not _unknown(viseme)}
    names = (*(viseme for viseme in VISEMES if viseme in seen), UNKNOWN, NOTHING)
    number = {name: i for i, name in enumerate(names)}
    counts = np.zeros((len(names), len(names)), dtype=np.int64)
    for (truth, taken), times in pairs.items():
        place = UNKNOWN if taken is not None and _unknown(taken) else taken or NOTHING
        counts[number[truth or NOTHING], number[place]] += times
    return Confusion(names, counts)


def word_confusion(hypotheses: Transcripts, references: Transcripts, weakest: float = 0.0) -> WordErrors:
    """Count words of the references by what was read in their place; arguments and errors as ``viseme_errors``."""
    read, right = ([text.split() for text in texts(given)] for given in (hypotheses, references))
    path = aligned(read, right)
    words = sorted({word for row in (*read, *right) for word in row})
    shown = dict(zip(words, viseme_strings(words, weakest), strict=True))
    _check([[viseme for word in row for viseme in shown[word]] for row in right])
    counts, pairs = Counter[str](), []
    for (truth, taken), times in _pairs(read, right, path).items():
        if truth == taken:
            continue
        if truth is None or taken is None:
            counts["inserted" if truth is None else "omitted"] += times
            continue
        alike = shown[taken] == shown[truth]
        counts["ambiguous" if alike else "avoidable"] += times
        pairs.append((truth, taken, times, alike))
    pairs.sort(key=lambda pair: (-pair[2], pair[:2]))
    kinds = {kind: counts[kind] for kind in ("ambiguous", "avoidable", "omitted", "inserted")}
    return WordErrors(words=sum(map(len, right)), pairs=tuple(pairs), **kinds)


def _visemes(
    hypotheses: Sequence[str], references: Sequence[str], weakest: float
) -> tuple[list[tuple[str, ...]], list[tuple[str, ...]]]:
    """Visemes of hypotheses and references, those checked."""
    right = viseme_strings(references, weakest)
    _check(right)
    return viseme_strings(hypotheses, weakest), right


def _check(references: Sequence[Sequence[str]]) -> None:
    for row, found in enumerate(references):
        if unknown := [viseme for viseme in found if _unknown(viseme)]:
            raise InputError(f"references[{row}]: the pronunciation of {unknown[0][1:-1]!r} is not known")


def _unknown(viseme: str) -> bool:
    """Whether it stands for a word without a pronunciation, see ``viseme_strings``."""
    return viseme.startswith("<")


def _pairs(
    read: Sequence[Sequence[str]], right: Sequence[Sequence[str]], path: Alignment
) -> Counter[tuple[str | None, str | None]]:
    """How often what was read in place of what; None where there is none."""
    found = Counter[tuple[str | None, str | None]]()
    for row, (taken, truth) in enumerate(zip(read, right, strict=True)):
        partner = path.partner[row, : len(truth)].tolist()
        found.update((one, taken[at] if at >= 0 else None) for one, at in zip(truth, partner, strict=True))
        placed = set(partner)
        found.update((None, one) for at, one in enumerate(taken) if at not in placed)
    return found

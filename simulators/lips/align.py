"""Word alignments: when each word of a clip is spoken, in the format of the GRID corpus.

A line of an ``.align`` file is ``start end token``, in thousandths of a frame of 40 ms (samples of 25 kHz audio). The
tokens ``sil`` and ``sp`` are silence. Cooke, Barker, Cunningham, Shao, JASA 120(5), 2421 (2006).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from core.errors import InputError
from simulators.lips.tables import read_text

UNITS = 1000
"""Units of an ``.align`` file in one frame."""
SILENCE = frozenset({"sil", "sp"})


@dataclass(frozen=True)
class Word:
    """One spoken word.

    Attributes:
        text: of it.
        start: in frames; frame ``i`` lasts from ``i`` to ``i + 1``.
        end: in frames.
    """

    text: str
    start: float
    end: float


@dataclass(frozen=True)
class Alignment:
    """The words of a clip in time, without the silences.

    Attributes:
        words: in their order, none overlaps the next.
    """

    words: tuple[Word, ...]

    @property
    def sentence(self) -> str:
        """The words with single spaces between."""
        return " ".join(word.text for word in self.words)

    @property
    def onset(self) -> float:
        """Start of the first word, in frames."""
        return self.words[0].start

    @property
    def offset(self) -> float:
        """End of the last word, in frames."""
        return self.words[-1].end

    def text(self, frames: int) -> str:
        """The content of an ``.align`` file of a clip with so many frames, silence filled in."""
        lines, last = [], 0
        spans = [(round(word.start * UNITS), round(word.end * UNITS), word.text) for word in self.words]
        for start, end, token in [*spans, (frames * UNITS, frames * UNITS, "")]:
            if start > last:
                lines.append(f"{last} {start} {'sil' if last == 0 or not token else 'sp'}\n")
            if token:
                lines.append(f"{start} {end} {token}\n")
            last = end
        return "".join(lines)


def parse(
    text: str, where: str, *, frames: float, spoken: float | None = None, vocabulary: Collection[str] | None = None
) -> Alignment:
    """Read the content of an ``.align`` file; columns may be parted and followed by any white space.

    Args:
        text: of the file.
        where: the name that begins each message.
        frames: no token ends later, silence included.
        spoken: no word ends later; a clip that was padded has fewer frames than its alignment tells.
        vocabulary: allowed words; without it, any word of the letters a-z.

    Raises:
        InputError: a line without three columns, a time that is no number, an end before its start, tokens that
            overlap, an unknown token, one beyond the clip, or no word at all.
    """
    words: list[Word] = []
    last = 0.0
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.split():
            continue
        start, end, token = _columns(line, f"{where}: line {number}")
        if end < start:
            raise InputError(f"{where}: line {number}: {token} ends at {end:g} before its start {start:g}")
        if start < last:
            raise InputError(
                f"{where}: line {number}: {token} starts at {start:g}, within the token before (to {last:g})"
            )
        latest = frames if token in SILENCE or spoken is None else min(frames, spoken)
        if end > latest * UNITS:
            raise InputError(f"{where}: line {number}: {token} ends at {end:g}; the clip ends at {latest * UNITS:g}")
        last = end
        if token in SILENCE:
            continue
        known = (
            token in vocabulary if vocabulary is not None else token.isascii() and token.isalpha() and token.islower()
        )
        if not known:
            allowed = "a word of the letters a-z" if vocabulary is None else f"one of {len(vocabulary)} words, sil, sp"
            raise InputError(f"{where}: line {number}: unknown token {token!r}; must be {allowed}")
        words.append(Word(token, start / UNITS, end / UNITS))
    if not words:
        raise InputError(f"{where}: holds no word; a reference of length 0 has no error rate")
    return Alignment(tuple(words))


def read(
    path: Path, *, frames: float, spoken: float | None = None, vocabulary: Collection[str] | None = None
) -> Alignment:
    """Read an ``.align`` file; see ``parse``.

    Raises:
        InputError: as ``parse``, or the file cannot be read.
    """
    return parse(read_text(path), str(path), frames=frames, spoken=spoken, vocabulary=vocabulary)


def _columns(line: str, where: str) -> tuple[float, float, str]:
    cells = line.split()
    if len(cells) != 3:
        raise InputError(f"{where}: has {len(cells)} columns; must be start, end and token")
    try:
        start, end = float(cells[0]), float(cells[1])
    except ValueError:
        raise InputError(f"{where}: {cells[0]} {cells[1]}: times must be numbers") from None
    if not 0 <= start < float("inf") or not 0 <= end < float("inf"):
        raise InputError(f"{where}: {cells[0]} {cells[1]}: times must be finite and at least 0")
    return start, end, cells[2]

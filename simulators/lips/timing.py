"""When a speaker makes which mouth shape: durations that vary, and where in the clip the sentence begins.

Distributions and mean durations of words: alignments of speaker s1 of GRID (Cooke et al. 2006, CC BY 4.0), in frames of
40 ms.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from simulators.lips.draws import normal
from simulators.lips.grammar import Grammar
from simulators.lips.phonemes import segments
from simulators.lips.visemes import VISEMES

Durations = Literal["phonemes", "grid"]

CLIP = 75
"""Frames of a clip of the corpus, 25 a second."""
SPREAD = 0.18
"""Standard deviation of the logarithm of a segment's duration."""
ONSET, ONSET_SPREAD = 13.8, 4.8
"""Mean and standard deviation of the first spoken frame."""
EARLIEST, LATEST = 2.0, 72.0
"""Speech is inside these frames."""

_FRAMES = """
bin 6.0 lay 9.9 place 7.2 set 9.4 blue 6.2 green 5.9 red 4.9 white 5.9 at 2.2 by 4.0 in 2.6 with 3.1 zero 8.7 one 5.2
two 6.2 three 6.3 four 6.7 five 7.0 six 7.8 seven 8.0 eight 5.1 nine 6.4 again 8.4 now 7.4 please 10.2 soon 9.6
a 3.1 b 4.5 c 5.4 d 4.0 e 3.5 f 4.2 g 4.6 h 4.6 i 4.2 j 4.6 k 4.8 l 3.7 m 4.3 n 4.4 o 3.6 p 4.6 q 5.1 r 5.0 s 4.9 t 4.7
u 4.0 v 4.3 x 4.5 y 4.8 z 5.2
"""
WORD_FRAMES: dict[str, float] = {
    word: float(frames) for word, frames in zip(*(iter(_FRAMES.split()),) * 2, strict=True)
}
"""Mean duration of each word as s1 speaks it."""


@dataclass(frozen=True)
class Schedule:
    """The N segments of B sentences, in order; a segment that a sentence does not have lasts 0 frames.

    Attributes:
        viseme: ``(B, N)`` int64.
        start: ``(B, N)``, frames from the beginning of the clip.
        duration: ``(B, N)``, frames.
        word_start: ``(B, S)``, frames.
        word_end: ``(B, S)``, frames.
    """

    viseme: Tensor
    start: Tensor
    duration: Tensor
    word_start: Tensor
    word_end: Tensor

    @property
    def centre(self) -> Tensor:
        """``(B, N)``, frames."""
        return self.start + self.duration / 2


@lru_cache(maxsize=32)
def _tables(grammar: Grammar, durations: Durations) -> tuple[Tensor, Tensor, Tensor]:
    """Slot of each of the N columns, and ``(N, W)`` viseme and mean duration of every word of that slot."""
    columns = [[segments(word) for word in words] for words in grammar.words]
    widths = [max(map(len, words)) for words in columns]
    viseme = torch.zeros(sum(widths), max(map(len, columns)), dtype=torch.int64)
    mean = torch.zeros(viseme.shape, dtype=torch.float64)
    for s, words in enumerate(columns):
        first = sum(widths[:s])
        for w, parts in enumerate(words):
            total = sum(frames for _, frames in parts)
            scale = WORD_FRAMES[grammar.words[s][w]] / total if durations == "grid" else 1.0
            for k, (name, frames) in enumerate(parts):
                viseme[first + k, w] = VISEMES.index(name)
                mean[first + k, w] = frames * scale
    return torch.repeat_interleave(torch.arange(len(widths)), torch.tensor(widths)), viseme, mean


@torch.no_grad()
def schedule(
    grammar: Grammar, slots: Tensor, rate: Tensor, generator: torch.Generator, durations: Durations = "phonemes"
) -> Schedule:
    """Draw when each mouth shape of each sentence is made.

    A segment lasts its mean times the speaker's rate times exp(N(0, 0.18)). The onset is N(13.8, 4.8), at least 2; a
    sentence that would last beyond frame 72 begins earlier, and one too long for that is shortened.

    Args:
        grammar: of the sentences.
        slots: ``(B, S)`` int64 sentences.
        rate: ``(B,)`` the speakers' factors on all durations; its type is that of the times.
        generator: of what varies.
        durations: "phonemes" for the means of the phonemes, "grid" to scale each word to ``WORD_FRAMES``.

    Raises:
        InputError: a word without pronunciation.
    """
    device = rate.device
    column, viseme, mean = (table.to(device) for table in _tables(grammar, durations))
    word = slots[:, column]
    place = torch.arange(len(column), device=device)
    duration = (
        mean[place, word].to(rate.dtype) * rate[:, None] * torch.exp(SPREAD * normal(word.shape, rate, generator))
    )
    onset = (ONSET + ONSET_SPREAD * normal(rate.shape, rate, generator)).clamp(min=EARLIEST)
    total = duration.sum(1)
    onset = torch.minimum(onset, (LATEST - total).clamp(min=EARLIEST))
    duration = duration * ((LATEST - onset) / total).clamp(max=1.0)[:, None]
    end = onset[:, None] + duration.cumsum(1)
    start = torch.cat([onset[:, None], end[:, :-1]], 1)
    last = torch.bincount(column, minlength=len(grammar.slots)).cumsum(0) - 1
    first = torch.cat([last.new_zeros(1), last[:-1] + 1])
    return Schedule(viseme[place, word], start, duration, start[:, first], end[:, last])

"""Reading a clip while it is being seen, and how late each word comes.

All frames so far are read anew after every few frames. A word is given out, and never taken back, once two readings in
a row agree on it and on all words before it (local agreement: Liu, Spanakis and Niehues 2020, Interspeech) and both are
sure of it. Agreement alone is not enough: a model of a grammar agrees with itself on the likeliest sentence before
anybody has spoken.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from apps.lipreading.clips import FEWEST_FRAMES, Clips
from apps.lipreading.metrics import word_errors
from apps.lipreading.models import LipReader
from apps.lipreading.transcripts import transcripts
from core.errors import InputError
from simulators.lips.sheets import FPS


@dataclass(frozen=True)
class StreamedWord:
    """A word that was given out.

    Attributes:
        word: it.
        frames: that had been seen.
        seconds: from the first frame on: of the frames at 25 a second, and of the computing since the last of them.
    """

    word: str
    frames: int
    seconds: float


@dataclass(frozen=True)
class Streamed:
    """A clip that was read while it was seen.

    Attributes:
        words: in the order in which they were given out; those that nothing was sure of, at the end of the clip.
        whole: what the last reading, of the whole clip, says.
        frames: of the clip.
        chunk: frames between two readings.
        compute: seconds of each reading.
    """

    words: tuple[StreamedWord, ...]
    whole: str
    frames: int
    chunk: int
    compute: tuple[float, ...]

    @property
    def text(self) -> str:
        """All words that were given out."""
        return " ".join(found.word for found in self.words)

    @property
    def real_time_factor(self) -> float:
        """Seconds of computing for a second of the clip; below 1 the reader keeps up."""
        return sum(self.compute) * FPS / self.frames

    def record(self) -> dict[str, Any]:
        """Plain data for JSON."""
        slowest = max(self.compute)
        return {
            **asdict(self),
            "text": self.text,
            "real_time_factor": self.real_time_factor,
            "slowest": slowest,
            "last_word_after_clip": self.words[-1].seconds - self.frames / FPS if self.words else None,
            "word_edits_to_whole": int(word_errors([self.text], [self.whole]).edits) if self.whole else None,
        }


@torch.no_grad()
def stream(
    model: LipReader,
    seen: Tensor,
    to_clips: Callable[[Tensor, Tensor], Clips],
    max_length: int,
    *,
    chunk: int = 5,
    sure: float = 0.8,
    samples: int = 16,
    seed: int = 0,
) -> Streamed:
    """Read a clip as it comes in.

    Args:
        model: that reads.
        seen: ``(1, T, ...)`` frames, or whatever ``to_clips`` takes.
        to_clips: makes what the model sees of frames and their number ``(1,)``.
        max_length: symbols of a transcript at most.
        chunk: frames between two readings.
        sure: lowest confidence of a word that is given out before the end.
        samples: of each reading.
        seed: of the samples; the last reading is that of a generator with this seed and as many samples.

    Raises:
        InputError: ``chunk`` below 1, or a clip of fewer than 5 frames.
    """
    frames = seen.shape[1]
    if chunk < 1 or frames < FEWEST_FRAMES:
        raise InputError(f"chunk {chunk}, clip of {frames} frames; allowed: at least 1, and {FEWEST_FRAMES}")
    model.eval()
    given: list[StreamedWord] = []
    compute: list[float] = []
    certain: list[str] = []
    whole = ""
    for end in [*range(max(chunk, FEWEST_FRAMES), frames, chunk), frames]:
        begun = time.perf_counter()
        clips = to_clips(seen[:, :end], torch.tensor([end], device=seen.device))
        generator = torch.Generator(clips.frames.device).manual_seed(seed)
        (read,) = transcripts(model.sample(clips, samples, max_length, generator=generator))
        compute.append(time.perf_counter() - begun)
        before, certain = certain, list(read.words[: _certain(read.confidence, sure)])
        # At the end of the clip there is nothing more to wait for.
        ready = list(read.words) if end == frames else certain[: _agreed(before, certain)]
        given += [StreamedWord(word, end, end / FPS + compute[-1]) for word in ready[len(given) :]]
        whole = read.text
    return Streamed(tuple(given), whole, frames, chunk, tuple(compute))


def _certain(confidence: tuple[float, ...], sure: float) -> int:
    """How many words from the first on are sure."""
    return next((i for i, share in enumerate(confidence) if share < sure), len(confidence))


def _agreed(one: list[str], other: list[str]) -> int:
    """How many words from the first on are the same."""
    shared = min(len(one), len(other))
    return next((i for i in range(shared) if one[i] != other[i]), shared)

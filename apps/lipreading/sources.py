"""Where clips come from: the simulated talker, or a prepared corpus; and how they are changed while a model learns."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from apps.lipreading.clips import Clips
from apps.lipreading.features import EigenLips, EigenLipSettings
from apps.lipreading.grammars import GRAMMARS
from core.errors import InputError
from core.seeds import stream
from core.sequence.batch import TokenBatch
from core.simulation import tree
from core.study import Config
from simulators.lips import alphabet
from simulators.lips.align import Alignment
from simulators.lips.grammar import GRID, Grammar
from simulators.lips.pack import Pack
from simulators.lips.speakers import Speakers
from simulators.lips.talking_mouth import TalkingMouth, Trajectory

Split = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class Examples:
    """Clips with their transcripts.

    Attributes:
        clips: of P utterances.
        reference: ``(P, L + 1)`` transcripts.
        speaker: ``(P,)`` int64, number of the speaker.
        words: ``(P, W, 2)`` first and last frame of each word, NaN where not known.
    """

    clips: Clips
    reference: TokenBatch
    speaker: Tensor
    words: Tensor

    def __len__(self) -> int:
        return len(self.reference)


def references(tokens: Tensor, length: Tensor) -> TokenBatch:
    """Transcripts ``(P, L + 1)`` of ``length`` ``(P,)`` characters, as sequences that answer the P clips."""
    mask = torch.arange(tokens.shape[1], device=tokens.device) <= length.unsqueeze(1)
    return TokenBatch(tokens, mask, torch.arange(len(tokens), device=tokens.device))


class Corpus:
    """Clips that a model learns from, and those it is judged on.

    Attributes:
        size: number of training clips.
        grammar: of the transcripts, None where there is none.
        max_length: symbols of the longest transcript, the end included.
        frame_size: height and width of its frames in pixels; None where it has features alone.
    """

    size: int
    grammar: Grammar | None
    max_length: int
    frame_size: tuple[int, int] | None

    @abstractmethod
    def training(self, rows: Tensor, generator: torch.Generator) -> Examples:
        """Training clips ``rows`` as they are seen this time: noise and augmentation are drawn anew."""

    @abstractmethod
    def batches(self, split: Split, size: int = 512) -> Iterator[Examples]:
        """All clips of a split as they are, in parts; the noise of simulated ones depends on ``size``."""

    def all(self, split: Split) -> Examples:
        """All clips of a split at once."""
        parts = list(self.batches(split, 1 << 30))
        if not parts:
            raise InputError(f"{split}: has no clips")
        return parts[0]

    def to_clips(self, frames: Tensor, length: Tensor) -> Clips:
        """What the model sees of uint8 frames ``(n, T, H, W)``, for clips from elsewhere."""
        return Clips(frames.float() / 255, length)


class SimulatedSource(Config):
    """Clips of the simulated talker; training, validation and test have speakers of their own."""

    kind: Literal["simulated"] = "simulated"
    grammar: Literal["grid", "mini"] = "mini"
    """All six words of a GRID sentence, or letter, digit and adverb."""
    mode: Literal["features", "landmarks", "frames"] = "features"
    """What is observed of a mouth."""
    noise: float = Field(default=0.25, ge=0)
    """Of the observed features; drawn anew each time a training clip is seen."""
    first_frame: int = Field(default=8, ge=0)
    """Of the 75 frames of an utterance, the first that is seen."""
    frames: int = Field(default=48, ge=8)
    """That are seen."""
    height: int = Field(default=32, ge=24)
    """Pixels, in mode frames."""
    width: int = Field(default=48, ge=24)
    """Likewise."""
    durations: Literal["phonemes", "grid"] = "phonemes"
    """Lengths of words: by their phonemes, or scaled to those of GRID's first speaker."""
    clips: int = Field(default=4000, ge=1)
    """To learn from."""
    validation_clips: int = Field(default=500, ge=2)
    """To choose weights on."""
    test_clips: int = Field(default=4000, ge=2)
    """To judge on."""
    speakers: int = Field(default=20, ge=1)
    """Of the training clips."""
    validation_speakers: int = Field(default=5, ge=1)
    """Others."""
    test_speakers: int = Field(default=10, ge=1)
    """Others again."""
    same_speakers: bool = False
    """Validation and test clips are of the training speakers, for adaptation to a person."""
    seed: int = Field(default=0, ge=0)
    """Of all clips."""

    def open(self, device: torch.device | str = "cpu") -> SimulatedCorpus:
        """The clips."""
        return SimulatedCorpus(self, torch.device(device))


class SimulatedCorpus(Corpus):
    """See ``SimulatedSource``."""

    def __init__(self, source: SimulatedSource, device: torch.device) -> None:
        self.source, self.device = source, device
        self.grammar = GRAMMARS[source.grammar]
        self.size = source.clips
        self.mouth = TalkingMouth(
            mode=source.mode,
            grammar=self.grammar,
            noise=source.noise,
            frames=source.frames,
            first_frame=source.first_frame,
            durations=source.durations,
            height=source.height,
            width=source.width,
        )
        self.max_length = self.grammar.longest + 1
        self.frame_size = (source.height, source.width) if source.mode == "frames" else None
        self.kept = self._talk("train")
        self.clean = tree.map_tensors(lambda x: x.to(device), self.kept)

    def training(self, rows: Tensor, generator: torch.Generator) -> Examples:
        """See ``Corpus.training``."""
        return self._seen(tree.take(self.clean, rows.to(self.device)), generator)

    def batches(self, split: Split, size: int = 512) -> Iterator[Examples]:
        """See ``Corpus.batches``."""
        generator = torch.Generator().manual_seed(stream(self.source.seed, f"noise of {split}"))
        spoken = self.kept if split == "train" else self._talk(split)
        for rows in torch.arange(len(spoken.tokens)).split(size):
            found = self._seen(tree.take(spoken, rows), generator)
            yield tree.map_tensors(lambda x: x.to(self.device), found)

    def _talk(self, split: Split) -> Trajectory:
        s = self.source
        clips = {"train": s.clips, "validation": s.validation_clips, "test": s.test_clips}[split]
        group: Split = "train" if s.same_speakers else split
        speakers = {"train": s.speakers, "validation": s.validation_speakers, "test": s.test_speakers}[group]
        people = Speakers.draw(speakers, stream(s.seed, f"speakers of {group}"))
        generator = torch.Generator().manual_seed(stream(s.seed, f"utterances of {split}"))
        return self.mouth.trajectory(clips, generator, people)

    def _seen(self, spoken: Trajectory, generator: torch.Generator) -> Examples:
        seen = self.mouth.observe(spoken, generator)
        words = torch.stack([spoken.word_start, spoken.word_end], -1)
        return Examples(Clips.whole(seen), references(spoken.tokens, spoken.text_length), spoken.speaker, words)


class Augmentation(Config):
    """How a training clip is changed each time it is seen."""

    shift: int = Field(default=0, ge=0)
    """Most frames by which it begins earlier or later."""
    noise: float = Field(default=0.0, ge=0)
    """Standard deviation of what is added to each feature."""
    flip: float = Field(default=0.0, ge=0, le=1)
    """Probability that left and right are exchanged."""
    repeat: float = Field(default=0.0, ge=0, le=1)
    """Probability that a frame is replaced by the one before."""
    crop: tuple[int, int] | None = None
    """Height and width of what is seen of a frame: anywhere in training, anew for each clip, the middle otherwise."""

    @property
    def changes_frames(self) -> bool:
        """Whether pictures are changed, and not their features alone."""
        return bool(self.flip or self.repeat or self.crop)

    def of_frames(self, frames: Tensor, generator: torch.Generator) -> Tensor:
        """Flipped, repeated and cut frames ``(n, T, H, W)``."""
        n, t = frames.shape[:2]
        if self.flip:
            flipped = _uniform(generator, n) < self.flip
            frames = torch.where(flipped[:, None, None, None], frames.flip(-1), frames)
        if self.repeat:
            repeated = _uniform(generator, n, t) < self.repeat
            repeated[:, 0] = False
            frames = frames[torch.arange(n)[:, None], torch.arange(t) - repeated.long()]
        if self.crop is not None:
            height, width = self.crop
            top, left = (_whole(generator, 0, room, n).tolist() for room in self._room(frames))
            cut = [clip[:, y : y + height, x : x + width] for clip, y, x in zip(frames, top, left, strict=True)]
            frames = torch.stack(cut)
        return frames

    def middle(self, frames: Tensor) -> Tensor:
        """Frames cut in the middle."""
        if self.crop is None:
            return frames
        high, wide = (room // 2 for room in self._room(frames))
        return frames[:, :, high : high + self.crop[0], wide : wide + self.crop[1]]

    def of_features(self, clips: Clips, generator: torch.Generator) -> Clips:
        """Shifted features with noise; what comes in at the ends is the first or last frame again."""
        frames = clips.frames
        n, t = frames.shape[:2]
        if self.shift:
            by = _whole(generator, -self.shift, self.shift, n).to(frames.device)
            place = (torch.arange(t, device=frames.device) - by[:, None]).clamp(min=0)
            place = torch.minimum(place, clips.length[:, None] - 1)
            frames = frames[torch.arange(n, device=frames.device)[:, None], place]
        if self.noise:
            drawn = torch.randn(frames.shape, generator=generator, device=generator.device)
            frames = frames + self.noise * drawn.to(frames.device)
        return Clips(frames, clips.length)

    def _room(self, frames: Tensor) -> tuple[int, int]:
        assert self.crop is not None
        room = (frames.shape[2] - self.crop[0], frames.shape[3] - self.crop[1])
        if min(room) < 0:
            raise InputError(f"crop: {list(self.crop)} is larger than a frame of {list(frames.shape[2:])} pixels")
        return room


class PackSource(Config):
    """A prepared corpus (``szilard lipreading prepare``), such as the mouth crops of GRID's first speaker."""

    kind: Literal["pack"] = "pack"
    data: Path | None = None
    """Its folder; $SZILARD_DATA/lipreading if null."""
    train: str = "train"
    """Name of the split to learn from."""
    validation: str = "val"
    """To choose on."""
    test: str = "val"
    """To judge on."""
    features: EigenLipSettings | None = None
    """What is seen of the frames; null for the frames themselves."""
    augmentation: Augmentation = Augmentation()
    """While a model learns."""

    def folder(self) -> Path:
        """Where it lies.

        Raises:
            InputError: nowhere.
        """
        if self.data is not None:
            return self.data
        if root := os.environ.get("SZILARD_DATA"):
            return Path(root) / "lipreading"
        raise InputError("source.data: no folder given: set it or $SZILARD_DATA")

    def missing(self) -> str:
        """Why the corpus cannot be read, in a line; empty if it is there."""
        try:
            folder = self.folder()
        except InputError as error:
            return str(error)
        return "" if (folder / "index.csv").exists() else f"{folder}: holds no index.csv"

    def open(self, device: torch.device | str = "cpu") -> PackCorpus:
        """The clips.

        Raises:
            InputError: no such corpus, or a damaged one.
        """
        return PackCorpus(self, torch.device(device))


class PackCorpus(Corpus):
    """See ``PackSource``; frames are read when they are asked for."""

    def __init__(self, source: PackSource, device: torch.device) -> None:
        self.source, self.device = source, device
        self.pack = Pack.open(source.folder())
        self.rows = {
            "train": self.pack.split(source.train),
            "validation": self.pack.split(source.validation),
            "test": self.pack.split(source.test),
        }
        sentences = self.pack.sentences
        self.tokens, self.length = alphabet.encode(sentences, f"{source.folder()}/index.csv")
        names = sorted({u.speaker for u in self.pack.utterances})
        self.speaker = torch.tensor([names.index(u.speaker) for u in self.pack.utterances])
        self.size = len(self.rows["train"])
        self.frame_size = (self.pack.height, self.pack.width)
        self.grammar = GRID if bool(GRID.parses(self.tokens).all()) else None
        self.max_length = int(self.length.max()) + 1
        self.frames_of = self.pack.length
        self.lips: EigenLips | None = None
        self.seen: Clips | None = None
        if source.features is not None:
            index = self.rows["train"]
            self.lips = EigenLips.fit(self.pack.frames(index), source.features)
            if not source.augmentation.changes_frames:
                self.seen = self._clips(self.pack.frames(index), self.frames_of[index])

    def training(self, rows: Tensor, generator: torch.Generator) -> Examples:
        """See ``Corpus.training``."""
        a = self.source.augmentation
        index = self.rows["train"][rows]
        if self.seen is not None:
            clips = tree.take(self.seen, rows)
        else:
            frames = a.of_frames(self.pack.frames(index), generator)
            clips = self._clips(frames, self.frames_of[index])
        return self._examples(index, a.of_features(clips, generator))

    def batches(self, split: Split, size: int = 512) -> Iterator[Examples]:
        """See ``Corpus.batches``."""
        for index in self.rows[split].split(size):
            clips = self.to_clips(self.pack.frames(index), self.frames_of[index])
            yield self._examples(index, clips, [self.pack.alignment(int(i)) for i in index])

    def to_clips(self, frames: Tensor, length: Tensor) -> Clips:
        """See ``Corpus.to_clips``."""
        return self._clips(self.source.augmentation.middle(frames), length)

    def _clips(self, frames: Tensor, length: Tensor) -> Clips:
        if self.lips is not None:
            return self.lips(frames, length)
        return Clips(frames.float() / 255, length)

    def _examples(self, index: Tensor, clips: Clips, said: Sequence[Alignment | None] = ()) -> Examples:
        longest = int(self.length[index].max()) + 1
        reference = references(self.tokens[index, :longest], self.length[index])
        found = Examples(clips, reference, self.speaker[index], _words(said, len(index)))
        return tree.map_tensors(lambda x: x.to(self.device), found)


def _uniform(generator: torch.Generator, *shape: int) -> Tensor:
    """In [0, 1), on the CPU, where the frames of a corpus are; the generator may be on another device."""
    return torch.rand(shape, generator=generator, device=generator.device).cpu()


def _whole(generator: torch.Generator, low: int, high: int, *shape: int) -> Tensor:
    """From ``low`` to ``high``, both among them; likewise."""
    return torch.randint(low, high + 1, shape, generator=generator, device=generator.device).cpu()


def _words(said: Sequence[Alignment | None], n: int) -> Tensor:
    """``(n, W, 2)`` first and last frames."""
    most = max((len(a.words) for a in said if a is not None), default=0)
    found = torch.full((n, most, 2), torch.nan)
    for row, alignment in zip(found, said, strict=False):
        if alignment is not None:
            row[: len(alignment.words)] = torch.tensor([[w.start, w.end] for w in alignment.words])
    return found


Source = Annotated[SimulatedSource | PackSource, Field(discriminator="kind")]

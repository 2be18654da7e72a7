"""A talker who needs no recordings: sentences, mouth movements, and what is seen of them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from core.errors import InputError
from simulators.lips.articulation import articulate
from simulators.lips.draws import normal
from simulators.lips.grammar import GRID, MINI, Grammar
from simulators.lips.landmarks import POINTS, landmarks
from simulators.lips.renderer import render
from simulators.lips.speakers import Speakers
from simulators.lips.speech import Speech, Trajectory, Utterances
from simulators.lips.timing import CLIP, Durations, schedule
from simulators.lips.visemes import PARAMETERS

Mode = Literal["features", "landmarks", "frames"]
FEATURES = 12
"""Numbers a frame in the mode ``features``."""
UTTERANCE = 0.5
"""Noise that a whole clip shares, as a multiple of that of a frame."""
NOISE: dict[Mode, float] = {"features": 0.25, "landmarks": 0.5, "frames": 0.03}
"""Default standard deviations: of the features, in pixels, in grey levels of 0 to 1."""


@lru_cache(maxsize=1)
def _mixing() -> Tensor:
    """``(6, 12)`` how mouth shapes become features: fixed, Gaussian, about preserving lengths per feature."""
    generator = torch.Generator().manual_seed(7)
    return torch.randn(len(PARAMETERS), FEATURES, generator=generator) / len(PARAMETERS) ** 0.5


@dataclass(frozen=True)
class TalkingMouth:
    """A generator of spoken sentences.

    Attributes:
        mode: what a frame is: 12 "features" (a random linear map of the mouth shape, with noise), 20 "landmarks" of the
            lips in pixels, or a picture ("frames").
        grammar: of the sentences.
        noise: standard deviation; None for the mode's ``NOISE``. Features also get half of it once a clip.
        frames: T.
        first_frame: of the 75 frames of a clip, which comes first; words before it stay in the transcript.
        durations: see ``timing.schedule``.
        height: of the picture in pixels.
        width: likewise; the mouth keeps its shape whatever the ratio.

    Raises:
        InputError: a value outside its range.
    """

    mode: Mode = "features"
    grammar: Grammar = GRID
    noise: float | None = None
    frames: int = CLIP
    first_frame: int = 0
    durations: Durations = "phonemes"
    height: int = 32
    width: int = 48

    def __post_init__(self) -> None:
        for name, allowed in (("mode", get_args(Mode)), ("durations", get_args(Durations))):
            if getattr(self, name) not in allowed:
                raise InputError(f"{name}: {getattr(self, name)!r}; allowed: {', '.join(allowed)}")
        if self.noise is not None and not 0 <= self.noise < float("inf"):
            raise InputError(f"noise: {self.noise}; allowed: 0 or more, and finite")
        for name, least in (("frames", 5), ("height", 8), ("width", 8)):
            if getattr(self, name) < least:
                raise InputError(f"{name}: {getattr(self, name)}; allowed: at least {least}")
        # Later frames show nothing of the utterance.
        if not 0 <= self.first_frame < CLIP:
            raise InputError(f"first_frame: {self.first_frame}; allowed: 0 to {CLIP - 1}")

    @classmethod
    def mini(cls, **fields: Any) -> TalkingMouth:
        """Of the last three words only, in the 48 frames from the ninth on, where they are spoken."""
        return cls(**{"grammar": MINI, "first_frame": 8, "frames": 48, **fields})

    @property
    def shape(self) -> tuple[int, ...]:
        """Of an observation of one clip."""
        frame = {"features": (FEATURES,), "landmarks": (2 * POINTS,), "frames": (self.height, self.width)}
        return (self.frames, *frame[self.mode])

    @torch.no_grad()
    def trajectory(
        self,
        batch: int,
        generator: torch.Generator,
        speakers: Speakers,
        *,
        slots: Tensor | None = None,
        speaker: Tensor | None = None,
    ) -> Trajectory:
        """Draw what is said, by whom and when, and how the mouths move; what is seen of it is ``observe``'s.

        Args:
            batch: B.
            generator: of all that is random; the result is on its device.
            speakers: n of them, on that device.
            slots: ``(B, S)`` sentences; None draws them uniformly.
            speaker: ``(B,)`` who says them; None draws them uniformly.

        Raises:
            InputError: speakers on another device, or sentences or speakers that do not exist.
        """
        device = generator.device
        if batch < 1:
            raise InputError(f"batch: {batch}; allowed: at least 1")
        if speakers.rate.device.type != device.type:
            raise InputError(f"speakers: on {speakers.rate.device}; allowed: {device}, where the generator is")
        drawn = self.grammar.sample(batch, generator)
        slots = drawn if slots is None else slots.to(device)
        drawn = torch.randint(len(speakers), (batch,), generator=generator, device=device)
        speaker = drawn if speaker is None else speaker.to(device)
        if len(slots) != batch or speaker.shape != (batch,):
            raise InputError(f"sentences: {len(slots)}, speakers: {tuple(speaker.shape)}; allowed: {batch} of both")
        if bool(((speaker < 0) | (speaker >= len(speakers))).any()):
            raise InputError(
                f"speaker: {int(speaker.min())} to {int(speaker.max())}; allowed: 0 to {len(speakers) - 1}"
            )
        tokens, text_length = self.grammar.tokens(slots)
        who = speakers[speaker]
        times = schedule(self.grammar, slots, who.rate, generator, self.durations)
        clip = max(CLIP, self.first_frame + self.frames)
        shapes = articulate(times, clip, self.first_frame, self.frames, generator)
        return Trajectory(
            length=torch.full((batch,), self.frames, device=device),
            tokens=tokens,
            text_length=text_length,
            slots=slots,
            speaker=speaker,
            word_start=times.word_start - self.first_frame,
            word_end=times.word_end - self.first_frame,
            articulation=shapes * who.gain[:, None] + who.bias[:, None],
            appearance=who.appearance,
        )

    @torch.no_grad()
    def observe(self, trajectory: Trajectory, generator: torch.Generator, noise: float | None = None) -> Tensor:
        """``(B, *shape)`` one look at clips: noise, and for landmarks and pictures also pose and light, are redrawn.

        Args:
            trajectory: the clips, on the generator's device.
            generator: of all that is random.
            noise: in place of the mouth's.
        """
        noise = self.noise if noise is None else noise
        noise = NOISE[self.mode] if noise is None else noise
        shapes = trajectory.articulation
        if self.mode == "frames":
            return render(shapes, trajectory.appearance, self.height, self.width, generator, noise)
        if self.mode == "landmarks":
            return landmarks(shapes, trajectory.appearance, self.height, self.width, generator, noise)
        seen = shapes @ _mixing().to(shapes)
        seen += noise * normal(seen.shape, seen, generator)
        return seen + UTTERANCE * noise * normal((len(seen), 1, FEATURES), seen, generator)

    def sample(
        self,
        batch: int,
        generator: torch.Generator,
        speakers: Speakers,
        *,
        slots: Tensor | None = None,
        speaker: Tensor | None = None,
    ) -> Speech:
        """Draw clips and one look at each; arguments and errors as of ``trajectory``."""
        clean = self.trajectory(batch, generator, speakers, slots=slots, speaker=speaker)
        labels = {f.name: getattr(clean, f.name) for f in dataclasses.fields(Utterances)}
        return Speech(**labels, observation=self.observe(clean, generator))

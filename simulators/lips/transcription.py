"""Lip-reading as a decision process: write the transcript of a silent clip, one character a step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from core.errors import InputError
from core.sequence.edit_distance import next_row
from core.simulation import Step, Variable
from simulators.lips import alphabet
from simulators.lips.speakers import Speakers
from simulators.lips.talking_mouth import TalkingMouth

FEATURE_BOUND = 4.0
"""Features beyond it are shown as it; none in a million is."""


@dataclass(frozen=True)
class TranscriptionState:
    """Clips with what is written of their sentences so far.

    Attributes:
        clip: ``(B, T, ...)`` what is seen, the same in all steps of an episode.
        reference: ``(B, n)`` int64 symbols of the sentence, padded; the agent does not see it.
        length: ``(B,)`` int64 its characters.
        tokens: ``(B, L)`` int64 symbols written, padded.
        written: ``(B,)`` int64 how many.
        row: ``(B, n + 1)`` int32 edits from the transcript to the reference's first j symbols, minus j (``next_row``).
    """

    clip: Tensor
    reference: Tensor
    length: Tensor
    tokens: Tensor
    written: Tensor
    row: Tensor

    @property
    def distance(self) -> Tensor:
        """``(B,)`` int64 edits between what is written and the sentence, D_t; before the first step its length."""
        return self.row.gather(1, self.length.unsqueeze(1)).squeeze(1).long() + self.length


@dataclass(frozen=True)
class NoNoise:
    """Nothing is random after the clip; one empty number a copy."""

    nothing: Tensor


@dataclass(frozen=True)
class Transcription:
    """Each step writes one symbol and pays by how much it brings the transcript closer to what was said.

    The reward is D_{t-1} - D_t in {-1, 0, 1} with D_t the edit distance between the characters written in t steps and
    all of the sentence, so that an episode's rewards sum to n (1 - character error rate). The end symbol pays nothing
    and terminates, and so does the last of ``max_length`` symbols. Padding and start symbols, which ``action_mask``
    excludes, write nothing.

    Attributes:
        mouth: the talker.
        speakers: whose clips are drawn.
        max_length: L, symbols at most, the end symbol included; None for what the longest sentence needs.

    Raises:
        InputError: a maximal length below 1.
    """

    mouth: TalkingMouth
    speakers: Speakers
    max_length: int | None = None

    agents = 1
    action_space = spaces.Discrete(alphabet.SIZE)
    variables: ClassVar[Mapping[str, Variable]] = {
        "action": Variable((), "1", "symbol written"),
        "distance": Variable((), "1", "edits between the transcript and the sentence after the step"),
        "reward": Variable((), "1", "edits that the step saves"),
    }

    def __post_init__(self) -> None:
        if self.max_length is not None and self.max_length < 1:
            raise InputError(f"max_length: {self.max_length}; allowed: at least 1, or None")

    @property
    def steps(self) -> int:
        """L, symbols of the longest transcript."""
        return self.mouth.grammar.longest + 1 if self.max_length is None else self.max_length

    @cached_property
    def observation_space(self) -> spaces.Dict:
        """The clip and the symbols written so far; a point may be seen outside the picture, by its width at most."""
        return spaces.Dict(
            {
                "clip": spaces.Box(*self._bounds, self.mouth.shape, np.float32),
                "tokens": spaces.MultiDiscrete([alphabet.SIZE] * self.steps),
            }
        )

    @property
    def _bounds(self) -> tuple[float, float]:
        if self.mouth.mode == "features":
            return -FEATURE_BOUND, FEATURE_BOUND
        return (0.0, 1.0) if self.mouth.mode == "frames" else (-float(self.mouth.width), 2.0 * self.mouth.width)

    def reset(self, batch: int, generator: torch.Generator) -> TranscriptionState:
        """Draw clips with nothing written yet."""
        speech = self.mouth.sample(batch, generator, self.speakers.to(generator.device))
        return self.reset_to(speech.observation, speech.tokens, speech.text_length)

    def reset_to(self, clip: Tensor, tokens: Tensor, text_length: Tensor) -> TranscriptionState:
        """Given clips ``(B, T, ...)`` of known sentences, as in ``Speech``, with nothing written yet."""
        rows, device = len(clip), clip.device
        return TranscriptionState(
            clip.clamp(*self._bounds),
            torch.where(tokens > alphabet.EOS, tokens, alphabet.PAD),
            text_length,
            torch.full((rows, self.steps), alphabet.PAD, device=device),
            torch.zeros(rows, dtype=torch.int64, device=device),
            torch.zeros(rows, tokens.shape[1] + 1, dtype=torch.int32, device=device),
        )

    def noise(self, batch: int, generator: torch.Generator) -> NoNoise:
        """No step is random."""
        return NoNoise(torch.zeros(batch, device=generator.device))

    def step(self, state: TranscriptionState, action: Tensor, noise: NoNoise) -> Step:
        """Write the symbols ``action`` ``(B,)`` int64.

        Returns:
            Step with info ``distance`` ``(B,)``, D_t.

        Raises:
            InputError: an action of another shape, or that is no symbol.
        """
        wrong_shape = action.shape != state.written.shape
        if wrong_shape or bool(((action < 0) | (action >= alphabet.SIZE)).any()):
            raise InputError(
                f"action of shape {tuple(action.shape)}: must be ({len(state.written)},) symbols below {alphabet.SIZE}"
            )
        chosen = action.unsqueeze(1)
        place = state.written.clamp(max=self.steps - 1).unsqueeze(1)
        row = torch.where(chosen > alphabet.EOS, next_row(state.row, action, state.reference), state.row)
        written = state.written + 1
        after = TranscriptionState(
            state.clip, state.reference, state.length, state.tokens.scatter(1, place, chosen), written, row
        )
        reward = (state.distance - after.distance).to(state.clip.dtype)
        ended = (action == alphabet.EOS) | (written >= self.steps)
        return Step(after, reward, ended, {"distance": after.distance})

    def observe(self, state: TranscriptionState, noise: NoNoise | None) -> dict[str, Tensor]:
        """``clip`` ``(B, T, ...)`` and ``tokens`` ``(B, L)``."""
        return {"clip": state.clip, "tokens": state.tokens}

    def action_mask(self, state: TranscriptionState) -> Tensor:
        """The end symbol and the characters, ``(B, 30)``."""
        symbols = torch.arange(alphabet.SIZE, device=state.written.device)
        return (symbols >= alphabet.EOS).expand(len(state.written), -1)

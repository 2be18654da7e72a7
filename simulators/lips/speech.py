"""Clips of speech with all that is known about them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from core.simulation import tree
from simulators.lips import alphabet
from simulators.lips.speakers import Appearance


@dataclass(frozen=True)
class Utterances:
    """Who says what when, in B clips.

    Attributes:
        length: ``(B,)`` int64 frames.
        tokens: ``(B, L + 1)`` int64 symbols of the sentence, an end symbol and padding.
        text_length: ``(B,)`` int64 characters.
        slots: ``(B, S)`` int64 word numbers.
        speaker: ``(B,)`` int64.
        word_start: ``(B, S)`` frames of 40 ms from the first one of the clip; negative before it.
        word_end: ``(B, S)`` likewise.
    """

    length: Tensor
    tokens: Tensor
    text_length: Tensor
    slots: Tensor
    speaker: Tensor
    word_start: Tensor
    word_end: Tensor

    def __len__(self) -> int:
        return len(self.length)

    def __getitem__(self, rows: Any) -> Self:
        return tree.take(self, rows)

    def to(self, device: torch.device | str) -> Self:
        """The same clips on a device."""
        return tree.map_tensors(lambda x: x.to(device), self)

    @property
    def texts(self) -> list[str]:
        """The sentences in letters."""
        return alphabet.decode(self.tokens)


@dataclass(frozen=True)
class Trajectory(Utterances):
    """Clips before anything random is seen of them.

    Attributes:
        articulation: ``(B, T, 6)`` mouth shapes of the speakers.
        appearance: ``(B,)`` each, of the speakers.
    """

    articulation: Tensor
    appearance: Appearance


@dataclass(frozen=True)
class Speech(Utterances):
    """Clips as a camera sees them.

    Attributes:
        observation: ``(B, T, D)`` features, ``(B, T, 40)`` coordinates of 20 points in pixels (x, y of one after the
            other), or ``(B, T, H, W)`` grey levels in [0, 1].
    """

    observation: Tensor

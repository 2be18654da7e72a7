"""Entry point of the gymnasium registry: ``gymnasium.make("LipReading-v0", grammar="mini")``."""

from __future__ import annotations

from typing import Any, Literal

from core.errors import InputError
from core.simulation import GymEnv
from simulators.lips.speakers import Speakers
from simulators.lips.talking_mouth import TalkingMouth
from simulators.lips.transcription import Transcription


def make(
    *,
    grammar: Literal["grid", "mini"] = "grid",
    speakers: int = 20,
    seed: int = 0,
    max_length: int | None = None,
    scaled: bool = True,
    **mouth: Any,
) -> GymEnv:
    """One clip at a time: write its transcript character by character, then the end symbol.

    Args:
        grammar: of the sentences; "mini" has the last three words only, in frames 8 to 55 of a clip.
        speakers: how many there are.
        seed: of the speakers.
        max_length: see ``Transcription``.
        scaled: the clip in [-1, 1] instead of its units.
        **mouth: further fields of ``TalkingMouth``.

    Raises:
        InputError: an unknown grammar, or what ``Speakers``, ``TalkingMouth`` and ``Transcription`` refuse.
    """
    if grammar not in ("grid", "mini"):
        raise InputError(f"grammar: {grammar!r}; allowed: grid, mini")
    talker = TalkingMouth.mini(**mouth) if grammar == "mini" else TalkingMouth(**mouth)
    return GymEnv(Transcription(talker, Speakers.draw(speakers, seed), max_length), scaled=scaled)

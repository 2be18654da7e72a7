"""What a reader of a corpus finds for each clip, before anything is decoded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from simulators.lips.align import Alignment

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Recording:
    """One clip of a corpus and what is spoken in it.

    Attributes:
        name: unique within its archive, without a folder.
        speaker: empty where the corpus does not tell.
        split: ``train``, ``val`` or ``test``.
        sentence: in a-z and space.
        path: of a video file, or of a folder of pictures ``<n>.jpg``.
        archive: of the prepared pack that is to hold it.
        align: reads when the words are spoken, given the frames of the prepared clip and those recorded; None without
            an alignment.
        first: number of the first picture of a folder; None: its first.
        last: number of the last one.
    """

    name: str
    speaker: str
    split: str
    sentence: str
    path: Path
    archive: str
    align: Callable[[float, float], Alignment] | None = None
    first: int | None = None
    last: int | None = None

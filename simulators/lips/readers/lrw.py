"""LRW: 500 English words, 29 frames each, the word in the middle (BBC; for academic use by written agreement).

<root>/lipread_mp4/WORD/{train,val,test}/WORD_00001.mp4 and .txt, whose last line is "Duration: 0.53 seconds"
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

from core.errors import InputError
from simulators.lips import alphabet
from simulators.lips.align import Alignment, Word
from simulators.lips.readers.recording import SPLITS, Recording
from simulators.lips.tables import read_text

FRAMES = 29
LIST = "label_sorted.txt"
"""The list of words that goes round with the corpus, one a line; optional."""


def read_lrw(root: Path, words: Path | None = None) -> tuple[list[Recording], list[str]]:
    """The recordings, by word, split and number, and notes; the text is the word in small letters.

    Args:
        root: the folder ``lipread_mp4`` or the one above it.
        words: a file of the allowed words, one a line; without it ``label_sorted.txt`` where there is one, else the
            names of the folders.

    Raises:
        InputError: no word is found, one is not in the list, or a video has no text or the other way round.
    """
    base = root / "lipread_mp4" if (root / "lipread_mp4").is_dir() else root
    folders = sorted(path for path in base.iterdir() if path.is_dir()) if base.is_dir() else []
    listing = words or next((p for p in (root / LIST, base / LIST) if p.exists()), None)
    allowed = {word.upper() for word in _lines(listing)} if listing else None
    found: list[Recording] = []
    for folder in folders:
        if allowed is not None and folder.name.upper() not in allowed:
            raise InputError(f"{folder}: word {folder.name} is not in the list {listing} of {len(allowed)} words")
        for split in SPLITS:
            found += _clips(folder, split)
    if not found:
        raise InputError(f"{base}: no clip WORD/{{train,val,test}}/WORD_00001.mp4")
    absent = sorted((allowed or set()) - {folder.name.upper() for folder in folders})
    notes = [f"{base}: {len(absent)} words of the list have no folder, such as {absent[0]}"] if absent else []
    return found, notes


def word_frames(duration: float) -> tuple[int, int]:
    """First frame of the word and the one after its last, in a clip of 29 frames whose word is in the middle."""
    start, end = max(0, int(14.5 - 12.5 * duration)), min(FRAMES, int(14.5 + 12.5 * duration))
    return start, max(end, start + 1)


def _clips(folder: Path, split: str) -> list[Recording]:
    place = folder / split
    if not place.is_dir():
        return []
    # Hidden files, as macOS leaves beside each that it copies, are no clips.
    videos = {path.stem: path for path in sorted(place.glob("[!.]*.mp4"))}
    texts = {path.stem for path in place.glob("[!.]*.txt")}
    if odd := sorted(set(videos) ^ texts):
        kind = "text" if odd[0] in videos else "video"
        raise InputError(f"{place}: {odd[0]} has no {kind}; {len(videos)} videos and {len(texts)} texts must match")
    word = folder.name.lower()
    found = []
    for name, path in videos.items():
        if not re.fullmatch(rf"{re.escape(folder.name)}_\d+", name):
            raise InputError(f"{path}: must be named {folder.name}_<number>, as its folder")
        sentence = alphabet.check(word, str(folder))
        reader = partial(_align, path.with_suffix(".txt"), sentence)
        found.append(Recording(f"{split}_{name}", "", split, sentence, path, folder.name, reader))
    return found


def _align(path: Path, word: str, frames: float, spoken: float) -> Alignment:
    found = _lines(path)
    match = re.fullmatch(r"Duration:\s*([\d.]+)\s*seconds?", found[-1]) if found else None
    try:
        duration = float(match.group(1)) if match else 0.0
    except ValueError:
        duration = 0.0
    if not 0 < duration <= FRAMES / 25:
        said = found[-1] if found else ""
        raise InputError(f"{path}: last line {said!r}; must be 'Duration: <s> seconds' with 0 < s <= {FRAMES / 25:g}")
    start, end = word_frames(duration)
    if spoken <= start:
        raise InputError(f"{path}: the word starts at frame {start} of {spoken:g}; the clip must have {FRAMES} frames")
    return Alignment((Word(word, start, min(end, spoken)),))


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]

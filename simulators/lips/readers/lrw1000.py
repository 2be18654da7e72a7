"""LRW-1000 (CAS-VSR-W1k): 1000 Mandarin words in pinyin, as cut mouths (by signed agreement with ICT, CAS).

<root>/images/<dir>/<n>.jpg
<root>/info/{trn,val,tst}_1000.txt, lines "dir, -, pinyin, start in s, end in s"; frame int(25 t) + 1

Words of fewer than 5 frames, which no clip may have, are read with the frames around them.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from core.errors import InputError
from simulators.lips import alphabet
from simulators.lips.align import Alignment, Word
from simulators.lips.readers.recording import Recording
from simulators.lips.tables import read_text
from simulators.lips.video import LEAST_FRAMES

FILES = {"train": "trn_1000.txt", "val": "val_1000.txt", "test": "tst_1000.txt"}
FRAMES = 30
"""Longer words are left out, as in published training code."""


def read_lrw1000(root: Path) -> tuple[list[Recording], list[str]]:
    """The recordings, by split and line, and notes: how many words were too long.

    Raises:
        InputError: a file is absent, a line is not as it should be, or it names a folder that is not there.
    """
    if not (root / "images").is_dir():
        raise InputError(f"{root / 'images'}: no such folder")
    found: dict[str, Recording] = {}
    long = 0
    for split, name in FILES.items():
        path = root / "info" / name
        for number, line in enumerate(read_text(path).splitlines(), start=1):
            if not line.strip():
                continue
            recording = _recording(line, f"{path}: line {number}", root / "images", split)
            if recording.name in found:
                raise InputError(f"{path}: line {number}: {recording.path.name} with the same frames stands twice")
            if (recording.last or 0) - (recording.first or 0) + 1 > FRAMES:
                long += 1
                continue
            found[recording.name] = recording
    if not found:
        raise InputError(f"{root / 'info'}: no word of at most {FRAMES} frames")
    return list(found.values()), [f"{root}: {long} words of more than {FRAMES} frames are left out"] if long else []


def _recording(line: str, where: str, images: Path, split: str) -> Recording:
    cells = [cell.strip() for cell in line.split(",")]
    if len(cells) != 5:
        raise InputError(f"{where}: {len(cells)} cells; must be 5: folder, -, pinyin, start, end")
    folder, _, pinyin, *times = cells
    sentence = alphabet.check(pinyin.lower(), f"{where}: pinyin")
    try:
        start, end = (float(time) for time in times)
    except ValueError:
        raise InputError(f"{where}: {times[0]}, {times[1]}: times must be numbers, in seconds") from None
    if not 0 <= start <= end < float("inf"):
        raise InputError(f"{where}: from {start:g} s to {end:g} s: must be finite and rise from at least 0")
    path = images / folder
    if not folder or ".." in Path(folder).parts or not path.is_dir():
        raise InputError(f"{where}: {folder!r}: no such folder below {images}")
    first, last = int(start * 25) + 1, int(end * 25) + 1
    name = f"{folder.replace('/', '_')}_{first}_{last}"
    start, end = _with_context(path, first, last)
    reader = partial(_align, sentence, first - start, last + 1 - start)
    return Recording(name, "", split, sentence, path, sentence.replace(" ", "_"), reader, start, end)


def _with_context(folder: Path, first: int, last: int) -> tuple[int, int]:
    """Numbers of the first and last frame of a clip around a word: 5 or more, the word in the middle where it can be.

    Where the recording has no more frames on one side, they are taken from the other.
    """
    start, end = first, last
    while end - start + 1 < LEAST_FRAMES:
        near = [n for n in (start - 1, end + 1) if (folder / f"{n}.jpg").exists()]
        if not near:
            break
        found = min(near, key=lambda n: max(first - n, n - last))
        start, end = min(start, found), max(end, found)
    return start, end


def _align(sentence: str, start: int, end: int, frames: float, spoken: float) -> Alignment:
    # The word has all frames of the clip but those around a short one; of several syllables, each gets an equal part.
    words = sentence.split()
    share = (min(end, spoken) - start) / len(words)
    return Alignment(tuple(Word(word, start + i * share, start + (i + 1) * share) for i, word in enumerate(words)))

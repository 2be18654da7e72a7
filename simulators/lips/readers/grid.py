"""The GRID audio-visual sentence corpus: 33 talkers on video, 1000 sentences each (CC BY 4.0).

Cooke, Barker, Cunningham, Shao, JASA 120(5), 2421 (2006); DOI 10.5281/zenodo.3625687. A file is named by the initials
of its sentence: ``bbaf2n`` says "bin blue at f two now". Layouts that are read:

    <root>/s1/*.mpg                       or another video suffix, or the same in <root>/s1/video/
    <root>/s1/video/mpg_6000/*.mpg        or another video suffix, or pictures <utt>/<n>.jpg
    <root>/align/<utt>.align, <root>/alignments/s1/<utt>.align, <root>/s1/align/<utt>.align,
    <root>/GRID_align_txt/s1/align/<utt>.align

Hidden files and folders, whose names begin with a dot, are passed over.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import torch

from core.errors import InputError
from core.seeds import stream
from simulators.lips import align
from simulators.lips.align import Alignment
from simulators.lips.grammar import GRID
from simulators.lips.pack import refuse_leakage
from simulators.lips.readers.recording import SPLITS, Recording
from simulators.lips.tables import read_records
from simulators.lips.video import SUFFIXES

Split = Literal["unseen", "overlapped"]

UNSEEN = ("s1", "s2", "s20", "s22")
"""Speakers of the test split of ``unseen``."""
OVERLAPPED_TEST = 255
"""Sentences of each speaker in the test split of ``overlapped``."""


def read_grid(
    root: Path, split: Split = "unseen", *, listed: Path | None = None, validation: int = 0, seed: int = 0
) -> tuple[list[Recording], list[str]]:
    """The recordings, by speaker and name, and notes.

    Args:
        root: of the corpus.
        split: ``unseen``: s1, s2, s20 and s22 are tested, the others trained on. ``overlapped``: 255 random sentences
            of each speaker are tested.
        listed: a CSV file with the columns ``speaker,utt,split`` in place of these two rules; what it does not name is
            left out. For ``unseen``, a speaker may then not be both trained on and tested.
        validation: random sentences of each trained speaker that are moved to ``val``.
        seed: of the random choices.

    Raises:
        InputError: no speaker is found, a file is not named by a sentence, videos and alignments do not match, a split
            is not possible, or it leaks.
    """
    if split not in get_args(Split):
        raise InputError(f"split: {split!r}; must be one of {', '.join(get_args(Split))}")
    speakers = sorted((path for path in root.iterdir() if _is_speaker(path)), key=lambda path: int(path.name[1:]))
    if not speakers:
        raise InputError(f"{root}: no folder of a speaker (s1, s2, ...)")
    found: list[Recording] = []
    notes: list[str] = []
    for folder in speakers:
        clips = _clips(folder)
        if not clips:
            notes.append(f"{folder}: holds no clip" + (" (s21 has no video)" if folder.name == "s21" else ""))
            continue
        found += _speaker(root, folder.name, clips, notes)
    if not found:
        raise InputError(
            f"{root}: no clip below {speakers[0].name}; must hold videos, there or in video/mpg_6000, or "
            "video/mpg_6000/<utt>/<n>.jpg"
        )
    if (root / "align").is_dir() and len({r.name for r in found}) < len(found):
        notes.append(f"{root / 'align'}: one folder for speakers who say the same; times may be another's")
    found = _listed(found, listed) if listed is not None else _divided(found, split, seed)
    found = _with_validation(found, validation, seed)
    if split == "unseen":
        refuse_leakage(found, str(listed or root))
    return found, notes


def sentence_of(name: str, where: str) -> str:
    """The sentence that a file is named after.

    Raises:
        InputError: it is named after none.
    """
    try:
        return GRID.texts(torch.tensor([GRID.parse_name(name)]))[0]
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def _is_speaker(path: Path) -> bool:
    return path.is_dir() and path.name[:1] == "s" and path.name[1:].isdecimal()


def _clips(folder: Path) -> dict[str, Path]:
    for place in (folder / "video" / "mpg_6000", folder / "video", folder):
        if not place.is_dir():
            continue
        pictures = place.name == "mpg_6000"
        # macOS leaves a hidden "._<utt>.mpg" beside each file that it copies.
        shown = sorted(path for path in place.iterdir() if not path.name.startswith("."))
        clips = {
            path.stem: path
            for path in shown
            if (path.suffix.lower() in SUFFIXES and path.is_file()) or (pictures and path.is_dir())
        }
        if clips:
            return clips
    return {}


def _speaker(root: Path, speaker: str, clips: dict[str, Path], notes: list[str]) -> list[Recording]:
    folders = (
        root / "alignments" / speaker,
        root / speaker / "align",
        root / "GRID_align_txt" / speaker / "align",
        root / "align",
    )
    folder = next((place for place in folders if place.is_dir()), None)
    if folder is None:
        notes.append(f"{root}: no alignments of {speaker}")
    elif absent := [name for name in clips if not (folder / f"{name}.align").exists()]:
        raise InputError(
            f"{folder}: no {absent[0]}.align; {len(clips)} clips of {speaker} and the alignments of "
            f"{len(clips) - len(absent)} of them must match"
        )
    found = []
    for name, path in clips.items():
        sentence = sentence_of(name, str(path))
        reader = None if folder is None else partial(_align, folder / f"{name}.align", sentence)
        found.append(Recording(name, speaker, "train", sentence, path, speaker, reader))
    return found


def _align(path: Path, sentence: str, frames: float, spoken: float) -> Alignment:
    found = align.read(path, frames=frames, spoken=spoken, vocabulary=GRID.vocabulary)
    if found.sentence != sentence:
        raise InputError(f"{path}: says {found.sentence!r}; its name says {sentence!r}")
    return found


def _by_speaker(recordings: list[Recording], split: str | None = None) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for i, recording in enumerate(recordings):
        if split is None or recording.split == split:
            found.setdefault(recording.speaker, []).append(i)
    return found


def _drawn(rows: list[int], count: int, seed: int, purpose: str) -> set[int]:
    generator = torch.Generator().manual_seed(stream(seed, purpose))
    return {rows[i] for i in torch.randperm(len(rows), generator=generator)[:count].tolist()}


def _divided(recordings: list[Recording], split: Split, seed: int) -> list[Recording]:
    if split == "unseen":
        return [replace(r, split="test" if r.speaker in UNSEEN else "train") for r in recordings]
    tested: set[int] = set()
    for speaker, rows in _by_speaker(recordings).items():
        if len(rows) <= OVERLAPPED_TEST:
            raise InputError(
                f"split overlapped: {speaker} has {len(rows)} clips; must have more than {OVERLAPPED_TEST}"
            )
        tested |= _drawn(rows, OVERLAPPED_TEST, seed, f"overlapped {speaker}")
    return [replace(r, split="test" if i in tested else "train") for i, r in enumerate(recordings)]


def _with_validation(recordings: list[Recording], count: int, seed: int) -> list[Recording]:
    if count < 0:
        raise InputError(f"validation = {count}: must be at least 0")
    held: set[int] = set()
    for speaker, rows in _by_speaker(recordings, "train").items():
        if count >= len(rows):
            raise InputError(f"validation = {count}: {speaker} has {len(rows)} clips to train on; must be fewer")
        held |= _drawn(rows, count, seed, f"validation {speaker}")
    return [replace(r, split="val") if i in held else r for i, r in enumerate(recordings)]


def _listed(recordings: list[Recording], path: Path) -> list[Recording]:
    rows = read_records(path)
    known = {(r.speaker, r.name): r for r in recordings}
    found = {}
    for number, row in enumerate(rows, start=2):
        key = (row.get("speaker") or "", row.get("utt") or "")
        if key not in known:
            raise InputError(f"{path}: row {number}: speaker {key[0]!r}, utt {key[1]!r}: no such clip")
        split = row.get("split") or ""
        if split not in SPLITS:
            raise InputError(f"{path}: row {number}: split {split!r}; must be one of {', '.join(SPLITS)}")
        if key in found:
            raise InputError(f"{path}: row {number}: {key[1]} of {key[0]} stands twice")
        found[key] = replace(known[key], split=split)
    if not found:
        raise InputError(f"{path}: has no row; must have the columns speaker, utt, split")
    return list(found.values())

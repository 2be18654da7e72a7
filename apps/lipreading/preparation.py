"""Turns recordings into a pack of mouth clips: decode, check, crop, compress."""

from __future__ import annotations

import hashlib
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from core import files
from core.errors import InputError
from core.study.config import Config
from simulators.lips.crop import parse_crop
from simulators.lips.pack import RECORD, Utterance
from simulators.lips.pack_writer import PARTS, Entry, Note, assemble, read_part, write_part
from simulators.lips.readers import Corpus, Recording, read_folder, read_grid, read_lrw, read_lrw1000
from simulators.lips.sheets import COLUMNS, FPS, LEAST_SIDE, QUALITY, decode_sheet, encode_sheet
from simulators.lips.video import Frame, padded, read_clip

PART = 50
"""Clips of a part: what a kill costs."""
REQUEST = "request.json"
LICENCES = {
    "grid": "GRID corpus, CC BY 4.0; Cooke, Barker, Cunningham, Shao, JASA 120(5), 2421 (2006)",
    "lrw": "LRW, BBC: academic use by written agreement; do not pass on",
    "lrw1000": "LRW-1000 / CAS-VSR-W1k, ICT CAS: use by signed agreement; do not pass on",
    "folder": "",
}

Report = Callable[[float, str], None]
"""Is told the share done and what was done."""


class PrepareSettings(Config):
    """How clips become a pack."""

    crop: str = "haar"
    """``haar``, ``whole``, ``landmarks``, or ``TOP:BOTTOM,LEFT:RIGHT`` in pixels."""
    landmarks: Path | None = None
    """Folder of their files, for the crop ``landmarks``."""
    height: int = Field(default=32, ge=LEAST_SIDE, le=512)
    """Of a frame, pixels."""
    width: int = Field(default=48, ge=LEAST_SIDE, le=512)
    """Of a frame, pixels."""
    frames: int = Field(default=75, ge=5, le=1000)
    """Of each clip; shorter ones repeat their last frame."""
    resample: bool = False
    """Bring clips of another rate to 25 frames a second by their time stamps."""
    steady: bool = False
    """Shift each clip onto the first one of its speaker."""
    quality: int = Field(default=QUALITY, ge=50, le=100)
    """Of the JPEG, as Pillow counts."""
    skip_bad: bool = False
    """Leave out clips that are refused, with a note, and do not stop."""


USUAL: dict[Corpus, dict[str, Any]] = {
    "grid": {},
    "lrw": {"crop": "115:211,79:175", "height": 96, "width": 96, "frames": 29},
    "lrw1000": {"crop": "whole", "height": 122, "width": 122, "frames": 30},
    "folder": {},
}
"""Settings of a corpus that differ from the defaults."""


@dataclass(frozen=True)
class Prepared:
    """What was written.

    Attributes:
        folder: of the pack.
        utterances: its clips.
        notes: what was found about them, and about those left out.
        rms: root mean square of what the JPEG changed, in grey levels of 255.
    """

    folder: Path
    utterances: list[Utterance]
    notes: list[Note]
    rms: float


def read_recordings(
    root: Path,
    corpus: Corpus,
    *,
    split: Literal["unseen", "overlapped"] = "unseen",
    listed: Path | None = None,
    validation: int = 0,
    words: Path | None = None,
    seed: int = 0,
) -> tuple[list[Recording], list[str]]:
    """The recordings of a corpus and notes; ``split``, ``listed``, ``validation`` and ``seed`` are GRID's, ``words``
    is LRW's.

    Raises:
        InputError: as the corpus's reader.
    """
    if not root.is_dir():
        raise InputError(f"{root}: no such folder")
    if corpus == "grid":
        return read_grid(root, split, listed=listed, validation=validation, seed=seed)
    if corpus == "lrw":
        return read_lrw(root, words)
    return read_lrw1000(root) if corpus == "lrw1000" else read_folder(root)


def prepare(
    recordings: Sequence[Recording],
    out: Path,
    settings: PrepareSettings,
    *,
    origin: dict[str, Any],
    workers: int = 1,
    report: Report = lambda share, text: None,
) -> Prepared:
    """Write a pack, or go on with one that was stopped; a finished one is left as it is.

    Args:
        recordings: of a reader.
        out: folder of the pack, new, empty, or of the same request.
        settings: see there.
        origin: JSON data that says where the clips come from; ``split`` in it is checked when the pack is opened.
        workers: processes.
        report: is told how far it is.

    Raises:
        InputError: the folder holds something else, or a clip is refused and ``skip_bad`` is off.
    """
    parse_crop(settings.crop, settings.landmarks)
    request = {
        # Whether to stop at a bad clip may change when the work goes on.
        "settings": settings.model_dump(mode="json", exclude={"skip_bad"}),
        "origin": origin,
        "recordings": _fingerprint(recordings),
    }
    done = _claim(out, request)
    if done is not None:
        from simulators.lips.pack import Pack

        return Prepared(out, Pack.open(out).utterances, [], float(done["rms"]))
    parts = [(out / PARTS / name, chunk, reference) for name, chunk, reference in _parts(recordings, settings)]
    open_parts = [(path, chunk, reference, settings) for path, chunk, reference in parts if not path.exists()]
    finished = sum(len(chunk) for _, chunk, _ in parts) - sum(len(chunk) for _, chunk, _, _ in open_parts)
    for count in _made(open_parts, workers):
        finished += count
        report(finished / len(recordings), f"{finished:,} of {len(recordings):,} clips")
    squares = [read_part(path)["record"] for path, _, _ in parts]
    pixels = sum(row["pixels"] for row in squares)
    rms = (sum(row["squares"] for row in squares) / pixels) ** 0.5 if pixels else 0.0
    record = {
        "format": 1,
        "fps": FPS,
        "frames": settings.frames,
        "height": settings.height,
        "width": settings.width,
        "columns": COLUMNS,
        "quality": settings.quality,
        "rms": rms,
        **origin,
        "request": request,
    }
    utterances, notes = assemble(out, [path for path, _, _ in parts], record)
    return Prepared(out, utterances, notes, rms)


def prepare_clip(
    recording: Recording, settings: PrepareSettings, reference: Frame | None
) -> tuple[Entry, list[str], float]:
    """One clip ready to be stored, notes about it, and the squares that the JPEG changed it by, summed.

    Raises:
        InputError: it is refused.
    """
    clip = read_clip(
        recording.path,
        resample=settings.resample,
        crop=parse_crop(settings.crop, settings.landmarks),
        height=settings.height,
        width=settings.width,
        reference=reference,
        first=recording.first,
        last=recording.last,
    )
    count = len(clip.frames)
    notes = list(clip.notes)
    if count > settings.frames:
        raise InputError(f"{recording.path}: {count} frames; must be at most {settings.frames} (--frames)")
    # Words that are cut out of longer recordings have lengths of their own.
    if count < settings.frames and recording.first is None:
        notes.append(f"{recording.path}: {count} frames; the last one is repeated to {settings.frames}")
    times = recording.align(settings.frames, count) if recording.align is not None else None
    frames = padded(clip.frames, settings.frames)
    sheet = encode_sheet(frames, COLUMNS, settings.quality)
    change = decode_sheet(sheet, str(recording.path), settings.frames, COLUMNS).astype(np.float64) - frames
    utterance = Utterance(
        recording.name, recording.speaker, recording.split, recording.sentence, recording.archive, count, clip.missing
    )
    text = None if times is None else times.text(settings.frames)
    return Entry(utterance, sheet, text), notes, float((change**2).sum())


def _fingerprint(recordings: Sequence[Recording]) -> str:
    text = "\n".join(
        "\t".join(map(str, (r.archive, r.name, r.speaker, r.split, r.sentence, r.path.resolve(), r.first, r.last)))
        for r in recordings
    )
    return hashlib.sha256(text.encode()).hexdigest()


def _claim(out: Path, request: dict[str, Any]) -> dict[str, Any] | None:
    """Make the folder this request's own; the record of its pack if that is finished."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file, not a folder")
    ours = out / PARTS / REQUEST
    record = files.read_json(out / RECORD) if (out / RECORD).exists() else None
    held = record.get("request") if record is not None else files.read_json(ours) if ours.exists() else None
    # A request of which no part was made was refused or stopped at once: another may take its place.
    if record is not None or any((out / PARTS).glob("*.zip")):
        if held != files.jsonable(request):
            raise InputError(f"{out}: holds clips that were prepared otherwise ({_difference(held, request)})")
        return record
    if out.exists() and (others := sorted(path.name for path in out.iterdir() if path.name != PARTS)):
        raise InputError(f"{out}: holds {others[0]}; must be empty or new")
    try:
        ours.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(ours, request)
    except OSError as error:
        raise InputError(f"{out}: {(error.strerror or str(error)).lower()}") from error
    return None


def _difference(held: dict[str, Any] | None, request: dict[str, Any]) -> str:
    for group in ("settings", "origin"):
        for name, value in request[group].items():
            other = (held or {}).get(group, {}).get(name)
            if other != value:
                return f"{name}: {other}, now {value}"
    return "other recordings"


def _parts(
    recordings: Sequence[Recording], settings: PrepareSettings
) -> Iterator[tuple[str, list[Recording], Recording | None]]:
    """Name, clips and the clip that the others are shifted onto, of each part."""
    ordered = sorted(recordings, key=lambda recording: recording.archive)
    for archive, found in groupby(ordered, key=lambda recording: recording.archive):
        members = list(found)
        for number, start in enumerate(range(0, len(members), PART)):
            reference = members[0] if settings.steady else None
            yield f"{archive}.{number:05d}.zip", members[start : start + PART], reference


Part = tuple[Path, list[Recording], Recording | None, PrepareSettings]


def _made(parts: Sequence[Part], workers: int) -> Iterator[int]:
    if workers <= 1 or len(parts) <= 1:
        yield from map(_make, parts)
        return
    # Fork would copy threads of torch and OpenCV that hold locks.
    with ProcessPoolExecutor(min(workers, len(parts)), multiprocessing.get_context("spawn")) as pool:
        try:
            yield from pool.map(_make, parts)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _make(part: Part) -> int:
    """Write a part; how many clips it took."""
    path, recordings, first, settings = part
    reference = None
    if first is not None:
        entry = _tried(first, settings, None)
        reference = None if isinstance(entry, Note) else _mean(entry[0].sheet, settings)
    entries: list[Entry] = []
    notes: list[Note] = []
    squares = 0.0
    for recording in recordings:
        found = _tried(recording, settings, reference)
        if isinstance(found, Note):
            notes.append(found)
            continue
        entries.append(found[0])
        notes += [Note(recording.name, recording.speaker, False, text) for text in found[1]]
        squares += found[2]
    pixels = len(entries) * settings.frames * settings.height * settings.width
    try:
        write_part(path, entries, notes, {"squares": squares, "pixels": pixels})
    except OSError as error:
        raise InputError(f"{path}: {(error.strerror or str(error)).lower()}") from error
    return len(recordings)


def _tried(
    recording: Recording, settings: PrepareSettings, reference: Frame | None
) -> tuple[Entry, list[str], float] | Note:
    try:
        return prepare_clip(recording, settings, reference)
    except InputError as error:
        if not settings.skip_bad:
            raise InputError(f"{error} (--skip-bad leaves such clips out)") from error
        return Note(recording.name, recording.speaker, True, str(error))


def _mean(sheet: bytes, settings: PrepareSettings) -> Frame:
    found: Frame = decode_sheet(sheet, "reference", settings.frames, COLUMNS).mean(axis=0)
    return found

"""Prepared mouth clips in a folder: a table, and one archive of JPEG sheets for each speaker.

    index.csv           utt,speaker,split,sentence, and where it was prepared here: frames,missing,archive
    <name>_mouth.zip    <utt>.jpg, a sheet of all frames of a clip (``simulators.lips.sheets``)
    <name>_align.zip    <utt>.align, where there are alignments (``simulators.lips.align``)
    pack.json           sizes, rate, split and how it was made; a folder without one has GRID's 75 frames

``<name>`` is the speaker, or what the column ``archive`` says. The folder is only ever read.
"""

from __future__ import annotations

import os
import threading
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from core import files
from core.errors import InputError
from simulators.lips import align, alphabet
from simulators.lips.align import Alignment
from simulators.lips.sheets import COLUMNS, FPS, LEAST_SIDE, decode_sheet
from simulators.lips.tables import read_records

GRID_FRAMES = 75
CACHE = 512 * 2**20
"""Bytes; a pack that is smaller when decoded is kept in memory, clip by clip as it is asked for."""
OPEN_ARCHIVES = 64
"""At once; a corpus may have more archives than a process may have open files."""
RECORD = "pack.json"
INDEX = "index.csv"
REQUIRED = ("utt", "speaker", "split", "sentence")


@dataclass(frozen=True)
class Utterance:
    """One clip of a pack.

    Attributes:
        name: unique within its archive.
        speaker: name of the person, empty where nobody knows.
        split: ``train``, ``val`` or ``test``.
        sentence: that is spoken.
        archive: which archives hold it.
        frames: that were recorded; the others repeat the last one. 0: all of the pack's.
        missing: frames of these in which no mouth was found.
    """

    name: str
    speaker: str
    split: str
    sentence: str
    archive: str
    frames: int = 0
    missing: int = 0


class Spoken(Protocol):
    """A clip of which it is known who speaks and what it is used for."""

    @property
    def speaker(self) -> str:
        """Empty where nobody knows."""

    @property
    def split(self) -> str:
        """``train``, ``val`` or ``test``."""


@dataclass(eq=False)
class Pack:
    """Mouth clips with their sentences; see the module for the files.

    Attributes:
        path: of the folder.
        utterances: the clips in the order of ``index.csv``.
        n_frames: T, frames of each clip.
        height: H, pixels.
        width: W, pixels.
        fps: frames a second.
        record: content of ``pack.json``, empty without one.
    """

    path: Path
    utterances: list[Utterance]
    n_frames: int
    height: int
    width: int
    fps: float
    columns: int
    record: dict[str, Any]
    _kept: Tensor | None = field(default=None, repr=False)
    _has: Tensor | None = field(default=None, repr=False)
    _archives: dict[tuple[int, str], zipfile.ZipFile] = field(default_factory=dict, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @classmethod
    def open(cls, path: Path | str) -> Pack:
        """Read the table and compare it with the archives; no clip is decoded but the first.

        Raises:
            InputError: a file is absent or not what it should be, a sentence cannot be spelled, a name stands twice,
                clips and rows of the table do not match, or a speaker of the test split of an ``unseen`` split is
                trained on.
        """
        path = Path(path)
        record = files.read_json(path / RECORD) if (path / RECORD).exists() else {}
        frames = _whole(record, "frames", GRID_FRAMES, path, 1)
        columns = _whole(record, "columns", COLUMNS, path, 1)
        if record.get("fps", FPS) != FPS:
            raise InputError(f"{path / RECORD}: fps: {record['fps']!r}; must be {FPS:g}")
        utterances = _table(path / INDEX, frames)
        if record.get("split") == "unseen":
            refuse_leakage(utterances, str(path / INDEX))
        pack = cls(path, utterances, frames, 0, 0, FPS, columns, record)
        pack._compare()
        first = pack._sheet(0, None)
        pack.height, pack.width = first.shape[1:]
        for name in ("height", "width"):
            found = getattr(pack, name)
            if _whole(record, name, found, path, LEAST_SIDE) != found or found < LEAST_SIDE:
                said = record.get(name, f"at least {LEAST_SIDE}")
                raise InputError(f"{path}: frames have {name} {found} pixels; must be {said}")
        return pack

    def __len__(self) -> int:
        return len(self.utterances)

    @property
    def crop(self) -> str | None:
        """How the mouths were found, as a command line says it; None where the pack does not tell."""
        request = self.record.get("request")
        settings = request.get("settings") if isinstance(request, dict) else None
        found = settings.get("crop") if isinstance(settings, dict) else None
        return found if isinstance(found, str) else None

    @property
    def length(self) -> Tensor:
        """Recorded frames of each clip, ``(N,)`` int64."""
        return torch.tensor([u.frames or self.n_frames for u in self.utterances])

    @property
    def sentences(self) -> list[str]:
        """Of all clips, in order."""
        return [u.sentence for u in self.utterances]

    @property
    def splits(self) -> dict[str, int]:
        """Names of the splits and how many clips each has."""
        return dict(Counter(u.split for u in self.utterances))

    def split(self, name: str) -> Tensor:
        """Indices of the clips in a split, ``(n,)`` int64.

        Raises:
            InputError: no clip is in it.
        """
        found = [i for i, u in enumerate(self.utterances) if u.split == name]
        if not found:
            raise InputError(f"{self.path / INDEX}: no clip in split {name!r}; there are: {', '.join(self.splits)}")
        return torch.tensor(found)

    def frames(self, indices: Sequence[int] | Tensor) -> Tensor:
        """Grey frames ``(n, T, H, W)`` uint8 of some clips.

        Raises:
            InputError: a sheet cannot be decoded or has another size.
        """
        rows = [int(i) for i in (indices.tolist() if isinstance(indices, Tensor) else indices)]
        shape = (self.n_frames, self.height, self.width)
        with self._lock:
            small = len(self) * int(np.prod(shape)) <= CACHE
            if small and self._kept is None:
                self._kept = torch.empty((len(self), *shape), dtype=torch.uint8)
                self._has = torch.zeros(len(self), dtype=torch.bool)
            if self._kept is None or self._has is None:
                clips = [torch.from_numpy(self._sheet(i, shape[1:])) for i in rows]
                return torch.stack(clips) if clips else torch.empty((0, *shape), dtype=torch.uint8)
            for i in rows:
                if not self._has[i]:
                    self._kept[i] = torch.from_numpy(self._sheet(i, shape[1:]))
                    self._has[i] = True
            return self._kept[torch.tensor(rows, dtype=torch.long)]

    def alignment(self, index: int) -> Alignment | None:
        """When the words of a clip are spoken; None where the pack has no alignment of it.

        Raises:
            InputError: the alignment is refused, or has other words than the sentence.
        """
        utterance = self.utterances[index]
        archive = self.path / f"{utterance.archive}_align.zip"
        if not archive.exists():
            return None
        name = f"{utterance.name}.align"
        with self._lock:
            opened = self._archive(archive)
            if name not in opened.NameToInfo:
                return None
            text = _entry(opened, name, archive).decode("utf-8", errors="replace")
        found = align.parse(text, f"{archive}: {name}", frames=self.n_frames)
        if found.sentence != utterance.sentence:
            raise InputError(f"{archive}: {name}: says {found.sentence!r}; {INDEX} says {utterance.sentence!r}")
        return found

    def checksum(self, index: int) -> int:
        """CRC-32 of the sheet of a clip, by the archive's table."""
        utterance = self.utterances[index]
        with self._lock:
            archive = self._archive(self.path / f"{utterance.archive}_mouth.zip")
            return archive.getinfo(f"{utterance.name}.jpg").CRC

    def __getstate__(self) -> dict[str, Any]:
        """What another process gets: it opens the archives itself."""
        return self.__dict__ | {"_kept": None, "_has": None, "_archives": {}, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    def _sheet(self, index: int, size: tuple[int, int] | None) -> np.ndarray[Any, np.dtype[np.uint8]]:
        utterance = self.utterances[index]
        archive = self.path / f"{utterance.archive}_mouth.zip"
        name = f"{utterance.name}.jpg"
        data = _entry(self._archive(archive), name, archive)
        return decode_sheet(data, f"{archive}: {name}", self.n_frames, self.columns, size)

    def _archive(self, path: Path) -> zipfile.ZipFile:
        # A file handle that a fork shares has one position for both processes.
        key = (os.getpid(), path.name)
        if key not in self._archives:
            if len(self._archives) >= OPEN_ARCHIVES:
                self._archives.pop(next(iter(self._archives))).close()
            self._archives[key] = _open_zip(path)
        return self._archives[key]

    def _compare(self) -> None:
        told: dict[str, set[str]] = {}
        for utterance in self.utterances:
            told.setdefault(utterance.archive, set()).add(utterance.name)
        for archive, names in told.items():
            path = self.path / f"{archive}_mouth.zip"
            held = {name[: -len(".jpg")] for name in self._archive(path).namelist() if name.endswith(".jpg")}
            if odd := sorted(names ^ held):
                lacks = "holds no clip of" if odd[0] in names else "has no sentence for"
                raise InputError(
                    f"{path if odd[0] in names else self.path / INDEX}: {lacks} {odd[0]}; "
                    f"{len(held)} clips and {len(names)} sentences of {archive} must match"
                )


def grid_s1_pack(data: Path | str) -> Pack:
    """The mouth clips of GRID's speaker s1 below a folder of data sets (``<data>/lipreading``).

    Raises:
        InputError: as ``Pack.open``.
    """
    return Pack.open(Path(data) / "lipreading")


def refuse_leakage(utterances: Iterable[Spoken], where: str) -> None:
    """Refuse a split into unseen speakers in which somebody is both trained on and tested.

    Raises:
        InputError: so it is.
    """
    if both := leaking_speakers(utterances):
        raise InputError(
            f"{where}: speaker {both[0]} is in the test split and in another one; the split unseen allows one"
        )


def leaking_speakers(utterances: Iterable[Spoken]) -> list[str]:
    """Known speakers who are in the test split and in another one."""
    inside: dict[str, set[str]] = {}
    for utterance in utterances:
        inside.setdefault(utterance.speaker, set()).add(utterance.split)
    return sorted(name for name, found in inside.items() if name and "test" in found and len(found) > 1)


def is_file_name(name: str) -> bool:
    """Whether a clip or an archive of a pack may have this name: it is not empty, not hidden, and in no folder."""
    return bool(name) and "/" not in name and "\\" not in name and not name.startswith(".")


def _table(path: Path, frames: int) -> list[Utterance]:
    rows = read_records(path)
    if not rows:
        raise InputError(f"{path}: has no row")
    found: dict[tuple[str, str], Utterance] = {}
    for number, row in enumerate(rows, start=2):
        where = f"{path}: row {number}"
        utterance = _row(row, where, frames)
        key = (utterance.archive, utterance.name)
        if key in found:
            raise InputError(f"{where}: {utterance.name} of {utterance.archive} stands twice")
        found[key] = utterance
    return list(found.values())


def _row(row: dict[str, str | None], where: str, frames: int) -> Utterance:
    for name in REQUIRED:
        if row.get(name) is None:
            raise InputError(f"{where}: has no cell {name}; must have {', '.join(REQUIRED)}")
    cells = {name: value or "" for name, value in row.items()}
    sentence = alphabet.check(cells["sentence"], f"{where}: sentence")
    archive = cells.get("archive") or cells["speaker"]
    for name, value in (("utt", cells["utt"]), ("archive or speaker", archive)):
        if not is_file_name(value):
            raise InputError(f"{where}: {name}: {value!r}; must be a name of a file without a folder")
    counts = {}
    for name, most in (("frames", frames), ("missing", frames)):
        text = cells.get(name) or "0"
        if not text.isdecimal() or int(text) > most:
            raise InputError(f"{where}: {name}: {text!r}; must be a whole number from 0 to {most}")
        counts[name] = int(text)
    return Utterance(cells["utt"], cells["speaker"], cells["split"], sentence, archive, **counts)


def _open_zip(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except OSError as error:
        raise InputError(f"{path}: {(error.strerror or str(error)).lower()}") from error
    except zipfile.BadZipFile as error:
        raise InputError(f"{path}: not a zip archive ({error})") from error


def _entry(archive: zipfile.ZipFile, name: str, path: Path) -> bytes:
    try:
        return archive.read(name)
    except KeyError:
        raise InputError(f"{path}: holds no {name}") from None
    # An entry that is encrypted, or packed in a way that zipfile does not know, is a RuntimeError.
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError) as error:
        raise InputError(f"{path}: {name} cannot be read ({error})") from error


def _whole(record: dict[str, Any], name: str, usual: int, path: Path, least: int) -> int:
    value = record.get(name, usual)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InputError(f"{path / RECORD}: {name}: {value!r}; must be a whole number of at least {least}")
    return value

"""Writing a pack piece by piece, so that a kill costs at most one piece.

While it is made, the folder has ``.parts/<archive>.<number>.zip``, each written whole; ``Pack`` reads what
``assemble`` makes of them. The same clips and settings give the same bytes, however often the work was stopped.
"""

from __future__ import annotations

import csv
import io
import json
import shutil
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core import files
from core.errors import InputError
from simulators.lips.pack import INDEX, RECORD, Utterance

PARTS = ".parts"
NOTES = "notes.csv"
_ROWS = "rows.json"


@dataclass(frozen=True)
class Entry:
    """A clip that is ready to be stored.

    Attributes:
        utterance: its row of the table.
        sheet: JPEG of its frames.
        align: content of its ``.align`` file, None without.
    """

    utterance: Utterance
    sheet: bytes
    align: str | None


@dataclass(frozen=True)
class Note:
    """What was found about a clip.

    Attributes:
        name: of the clip.
        speaker: of the clip.
        left_out: whether it is therefore not in the pack.
        text: one line.
    """

    name: str
    speaker: str
    left_out: bool
    text: str


def write_part(path: Path, entries: Sequence[Entry], notes: Sequence[Note], record: dict[str, Any]) -> None:
    """Store some clips of one archive; the file is whole or absent.

    Args:
        path: of the part.
        entries: the clips.
        notes: about these and about clips that were left out.
        record: JSON data that ``assemble`` returns.
    """
    rows = {
        "utterances": [vars(entry.utterance) for entry in entries],
        "notes": [vars(note) for note in notes],
        "record": record,
    }
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for entry in entries:
            _put(archive, f"{entry.utterance.name}.jpg", entry.sheet)
            if entry.align is not None:
                _put(archive, f"{entry.utterance.name}.align", entry.align.encode())
        _put(archive, _ROWS, json.dumps(rows).encode())
    files.write(path, content.getvalue())


def assemble(folder: Path, parts: Sequence[Path], record: dict[str, Any]) -> tuple[list[Utterance], list[Note]]:
    """Put parts together into a pack, and remove them when it is complete.

    Args:
        folder: of the pack.
        parts: in the order of the table; those of one archive follow each other.
        record: content of ``pack.json``, which is written last.

    Returns:
        The rows of the table and the notes.

    Raises:
        InputError: a part is damaged, or no clip is left.
    """
    utterances: list[Utterance] = []
    notes: list[Note] = []
    grouped: dict[str, list[Path]] = {}
    for part in parts:
        rows = read_part(part)
        utterances += [Utterance(**row) for row in rows["utterances"]]
        notes += [Note(**row) for row in rows["notes"]]
        grouped.setdefault(part.name.rsplit(".", 2)[0], []).append(part)
    if not utterances:
        raise InputError(f"{folder}: every clip is left out; the first one: {notes[0].text if notes else 'none given'}")
    for archive, members in grouped.items():
        for suffix, kind in ((".jpg", "mouth"), (".align", "align")):
            _join(folder / f"{archive}_{kind}.zip", members, suffix)
    files.write(folder / INDEX, _table(("utt", "speaker", "split", "sentence", "frames", "missing", "archive"), [
        (u.name, u.speaker, u.split, u.sentence, u.frames, u.missing, u.archive) for u in utterances
    ]))  # fmt: skip
    if notes:
        rows_of_notes = [(n.name, n.speaker, "left out" if n.left_out else "kept", n.text) for n in notes]
        files.write(folder / NOTES, _table(("utt", "speaker", "clip", "note"), rows_of_notes))
    files.write_json(folder / RECORD, record)
    shutil.rmtree(folder / PARTS, ignore_errors=True)
    return utterances, notes


def read_part(path: Path) -> dict[str, Any]:
    """The rows, notes and record of a part.

    Raises:
        InputError: it is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            found: dict[str, Any] = json.loads(archive.read(_ROWS))
            return found
    except (OSError, zipfile.BadZipFile, KeyError, ValueError) as error:
        raise InputError(f"{path}: a damaged part ({error}); remove it, and the same command makes it again") from error


def _join(path: Path, parts: Sequence[Path], suffix: str) -> None:
    def fill(temporary: Path) -> None:
        with zipfile.ZipFile(temporary, "w") as archive:
            for part in parts:
                with zipfile.ZipFile(part) as source:
                    for name in source.namelist():
                        if name.endswith(suffix):
                            _put(archive, name, source.read(name))

    for part in parts:
        with zipfile.ZipFile(part) as source:
            if any(name.endswith(suffix) for name in source.namelist()):
                files.write(path, fill)
                return


def _put(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    # The time of writing would make two packs of the same clips differ.
    archive.writestr(zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0)), data)


def _table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return stream.getvalue()

"""The manifest of a log: which Parquet files belong to it, with their rows and checksums."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from core import files
from core.errors import InputError

NAME = "manifest.json"


@dataclass(frozen=True)
class Entry:
    """A file.

    Attributes:
        path: below the log's folder.
        rows: in it.
        bytes: its size.
        sha256: of its content, hexadecimal.
    """

    path: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """A log at one moment.

    Attributes:
        rolled: number of the last segment whose rows are in the files.
        files: all that belong to the log, in the order of their first rows.
    """

    rolled: int = 0
    files: tuple[Entry, ...] = ()

    @property
    def rows(self) -> int:
        """In all files."""
        return sum(entry.rows for entry in self.files)

    def write(self, folder: Path) -> None:
        """Replace the manifest of a log, whole or not at all."""
        files.write_json(folder / NAME, {"format": 1, **asdict(self)})


def read(folder: Path) -> Manifest:
    """The manifest of a log; an empty one where the folder holds no Parquet file either.

    Raises:
        InputError: it is damaged, or files are there and it is not.
    """
    if not (folder / NAME).exists():
        if next(folder.rglob("*.parquet"), None) is not None:
            raise InputError(f"{folder / NAME}: no such file, but Parquet files are there: restore it from a copy")
        return Manifest()
    data = files.read_json(folder / NAME, ("format", "rolled", "files"))
    if data["format"] != 1:
        raise InputError(f"{folder / NAME}: format = {data['format']}: this version reads 1")
    try:
        return Manifest(int(data["rolled"]), tuple(Entry(**entry) for entry in data["files"]))
    except (TypeError, ValueError) as error:
        raise InputError(f"{folder / NAME}: files: {error}") from error


def entry_of(folder: Path, path: Path, rows: int) -> Entry:
    """Describe a file that was just written."""
    return Entry(str(path.relative_to(folder)), rows, path.stat().st_size, sha256(path))


def sha256(path: Path) -> str:
    """Of a file's content, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def damaged(folder: Path, entries: Iterable[Entry]) -> dict[Entry, str]:
    """The files that are not as the manifest says, with a line for each."""
    found = {}
    for entry in entries:
        path = folder / entry.path
        if not path.is_file():
            found[entry] = f"{path}: is gone, its {entry.rows} rows are missing"
        elif path.stat().st_size != entry.bytes or sha256(path) != entry.sha256:
            found[entry] = f"{path}: is damaged (another size or checksum), its {entry.rows} rows are ignored"
    return found

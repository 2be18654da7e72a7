"""The record log: what is on disk before an answer leaves. Frames of length, CRC-32 and an Arrow IPC message."""

from __future__ import annotations

import os
import struct
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from core import files
from core.errors import require

if TYPE_CHECKING:
    import pyarrow as pa

_HEAD = struct.Struct("<II")


def _frame(payload: pa.Buffer) -> bytes:
    data = payload.to_pybytes()
    return _HEAD.pack(len(data), zlib.crc32(data)) + data


class Segment:
    """A file that grows by whole frames: first the schema, then a record batch each.

    Attributes:
        rows: in the file.
    """

    def __init__(self, path: Path, schema: pa.Schema, *, sync: bool = True) -> None:
        self.path, self.rows, self._sync = path, 0, sync
        self._end, self._torn = 0, False
        self._file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_APPEND, 0o644)
        try:
            self._write(_frame(schema.serialize()))
            if sync:
                files.sync(path.parent)
        except OSError:
            os.close(self._file)
            path.unlink()
            raise

    def append(self, batches: list[pa.RecordBatch]) -> None:
        """Write the batches, and return when they survive a loss of power (or are with the system, unsynced).

        Raises:
            OSError: the disk is full or fails; the file then ends where it ended before.
        """
        self._write(b"".join(_frame(batch.serialize()) for batch in batches))
        self.rows += sum(batch.num_rows for batch in batches)

    def _write(self, data: bytes) -> None:
        if self._torn:
            self._cut()
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(self._file, rest) :]
            if self._sync:
                os.fdatasync(self._file)
        except OSError:
            # Frames that nobody was answered for must not be found again; what cannot be cut now is cut later.
            self._torn = True
            with suppress(OSError):
                self._cut()
            raise
        self._end += len(data)

    def _cut(self) -> None:
        os.ftruncate(self._file, self._end)
        self._torn = False

    def close(self) -> None:
        """Close the file; what was appended stays."""
        if self._torn:
            with suppress(OSError):
                self._cut()
        os.close(self._file)


@dataclass(frozen=True)
class Replay:
    """What a segment holds.

    Attributes:
        table: the rows of its whole frames; None where not even the schema is whole.
        torn: bytes after the last whole frame: a record that no answer waited for, or a damaged disk.
    """

    table: pa.Table | None
    torn: int


def replay(path: Path) -> Replay:
    """Read a segment up to the first frame that is cut, or whose checksum differs."""
    pa = require("pyarrow", "payments")
    data, position = path.read_bytes(), 0
    schema, batches = None, []
    while position + _HEAD.size <= len(data):
        length, checksum = _HEAD.unpack_from(data, position)
        payload = data[position + _HEAD.size : position + _HEAD.size + length]
        # A length of 0 is what a file system leaves where data were never written; its checksum would be right.
        if not length or len(payload) < length or zlib.crc32(payload) != checksum:
            break
        if schema is None:
            schema = pa.ipc.read_schema(pa.py_buffer(payload))
        else:
            batches.append(pa.ipc.read_record_batch(pa.py_buffer(payload), schema))
        position += _HEAD.size + length
    return Replay(None if schema is None else pa.Table.from_batches(batches, schema), len(data) - position)

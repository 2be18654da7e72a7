"""A log that is appended to by requests and read as Parquet: record log first, Parquet later, a manifest over it."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Literal, get_args

from filelock import FileLock, Timeout

from apps.payments.log import manifest
from apps.payments.log.manifest import Entry, Manifest
from apps.payments.log.record_log import Segment, replay
from core import files
from core.errors import InputError, require

if TYPE_CHECKING:
    import pyarrow as pa

Fsync = Literal["batch", "always", "off"]
"""When an append is synced to the disk: with all that came within a commit, each on its own, or never."""
ROWS, SECONDS, WINDOW = 1 << 16, 60.0, 0.002
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recovery:
    """What a start found of an earlier process.

    Attributes:
        rows: of segments that had not become Parquet, now rolled.
        torn: bytes cut from the ends of segments, kept beside them as ``.torn``.
        damaged: a line for each Parquet file that is not what the manifest says.
    """

    rows: int = 0
    torn: int = 0
    damaged: tuple[str, ...] = ()


class ParquetLog:
    """Rows that are durable before ``append`` is done, in ``folder``.

    Appends within 2 ms are one commit: one write and one sync of the open segment. After 65,536 rows or 60 s a
    segment is closed and rolled: its rows become Parquet files (zstd), partitioned by ``partitions`` and date, the
    manifest is replaced, then the segment is deleted. A kill at any moment loses no row that was committed and
    doubles none: the manifest names the last segment that is in the files.

    Args:
        folder: of the log; made if absent.
        schema: of the rows, which have a column ``event_time``.
        partitions: name in the path of each integer column that partitions, beside the date.
        fsync: ``batch``, ``always`` or ``off`` (survives a kill, not a loss of power).
        rows: after which a segment is rolled.
        seconds: after which it is.

    Raises:
        InputError: another process has the log, its manifest is damaged, or ``fsync`` is unknown.
    """

    def __init__(
        self,
        folder: Path,
        schema: pa.Schema,
        partitions: dict[str, str] | None = None,
        *,
        fsync: Fsync = "batch",
        rows: int = ROWS,
        seconds: float = SECONDS,
    ) -> None:
        if fsync not in get_args(Fsync):
            raise InputError(f"fsync = {fsync!r}: must be {', '.join(get_args(Fsync))}")
        self.folder, self.schema, self._partitions = folder, schema, partitions or {}
        self._fsync, self._rows, self._seconds = fsync, rows, seconds
        self._lock = _locked(folder)
        try:
            self._roller = _Roller(folder, self._partitions, rows)
            self.recovery = self._roller.recover()
            self._segment = self._open(self._roller.manifest.rolled + 1)
        except BaseException:
            self._lock.release()
            raise
        self._opened = time.monotonic()
        self._queue: SimpleQueue[tuple[pa.RecordBatch | None, Future[None]] | None] = SimpleQueue()
        self._rolls = ThreadPoolExecutor(1, "roll")
        self._commits = Thread(target=self._run, name="commit", daemon=True)
        self._commits.start()

    def append(self, batch: pa.RecordBatch | None) -> Future[None]:
        """Hand over rows; the future is done when they are committed, or holds the ``OSError`` that prevented it.

        None is committed when all that was appended before it is.
        """
        future: Future[None] = Future()
        self._queue.put((batch, future))
        return future

    def tables(self, columns: list[str]) -> Iterator[pa.Table]:
        """Columns of the rows that are in Parquet, a part at a time; damaged files are left out."""
        parquet = require("pyarrow.parquet", "payments")
        for entry in self._roller.manifest.files:
            if entry not in self._roller.damaged:
                yield parquet.read_table(self.folder / entry.path, columns=columns, partitioning=None)

    @property
    def roll_failure(self) -> str | None:
        """Why the last attempt to write Parquet failed; its rows stay in segments and are tried again."""
        return self._roller.failure

    def close(self) -> None:
        """Commit what was handed over, roll it into Parquet and let the folder go."""
        self._queue.put(None)
        self._commits.join()
        self._rolls.shutdown()
        self._lock.release()

    def _open(self, number: int) -> Segment:
        return Segment(_segment_path(self.folder, number), self.schema, sync=self._fsync != "off")

    def _run(self) -> None:
        earliest = 0.0
        while True:
            left = max(0.0, self._opened + self._seconds - time.monotonic())
            try:
                item = self._queue.get(timeout=left if self._segment.rows else None)
            except Empty:
                self._rotate()
                continue
            group = [item]
            if self._fsync != "always":
                # A lone append is committed at once, those that come within the window of the last commit together.
                time.sleep(max(0.0, earliest - time.monotonic()))
                earliest = time.monotonic() + WINDOW
                while group[-1] is not None and not self._queue.empty():
                    group.append(self._queue.get())
            self._commit([item for item in group if item is not None])
            if group[-1] is None:
                break
            if self._segment.rows >= self._rows:
                self._rotate()
        self._segment.close()
        self._rolls.submit(self._roller.roll, self._number + 1)

    @property
    def _number(self) -> int:
        return int(self._segment.path.stem)

    def _commit(self, group: list[tuple[pa.RecordBatch | None, Future[None]]]) -> None:
        try:
            if batches := [batch for batch, _ in group if batch is not None]:
                if not self._segment.rows:
                    self._opened = time.monotonic()
                self._segment.append(batches)
        except Exception as error:
            for _, future in group:
                future.set_exception(error)
        else:
            for _, future in group:
                future.set_result(None)

    def _rotate(self) -> None:
        """Open the next segment and have the one before rolled; where none can be opened the old one goes on."""
        self._opened = time.monotonic()
        try:
            following = self._open(self._number + 1)
        except OSError as error:
            _LOG.warning("%s: no new segment: %s", self.folder, error)
            return
        self._segment.close()
        self._segment = following
        self._rolls.submit(self._roller.roll, self._number)


class _Roller:
    """Makes Parquet of closed segments, in their order; the only writer of the manifest."""

    def __init__(self, folder: Path, partitions: dict[str, str], rows: int) -> None:
        self._folder, self._partitions, self._rows = folder, partitions, rows
        (folder / "segments").mkdir(parents=True, exist_ok=True)
        self.manifest = manifest.read(folder)
        if not (folder / manifest.NAME).exists():
            self.manifest.write(folder)
        self.damaged = manifest.damaged(folder, self.manifest.files)
        self.failure: str | None = None
        self._superseded: list[Path] = []

    def recover(self) -> Recovery:
        """Roll what an earlier process left.

        Raises:
            OSError: the disk is full or fails.
        """
        rows = torn = 0
        for path in self._closed(None):
            more, cut = self._roll(path)
            rows, torn = rows + more, torn + cut
        return Recovery(rows, torn, tuple(self.damaged.values()))

    def roll(self, end: int) -> None:
        """Roll all segments before number ``end``; a failure is kept, and the segments for the next attempt."""
        try:
            for path in self._closed(end):
                self._roll(path)
            self.failure = None
        except Exception as error:
            self.failure = str(error)
            _LOG.warning("%s: not rolled into Parquet: %s", self._folder, error)

    def _closed(self, end: int | None) -> list[Path]:
        found = sorted((self._folder / "segments").glob("*.log"))
        return [path for path in found if end is None or int(path.stem) < end]

    def _roll(self, segment: Path) -> tuple[int, int]:
        """Write the rows of a segment as Parquet, commit the manifest, delete the segment; rows and torn bytes."""
        number, rows, torn = int(segment.stem), 0, 0
        if number > self.manifest.rolled:
            found = replay(segment)
            rows, torn = found.table.num_rows if found.table is not None else 0, found.torn
            if torn:
                tail = segment.read_bytes()[-torn:]
                files.write(segment.with_suffix(".torn"), tail)
            entries = self.manifest.files
            superseded: list[Path] = []
            for partition, table in self._parts(found.table) if rows else ():
                entries, before = self._write(partition, table, number, entries)
                superseded += before
            following = Manifest(number, entries)
            following.write(self._folder)
            self.manifest = following
            # Readers that hold the manifest before this one may still open its files: they go with the next roll.
            for path in self._superseded:
                path.unlink(missing_ok=True)
            self._superseded = superseded
        segment.unlink()
        return rows, torn

    def _parts(self, table: pa.Table) -> Iterator[tuple[str, pa.Table]]:
        """The rows of each partition, in their order, with the partition's folder."""
        pa, compute = require("pyarrow", "payments"), require("pyarrow.compute", "payments")
        keys = {f"{name}=": table[column] for name, column in self._partitions.items()}
        keys["date="] = table["event_time"].cast(pa.date32())
        text = [compute.binary_join_element_wise(name, column.cast(pa.string()), "") for name, column in keys.items()]
        place = compute.binary_join_element_wise(*text, "/")
        for partition in sorted(place.unique().to_pylist()):
            yield partition, table.filter(compute.equal(place, partition))

    def _write(
        self, partition: str, table: pa.Table, number: int, entries: tuple[Entry, ...]
    ) -> tuple[tuple[Entry, ...], list[Path]]:
        """Write rows into a new file of a partition, together with those of its last file if that is small.

        Returns the entries with the new file, and the files that it replaces.
        """
        pa, parquet = require("pyarrow", "payments"), require("pyarrow.parquet", "payments")
        (self._folder / partition).mkdir(parents=True, exist_ok=True)
        replaced = []
        before = next((e for e in reversed(entries) if str(Path(e.path).parent) == partition), None)
        if before is not None and before.rows < self._rows and not manifest.damaged(self._folder, [before]):
            earlier = parquet.read_table(self._folder / before.path, partitioning=None)
            if earlier.schema.equals(table.schema):
                table = pa.concat_tables([earlier, table])
                entries, replaced = tuple(e for e in entries if e is not before), [self._folder / before.path]
        path = self._folder / partition / f"part-{number:08d}.parquet"
        files.write(path, lambda place: parquet.write_table(table, place, compression="zstd", row_group_size=ROWS))
        for folder in path.relative_to(self._folder).parents:
            files.sync(self._folder / folder)
        return (*entries, manifest.entry_of(self._folder, path, table.num_rows)), replaced


PARTITIONS: dict[str, dict[str, str]] = {"decisions": {"policy_generation": "generation"}, "rewards": {}}
"""The logs of a service, folders of one folder, and what partitions each beside the date."""


def recover(folder: Path) -> dict[str, Recovery | None]:
    """Make Parquet of what a killed service left in its logs below ``folder``; None where a service is at work."""
    found: dict[str, Recovery | None] = {}
    for name, partitions in PARTITIONS.items():
        if not (folder / name).is_dir():
            continue
        try:
            lock = _locked(folder / name)
        except InputError:
            found[name] = None
            continue
        try:
            found[name] = _Roller(folder / name, partitions, ROWS).recover()
        finally:
            lock.release()
    return found


def _segment_path(folder: Path, number: int) -> Path:
    return folder / "segments" / f"{number:08d}.log"


def _locked(folder: Path) -> FileLock:
    """Keep other processes from writing to a log.

    Raises:
        InputError: one is at work, or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock", timeout=0, thread_local=False)
        lock.acquire()
    except Timeout as error:
        raise InputError(f"{folder}: another process is at work on this log") from error
    except OSError as error:
        raise InputError(f"{folder}: cannot be written: {error.strerror}") from error
    return lock

"""The journal of a run: one JSON object a line, appended by the run, followed by whoever waits for it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from core.files import jsonable


def append(path: Path, **fields: Any) -> None:
    """Append one line with the time (Unix seconds); a single write, so that a kill leaves no half line."""
    line = json.dumps(jsonable({"time": round(time.time(), 3), **fields}), ensure_ascii=False, allow_nan=False) + "\n"
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


def read(path: Path, offset: int = 0) -> Iterator[dict[str, Any]]:
    """The entries from byte ``offset`` on; none where there is no file, and lines that are not JSON are passed over."""
    if not path.exists():
        return
    with path.open("rb") as file:
        file.seek(offset)
        for line in file:
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict):
                yield entry


def seconds_spent(path: Path) -> float:
    """Wall seconds of the attempts recorded so far, each from its start to its last line."""
    total, start, last = 0.0, None, 0.0
    for entry in read(path):
        if entry.get("event") == "started":
            total += 0.0 if start is None else last - start
            start = entry["time"]
        last = entry["time"]
    return total + (0.0 if start is None else last - start)

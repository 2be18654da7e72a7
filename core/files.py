"""Files that are either whole or absent: written beside their place, synced, and renamed into it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from core.errors import InputError, NotWritten


def write(path: Path, content: bytes | str | Callable[[Path], object]) -> None:
    """Write a file atomically; a function gets the temporary path to write to.

    Raises:
        NotWritten: it cannot be written, which is an OSError; one about another file passes as it is.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        if callable(content):
            content(temporary)
        else:
            temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    except OSError as error:
        if error.filename is not None and str(error.filename) not in (str(temporary), str(path.parent)):
            raise
        # HDF5 tells much more than the reason.
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise NotWritten(error.errno, reason, str(path)) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_json(path: Path, data: Any) -> None:
    """Write JSON atomically; see ``jsonable`` for what becomes of numbers that JSON lacks."""
    write(path, json.dumps(jsonable(data), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path, keys: Iterable[str] = ()) -> dict[str, Any]:
    """The JSON object in a file, which has at least these keys.

    Raises:
        InputError: no such file, not a JSON object, or a key is absent.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: {(error.strerror or str(error)).lower()}") from error
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error})") from error
    absent = [key for key in keys if not isinstance(data, dict) or key not in data]
    if absent or not isinstance(data, dict):
        raise InputError(f"{path}: must be a JSON object with the keys {', '.join(keys) or '(any)'}")
    return data


def sync(path: Path) -> None:
    """Make a file, or the names in a folder, survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def jsonable(value: Any) -> Any:
    """JSON data: NumPy and torch scalars become Python's, numbers that are not finite become None."""
    if isinstance(value, dict):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if isinstance(value, np.generic) or (hasattr(value, "item") and getattr(value, "ndim", None) == 0):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | bool | None) else str(value)

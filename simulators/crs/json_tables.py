"""Ids, names and pairs in text files, each refused with its file, key and value; nothing is unpickled."""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from core.errors import InputError
from simulators.crs.catalogue import Ids, no_pairs

PICKLES = (".pkl", ".pickle", ".p", ".joblib")
MOST = 100_000_000
"""Where no count is known, ids are below this."""
_CONTROLS = {"Cc", "Cs", "Zl", "Zp"}
_DIRECTIONS = set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")

Repeated = Literal["refuse", "drop"]


def refuse_pickles(path: Path) -> None:
    """Refuse a folder with a pickle in it, or a pickle.

    Raises:
        InputError: there is one.
    """
    for found in [path] if not path.is_dir() else sorted(path.rglob("*")):
        if found.suffix.lower() in PICKLES:
            raise InputError(
                f"{found}: a pickle, which can run code when it is opened; give the same table as JSON (or CSV), for "
                f"instance {found.with_suffix('.json').name}, and take the pickle out of the folder"
            )


def read_text(path: Path) -> str:
    """The text of a UTF-8 file.

    Raises:
        InputError: it cannot be read, or is of another encoding.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: {(error.strerror or str(error)).lower()}") from error
    except UnicodeDecodeError as error:
        row = error.object[: error.start].count(b"\n") + 1
        byte = error.object[error.start]
        raise InputError(f"{path}: row {row}: byte 0x{byte:02x} is not UTF-8; must be UTF-8 text") from error


def read_json(path: Path) -> Any:
    """The data of a JSON file.

    Raises:
        InputError: it cannot be read, is not JSON, or has a key twice in one object.
    """

    def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            again = Counter(key for key, _ in pairs).most_common(1)[0][0]
            raise InputError(f"{path}: key {again!r} stands there twice; must be once")
        return found

    text = read_text(path)
    try:
        return json.loads(text, object_pairs_hook=distinct)
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error})") from error


def read_object(path: Path) -> dict[str, Any]:
    """The object of a JSON file.

    Raises:
        InputError: as ``read_json``, or it is something else.
    """
    found = read_json(path)
    if not isinstance(found, dict):
        raise InputError(f"{path}: {_kind(found)}; must be a JSON object")
    return found


def read_list(path: Path) -> list[Any]:
    """The list of a JSON file.

    Raises:
        InputError: as ``read_json``, or it is something else.
    """
    found = read_json(path)
    if not isinstance(found, list):
        raise InputError(f"{path}: {_kind(found)}; must be a JSON list")
    return found


def as_id(where: str, value: Any, count: int | None = None) -> int:
    """An id.

    Args:
        where: file and key, for the message.
        value: what stands there; true, 1.0 and "1" are no ids.
        count: ids are below it; without it, below ``MOST``.

    Raises:
        InputError: it is not a whole number, or out of range.
    """
    most = MOST if count is None else count
    if type(value) is not int or not 0 <= value < most:
        raise InputError(f"{where}: id {value!r:.40}; allowed: whole numbers from 0 to {most - 1}")
    return value


def as_key(path: Path, key: str, count: int | None = None) -> int:
    """The id that a key of a JSON object writes.

    Raises:
        InputError: it is not one, such as ``-1``, ``01`` or ``1.0``, or out of range.
    """
    plain = key.isascii() and key.isdigit() and (key == "0" or not key.startswith("0")) and len(key) < 19
    return as_id(f"{path}: key", int(key) if plain else key, count)


def whole_range(path: Path, ids: Sequence[int], what: str) -> int:
    """The number n of ids that are 0 to n - 1, each once.

    Raises:
        InputError: one is there twice, or one is left out.
    """
    seen: set[int] = set()
    for place in ids:
        if place in seen:
            raise InputError(f"{path}: {what} id {place} stands there twice; must be 0 to {len(ids) - 1}, each once")
        seen.add(place)
    if seen and max(seen) >= len(ids):
        absent = next(place for place in range(len(ids)) if place not in seen)
        raise InputError(f"{path}: {what} id {absent} is absent; must be 0 to {len(ids) - 1}, as there are {len(ids)}")
    return len(ids)


def pairs_of(
    path: Path, rows: Mapping[int, Any], columns: int | None, repeated: Repeated = "refuse", key: str = ""
) -> tuple[Ids, int]:
    """Pairs (row, column) of lists of columns.

    Args:
        path: for messages.
        rows: the list of each row.
        columns: number of columns, or None when it is not known.
        repeated: what to do with a column that a list has twice.
        key: below the row, for messages.

    Returns:
        ``(n, 2)``, and the number of repeated ones that were dropped.

    Raises:
        InputError: something that is no list, or no id, or a repeated one.
    """
    found: list[tuple[int, int]] = []
    dropped = 0
    for row, values in rows.items():
        where = f"{path}: {row}{key}"
        if not isinstance(values, list):
            raise InputError(f"{where}: {_kind(values)}; must be a list of ids")
        seen: set[int] = set()
        for value in values:
            column = as_id(where, value, columns)
            if column in seen:
                if repeated == "refuse":
                    raise InputError(f"{where}: id {column} stands there twice; must be once")
                dropped += 1
                continue
            seen.add(column)
            found.append((row, column))
    return as_pairs(found), dropped


def as_pairs(pairs: Sequence[tuple[int, int]]) -> Ids:
    """``(n, 2)``."""
    return np.array(pairs, dtype=np.int64) if pairs else no_pairs()


def read_pairs(path: Path, rows: int | None, columns: int | None, repeated: Repeated = "refuse") -> tuple[Ids, int]:
    """Pairs of a file ``{"row": [column, ...]}``; see ``pairs_of``.

    Raises:
        InputError: as ``pairs_of``, or a key that is no id of a row.
    """
    found = {as_key(path, key, rows): values for key, values in read_object(path).items()}
    return pairs_of(path, found, columns, repeated)


def check_name(where: str, name: Any) -> str:
    """A name that can be shown.

    Raises:
        InputError: it is no text, is empty, or has characters that are not visible or turn the direction of the text.
    """
    if not isinstance(name, str):
        raise InputError(f"{where}: name {name!r}; must be text")
    if not name.strip():
        raise InputError(f"{where}: name {name!r} is empty; must be readable text")
    for letter in name:
        if unicodedata.category(letter) in _CONTROLS or letter in _DIRECTIONS:
            raise InputError(f"{where}: name {name!r}: U+{ord(letter):04X} cannot be shown; must be readable text")
    return name


def distinct_names(where: str, names: Iterable[tuple[int, str]]) -> None:
    """Refuse two attributes of one type that have one name; (type, name) each.

    Raises:
        InputError: there are.
    """
    seen: set[tuple[int, str]] = set()
    for place, pair in enumerate(names):
        if pair in seen:
            raise InputError(f"{where}: attribute {place}: its type has the name {pair[1]!r} twice; must be once")
        seen.add(pair)


def _kind(value: Any) -> str:
    named = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return named.get(type(value), "a number")

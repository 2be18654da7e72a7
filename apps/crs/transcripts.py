"""Dialogues with the names of what was talked about: one JSON object a line, and the way back."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from apps.crs.evaluation import ASKED, LISTED, OVER
from core import files
from core.errors import InputError
from simulators.crs import Catalogue
from simulators.crs.dialogue import DO_NOT_CARE, LIST_ACCEPTED, LIST_REJECTED, NO, YES
from simulators.crs.rules import Question

ANSWERS = {
    NO: "no",
    YES: "yes",
    DO_NOT_CARE: "does not care",
    LIST_REJECTED: "none of these",
    LIST_ACCEPTED: "accepted",
}
CODES = {word: code for code, word in ANSWERS.items()}
LARGEST = 2**31
Record = dict[str, Any]


@dataclass(frozen=True)
class Names:
    """What ids are called.

    Attributes:
        catalogue: whose.
        question: a question is about an attribute if ``binary``, else about a type.
    """

    catalogue: Catalogue
    question: Question = "binary"

    def item(self, item: int) -> Record:
        """Id and name of an item."""
        return {"id": item, "name": self.catalogue.item_names[item]}

    def attribute(self, attribute: int) -> Record:
        """Id and name of an attribute."""
        return {"id": attribute, "name": self.catalogue.label(attribute)}

    def asked(self, question: int) -> Record:
        """Id and name of what a question was about."""
        if self.question == "binary":
            return self.attribute(question)
        return {"id": question, "name": self.catalogue.type_names[question]}


def records(played: xr.Dataset, names: Names) -> Iterator[Record]:
    """A record of each dialogue that ``evaluate`` has returned, in order."""
    columns = {name: played[name].values.tolist() for name in played.data_vars if "dialogue" in played[name].dims}
    horizon, places = played.sizes["turn"], played.sizes["place"]
    for n in range(played.sizes["dialogue"]):
        row = {str(name): values[n] for name, values in columns.items()}
        yield {
            "dialogue": n,
            "catalogue": names.catalogue.hash,
            "max_turns": horizon,
            "list_length": places,
            "user": row["user"],
            "target": names.item(row["target"]),
            "opening": names.attribute(row["opening"]),
            "success": row["rank"] > 0,
            "turns": row["turns"],
            "rank": row["rank"],
            "return": row["return"],
            "exchanges": [x for t in range(horizon) if (x := _exchange(row, t, names)) is not None],
        }


def write_transcripts(path: Path, played: xr.Dataset, names: Names) -> None:
    """Write the records, one a line, atomically."""
    lines = (json.dumps(record, ensure_ascii=False, allow_nan=False) for record in records(played, names))
    files.write(path, "".join(f"{line}\n" for line in lines))


def read_transcripts(path: Path, names: Names) -> xr.Dataset:
    """What ``write_transcripts`` was given, less the descriptions of its variables.

    Raises:
        InputError: a line that is no such record, of another catalogue, or with a name that its id does not have.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: {(getattr(error, 'strerror', None) or str(error)).lower()}") from error
    found = []
    for number, line in enumerate(lines, 1):
        where = f"{path}: line {number}"
        try:
            found.append(_checked(json.loads(line), names, where))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{where}: not a record of a dialogue ({type(error).__name__}: {error})") from error
    if not found:
        raise InputError(f"{path}: holds no dialogue")
    sizes = {(record["max_turns"], record["list_length"]) for record in found}
    if len(sizes) > 1:
        raise InputError(f"{path}: max_turns and list_length: {sorted(sizes)}; must be the same in all lines")
    return _dataset(found, *sizes.pop())


def _exchange(row: Mapping[str, Any], t: int, names: Names) -> Record | None:
    """A turn; None after the end. A turn that is void by the rules has neither a question nor a list."""
    action, candidates = row["action"][t], row["candidates"][t]
    if action == OVER and not candidates:
        return None
    said: Record = {"turn": t + 1}
    if action == ASKED:
        said["asked"] = names.asked(row["question"][t])
    elif action == LISTED:
        said["list"] = [names.item(item) for item in row["list"][t] if item >= 0]
    if action != OVER:
        said["answer"] = ANSWERS[row["answer"][t]]
    said["candidates"] = candidates
    if math.isfinite(row["confidence"][t]):
        said["confidence"] = row["confidence"][t]
    return said


def _checked(record: Record, names: Names, where: str) -> Record:
    """The record, if it is one.

    Raises:
        InputError: a value that is refused.
        KeyError, TypeError, AttributeError: it has another form.
    """
    if record["catalogue"] != names.catalogue.hash:
        raise InputError(
            f"{where}: catalogue {record['catalogue']}; must be {names.catalogue.hash} ({names.catalogue.name})"
        )
    for key in ("max_turns", "list_length", "user", "turns", "rank"):
        _whole(record, key, where)
    if not isinstance(record["return"], int | float):
        raise InputError(f"{where}: return: {record['return']!r}; must be a number")
    known = [(record["target"], names.item), (record["opening"], names.attribute)]
    for exchange in record["exchanges"]:
        _whole(exchange, "candidates", where)
        if len(exchange.get("list", ())) > record["list_length"]:
            raise InputError(f"{where}: list: {len(exchange['list'])} items; must be at most {record['list_length']}")
        known += [(exchange["asked"], names.asked)] if "asked" in exchange else []
        known += [(item, names.item) for item in exchange.get("list", ())]
        if "answer" in exchange and exchange["answer"] not in CODES:
            raise InputError(f"{where}: answer: {exchange['answer']!r}; must be one of {', '.join(CODES)}")
        if not 1 <= exchange["turn"] <= record["max_turns"]:
            raise InputError(f"{where}: turn: {exchange['turn']}; must be 1 to {record['max_turns']}")
    for held, called in known:
        try:
            right = called(held["id"]) if held["id"] >= 0 else None
        except IndexError:
            right = None
        if right != held:
            raise InputError(f"{where}: {held}; the catalogue has {right} there")
    return record


def _whole(record: Record, key: str, where: str) -> None:
    """Refuse what cannot be a count or an id."""
    value = record[key]
    if type(value) is not int or not -1 <= value < LARGEST:
        raise InputError(f"{where}: {key}: {value!r}; must be a whole number")


def _dataset(found: Sequence[Record], horizon: int, places: int) -> xr.Dataset:
    n, one, two = len(found), ("dialogue",), ("dialogue", "turn")
    tables: dict[str, np.ndarray] = {
        "action": np.full((n, horizon), OVER, dtype=np.int8),
        "question": np.full((n, horizon), -1, dtype=np.int32),
        "answer": np.full((n, horizon), -1, dtype=np.int8),
        "candidates": np.zeros((n, horizon), dtype=np.int32),
        "confidence": np.full((n, horizon), np.nan, dtype=np.float32),
    }
    lists = np.full((n, horizon, places), -1, dtype=np.int32)
    for row, record in enumerate(found):
        for exchange in record["exchanges"]:
            at = row, exchange["turn"] - 1
            tables["candidates"][at] = exchange["candidates"]
            tables["confidence"][at] = exchange.get("confidence", np.nan)
            if "answer" in exchange:
                tables["answer"][at] = CODES[exchange["answer"]]
                tables["action"][at] = ASKED if "asked" in exchange else LISTED
            if "asked" in exchange:
                tables["question"][at] = exchange["asked"]["id"]
            items = [item["id"] for item in exchange.get("list", ())]
            lists[row, exchange["turn"] - 1, : len(items)] = items
    single = {
        "user": [record["user"] for record in found],
        "target": [record["target"]["id"] for record in found],
        "opening": [record["opening"]["id"] for record in found],
        "turns": [record["turns"] for record in found],
        "rank": [record["rank"] for record in found],
    }
    columns: dict[str, Any] = {name: (one, np.array(values, dtype=np.int32)) for name, values in single.items()}
    columns["return"] = (one, np.array([record["return"] for record in found], dtype=np.float32))
    columns |= {name: (two, values) for name, values in tables.items()}
    columns["list"] = ((*two, "place"), lists)
    return xr.Dataset(columns, {"turn": np.arange(1, horizon + 1)})

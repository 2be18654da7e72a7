"""Vowpal Wabbit's DSJSON: one decision a line, with the reward that was joined to it. Read and written.

Fields: ``_label_cost`` (negative reward), ``_label_probability``, ``_label_Action`` (1-based) and ``_labelIndex``
(0-based) of the chosen action, ``EventId``, ``Timestamp``, ``a`` (1-based actions, the chosen one first), ``p`` (their
probabilities) and ``c``: the shared context and under ``_multi`` the available actions. An action's number is its place
in ``_multi``; its id among all K is ``{"action": {"id": ...}}`` there, as this module writes it, else its place less 1.
"""

from __future__ import annotations

import json
import math
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from apps.payments.log.join import REPORT, JoinReport, join_rewards
from apps.payments.log.reading import SUM_TOLERANCE
from apps.payments.log.schema import decision_schema, reward_schema, transaction_key
from apps.payments.log.tables import mask_column, masks
from core import files
from core.errors import InputError, require
from simulators.payments.context import CATEGORIES, FLAGS, NUMERICS

if TYPE_CHECKING:
    import pyarrow as pa

ROWS = 1 << 16
LINES = "quarantine_lines.jsonl"
OWN_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Chunk:
    """Some lines of a file.

    Attributes:
        decisions: their decisions, the context null where a line has none of ours.
        rewards: their rewards.
        refused: number (from 1), reason and text of each line that is no possible decision.
    """

    decisions: pa.Table
    rewards: pa.Table
    refused: tuple[tuple[int, str, str], ...]


def read_dsjson(path: Path, actions: int, *, strict: bool = False, net_value: bool = False) -> Iterator[Chunk]:
    """Read a file a part at a time.

    Args:
        path: of the file; blank lines do not count.
        actions: K.
        strict: refuse a line instead of setting it apart.
        net_value: rewards are amounts, not in [0, 1].

    Raises:
        InputError: no such file; or, if ``strict``, a line is refused, with its number and field.
    """
    try:
        file = path.open(encoding="utf-8", errors="replace")
    except OSError as error:
        raise InputError(f"{path}: {(error.strerror or str(error)).lower()}") from error
    rows: list[dict[str, Any]] = []
    refused: list[tuple[int, str, str]] = []
    with file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                rows.append(_row(_object(line), actions, net_value))
            except InputError as error:
                if strict:
                    raise InputError(f"{path}: line {number}: {error}") from error
                refused.append((number, str(error), line.rstrip("\n")))
            if len(rows) + len(refused) == ROWS:
                yield _chunk(rows, refused, actions)
                rows, refused = [], []
    yield _chunk(rows, refused, actions)


def join_dsjson(path: Path, out: Path, *, actions: int, strict: bool = False, net_value: bool = False) -> JoinReport:
    """Turn a file into what ``join_rewards`` writes; lines that are refused go to ``quarantine_lines.jsonl``.

    Raises:
        InputError: as ``read_dsjson`` and ``join_rewards``; or no line is a decision.
    """
    parquet = require("pyarrow.parquet", "payments")
    refused: list[tuple[int, str, str]] = []
    found = 0
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out) as folder:
        decisions, rewards = Path(folder) / "decisions.parquet", Path(folder) / "rewards.parquet"
        with (
            parquet.ParquetWriter(decisions, decision_schema(actions)) as made,
            parquet.ParquetWriter(rewards, reward_schema()) as answered,
        ):
            for chunk in read_dsjson(path, actions, strict=strict, net_value=net_value):
                made.write_table(chunk.decisions)
                answered.write_table(chunk.rewards)
                refused += chunk.refused
                found += len(chunk.decisions)
        if not found:
            reason = f"line {refused[0][0]}: {refused[0][1]}" if refused else "the file is empty"
            raise InputError(f"{path}: no line is a decision: {reason}")
        report = join_rewards(
            decisions, rewards, out, actions=actions, strict=strict, net_value=net_value, context=False
        )
    texts = (json.dumps({"line": number, "reason": reason, "text": text}) for number, reason, text in refused)
    files.write(out / LINES, "".join(f"{text}\n" for text in texts))
    if refused:
        line = f"{path}: {len(refused)} lines are no decisions, see {LINES}"
        report = replace(report, ignored=(*report.ignored, line), lost=report.lost + len(refused))
        files.write_json(out / REPORT, asdict(report))
    return report


def write_dsjson(path: Path, tables: Iterable[pa.Table], actions: int) -> int:
    """Write the rows of joined tables that have a reward, one a line; how many.

    Where the log has the probabilities of all actions, ``a`` and ``p`` hold them; else the chosen action alone.

    Raises:
        InputError: a mask with unknown actions.
    """
    compute = require("pyarrow.compute", "payments")
    written = 0

    def write(place: Path) -> None:
        nonlocal written
        with place.open("w", encoding="utf-8") as file:
            for table in tables:
                known = table.filter(compute.is_valid(table["reward"]))
                for row, mask in zip(known.to_pylist(), masks(known, actions), strict=True):
                    file.write(json.dumps(_line(row, mask.nonzero()[:, 0].tolist())) + "\n")
                    written += 1

    files.write(path, write)
    return written


def _line(row: dict[str, Any], offered: list[int]) -> dict[str, Any]:
    """One decision as DSJSON."""
    place = offered.index(row["action"])
    order = [place, *(i for i in range(len(offered)) if i != place)] if row["pi"] else [place]
    context = {name: str(row[name]) for name in CATEGORIES if row[name] is not None}
    context |= {name: row[name] for name in NUMERICS if row[name] is not None}
    return {
        "_label_cost": -row["reward"],
        "_label_probability": row["propensity"],
        "_label_Action": place + 1,
        "_labelIndex": place,
        "Version": "1",
        "EventId": row["decision_id"].hex(),
        "Timestamp": row["event_time"].isoformat(),
        "a": [i + 1 for i in order],
        "p": [row["pi"][offered[i]] for i in order] if row["pi"] else [row["propensity"]],
        "c": {
            "payment": context,
            # Names that begin with an underscore are no features to Vowpal Wabbit.
            "_log": {name: write(row[name]) for name, (write, _) in OWN.items() if row[name] is not None},
            "_multi": [{"action": {"id": str(action)}, "flags": _flags(action)} for action in offered],
        },
    }


def _flags(action: int) -> dict[str, int]:
    """The interventions of an action as features."""
    return {name: 1 for f, name in enumerate(FLAGS) if action >> f & 1}


def _object(line: str) -> dict[str, Any]:
    try:
        data = json.loads(line)
    except ValueError as error:
        raise InputError(f"not JSON ({error})") from error
    if not isinstance(data, dict):
        raise InputError("not a JSON object")
    return data


def _row(data: dict[str, Any], actions: int, net_value: bool) -> dict[str, Any]:
    """The columns of one decision and its reward.

    Raises:
        InputError: a field that is missing or impossible.
    """
    probability, reward = _number(data, "_label_probability"), -_number(data, "_label_cost")
    if not 0 < probability <= 1:
        raise InputError(f"_label_probability = {probability}: must be in (0, 1]")
    if not net_value and not 0 <= reward <= 1:
        raise InputError(f"_label_cost = {-reward}: must be in [-1, 0]")
    context = _part(data, "c")
    offered = _offered(context, data, actions)
    chosen = _offered_at(offered, _number(data, "_label_Action"), "_label_Action")
    if (index := data.get("_labelIndex")) not in (None, data["_label_Action"] - 1):
        raise InputError(f"_labelIndex = {index}: must be _label_Action - 1 = {data['_label_Action'] - 1}")
    identity, moment = _text(data, "EventId"), _read(data, "Timestamp", _moment)
    row: dict[str, Any] = {
        "decision_id": bytes.fromhex(identity) if OWN_ID.fullmatch(identity) else transaction_key("", identity),
        "event_time": moment,
        "action": chosen,
        "propensity": probability,
        "offered": offered,
        "pi": _distribution(data, offered, actions),
        "reward": reward,
    }
    logged = {"tenant": "", "policy_id": "", "generation": 0, "model_sha": bytes(32), "rule": "", "reward_time": moment}
    own, payment = _part(context, "_log"), _part(context, "payment")
    row |= {name: _read(own, name, read) if name in own else logged.get(name) for name, (_, read) in OWN.items()}
    row |= {name: _read(payment, name, int) if name in payment else None for name in CATEGORIES}
    return row | {name: _read(payment, name, float) if name in payment else None for name in NUMERICS}


def _offered(context: dict[str, Any], data: dict[str, Any], actions: int) -> list[int]:
    """The id of each action in ``_multi``; where that is missing, of as many as ``a`` lists, or of all."""
    multi = context.get("_multi")
    if not isinstance(multi, list):
        multi = [None] * (len(data["a"]) if isinstance(data.get("a"), list) else actions)
    found = []
    for place, entry in enumerate(multi):
        named = _part(entry, "action") if isinstance(entry, dict) else {}
        action = _read(named, "id", int) if "id" in named else place
        if not 0 <= action < actions:
            raise InputError(f"_multi[{place}]: action {action} is not one of 0 to {actions - 1}")
        found.append(action)
    if not found:
        raise InputError("_multi: no action is available")
    if len(set(found)) < len(found):
        raise InputError("_multi: an action is there twice")
    return found


def _distribution(data: dict[str, Any], offered: list[int], actions: int) -> list[float] | None:
    """The probabilities of all K actions, where ``a`` and ``p`` list those of all that were available."""
    order, listed = data.get("a"), data.get("p")
    if not isinstance(order, list) or not isinstance(listed, list) or len(listed) != len(offered):
        return None
    if len(order) != len(listed) or not all(isinstance(p, int | float) and p >= 0 for p in listed):
        raise InputError("p: must hold a probability for each entry of a")
    if not abs(math.fsum(listed) - 1) <= SUM_TOLERANCE:
        raise InputError(f"p: sums to {math.fsum(listed)}, must be 1")
    found = [0.0] * actions
    for place, p in zip(order, listed, strict=True):
        found[_offered_at(offered, place, "a")] = p
    return found


def _offered_at(offered: list[int], place: Any, name: str) -> int:
    if place not in range(1, len(offered) + 1):
        raise InputError(f"{name} = {place}: must be in 1 to {len(offered)}, the actions that were available")
    return offered[int(place) - 1]


def _part(data: dict[str, Any], name: str) -> dict[str, Any]:
    value = data.get(name)
    return value if isinstance(value, dict) else {}


def _number(data: dict[str, Any], name: str) -> float:
    value = data.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"{name} = {value}: must be a finite number")
    return value


def _text(data: dict[str, Any], name: str) -> str:
    value = data.get(name)
    if not isinstance(value, str) or not value:
        raise InputError(f"{name} = {value}: must be a text")
    return value


def _read(data: dict[str, Any], name: str, read: Callable[[Any], Any]) -> Any:
    try:
        return read(data.get(name))
    except InputError:
        raise
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} = {data.get(name)}: {error}") from error


def _moment(text: str) -> datetime:
    found = datetime.fromisoformat(text)
    if found.tzinfo is None:
        raise InputError(f"Timestamp = {text}: must have a time zone")
    return found.astimezone(UTC)


def _same(value: Any) -> Any:
    return value


OWN: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "tenant": (_same, str),
    "policy_id": (_same, str),
    "generation": (_same, int),
    "model_sha": (bytes.hex, bytes.fromhex),
    "rule": (_same, str),
    "gamma": (_same, float),
    "eps": (_same, float),
    "explore_coin": (_same, bool),
    "reward_time": (datetime.isoformat, _moment),
    "source": (_same, str),
    "reward_attempt": (_same, int),
}
"""Columns that DSJSON has no field for, and how they are written and read."""


def _chunk(rows: list[dict[str, Any]], refused: list[tuple[int, str, str]], actions: int) -> Chunk:
    pa = require("pyarrow", "payments")
    mask = torch.zeros(len(rows), actions, dtype=torch.bool)
    for i, row in enumerate(rows):
        mask[i, row["offered"]] = True
    names = {"event_time": "reward_time", "attempt": "reward_attempt"}
    answers = [{name: row[names.get(name, name)] for name in reward_schema().names} for row in rows]
    columns = {
        name: mask_column(mask) if name == "mask" else pa.array([row[name] for row in rows], kind)
        for name, kind in ((field.name, field.type) for field in decision_schema(actions))
    }
    decisions = pa.table(columns, schema=decision_schema(actions))
    return Chunk(decisions, pa.Table.from_pylist(answers, schema=reward_schema()), tuple(refused))

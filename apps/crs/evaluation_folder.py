"""The folder of an evaluation, and what can be compared: such folders, and methods of a study."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from apps.crs.evidence import Evidence
from apps.crs.metrics import measures
from apps.crs.policy_folder import difference
from apps.crs.study import CRSStudy
from apps.crs.table import UNITS, row_of
from apps.crs.transcripts import Names, write_transcripts
from core import files
from core.errors import InputError
from core.stats import mean_interval
from core.study import Results, Row
from core.study.store import Store, load_result, write_result

RESULTS, TRANSCRIPTS, SUMMARY = "results.nc", "transcripts.jsonl", "summary.json"
CASES = ("user", "target", "opening")
COUNTING = ("max_turns", "turns")
"""Rules by which turns are counted: with others, averages of turns are of different things."""
SEPARATOR = "::"
"""Between a folder of a study, a method, and a problem."""


@dataclass(frozen=True)
class Played:
    """Dialogues of one policy.

    Attributes:
        name: of the policy.
        trainings: dialogues by seed, all about the same cases.
        catalogue: hash of what they were about; empty if it is not known.
        rules: of the dialogues, and whether there was a shortcut.
    """

    name: str
    trainings: Mapping[int, xr.Dataset]
    catalogue: str = ""
    rules: Mapping[str, Any] = field(default_factory=dict)

    @property
    def first(self) -> xr.Dataset:
        """Of the first training."""
        return next(iter(self.trainings.values()))


def rows_of(played: xr.Dataset, scenario: str, method: str) -> list[Row]:
    """The mean of each measure over the dialogues, with its 95 % bootstrap interval if there are two or more."""
    found = []
    for measure, values in measures(played).items():
        unit = UNITS.get(measure, "1")
        if len(values) > 1:
            found.append(row_of(scenario, method, measure, unit, mean_interval(values)))
        else:
            found.append(Row(scenario, method, measure, unit, float(values.mean()), n=len(values)))
    return found


def check_folder(folder: Path, asked: Mapping[str, Any]) -> None:
    """Refuse a folder that is for something else than this evaluation.

    Raises:
        InputError: a file, or a folder with other files or with another evaluation.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--out {folder}: is a file, not a folder")
    held = sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")) if folder.exists() else []
    if not held:
        return
    before = files.read_json(folder / SUMMARY).get("asked") if SUMMARY in held else None
    if not isinstance(before, dict):
        raise InputError(f"--out {folder}: holds {held[0]}, which no evaluation wrote; choose another --out")
    now = files.jsonable(dict(asked))
    for key in {**before, **now}:
        if before.get(key) != now.get(key):
            raise InputError(
                f"--out {folder}: holds an evaluation with {difference(key, before.get(key), now.get(key))}; choose "
                "another --out, or remove it"
            )


def write_evaluation(
    folder: Path, played: xr.Dataset, names: Names, rows: list[Row], asked: Mapping[str, Any], **attributes: str | int
) -> None:
    """Write ``results.nc``, ``transcripts.jsonl`` and, last, ``summary.json``.

    Args:
        folder: made if absent.
        played: the dialogues.
        names: of what they were about.
        rows: their measures.
        asked: what the result depends on.
        attributes: of ``results.nc``, the name of the policy as ``policy`` among them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_result(folder / RESULTS, played, {"catalogue": names.catalogue.hash, **attributes})
    write_transcripts(folder / TRANSCRIPTS, played, names)
    files.write_json(folder / SUMMARY, {"asked": dict(asked), "table": [asdict(row) for row in rows], **attributes})


def open_played(text: str) -> Played:
    """The dialogues that a word of the command line means.

    Args:
        text: the folder of an evaluation; or ``STUDY::METHOD``, perhaps with ``::PROBLEM``, of a study that is
            finished, whose first problem is the default.

    Raises:
        InputError: neither, or the study has no such method or problem.
    """
    name, *parts = text.split(SEPARATOR)
    folder = Path(name)
    if parts:
        return _of_study(folder, *parts[:2]) if len(parts) < 3 else _refuse(text)
    if Store(folder).manifest():
        raise InputError(f"{folder}: holds a study; say which of its methods, as in {folder}{SEPARATOR}Threshold")
    if not (folder / RESULTS).exists() or not (folder / SUMMARY).exists():
        raise InputError(f"{folder}: holds no evaluation; szilard crs evaluate --out writes one")
    data = load_result(folder / RESULTS)
    absent = [key for key in (*CASES, "turns", "rank", "return") if key not in data]
    if absent:
        raise InputError(f"{folder / RESULTS}: holds no {', '.join(absent)}")
    asked = files.read_json(folder / SUMMARY, ("asked",))["asked"]
    rules = {**asked.get("rules", {}), "shortcut": asked.get("shortcut")}
    name = str(data.attrs.get("policy", folder.name))
    return Played(name, {0: data}, str(data.attrs.get("catalogue", "")), rules)


def differences(one: Played, other: Played) -> list[Row]:
    """Mean differences of each measure on the same dialogues; 95 % bootstrap intervals over trainings and dialogues.

    Raises:
        InputError: they are not about the same users, targets and openings.
    """
    _check_same(one, other)
    names = ("A", "B")
    played = {("", name): side.trainings for name, side in zip(names, (one, other), strict=True)}
    evidence = Evidence([""], list(names), played)
    common = [m for m in measures(one.first) if m in measures(other.first)]
    said = f"{one.name} less {other.name}"
    return [
        row_of("paired differences", said, m, UNITS.get(m, "1"), evidence.difference("", *names, m)) for m in common
    ]


def notes(one: Played, other: Played) -> list[str]:
    """What a comparison mixes up beside the policies, a line each."""
    keys = [key for key in one.rules if key in other.rules and one.rules[key] != other.rules[key]]
    return [f"A and B: {key} {one.rules[key]} and {other.rules[key]}; the difference is of that too" for key in keys]


def _check_same(one: Played, other: Played) -> None:
    for key in COUNTING:
        if one.rules.get(key) != other.rules.get(key):
            raise InputError(f"A and B: {key} {one.rules.get(key)} and {other.rules.get(key)}; must be the same")
    if one.catalogue and other.catalogue and one.catalogue != other.catalogue:
        raise InputError(f"A and B: catalogues {one.catalogue} and {other.catalogue}; must be the same")
    first, second = one.first, other.first
    sizes = first.sizes["dialogue"], second.sizes["dialogue"]
    if sizes[0] != sizes[1]:
        raise InputError(f"A and B: {sizes[0]} and {sizes[1]} dialogues; must be the same ones")
    if sizes[0] < 2:
        raise InputError(f"A and B: {sizes[0]} dialogue; must be at least 2")
    for name in CASES:
        differ = np.flatnonzero(first[name].values != second[name].values)
        if differ.size:
            at = int(differ[0])
            values = first[name].values[at], second[name].values[at]
            raise InputError(
                f"A and B: dialogue {at}: {name} {values[0]} and {values[1]}; must be the same users, targets and "
                "openings"
            )


def _of_study(folder: Path, method: str, problem: str | None = None) -> Played:
    if not Store(folder).manifest():
        raise InputError(f"{folder}: holds no study")
    study = CRSStudy.load(folder / "config.yaml")
    methods, problems = {m.name: m for m in study.methods}, {p.name: p for p in study.problems}
    problem = next(iter(problems)) if problem is None else problem
    for what, name, known in (("method", method, methods), ("problem", problem, problems)):
        if name not in known:
            raise InputError(f"{folder}: the study has no {what} {name}; there are: {', '.join(known)}")
    results = Results(folder, study.runs())
    runs = {s: study.play(problems[problem], methods[method], s) for s in study.seeds_of(methods[method])}
    missing = [seed for seed, run in runs.items() if run not in results]
    if missing:
        raise InputError(f"{folder}: {method}, seed {missing[0]}: not finished; szilard crs run goes on with it")
    chosen = problems[problem].model_dump(mode="json")
    rules = {**chosen["rules"], "shortcut": chosen["shortcut"]}
    return Played(method, {seed: results[run] for seed, run in runs.items()}, rules=rules)


def _refuse(text: str) -> Played:
    raise InputError(f"{text}: must read DIR, DIR{SEPARATOR}METHOD or DIR{SEPARATOR}METHOD{SEPARATOR}PROBLEM")

"""The folder that a verb writes: what was asked for, a checkpoint that survives a kill, and what came of it."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xarray as xr
from rich.console import Console
from rich.progress import Progress

from core import files
from core.errors import InputError, MissingExtra
from core.rl.algorithm import TrainingDiverged
from core.study import Row, StudyError
from core.study.config import digest
from core.study.provenance import version
from simulators.sepsis.cohort import Cohort

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

RECORD, RESULT = "provenance.json", "summary.json"
SAID = (RECORD, RESULT, "transcripts.json")
"""Files beside a model that are not part of it."""


@dataclass(frozen=True)
class OutputFolder:
    """Where a verb works.

    Attributes:
        path: of the folder.
        progress: moves the bar, by the share done and a message.
    """

    path: Path
    progress: Callable[[float, str], None]

    def checkpoint(self, name: str = "") -> Path:
        """A file or folder that survives a kill and is removed once the verb has finished."""
        return self.path / "checkpoint" / name

    def within(self, start: float, end: float) -> Callable[[float, str], None]:
        """The bar for a part of the work, from ``start`` to ``end`` of the whole."""
        return lambda share, message: self.progress(start + share * (end - start), message)

    def write_rows(self, verb: str, rows: Sequence[Row], **further: Any) -> None:
        """Write ``summary.json``: the table and what else there is to say."""
        files.write_json(self.path / RESULT, {"verb": verb, "table": [asdict(row) for row in rows], **further})

    def write_dataset(self, name: str, data: xr.Dataset) -> None:
        """Write a NetCDF file."""
        files.write(self.path / name, lambda temporary: data.to_netcdf(temporary, engine="h5netcdf"))

    def write_figure(self, name: str, drawing: Drawing) -> None:
        """Write a picture as PNG and PDF into ``figures/``."""
        folder = self.path / "figures"
        folder.mkdir(exist_ok=True)
        for kind in ("pdf", "png"):
            draw = lambda path, kind=kind: drawing.savefig(path, format=kind, dpi=150, facecolor="white")  # noqa: E731
            files.write(folder / f"{name}.{kind}", draw)


@contextmanager
def output_folder(path: Path, verb: str, cohort: Cohort, asked: Mapping[str, Any]) -> Iterator[OutputFolder]:
    """Begin the work of a verb in a folder, or go on with it where a kill has stopped it.

    Args:
        path: of the folder; made if absent.
        verb: name of the verb.
        cohort: what it works on.
        asked: everything else that the result depends on, plain data.

    Raises:
        InputError: the path is a file or cannot be written, or the folder holds other work.
        StudyError: a training has diverged.
    """
    if path.exists() and not path.is_dir():
        raise InputError(f"--out {path}: is a file, not a folder")
    plain = json.loads(json.dumps(files.jsonable(dict(asked))))
    record = {"verb": verb, "cohort": fingerprint(cohort), "scale": scale(cohort), "asked": plain}
    kept = path / RECORD
    new = not kept.exists()
    if not new:
        held = files.read_json(kept)
        for key in record:
            if held.get(key) != record[key]:
                raise InputError(f"{path}: holds work with {_difference(key, held.get(key), record[key])}; "
                                 "choose another --out, or remove it")  # fmt: skip
    try:
        path.mkdir(parents=True, exist_ok=True)
        files.write_json(kept, record | {"version": version()})
    except OSError as error:
        raise InputError(f"--out {path}: {(error.strerror or str(error)).lower()}") from error
    console = Console(stderr=True)
    try:
        with Progress(transient=True, console=console, disable=not console.is_terminal) as bar:
            task = bar.add_task(verb, total=1.0)
            yield OutputFolder(
                path, lambda share, said: bar.update(task, completed=share, description=f"{verb}: {said}")
            )
    except (InputError, MissingExtra):
        if new:  # nothing was done, so that the folder is free for what was meant
            kept.unlink(missing_ok=True)
            with suppress(OSError):
                path.rmdir()
        raise
    except TrainingDiverged as error:
        raise StudyError(f"{verb}: {error}; the last good state is in {path / 'checkpoint'}") from error
    shutil.rmtree(path / "checkpoint", ignore_errors=True)


def made(folder: Path, cohort: Cohort) -> dict[str, Any]:
    """What is recorded of a model's making; nothing where it was not made by a verb.

    Raises:
        InputError: it was made from states of another normalisation, and would misread those of the cohort.
    """
    path = folder / RECORD
    if not path.exists():
        return {}
    record = files.read_json(path, ("scale", "asked"))
    if record["scale"] != scale(cohort):
        raise InputError(f"{folder}: made from a cohort of another normalisation; make it again from this one")
    return record


def contents(folder: Path) -> str:
    """Short hash of the files of a model, whose record of its making is left out.

    Raises:
        InputError: no such folder.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix in (".json", ".safetensors") and path.name not in SAID:
            found.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return found.hexdigest()[:16]


def fingerprint(cohort: Cohort) -> str:
    """Short hash of all that learners see of a cohort."""
    found = hashlib.sha256()
    for tensor in (cohort.state, cohort.action, cohort.mask, cohort.outcome, cohort.split):
        found.update(tensor.cpu().contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


def scale(cohort: Cohort) -> str:
    """Short hash of what the numbers of a state mean."""
    known = cohort.normalisation
    if known is None:
        return digest([str(cohort.origin.get("source"))])[:16]
    return digest([known.mean.tolist(), known.std.tolist()])[:16]


def _difference(name: str, held: Any, asked: Any) -> str:
    if isinstance(held, dict) and isinstance(asked, dict):
        key = next(key for key in {**asked, **held} if held.get(key) != asked.get(key))
        return _difference(key if name == "asked" else f"{name}.{key}", held.get(key), asked.get(key))
    if name == "cohort":
        return "another cohort"
    return f"{name} = {json.dumps(held)}, now {json.dumps(asked)}"

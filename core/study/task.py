"""What a worker does with one run: the same function in this process, in another one, or on another machine."""

from __future__ import annotations

import json
import shutil
import socket
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
import xarray as xr
import yaml
from filelock import FileLock

from core import files
from core.study import journal
from core.study.config import canonical
from core.study.context import Context
from core.study.provenance import provenance
from core.study.run import Run, inputs_of
from core.study.store import Store, load_result, write_result


@dataclass(frozen=True)
class Task:
    """One run to do for the study with ``config_hash`` that lies in ``root`` (absolute)."""

    root: Path
    config_hash: str
    run: Run
    device: str


@dataclass(frozen=True)
class Outcome:
    """How a run ended: its wall seconds, and the error in one line if it failed."""

    seconds: float
    error: str = ""


@contextmanager
def one_thread() -> Iterator[None]:
    """One torch thread: sums in another order would make the numbers depend on the machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def execute(task: Task) -> Outcome:
    """Do a run and store its result, unless it has one already; an error is stored and told, not raised."""
    started = time.monotonic()
    store, key = Store(task.root), task.run.hash
    if store.manifest().get("config_hash") != task.config_hash:
        return Outcome(0.0, f"worker on {socket.gethostname()} does not see {task.root}: use a shared file system")
    folder = store.run_folder(key)
    folder.mkdir(exist_ok=True)
    try:
        # A worker of a study that was killed may still be alive for a second or two.
        with one_thread(), FileLock(folder / ".lock"):
            if not store.finished(key):
                _execute(store, task.run, torch.device(task.device))
    except Exception as error:
        files.write(folder / "error.txt", traceback.format_exc())
        message = next(iter(str(error).splitlines()), "")
        reason = f"{type(error).__name__}: {message[:300]}; see {folder / 'error.txt'}"
        journal.append(store.journal(key), event="failed", reason=reason)
        return Outcome(time.monotonic() - started, reason)
    return Outcome(time.monotonic() - started)


def _execute(store: Store, run: Run, device: torch.device) -> None:
    key = run.hash
    folder, log = store.run_folder(key), store.journal(key)
    context = Context(folder, folder / "checkpoint", device, store.root, log)
    context.checkpoint.mkdir(exist_ok=True)
    files.write(folder / "config.yaml", yaml.safe_dump(canonical(run), sort_keys=False))
    context.log(event="started", label=run.label)
    inputs = {name: load_result(store.result(source.hash)) for name, source in inputs_of(run).items()}
    result = run.execute(inputs, context)
    if not isinstance(result, xr.Dataset):
        raise TypeError(f"{run.label}: execute must return an xarray.Dataset, not {type(result).__name__}")
    context.log(event="finished")
    write_result(store.result(key), result, _attributes(run, device, log))
    shutil.rmtree(context.checkpoint)
    (folder / "error.txt").unlink(missing_ok=True)


def _attributes(run: Run, device: torch.device, log: Path) -> Mapping[str, str | int | float]:
    entries = list(journal.read(log))
    started = next(entry["time"] for entry in entries if entry.get("event") == "started")
    products = {entry["product"] for entry in entries if "product" in entry}
    return {
        "run": f"{type(run).__module__}:{type(run).__qualname__}",
        "label": run.label,
        "config": json.dumps(canonical(run)),
        "config_hash": run.hash,
        **provenance(device),
        "products": " ".join(sorted(products)),
        "started": datetime.fromtimestamp(started, UTC).isoformat(timespec="seconds"),
        "seconds": round(journal.seconds_spent(log), 3),
    }

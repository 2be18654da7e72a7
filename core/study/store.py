"""The folder of a study: what lies where, who may write to it, and what makes a run finished."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import xarray as xr
from filelock import FileLock, Timeout

from core import files
from core.errors import InputError
from core.study.provenance import version

OWN_FOLDER = re.compile(r"[0-9a-f]{16}(\.making)?")
OWN_FILES = ("config.yaml", "summary.json", "table.csv", "results.nc", "report.html", "manifest.json")


class Store:
    """The files of one study in ``root``.

    ``manifest.json`` marks the folder as a study's; a run is finished when its ``result.nc`` exists, which is written
    last. Everything is written whole or not at all.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def run_folder(self, key: str) -> Path:
        """Folder of the run with hash ``key``."""
        return self.root / "runs" / key

    def journal(self, key: str) -> Path:
        """The run's ``log.jsonl``."""
        return self.run_folder(key) / "log.jsonl"

    def result(self, key: str) -> Path:
        """The run's ``result.nc``."""
        return self.run_folder(key) / "result.nc"

    def finished(self, key: str) -> bool:
        """Whether the run has a result."""
        return self.result(key).exists()

    def manifest(self) -> dict[str, Any]:
        """What the study says about itself; empty where there is no study."""
        try:
            manifest = json.loads((self.root / "manifest.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return manifest if isinstance(manifest, dict) else {}

    def update(self, **fields: Any) -> None:
        """Change entries of the manifest."""
        files.write_json(self.root / "manifest.json", self.manifest() | fields)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep every other process from writing to this folder.

        Raises:
            InputError: another process is at work here, or the folder cannot be written.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.root / ".lock", timeout=0)
            lock.acquire()
        except Timeout as error:
            raise InputError(f"{self.root}: another szilard process is at work in this folder") from error
        except OSError as error:
            raise InputError(f"{self.root}: cannot be written: {error.strerror}") from error
        try:
            yield
        finally:
            lock.release()

    def refuse(self, study: str, config_hash: str, *, fresh: bool = False) -> None:
        """Refuse a folder that is not for this study: a file, files that no study wrote, or another study.

        Raises:
            InputError: so it is.
        """
        if self.root.exists() and not self.root.is_dir():
            raise InputError(f"{self.root}: not a folder")
        held = self.manifest()
        if self.root.exists() and not held:
            strangers = [p.name for p in self.root.iterdir() if not p.name.startswith((".lock", ".manifest"))]
            if strangers:
                raise InputError(f"{self.root}: holds {min(strangers)}, which no study wrote: choose another --out")
        if held and not fresh and (held.get("study"), held.get("config_hash")) != (study, config_hash):
            raise InputError(
                f"{self.root} holds study {held.get('study')} with config hash {held.get('config_hash')}, this is "
                f"{study} with {config_hash}: choose another --out, or --fresh to remove what is there"
            )

    @contextmanager
    def open(self, study: str, config_hash: str, config_yaml: str, *, fresh: bool = False) -> Iterator[None]:
        """Lock the folder for a study and mark it as its own; ``fresh`` first removes what a study left there.

        Raises:
            InputError: the folder holds another study or other files, or is in use.
        """
        with self.lock():
            self.refuse(study, config_hash, fresh=fresh)
            if fresh:
                self.clear()
            seconds = self.manifest().get("seconds", 0.0)
            self.update(study=study, config_hash=config_hash, version=version(), seconds=seconds)
            files.write(self.root / "config.yaml", config_yaml)
            (self.root / "runs").mkdir(exist_ok=True)
            (self.root / "summary.json").unlink(missing_ok=True)
            yield

    def clear(self) -> None:
        """Remove what a study writes, and nothing else; the manifest last: a clearing that was stopped can go on."""
        for name in ("runs", "products"):
            folder = self.root / name
            for path in folder.iterdir() if folder.is_dir() else ():
                if path.is_dir() and OWN_FOLDER.fullmatch(path.name):
                    shutil.rmtree(path)
                elif path.name.endswith(".lock"):
                    path.unlink()
        for name in self.manifest().get("figures", []):
            (self.root / "figures" / Path(name).name).unlink(missing_ok=True)
        for name in ("runs", "products", "figures"):
            folder = self.root / name
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        for name in OWN_FILES:
            (self.root / name).unlink(missing_ok=True)


def write_result(path: Path, result: xr.Dataset, attributes: Mapping[str, str | int | float]) -> None:
    """Write a result atomically as NetCDF, floats compressed, with its provenance in the attributes."""
    result = result.assign_attrs(attributes)
    encoding = {
        name: {"zlib": True, "complevel": 4}
        for name, variable in result.variables.items()
        if variable.dtype.kind == "f" and variable.ndim
    }
    files.write(path, lambda temporary: result.to_netcdf(temporary, engine="h5netcdf", encoding=encoding))


def load_result(path: Path) -> xr.Dataset:
    """A stored result in memory; a unit such as "days" stays a unit and does not turn numbers into durations."""
    try:
        return xr.load_dataset(path, engine="h5netcdf", decode_timedelta=False)
    except OSError as error:
        raise InputError(f"{path}: damaged; remove it, and the same run command makes it anew") from error

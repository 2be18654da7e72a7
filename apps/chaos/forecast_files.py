"""The folder of a forecast: what was asked for, where it goes on after a stop, and what it leaves."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.figure import Figure as Drawing

from apps.chaos.series import Series
from core import files
from core.errors import InputError, MissingExtra

RECORD = "asked.json"


class ForecastFolder:
    """A folder that belongs to one question.

    Args:
        path: of the folder; made if it is not there.
        asked: what decides the result; work for another question is refused.
        fresh: remove what is there and begin anew.

    Raises:
        InputError: a file, or a folder that holds something else.
    """

    def __init__(self, path: Path, asked: Mapping[str, Any], *, fresh: bool = False) -> None:
        self.path = path
        record, asked = path / RECORD, files.jsonable(dict(asked))
        if path.exists() and not path.is_dir():
            raise InputError(f"--out {path}: is a file, not a folder")
        if path.exists() and any(path.iterdir()) and not record.exists():
            raise InputError(f"--out {path}: holds files that no forecast wrote: choose another --out")
        if fresh and record.exists():
            shutil.rmtree(path)
        if record.exists() and (held := files.read_json(record)) != asked:
            key = next(key for key in {**held, **asked} if held.get(key) != asked.get(key))
            shown = f"{key} = {json.dumps(held.get(key))}, now {json.dumps(asked.get(key))}"
            raise InputError(f"--out {path}: holds work with {shown}: choose another --out, or --fresh to begin anew")
        path.mkdir(parents=True, exist_ok=True)
        files.write_json(record, asked)

    @property
    def checkpoint(self) -> Path:
        """Where work is kept until it is done."""
        return self.path / "checkpoint"

    def stored(self) -> xr.Dataset | None:
        """The forecast, if it is done."""
        path = self.path / "forecast.nc"
        if not path.exists():
            return None
        with xr.open_dataset(path, engine="h5netcdf", decode_times=False) as data:
            return data.load()

    def write(self, found: xr.Dataset) -> None:
        """Write ``forecast.csv`` and then ``forecast.nc``, and remove the checkpoint."""
        files.write(self.path / "forecast.csv", lambda path: frame(found).to_csv(path, index=False))
        files.write(self.path / "forecast.nc", lambda path: found.to_netcdf(path, engine="h5netcdf"))
        shutil.rmtree(self.checkpoint, ignore_errors=True)

    @contextmanager
    def kept_unless_refused(self) -> Iterator[None]:
        """Remove what was begun, if it turns out that it cannot be done."""
        try:
            yield
        except (InputError, MissingExtra):
            shutil.rmtree(self.path)
            raise

    def draw(self, drawing: Drawing, name: str) -> list[Path]:
        """Write a picture as PNG and PDF; their paths."""
        return draw(drawing, self.path / name)


def draw(drawing: Drawing, path: Path) -> list[Path]:
    """Write a picture as PNG and PDF; ``path`` has no suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    written = [path.with_name(f"{path.name}.{kind}") for kind in ("png", "pdf")]
    for target in written:
        files.write(target, partial(drawing.savefig, format=target.suffix[1:], dpi=150))
    return written


def frame(found: xr.Dataset) -> pd.DataFrame:
    """One row a lead time: lead, time, and for each channel the forecast with the ends of its intervals."""
    columns: dict[str, Any] = {"lead": found["lead"].values, "time": found["time"].values}
    names = ("low", "high", *(n for n in ("ensemble_low", "ensemble_median", "ensemble_high") if n in found))
    for i, channel in enumerate(found["channel"].values.tolist()):
        columns[channel] = found["forecast"].values[:, i]
        columns |= {f"{channel}_{name}": found[name].values[:, i] for name in names}
    return pd.DataFrame(columns)


def fingerprint(series: Series) -> str:
    """First 16 hex digits of the SHA-256 of the numbers of a series."""
    content = np.ascontiguousarray(series.values).tobytes() + np.ascontiguousarray(series.time).tobytes()
    return hashlib.sha256(content).hexdigest()[:16]

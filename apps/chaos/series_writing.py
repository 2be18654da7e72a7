"""Series written to files that ``read_series`` and other programs read."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pandas as pd
import xarray as xr

from apps.chaos.series import Series
from core import files
from core.errors import InputError, require

WRITABLE = (".csv", ".nc", ".zarr", ".parquet")


def check_writable(path: Path) -> None:
    """Refuse a place where no series can be written.

    Raises:
        InputError: another suffix, or a folder or file that is something else.
        MissingExtra: a package for the format is not installed.
    """
    if path.suffix not in WRITABLE:
        raise InputError(f"{path}: ends in {path.suffix or 'no suffix'}: must end in one of {', '.join(WRITABLE)}")
    if path.suffix == ".zarr":
        require("zarr", "chaos")
        if path.exists() and not (path / "zarr.json").exists():
            raise InputError(f"{path}: exists and is not a Zarr store")
    elif path.is_dir():
        raise InputError(f"{path}: is a folder, must be a file")
    if path.suffix == ".parquet":
        require("pyarrow", "chaos")


def write_series(path: Path, data: Series | xr.Dataset) -> None:
    """Write a series, or several of one sampling, atomically; the suffix tells the format.

    Args:
        path: ends in .csv, .nc, .zarr or .parquet; what is there is replaced.
        data: a series, or a dataset of one variable ``([trajectory,] time, channel)``; in tables, a column
            ``trajectory`` tells several apart.

    Raises:
        InputError: another suffix, or a place that holds something else.
        MissingExtra: a package for the format is not installed.
    """
    check_writable(path)
    dataset = data.dataset() if isinstance(data, Series) else data
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".nc":
        files.write(path, lambda temporary: dataset.to_netcdf(temporary, engine="h5netcdf"))
    elif path.suffix == ".zarr":
        _write_store(path, dataset)
    elif path.suffix == ".csv":
        files.write(path, lambda temporary: _frame(dataset).to_csv(temporary, index=False))
    else:
        files.write(path, lambda temporary: _frame(dataset).to_parquet(temporary, index=False))


def _frame(dataset: xr.Dataset) -> pd.DataFrame:
    """One row a sample: trajectory (if there are several), time, and a column a channel."""
    name = next(name for name, variable in dataset.data_vars.items() if {"time", "channel"} <= set(variable.dims))
    variable = dataset[name]
    labels = [str(label) for label in variable["channel"].values]
    if "unit" in dataset.coords:
        units = [str(unit) for unit in dataset["unit"].values]
        labels = [f"{label} ({unit})" if unit else label for label, unit in zip(labels, units, strict=True)]
    unit = str(dataset["time"].attrs.get("units", ""))
    time = f"time ({unit})" if unit else "time"
    parts: list[pd.DataFrame] = []
    several = "trajectory" in variable.dims
    for one in variable.transpose("trajectory", ...) if several else [variable]:
        frame = pd.DataFrame(one.transpose("time", "channel").values, columns=labels)
        frame.insert(0, time, dataset["time"].values)
        if several:
            frame.insert(0, "trajectory", len(parts))
        parts.append(frame)
    return pd.concat(parts, ignore_index=True)


def _write_store(path: Path, dataset: xr.Dataset) -> None:
    """A Zarr store is a folder: the new one is written beside the old one, which then makes room."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    # Text of a fixed length has no place in the format's specification.
    text = [name for name, variable in dataset.variables.items() if variable.dtype.kind == "U"]
    dataset = dataset.assign({name: dataset[name].astype(object) for name in text})
    try:
        dataset.to_zarr(temporary, mode="w", consolidated=False)
        if path.exists():
            path.replace(old)
        temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    files.sync(path.parent)

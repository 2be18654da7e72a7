"""Columns of NetCDF files and Zarr stores: variables along time, with or without a dimension of channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from apps.chaos.series_tables import TIME_NAMES, Column, Table
from core.errors import InputError, require

NETCDF = (".nc", ".nc4", ".cdf", ".netcdf")
ZARR = ".zarr"
_DAMAGE = (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError, IndexError)


def read_arrays(path: Path, time: str | None, channels: Sequence[str], select: Mapping[str, str]) -> Table:
    """The variables of a NetCDF file or a Zarr store that run along time, one column a channel.

    Args:
        path: of the file or store.
        time: name of the dimension of time; ``none`` for a series without times; None to find it.
        channels: names of variables or labels of channels; empty for all.
        select: indices along other dimensions, such as ``{"trajectory": "0"}``.

    Raises:
        InputError: a file that cannot be read, or one that does not tell which variables are meant.
        MissingExtra: a Zarr store without the package zarr.
    """
    data = _select(_open(path), path, select)
    dimension = _time_dimension(data, path, time)
    data = data.squeeze([d for d, size in data.sizes.items() if size == 1 and d != dimension], drop=True)
    found = {str(name): v for name, v in data.data_vars.items() if dimension in v.dims}
    if not found:
        raise InputError(f"{path}: no variable has the dimension {dimension}")
    columns: dict[str, Column] = {}
    units: dict[str, str] = {}
    wanted: list[str] = []
    for name in _variables(found, path, channels):
        held = _columns(data, name, dimension, path)
        wanted += held if name in channels else [label for label in held if label in channels]
        for label, column in held.items():
            if label in columns:
                raise InputError(f"{path}: channel {label} is in several variables, choose with --channel VARIABLE")
            columns[label] = column
            units[label] = _unit(data, name, label)
    if unknown := [name for name in channels if name not in columns and name not in found]:
        known = ", ".join(dict.fromkeys([*found, *columns]))
        raise InputError(f"{path}: channel {unknown[0]}: no such channel; there are: {known}")
    if channels:
        columns = {label: columns[label] for label in wanted}
    timed = time != "none" and dimension in data.coords
    if timed:
        columns = {dimension: _values(_decoded(data[dimension]), path), **columns}
        units[dimension] = str(data[dimension].attrs.get("units", "")).split(" since ")[0]
    return Table(
        path,
        columns,
        {name: unit for name, unit in units.items() if unit},
        dimension if timed else None,
        "index",
        np.arange(data.sizes[dimension]),
    )


def _open(path: Path) -> xr.Dataset:
    if path.is_dir():
        if not any((path / name).exists() for name in ("zarr.json", ".zgroup")):
            raise InputError(f"{path}: a folder that is not a Zarr store (it has no zarr.json and no .zgroup)")
        require("zarr", "chaos")
        options: dict[str, Any] = {"engine": "zarr", "consolidated": False}
    else:
        with path.open("rb") as file:
            magic = file.read(8)
        if magic[:3] != b"CDF" and magic != b"\x89HDF\r\n\x1a\n":
            raise InputError(f"{path}: not a NetCDF file")
        options = {"engine": "scipy" if magic[:3] == b"CDF" else "h5netcdf"}
    try:
        # A model's calendar need not be one that can be decoded: times are decoded later, alone.
        with xr.open_dataset(path, decode_times=False, **options) as data:
            return data.load()
    except _DAMAGE as error:
        raise InputError(f"{path}: cannot be read ({(str(error) or type(error).__name__).splitlines()[0]})") from error


def _select(data: xr.Dataset, path: Path, select: Mapping[str, str]) -> xr.Dataset:
    for name, index in select.items():
        if name not in data.dims:
            known = ", ".join(map(str, data.dims))
            raise InputError(f"{path}: select {name}: no such dimension; there are: {known}")
        size = data.sizes[name]
        if not index.isdigit() or int(index) >= size:
            raise InputError(f"{path}: select {name}={index}: must be an index from 0 to {size - 1}")
        data = data.isel({name: int(index)}, drop=True)
    return data


def _time_dimension(data: xr.Dataset, path: Path, time: str | None) -> str:
    names = [str(name) for name in data.dims]
    if time is not None and time != "none":
        if time not in names:
            raise InputError(f"{path}: time {time}: no such dimension; there are: {', '.join(names)}")
        return time
    for name in names:
        if name == "t" or name.lower() in TIME_NAMES:
            return name
    if len(names) == 1:
        return names[0]
    raise InputError(f"{path}: dimensions {', '.join(names) or '(none)'}: choose that of time with --time NAME")


def _variables(found: Mapping[str, xr.DataArray], path: Path, channels: Sequence[str]) -> list[str]:
    """The variables that are meant: those that the channels name or hold, else all, where they have one shape."""
    asked = [name for name in channels if name in found]
    if asked:
        return asked
    deep = [f"{name} ({', '.join(map(str, v.dims))})" for name, v in found.items() if v.ndim > 1]
    if deep and len(found) > 1:
        raise InputError(f"{path}: variables {', '.join(found)}, of which {deep[0]}: choose with --channel VARIABLE")
    return list(found)


def _columns(data: xr.Dataset, name: str, dimension: str, path: Path) -> dict[str, Column]:
    """The channels of a variable, by label."""
    variable = data[name]
    others = [str(d) for d in variable.dims if d != dimension]
    if len(others) > 1:
        raise InputError(
            f"{path}: {name} has the dimensions {', '.join(others)} besides time: choose with --select {others[0]}=0"
        )
    if not others:
        return {name: _values(variable, path)}
    if others[0] == "trajectory":
        size = variable.sizes["trajectory"]
        raise InputError(f"{path}: {name} holds {size} trajectories, must be one: --select trajectory=0")
    values = _values(variable.transpose(dimension, others[0]), path)
    labelled = others[0] in data.coords
    labels = data[others[0]].values if labelled else [f"{name}_{i}" for i in range(values.shape[1])]
    return {str(label): values[:, i] for i, label in enumerate(labels)}


def _unit(data: xr.Dataset, name: str, label: str) -> str:
    """The unit of a channel: of the coordinate ``unit`` along channels, else of its variable."""
    variable = data[name]
    unit = data.coords.get("unit")
    if unit is not None and unit.ndim == 1 and unit.dims[0] in data.coords:
        labels = [str(v) for v in data[unit.dims[0]].values]
        if label in labels:
            return str(unit.values[labels.index(label)])
    return str(variable.attrs.get("units", ""))


def _decoded(times: xr.DataArray) -> xr.DataArray:
    """Dates of a calendar that the machine knows, else the numbers of the file."""
    if " since " not in str(times.attrs.get("units", "")):
        return times
    try:
        decoded = xr.decode_cf(times.to_dataset(name="value", promote_attrs=False), decode_timedelta=False)
        found = decoded[times.name] if times.name in decoded.variables else decoded["value"]
    except (*_DAMAGE, ImportError):
        return times
    return found if found.dtype.kind == "M" else times


def _values(variable: xr.DataArray, path: Path) -> Column:
    try:
        return np.asarray(variable.values)
    except _DAMAGE as error:
        raise InputError(f"{path}: {variable.name}: cannot be read") from error

"""A user's own series: read from a file, checked, and evenly sampled."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr

from apps.chaos import series_arrays, series_tables
from apps.chaos.series_tables import Numbers, Table, short
from apps.chaos.series_times import Resampling, check_even, is_even, resampled, times_of
from core.errors import InputError

FEWEST = 12
"""Samples that a series needs at least."""
LARGEST = 1e100
"""Of a value, in the unit of its channel: squares must be finite."""
SMALLEST = 1e-100
"""From the least to the greatest value of a channel, in its unit: squares must not vanish."""
_SUFFIXES = (*series_tables.TEXT, *series_tables.PARQUET, *series_arrays.NETCDF, series_arrays.ZARR)


@dataclass(frozen=True, eq=False)
class Series:
    """An evenly sampled series of finite numbers.

    Attributes:
        values: ``(T, D)``, each channel in its unit.
        time: ``(T,)``, in ``time_unit``.
        dt: time between two samples.
        channels: D names.
        units: of the channels; empty where unknown.
        source: where it comes from.
        time_unit: ``samples`` where times are unknown.
        start: date at which time is 0, in ISO; empty for none.
    """

    values: Numbers
    time: Numbers
    dt: float
    channels: tuple[str, ...]
    units: tuple[str, ...]
    source: str
    time_unit: str = "samples"
    start: str = ""

    def __len__(self) -> int:
        return len(self.values)

    def dataset(self) -> xr.Dataset:
        """The series with named dimensions, ``series (time, channel)``."""
        return xr.Dataset(
            {"series": (("time", "channel"), self.values, {"long_name": "series"})},
            {
                "time": ("time", self.time, {"units": self.time_unit}),
                "channel": ("channel", list(self.channels)),
                "unit": ("channel", list(self.units), {"long_name": "unit of the channel"}),
            },
            {"dt": self.dt, "source": self.source, "start": self.start},
        )


def read_series(
    path: Path | str,
    *,
    time: str | None = None,
    channels: Sequence[str] = (),
    select: Mapping[str, str] | None = None,
    dt: float | None = None,
    resample: Resampling | None = None,
    drop_gaps: bool = False,
    shortest: int = FEWEST,
) -> Series:
    """Read a series from a table in text or Parquet, a NetCDF file or a Zarr store.

    The time is the column called time, t, date, timestamp or year, else a first column of ISO dates or one that
    increases from row to row; without one, a sample is a unit of time. Dates become months or years where they are
    evenly spaced in the calendar.

    Args:
        path: of the file; its suffix tells the format.
        time: name of the column or dimension of time; ``none`` for a file without times.
        channels: names of the channels; empty for all.
        select: of a file with several series: the index along another dimension, or the value in another column.
        dt: time between two samples, where the file has no times or ``resample`` makes new ones.
        resample: interpolate onto an even grid, by monotone cubics (Fritsch and Butland 1984) or lines.
        drop_gaps: keep the longest part without missing values and, unless resampled, without steps of another size.
        shortest: samples that are needed.

    Raises:
        InputError: no such file or channel, or a value, a time or a length that is not allowed, with its place.
        MissingExtra: a package for the format is not installed.
    """
    path = Path(path)
    try:
        table = _table(path, time, channels, select or {})
    except OSError as error:
        raise InputError(f"{path}: {(error.strerror or str(error)).lower()}") from error
    names = [name for name in table.columns if name != table.time]
    values = np.stack([_numbers(table, name) for name in names], axis=1)
    given, unit, start = times_of(table)
    if given is not None and dt is not None and resample is None:
        raise InputError(f"dt = {dt:g}: {path} has its own times, {table.time}: leave dt or time out")
    if dt is not None and not (0 < dt < np.inf):
        raise InputError(f"dt = {dt:g}: must be a positive number")
    kept = _without_gaps(table, names, values, given, drop_gaps, resample)
    if kept.stop - kept.start < shortest:
        part = f" in the longest part without gaps, {_span(table, kept)}" if drop_gaps else ""
        raise InputError(f"{path}: {kept.stop - kept.start} samples{part}: must be at least {shortest}")
    values = values[kept]
    if given is None:
        if resample is not None:
            raise InputError(f"resample = {resample}: {path} has no times: must have a column of them")
        step = 1.0 if dt is None else dt
        times = step * np.arange(len(values), dtype=np.float64)
        unit = "samples" if dt is None else ""
    elif resample is None:
        times = given[kept]
        check_even(table, kept, times)
        step = float((times[-1] - times[0]) / (len(times) - 1))
    else:
        times, values, step = resampled(given[kept], values, dt, resample, table, kept)
    _check_channels(path, names, values)
    units = tuple(table.units.get(name, "") for name in names)
    return Series(np.ascontiguousarray(values), times, step, tuple(names), units, str(path), unit, start)


def _table(path: Path, time: str | None, channels: Sequence[str], select: Mapping[str, str]) -> Table:
    if not path.exists():
        raise InputError(f"{path}: no such file")
    suffix = path.suffix.lower()
    text = series_tables.is_text(path)
    if not text and suffix not in _SUFFIXES:
        raise InputError(f"{path}: ends in {suffix or 'no suffix'}: must end in one of {', '.join(_SUFFIXES)}")
    if path.is_dir() != (suffix == series_arrays.ZARR):
        raise InputError(f"{path}: is a {'folder' if path.is_dir() else 'file'}: only a Zarr store is a folder")
    if text or suffix in series_tables.PARQUET:
        return series_tables.read_table(path, time, channels, select)
    return series_arrays.read_arrays(path, time, channels, select)


def _numbers(table: Table, name: str) -> Numbers:
    """A channel as numbers ``(n,)``, NaN where it is blank."""
    column = table.columns[name]
    if column.dtype == object and table.row == "line":
        found = series_tables.numeric(column)
        for i in map(int, np.flatnonzero(np.isnan(found))):
            if not series_tables.is_blank(column[i]):
                hint = (
                    " with a decimal point" if re.fullmatch(r"\s*[-+]?\d*,\d+(e[-+]?\d+)?\s*", column[i], re.I) else ""
                )
                raise InputError(f"{table.place(i, name)}: {short(column[i])}: must be a number{hint}")
        return found
    if column.dtype.kind not in "iuf":
        kind = {"O": "text or objects", "c": "complex numbers", "b": "truth values", "M": "dates"}
        said = kind.get(column.dtype.kind, str(column.dtype))
        raise InputError(f"{table.path}: column {name}: holds {said}: must be real numbers")
    return column.astype(np.float64)


def _without_gaps(
    table: Table, names: list[str], values: Numbers, times: Numbers | None, drop: bool, resample: Resampling | None
) -> slice:
    """The rows that are kept: all, or the longest run without gaps."""
    finite = np.asarray(np.abs(np.nan_to_num(values, nan=np.inf)) <= LARGEST)
    whole = np.asarray(finite.all(1) if times is None else finite.all(1) & np.isfinite(times))
    # A step of another size is a gap as well: samples are missing there.
    joined = np.ones(max(len(values) - 1, 0), dtype=bool)
    if drop and times is not None and resample is None and len(times) > 2:
        steps = np.diff(times)
        joined = is_even(steps, float(np.nanmedian(steps)), times) | ~(steps > 0)
    starts = np.flatnonzero(whole & ~np.concatenate([[False], whole[:-1] & joined]))
    ends = np.flatnonzero(whole & ~np.concatenate([whole[1:] & joined, [False]])) + 1
    runs = [slice(int(a), int(b)) for a, b in zip(starts, ends, strict=True)]
    longest = max(runs, key=lambda run: run.stop - run.start, default=slice(0, 0))
    if drop or whole.all():
        return longest if drop else slice(0, len(values))
    i = int(np.flatnonzero(~whole)[0])
    count = longest.stop - longest.start
    offer = f"; --drop-gaps keeps the longest part without gaps, {count} of {len(values)} rows" if count else ""
    if finite[i].all():
        raise InputError(f"{table.place(i, str(table.time))}: no time{offer}")
    channel = int(np.flatnonzero(~finite[i])[0])
    value = values[i, channel]
    said = "blank or NaN" if np.isnan(value) else f"{value:g}"
    allowed = f"must be a finite number of at most {LARGEST:g} in size"
    raise InputError(f"{table.place(i, names[channel])}: {said}: {allowed}{offer}")


def _check_channels(path: Path, names: list[str], values: Numbers) -> None:
    for name, column in zip(names, values.T, strict=True):
        if np.ptp(column) <= 1e-12 * np.abs(column).max():
            raise InputError(
                f"{path}: column {name}: constant, {column[0]:g}: must vary; choose the others with --channel"
            )
        if np.ptp(column) < SMALLEST:
            raise InputError(
                f"{path}: column {name}: varies by {np.ptp(column):.3g}: must vary by at least {SMALLEST:g}; use a"
                " larger unit of numbers"
            )


def _span(table: Table, kept: slice) -> str:
    if kept.stop <= kept.start:
        return "which is empty"
    return f"{table.row}s {table.numbers[kept.start]} to {table.numbers[kept.stop - 1]}"

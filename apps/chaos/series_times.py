"""The times of a user's series: numbers or dates, checked to be even or made so."""

from __future__ import annotations

from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator

from apps.chaos import series_tables
from apps.chaos.series_tables import Numbers, Table, short
from core.errors import InputError

Resampling: TypeAlias = Literal["cubic", "linear"]
UNEVEN = 1e-6
"""Relative deviation of a step from the median step up to which sampling is even."""
_CLOCK = {"days": 86400.0, "hours": 3600.0, "minutes": 60.0, "seconds": 1.0}
_FEWEST, _FINEST = 2, 100
"""Samples that resampling must make at least, and at most for each one it is given."""


def times_of(table: Table) -> tuple[Numbers | None, str, str]:
    """Times ``(n,)`` (None without), their unit, and the date of time 0.

    Raises:
        InputError: a time that is neither a number nor a date, with its row.
    """
    if table.time is None:
        return None, "samples", ""
    column = table.columns[table.time]
    unit = table.units.get(table.time, "years" if table.time.lower() in ("year", "years") else "")
    if column.dtype.kind in "iuf":
        return column.astype(np.float64), unit, ""
    if column.dtype.kind != "M" and column.dtype != object:
        raise InputError(f"{table.path}: column {table.time}: holds {column.dtype}: must be numbers or dates")
    when = column
    if column.dtype == object:
        found = series_tables.numeric(column)
        when = series_tables.dates(column)
        as_dates = np.isnan(found).sum() > np.isnat(when).sum()
        for i in map(int, np.flatnonzero(np.isnat(when) if as_dates else np.isnan(found))):
            if not series_tables.is_blank(column[i]):
                allowed = "a date such as 2020-01-31" if as_dates else "a number or a date such as 2020-01-31"
                raise InputError(f"{table.place(i, table.time)}: {short(column[i])}: must be {allowed}")
        if not as_dates:
            return found, unit, ""
    return _calendar(when.astype("datetime64[us]"))


def _calendar(when: NDArray[np.datetime64]) -> tuple[Numbers, str, str]:
    """Dates as numbers: of months or years where they are even in these, else since the first in a fitting unit."""
    known = when[~np.isnat(when)]
    if len(known) < 2:
        return np.full(len(when), np.nan), "seconds", ""
    # The last days of months are as even as their first ones.
    for shift in (np.timedelta64(0, "D"), np.timedelta64(1, "D")):
        months = (known + shift).astype("datetime64[M]")
        steps = np.diff(months.astype(np.int64))
        if np.ptp((known + shift - months).astype(np.int64)) == 0 and steps.min() > 0 and np.ptp(steps) == 0:
            count = (when + shift).astype("datetime64[M]").astype(np.int64).astype(np.float64)
            count[np.isnat(when)] = np.nan
            if steps[0] % 12 == 0:
                return 1970 + count / 12, "years", ""
            return count - count[~np.isnat(when)][0], "months", str(known[0].astype("datetime64[D]"))
    seconds = (when - known[0]) / np.timedelta64(1, "s")
    step = float(np.median(np.diff(seconds[~np.isnat(when)])))
    unit, length = next(((u, s) for u, s in _CLOCK.items() if abs(step) >= s), ("seconds", 1.0))
    return seconds / length, unit, str(known[0].astype("datetime64[s]"))


def is_even(steps: Numbers, step: float, times: Numbers) -> NDArray[np.bool_]:
    """Which steps ``(n - 1,)`` are of the usual size, up to the tolerance and the rounding of large times."""
    rounding = 4 * np.finfo(np.float64).eps * np.nanmax(np.abs(times))
    return np.asarray(np.abs(steps - step) <= UNEVEN * abs(step) + rounding)


def _check_increasing(table: Table, kept: slice, times: Numbers) -> None:
    wrong = np.flatnonzero(~(np.diff(times) > 0))
    if len(wrong):
        i, name = int(wrong[0]) + 1, str(table.time)
        shown = [str(v) for v in table.columns[name][kept][i - 1 : i + 1]]
        said = "is the time of the row before" if times[i] == times[i - 1] else f"comes after {shown[0]}"
        raise InputError(f"{table.place(kept.start + i, name)}: {shown[1]} {said}: times must increase from row to row")


def check_even(table: Table, kept: slice, times: Numbers) -> None:
    """Refuse times that do not increase evenly.

    Raises:
        InputError: a time that does not increase or a step of another size, with its row.
    """
    _check_increasing(table, kept, times)
    steps = np.diff(times)
    step = float(np.median(steps))
    wrong = np.flatnonzero(~is_even(steps, step, times))
    if len(wrong):
        i = int(wrong[0])
        offer = "--resample cubic interpolates, --drop-gaps keeps the longest even part"
        raise InputError(
            f"{table.place(kept.start + i + 1, str(table.time))}: a step of {steps[i]:.9g}, the usual one is "
            f"{step:.9g}: sampling must be even within {UNEVEN:g}; {offer}"
        )


def resampled(
    times: Numbers, values: Numbers, dt: float | None, how: Resampling, table: Table, kept: slice
) -> tuple[Numbers, Numbers, float]:
    """Times, values and step of an even grid from the first time on, by default of the median step.

    Raises:
        InputError: a time that does not increase, or a step that makes far too many or too few samples.
    """
    if how not in ("cubic", "linear"):
        raise InputError(f"resample = {how}: must be cubic or linear")
    _check_increasing(table, kept, times)
    step = float(np.median(np.diff(times))) if dt is None else dt
    count = int(np.floor((times[-1] - times[0]) / step * (1 + 1e-12) + 1e-9)) + 1
    if not _FEWEST <= count <= _FINEST * len(times):
        raise InputError(f"dt = {step:g}: makes {count} samples of {len(times)}: must make 2 to {_FINEST * len(times)}")
    grid = times[0] + step * np.arange(count)
    inside = np.minimum(grid, times[-1])
    if how == "cubic":
        return grid, np.asarray(PchipInterpolator(times, values, axis=0)(inside)), step
    return grid, np.stack([np.interp(inside, times, column) for column in values.T], axis=1), step

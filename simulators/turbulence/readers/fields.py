"""Vorticity fields of users' NetCDF and Zarr files, on the periodic grid of the solver."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from core.errors import InputError, require
from simulators.turbulence.grid import SMALLEST

AXES = ("x", "y")
LARGEST_DIVERGENCE = 0.1
"""Of given velocities, root mean square over that of the vorticity, allowed for a solver that is not spectral."""


def read_fields(path: str | Path, *, beta: float = 0.0) -> NDArray[np.float64]:
    """Vorticity fields of a NetCDF file or a Zarr store.

    The variable is ``omega``, or ``u`` and ``v``, whose curl dv/dx - du/dy is taken by Fourier transforms. Its
    dimensions are ``x``, ``y`` and at most one more, such as ``time``, in any order. Coordinates, where given, rise
    uniformly through the periodic box of side 2 pi, the end of which is not repeated.

    Args:
        path: the file or the store.
        beta: gradient of the Coriolis parameter of the flow. Where it is not 0 the axes cannot be told by their order,
            so that dimensions with other names than ``x`` and ``y`` are refused; otherwise the last one counts as y.

    Returns:
        ``(n, N, N)``, x before y; n = 1 without a third dimension.

    Raises:
        MissingExtra: a Zarr store without the package zarr.
        InputError: no such file, another format, no such variable, other dimensions, a grid that is not uniform or not
            the periodic box, a field that ``vorticity_fields`` refuses, or velocities with divergence.
    """
    path = Path(path)
    dataset = _open(path)
    try:
        if "omega" in dataset:
            return vorticity_fields(_values(dataset, "omega", path, beta), f"{path}: omega")
        if "u" in dataset and "v" in dataset:
            # Even without rotation a curl asks which axis is which.
            u, v = (_values(dataset, name, path, beta=None) for name in ("u", "v"))
            return _curl(u, v, path)
    finally:
        dataset.close()
    found = ", ".join(map(str, dataset.data_vars)) or "nothing"
    raise InputError(f"{path}: no variable omega, and not both of u and v; the file has {found}")


def vorticity_fields(values: NDArray[Any], where: str) -> NDArray[np.float64]:
    """Fields ``(N, N)`` or ``(n, N, N)`` as ``(n, N, N)`` in double precision.

    Args:
        values: what was read.
        where: file and variable, for the message.

    Raises:
        InputError: other axes, not square, an odd number of points or fewer than 8, values that are not real
            floating-point numbers or not finite, or a last row and column that repeat the first.
    """
    shape = values.shape
    fields = values[None] if values.ndim == 2 else values
    if fields.ndim != 3 or fields.shape[1] != fields.shape[2] or not len(fields):
        raise InputError(f"{where}: shape {shape}, must be square: (N, N) or (n, N, N)")
    n = fields.shape[1]
    if n < SMALLEST or n % 2:
        raise InputError(f"{where}: {n} points a side, must be an even number of at least {SMALLEST}")
    if not np.issubdtype(values.dtype, np.floating):
        raise InputError(f"{where}: {values.dtype}, must be real floating-point numbers")
    if not np.isfinite(fields).all():
        count = int(np.size(fields) - np.isfinite(fields).sum())
        raise InputError(f"{where}: {count} values are NaN or infinite, must be finite")
    if all(_repeats(fields, axis) for axis in (1, 2)):
        raise InputError(f"{where}: the last row and column repeat the first, must be left out of a periodic grid")
    return np.ascontiguousarray(fields, dtype=np.float64)


def _repeats(fields: NDArray[Any], axis: int) -> bool:
    """Whether the last points along an axis are the first ones again, in fields that vary along it."""
    return np.array_equal(fields.take(0, axis), fields.take(-1, axis)) and bool(np.ptp(fields, axis).any())


def _open(path: Path) -> xr.Dataset:
    if not path.exists():
        raise InputError(f"{path}: no such file")
    if path.is_dir():
        if not any((path / name).exists() for name in ("zarr.json", ".zgroup")):
            raise InputError(f"{path}: a folder that is not a Zarr store (it has no zarr.json and no .zgroup)")
        require("zarr", "turbulence")
        options: dict[str, Any] = {"engine": "zarr", "consolidated": False}
    else:
        with path.open("rb") as file:
            magic = file.read(8)
        if magic[:3] != b"CDF" and magic != b"\x89HDF\r\n\x1a\n":
            raise InputError(f"{path}: neither a NetCDF file nor a Zarr store")
        options = {"engine": "scipy" if magic[:3] == b"CDF" else "h5netcdf"}
    try:
        # Times are not needed, and a model's calendar need not be one that can be decoded.
        return xr.open_dataset(path, decode_times=False, **options)
    except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
        raise _damaged(path, error) from error


def _values(dataset: xr.Dataset, name: str, path: Path, beta: float | None) -> NDArray[Any]:
    """The variable with x and y last and in that order."""
    variable = dataset[name]
    where = f"{path}: {name}"
    dims = tuple(map(str, variable.dims))
    if len(dims) not in (2, 3):
        raise InputError(f"{where}: dimensions {dims}, must be x, y and at most one more such as time")
    if set(AXES) <= set(dims):
        for axis in AXES:
            if axis in variable.coords:
                _check_coordinate(variable.coords[axis].values, f"{path}: coordinate {axis}")
        variable = variable.transpose(..., *AXES)
    elif beta != 0 or set(AXES) & set(dims):
        reason = "" if beta is None else f": with beta = {beta:g} their order decides"
        raise InputError(f"{where}: dimensions {dims}, must be named x and y{reason}")
    try:
        return np.asarray(variable.values)
    except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
        raise _damaged(path, error) from error


def _check_coordinate(points: NDArray[Any], where: str) -> None:
    """Refuse what is not i * 2 pi/N + constant; single precision is precise enough."""
    n = len(points)
    if not np.issubdtype(points.dtype, np.number) or not np.isfinite(points).all():
        raise InputError(f"{where}: {points.dtype}, must be finite numbers")
    steps = np.diff(points.astype(np.float64))
    if n < 2 or not (steps > 0).all() or np.ptp(steps) > 0.01 * steps.mean():
        raise InputError(f"{where}: not uniform, must rise by equal steps")
    side = n * steps.mean()
    if abs(side - 2 * np.pi) > 2 * np.pi * 0.25 / n:
        repeated = abs(side - steps.mean() - 2 * np.pi) < 2 * np.pi * 0.25 / n
        hint = "the end of the box repeats its beginning, leave it out" if repeated else "scale it"
        raise InputError(f"{where}: {n} steps make {side:.6g}, must be the side 2 pi of the periodic box ({hint})")


def _curl(u: NDArray[Any], v: NDArray[Any], path: Path) -> NDArray[np.float64]:
    """dv/dx - du/dy; refuses velocities that are not those of an incompressible flow."""
    u, v = vorticity_fields(u, f"{path}: u"), vorticity_fields(v, f"{path}: v")
    if u.shape != v.shape:
        raise InputError(f"{path}: u has shape {u.shape} and v {v.shape}, must be equal")
    n = u.shape[-1]
    kx, ky = np.fft.fftfreq(n, 1 / n)[:, None], np.fft.rfftfreq(n, 1 / n)
    inside = (abs(kx) < n / 2) & (ky < n / 2)
    dx, dy = 1j * kx * inside, 1j * ky * inside
    u_hat, v_hat = np.fft.rfft2(u), np.fft.rfft2(v)
    omega, divergence = (np.fft.irfft2(part, s=(n, n)) for part in (dx * v_hat - dy * u_hat, dx * u_hat + dy * v_hat))
    share = divergence.std() / max(omega.std(), np.finfo(np.float64).tiny)
    if share > LARGEST_DIVERGENCE:
        raise InputError(
            f"{path}: u and v: divergence {share:.2g} of the vorticity, must be at most {LARGEST_DIVERGENCE:g}: "
            "not incompressible, or the axes are exchanged"
        )
    return omega


def _damaged(path: Path, error: Exception) -> InputError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return InputError(f"{path}: cannot be read whole ({reason})")

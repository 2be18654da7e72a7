"""Opening HDF5 files of users: every fault is one line that names file and key."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py  # type: ignore[import-untyped]
import numpy as np

from core.errors import InputError


@contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """The file, open for reading.

    Raises:
        InputError: no such file, not HDF5, cut short, or damaged where it is read.
    """
    with reading(path), h5py.File(path, "r") as file:
        yield file


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Names the file where HDF5 fails, for libraries that open it themselves.

    Raises:
        InputError: no such file, not HDF5, cut short, or damaged where it is read.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        yield
    except OSError as error:
        raise InputError(f"{path}: not a whole HDF5 file ({str(error).splitlines()[0]})") from error


def dataset(file: h5py.File, key: str) -> h5py.Dataset:
    """The array ``key``.

    Raises:
        InputError: the file has no such array.
    """
    found = file.get(key)
    if not isinstance(found, h5py.Dataset):
        raise InputError(f"{file.filename}: no array {key}; the file has {', '.join(sorted(file)) or 'nothing'}")
    return found


def complex_dataset(file: h5py.File, key: str, dims: tuple[int, ...]) -> h5py.Dataset:
    """The array ``key``, which is complex and has one of these numbers of axes.

    Raises:
        InputError: no such array, another number of axes, an axis of length 0, or values that are not complex.
    """
    found = dataset(file, key)
    where = f"{file.filename}: {key}"
    if found.ndim not in dims or not found.size:
        raise InputError(f"{where}: shape {found.shape}, must have {' or '.join(map(str, dims))} axes, none of them 0")
    if not np.issubdtype(found.dtype, np.complexfloating):
        raise InputError(f"{where}: {found.dtype}, must be complex")
    return found

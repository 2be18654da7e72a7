"""fastMRI volumes: an HDF5 file each, knee or brain, single or multi coil (Zbontar et al. 2018, arXiv 1811.08839)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import h5py  # type: ignore[import-untyped]
import numpy as np
import torch
from torch import Tensor

from core.errors import InputError
from simulators.mri.readers.hdf5 import complex_dataset, dataset, open_hdf5
from simulators.mri.readers.header import Header
from simulators.mri.readers.kspace import KSpace
from simulators.mri.readers.masks import binary_mask
from simulators.mri.readers.splits import read_split

# The only attributes that are kept: a patient's identifier never leaves the file.
KEPT = ("acquisition", "max", "norm", "acceleration", "num_low_frequency")
CHALLENGES = ("singlecoil", "multicoil")


@dataclass(frozen=True)
class FastMRIVolume:
    """All that a file says besides its samples.

    Attributes:
        path: the file.
        shape: (slices, coils, H, W).
        challenge: ``singlecoil`` or ``multicoil``.
        lines: which lines were acquired (W,), bool.
        padding: lines [left, right) that the protocol could acquire.
        target: key of the file's own reconstruction, if any: ``reconstruction_esc`` of a single coil,
            ``reconstruction_rss`` of several, as in ``fastmri.data.SliceDataset``.
        has_rss: whether the file has ``reconstruction_rss``.
        attrs: acquisition, max, norm, ... and recon_size (x, y, z).
    """

    path: Path
    shape: tuple[int, int, int, int]
    challenge: str
    lines: Tensor
    padding: tuple[int, int]
    target: str | None
    has_rss: bool
    attrs: Mapping[str, str | float | tuple[int, ...]]


def fastmri_volume(path: str | Path) -> FastMRIVolume:
    """The header of a fastMRI file; parsed once as long as the file does not change.

    Raises:
        InputError: no whole HDF5 file, no ``kspace`` or ``ismrmrd_header``, wrong axes or type, or a mask that is not
            binary or not W long; the line names file and key.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    stat = path.stat()
    return _volume(path, stat.st_mtime_ns, stat.st_size)


def read_fastmri(path: str | Path, slices: int | slice | Iterable[int] | None = None) -> KSpace:
    """The k-space of a fastMRI file, or of some of its slices; only those are read.

    Args:
        path: the HDF5 file.
        slices: a number, a range or numbers of slices; all by default.

    Returns:
        k-space (slices, coils, H, W); of a test file, ``sampled`` holds its mask and the samples are undersampled.

    Raises:
        InputError: as ``fastmri_volume``; a slice that is not there; samples that are NaN, infinite or all zero.
    """
    volume = fastmri_volume(path)
    count, coils, height, width = volume.shape
    index = _chosen(slices, count, volume.path)
    with open_hdf5(volume.path) as file:
        kspace = _read(file["kspace"], index, torch.complex64)
        target = None if volume.target is None else _target(dataset(file, volume.target), index, count)
    return KSpace(
        kspace.reshape(len(index), coils, height, width),
        volume.lines.expand(len(index), width),
        volume.padding,
        target,
        volume.attrs,
        volume.path,
        index,
    )


def fastmri_slices(
    root: str | Path, split: str | Path | None = None, challenge: str | None = None, with_rss: bool = False
) -> list[tuple[Path, int]]:
    """(file, slice) of every slice in a folder of fastMRI volumes, by file name.

    Args:
        root: folder of ``*.h5``.
        split: a list of file names: a text file, or a packaged one (``knee_val``, ``knee_test``); all files by default.
        challenge: refuse files that are not ``singlecoil`` or ``multicoil``.
        with_rss: leave out files without ``reconstruction_rss``, as the paper's preprocessing does.

    Raises:
        InputError: no such folder, no file in it, a file of the split that is absent, a file of the other challenge, or
            one that ``fastmri_volume`` refuses.
    """
    root = Path(root)
    if challenge is not None and challenge not in CHALLENGES:
        raise InputError(f"challenge {challenge}: must be one of {', '.join(CHALLENGES)}")
    if not root.is_dir():
        raise InputError(f"{root}: no such folder")
    files = sorted(root.glob("*.h5")) if split is None else [root / name for name in read_split(split)]
    absent = [file.name for file in files if not file.is_file()]
    if absent:
        raise InputError(
            f"{root}: {len(absent)} of the {len(files)} files of split {split} are absent, first {absent[0]}"
        )
    if not files:
        raise InputError(f"{root}: no *.h5 file")
    pairs: list[tuple[Path, int]] = []
    for file in files:
        volume = fastmri_volume(file)
        if challenge is not None and volume.challenge != challenge:
            raise InputError(f"{file}: kspace is {volume.challenge}, must be {challenge}")
        if volume.has_rss or not with_rss:
            pairs += [(file, index) for index in range(volume.shape[0])]
    return pairs


@lru_cache(maxsize=8192)
def _volume(path: Path, modified: int, size: int) -> FastMRIVolume:
    with open_hdf5(path) as file:
        kspace = complex_dataset(file, "kspace", (3, 4))
        multicoil = kspace.ndim == 4
        count, coils, height, width = kspace.shape if multicoil else (len(kspace), 1, *kspace.shape[1:])
        header = Header(dataset(file, "ismrmrd_header")[()], f"{path}: ismrmrd_header")
        left, right = header.padding(width)
        lines = torch.zeros(width, dtype=torch.bool)
        lines[left:right] = True
        if "mask" in file:
            lines &= binary_mask(dataset(file, "mask")[()], width, f"{path}: mask")
        target = "reconstruction_rss" if multicoil else "reconstruction_esc"
        return FastMRIVolume(
            path,
            (count, coils, height, width),
            CHALLENGES[multicoil],
            lines,
            (left, right),
            target if target in file else None,
            "reconstruction_rss" in file,
            {name: _plain(file.attrs[name]) for name in KEPT if name in file.attrs}
            | {"recon_size": header.matrix("reconSpace")},
        )


def _plain(value: object) -> str | float:
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, int | float):
        return value
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _chosen(slices: int | slice | Iterable[int] | None, count: int, path: Path) -> tuple[int, ...]:
    if slices is None:
        return tuple(range(count))
    if isinstance(slices, slice):
        index = tuple(range(count)[slices])
    else:
        index = (slices,) if isinstance(slices, int | np.integer) else tuple(int(number) for number in slices)
    wrong = [number for number in index if not 0 <= number < count]
    if wrong or not index:
        raise InputError(f"{path}: slice {wrong[0] if wrong else slices}: the file has slices 0..{count - 1}")
    return index


def _read(array: h5py.Dataset, index: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    # Straight into torch's memory, which is used again from slice to slice; NumPy would ask for fresh pages each time.
    values = torch.empty(len(index), *array.shape[1:], dtype=dtype)
    if index == tuple(range(index[0], index[0] + len(index))):
        array.read_direct(values.numpy(), np.s_[index[0] : index[0] + len(index)])
    else:
        for row, number in enumerate(index):
            array.read_direct(values.numpy(), np.s_[number], np.s_[row])
    return values


def _target(array: h5py.Dataset, index: tuple[int, ...], count: int) -> Tensor:
    if array.ndim != 3 or len(array) != count:
        where = f"{array.file.filename}: {array.name.strip('/')}"
        raise InputError(f"{where}: shape {array.shape}, must be ({count}, h, w), a slice for each of kspace")
    return _read(array, index, torch.float32)

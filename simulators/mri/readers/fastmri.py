"""fastMRI volumes: an HDF5 file each, knee or brain, single or multi coil (Zbontar et al. 2018, arXiv 1811.08839).

The listing of a folder, its metadata and the samples of ``fastmri_dataset`` come from ``fastmri.data.SliceDataset``,
behind our checks. ``read_fastmri`` reads HDF5 itself, into torch's memory: through the package, which opens the file
for each slice and allocates each array anew, a checked slice took 1.3 to 1.5 times as long and a whole volume 1.3 to 4
times.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import h5py  # type: ignore[import-untyped]
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from core.errors import InputError
from simulators.mri.readers.hdf5 import complex_dataset, dataset, open_hdf5, reading
from simulators.mri.readers.header import Header, fastmri_data
from simulators.mri.readers.kspace import KSpace
from simulators.mri.readers.masks import binary_mask
from simulators.mri.readers.splits import read_split

# The only attributes that are kept: a patient's identifier never leaves the file.
KEPT = ("acquisition", "max", "norm", "acceleration", "num_low_frequency")
# What SliceDataset adds to them from the header.
GEOMETRY = ("padding_left", "padding_right", "encoding_size", "recon_size")
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
        InputError: no whole HDF5 file, no ``kspace`` or ``ismrmrd_header``, wrong axes or type, a mask that is not
            binary or not W long, or a reconstruction that is not a slice for each; the line names file and key.
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
    index = _chosen(slices, volume.shape[0], volume.path)
    with open_hdf5(volume.path) as file:
        kspace = _read(file["kspace"], index, torch.complex64)
        target = None if volume.target is None else _read(file[volume.target], index, torch.float32)
    return _checked(volume, index, kspace, target)


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
    return [(sample.fname, sample.slice_ind) for sample in _listed(root, split, challenge, with_rss).raw_samples]


def fastmri_dataset(
    root: str | Path,
    challenge: str,
    transform: Callable[..., Any] | None = None,
    split: str | Path | None = None,
    with_rss: bool = False,
) -> Dataset[Any]:
    """``fastmri.data.SliceDataset`` over the slices that ``fastmri_slices`` lists, each checked when it is read.

    Args:
        root: folder of ``*.h5``.
        challenge: ``singlecoil`` or ``multicoil``.
        transform: one of the package's kind, such as ``fastmri.data.transforms.UnetDataTransform``: called with kspace,
            mask, target, attrs, file name and slice, of which attrs does not say who the patient is.
        split: as in ``fastmri_slices``.
        with_rss: as in ``fastmri_slices``.

    Returns:
        a dataset of what ``transform`` makes; without one, of what ``read_fastmri`` gives for the slice, which
        ``DataLoader(..., collate_fn=stack)`` turns into batches (N, coils, H, W).

    Raises:
        InputError: as ``fastmri_slices``; for an item, as ``read_fastmri``.
    """
    return _listed(root, split, challenge, with_rss, _Checks(Path(root), transform))


def _listed(
    root: str | Path,
    split: str | Path | None,
    challenge: str | None,
    with_rss: bool,
    transform: Callable[..., Any] | None = None,
) -> Any:
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
    return _checked_slices()(root, files, challenge, with_rss, transform)


@cache
def _checked_slices() -> Any:
    """The subclass of the package's dataset; made when it is first needed, as the package is an extra."""
    base: Any = fastmri_data("mri_data").SliceDataset

    class CheckedSlices(base):
        """The slices of ``files``, in their order; what else lies in the folder is passed over."""

        def __init__(
            self,
            root: Path,
            files: list[Path],
            challenge: str | None,
            with_rss: bool,
            transform: Callable[..., Any] | None,
        ) -> None:
            self._order = {file: number for number, file in enumerate(files)}
            self._challenge = challenge
            # The package asks for a challenge, whose key of targets a mere listing of both kinds never uses.
            kind, keep = challenge or CHALLENGES[0], _has_rss if with_rss else _any
            super().__init__(root, kind, transform, raw_sample_filter=keep)
            self.raw_samples.sort(key=lambda sample: self._order[sample.fname])

        def _retrieve_metadata(self, fname: Path) -> tuple[dict[str, Any], int]:
            if fname not in self._order:
                return {}, 0
            volume = fastmri_volume(fname)
            if self._challenge is not None and volume.challenge != self._challenge:
                raise InputError(f"{fname}: kspace is {volume.challenge}, must be {self._challenge}")
            with reading(fname):
                try:
                    metadata, count = super()._retrieve_metadata(fname)
                except ValueError as error:  # such as a whole number that is written 39.0
                    raise InputError(f"{fname}: ismrmrd_header: {error}") from error
            return _without_patient(metadata), count

        def __getitem__(self, number: int) -> Any:
            with reading(self.raw_samples[number].fname):
                return super().__getitem__(number)

        def __reduce__(self) -> tuple[Callable[[dict[str, Any]], Any], tuple[dict[str, Any]]]:
            # A local class cannot be pickled by name, as workers that are spawned need it.
            return _restored, (self.__dict__,)

    return CheckedSlices


def _restored(state: dict[str, Any]) -> Any:
    slices = object.__new__(_checked_slices())
    slices.__dict__.update(state)
    return slices


@dataclass(frozen=True)
class _Checks:
    """A transform of ``SliceDataset`` that refuses what ``read_fastmri`` refuses, before ``then``."""

    root: Path
    then: Callable[..., Any] | None

    def __call__(
        self,
        kspace: np.ndarray,
        mask: np.ndarray | None,
        target: np.ndarray | None,
        attrs: Mapping[str, Any],
        fname: str,
        number: int,
    ) -> Any:
        # to_tensor would take the complex samples apart, which costs more than to read them; real ones it leaves.
        samples = torch.from_numpy(kspace.astype(np.complex64, copy=False))
        image = None
        if target is not None:
            image = fastmri_data("transforms").to_tensor(target.astype(np.float32, copy=False))[None]
        checked = _checked(fastmri_volume(self.root / fname), (number,), samples, image)
        if self.then is None:
            return checked
        return self.then(kspace, mask, target, _without_patient(attrs), fname, number)


def _without_patient(attrs: Mapping[str, Any]) -> dict[str, Any]:
    return {name: attrs[name] for name in (*KEPT, *GEOMETRY) if name in attrs}


def _any(sample: Any) -> bool:
    return True


def _has_rss(sample: Any) -> bool:
    return fastmri_volume(sample.fname).has_rss


def _checked(volume: FastMRIVolume, index: tuple[int, ...], kspace: Tensor, target: Tensor | None) -> KSpace:
    _, coils, height, width = volume.shape
    return KSpace(
        kspace.reshape(len(index), coils, height, width),
        volume.lines.expand(len(index), width),
        volume.padding,
        target,
        volume.attrs,
        volume.path,
        index,
    )


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
        if target in file:
            _check_target(dataset(file, target), count)
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


def _check_target(array: h5py.Dataset, count: int) -> None:
    if array.ndim != 3 or len(array) != count:
        where = f"{array.file.filename}: {array.name.strip('/')}"
        raise InputError(f"{where}: shape {array.shape}, must be ({count}, h, w), a slice for each of kspace")

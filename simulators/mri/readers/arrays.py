"""Arrays that do not say what they hold: NumPy's ``.npy`` and ``.npz``, and NIfTI."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core.errors import InputError, require
from simulators.mri.operators import to_channels
from simulators.mri.readers.kspace import KSpace, acquired_lines
from simulators.mri.readers.masks import binary_mask


def read_numpy(path: str | Path, kind: str) -> KSpace | Tensor:
    """K-space or images of a ``.npy`` or ``.npz`` file.

    Args:
        path: the file. An ``.npz`` holds one array, or one named as its kind; beside k-space it may have ``mask`` (W,).
        kind: ``kspace``: complex (H, W), (coils, H, W) or (slices, coils, H, W). ``image``: (H, W), (images, H, W), or
            (images, channels, H, W) of one or two channels; complex ones become two channels.

    Returns:
        ``KSpace``, or images (images, channels, H, W), float32.

    Raises:
        InputError: no such file, no whole one, one that needs pickle, no array of that name, wrong axes or type, or
            values that are NaN, infinite or all zero.
    """
    path = Path(path)
    loaded = _load(path, lambda: np.load(path, allow_pickle=False))
    if isinstance(loaded, np.ndarray):
        return _as_kind(loaded, kind, path)
    with loaded:
        names = [name for name in loaded.files if name != "mask"]
        if kind not in names and len(names) != 1:
            raise InputError(f"{path}: no array {kind}; the file has {', '.join(loaded.files) or 'nothing'}")
        key = kind if kind in names else names[0]
        array = _load(path, lambda: loaded[key])
        mask = _load(path, lambda: loaded["mask"]) if "mask" in loaded.files and kind == "kspace" else None
    return _as_kind(array, kind, path, mask)


def read_nifti(path: str | Path, kind: str) -> KSpace | Tensor:
    """K-space or images of a NIfTI file, voxels in the order of the file.

    Args:
        path: the file, ``.nii`` or ``.nii.gz``.
        kind: ``image``: (H, W) or (H, W, images). ``kspace``: complex (H, W), (H, W, slices) or (H, W, slices, coils).

    Returns:
        ``KSpace``, or images (images, channels, H, W), float32, scaled as the header says.

    Raises:
        InputError: no whole NIfTI file, wrong axes or type, or values that are NaN, infinite or all zero.
    """
    path = Path(path)
    nibabel = require("nibabel", "mri")
    damage = (nibabel.filebasedimages.ImageFileError, nibabel.spatialimages.HeaderDataError)
    array = _load(path, lambda: np.asanyarray(nibabel.load(path).dataobj), *damage)
    most = 4 if kind == "kspace" else 3
    while array.ndim > most and array.shape[-1] == 1:
        array = array[..., 0]
    if not 2 <= array.ndim <= most:
        raise InputError(f"{path}: {kind}: shape {array.shape}, must have 2 to {most} axes: H, W, slices, coils")
    array = array.reshape(array.shape + (1,) * (4 - array.ndim)).transpose(2, 3, 0, 1)
    return _as_kind(array, kind, path)


def as_kspace(array: np.ndarray, path: Path, mask: np.ndarray | None = None) -> KSpace:
    """K-space of an array (H, W), (coils, H, W) or (slices, coils, H, W).

    Args:
        array: complex values.
        path: the file they are from.
        mask: which lines (W,) were acquired; by default those that hold anything but zeros.

    Raises:
        InputError: wrong axes or type, a mask that is not binary or not W long, or values that ``KSpace`` refuses.
    """
    if not 2 <= array.ndim <= 4:
        raise InputError(f"{path}: kspace: shape {array.shape}, must be (H, W), (coils, H, W) or (slices, coils, H, W)")
    if not np.issubdtype(array.dtype, np.complexfloating):
        raise InputError(f"{path}: kspace: {array.dtype}, must be complex")
    array = array.reshape((1,) * (4 - array.ndim) + array.shape)
    kspace = torch.from_numpy(np.ascontiguousarray(array, dtype=np.complex64))
    width = kspace.shape[-1]
    if mask is None:
        sampled = acquired_lines(kspace)
    else:
        sampled = binary_mask(mask, width, f"{path}: mask").expand(len(kspace), width)
    return KSpace(kspace, sampled, (0, width), path=path)


def as_images(array: np.ndarray, path: Path) -> Tensor:
    """Images (images, channels, H, W), float32, of (H, W), (images, H, W) or (images, channels, H, W).

    Raises:
        InputError: wrong axes, more than two channels, values that are not numbers, NaN, infinite or all zero.
    """
    where = f"{path}: image"
    shape = array.shape
    if array.ndim == 2:
        array = array[None]
    if array.ndim == 3:
        array = array[:, None]
    complex_valued = np.issubdtype(array.dtype, np.complexfloating)
    if array.ndim != 4 or array.shape[1] not in ((1,) if complex_valued else (1, 2)) or not array.size:
        raise InputError(
            f"{where}: shape {shape}, must be (H, W), (images, H, W) or (images, channels, H, W) with one "
            "channel, or two real ones"
        )
    if not np.issubdtype(array.dtype, np.number):
        raise InputError(f"{where}: {array.dtype}, must be numbers")
    values = torch.from_numpy(np.ascontiguousarray(array, dtype=np.complex64 if complex_valued else np.float32))
    images = to_channels(values[:, 0]) if complex_valued else values
    if not torch.isfinite(images).all():
        raise InputError(f"{where}: NaN or infinite values")
    if not images.any():
        raise InputError(f"{where}: all values are zero")
    return images


def _as_kind(array: np.ndarray, kind: str, path: Path, mask: np.ndarray | None = None) -> KSpace | Tensor:
    return as_kspace(array, path, mask) if kind == "kspace" else as_images(array, path)


def _load(path: Path, read: Callable[[], Any], *faults: type[Exception]) -> Any:
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    caught: tuple[type[Exception], ...] = (OSError, EOFError, ValueError, zlib.error, zipfile.BadZipFile, *faults)
    try:
        return read()
    except caught as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path}: cannot be read whole ({reason})") from error

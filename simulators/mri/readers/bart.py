"""BART's cfl files: 16 dimensions in ``name.hdr``, little-endian complex64 in ``name.cfl``, first dimension fastest.

Dimensions by number (BART, ``src/misc/mri.h``): 0 readout (our H), 1 phase encode (our W), 2 slice encode, 3 coil,
13 slice.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from core import files
from core.errors import InputError
from simulators.mri.readers.arrays import as_images, as_kspace
from simulators.mri.readers.kspace import KSpace, acquired_lines
from simulators.mri.readers.masks import binary_mask

DIMENSIONS = 16
READOUT, PHASE, SLICE_ENCODE, COIL, SLICE = 0, 1, 2, 3, 13


def read_cfl(name: str | Path) -> np.ndarray:
    """The array of a cfl file, complex64 with 16 axes in BART's order.

    Args:
        name: path of either file, or without suffix.

    Raises:
        InputError: one of the two files is absent, the header has no dimensions, or the data are not that long.
    """
    header, data = _files(name)
    shape = _dimensions(header)
    if not data.is_file():
        raise InputError(f"{data}: no such file")
    expected, length = 8 * math.prod(shape), data.stat().st_size
    if length != expected:
        raise InputError(f"{data}: {length} bytes, must be {expected} by the dimensions in {header.name}: cut short?")
    return np.fromfile(data, dtype="<c8").reshape(shape, order="F").astype(np.complex64, copy=False)


def write_cfl(name: str | Path, array: np.ndarray | Tensor) -> None:
    """Write an array of at most 16 axes as ``name.cfl`` and ``name.hdr``.

    Raises:
        InputError: more axes, an axis of length 0, or values that are not numbers.
    """
    values = np.asarray(array)
    header, data = _files(name)
    if (
        values.ndim > DIMENSIONS
        or not values.size
        or not (np.issubdtype(values.dtype, np.number) or values.dtype == bool)
    ):
        raise InputError(
            f"{data}: {values.dtype} of shape {values.shape}, must be numbers on at most {DIMENSIONS} axes"
        )
    shape = values.shape + (1,) * (DIMENSIONS - values.ndim)
    files.write(data, values.astype("<c8").tobytes(order="F"))
    files.write(header, f"# Dimensions\n{' '.join(map(str, shape))}\n")


def read_bart(name: str | Path, kind: str) -> KSpace | Tensor:
    """K-space or images of a cfl file.

    Args:
        name: path of either file, or without suffix.
        kind: ``kspace``: as ``kspace_from_cfl``; lines that are all zeros count as not acquired. ``image``: complex
            images on dimensions 0, 1 and 2 or 13.

    Returns:
        ``KSpace``, or images (images, 2, H, W), float32.

    Raises:
        InputError: as ``read_cfl`` and ``kspace_from_cfl``; values that are NaN, infinite or all zero; images of coils.
    """
    data = _files(name)[1]
    array = read_cfl(name)
    if kind == "kspace":
        return as_kspace(kspace_from_cfl(array, str(data)).numpy(), data)
    return as_images(_volume(array, str(data)).numpy(), data)


def kspace_from_cfl(array: np.ndarray, where: str = "cfl") -> Tensor:
    """(slices, coils, H, W) of 16 axes in BART's order.

    Slices come from dimension 13, or from a slice-encoded dimension 2 by the centred orthonormal inverse FFT.

    Raises:
        InputError: another axis is longer than 1, both slice axes are, or lines differ along the slice encode.
    """
    volume = _volume(array, where)
    if array.shape[SLICE_ENCODE] == 1:
        return volume.contiguous()
    lines = acquired_lines(volume)
    if not (lines == lines[0]).all():
        raise InputError(f"{where}: lines differ along dimension {SLICE_ENCODE}: its slices have no common mask")
    slices = torch.fft.ifft(torch.fft.ifftshift(volume, dim=0), dim=0, norm="ortho")
    return torch.fft.fftshift(slices, dim=0).contiguous()


def kspace_to_cfl(kspace: Tensor) -> np.ndarray:
    """16 axes in BART's order of k-space (slices, coils, H, W); the slices on dimension 13."""
    array = kspace.detach().cpu().permute(2, 3, 1, 0).numpy()
    height, width, coils, slices = array.shape
    return array.reshape(height, width, 1, coils, *(1,) * (SLICE - COIL - 1), slices, *(1,) * (DIMENSIONS - SLICE - 1))


def write_mask_cfl(name: str | Path, mask: Tensor) -> None:
    """Write a mask of lines (W,) as zeros and ones of dimensions (1, W, 1, ...).

    Raises:
        InputError: not one axis, or values other than 0 and 1.
    """
    values = mask.detach().cpu().numpy()
    lines = binary_mask(values, values.size, f"{_files(name)[1]}: mask")
    write_cfl(name, lines.numpy().reshape(1, -1))


def read_mask_cfl(name: str | Path, width: int) -> Tensor:
    """The mask (W,), bool, of a cfl file of dimensions (1, W, 1, ...).

    Raises:
        InputError: as ``read_cfl``; other dimensions, or values other than 0 and 1.
    """
    array, data = read_cfl(name), _files(name)[1]
    if array.size != array.shape[PHASE]:
        raise InputError(f"{data}: dimensions {array.shape}, must be (1, {width}, 1, ...)")
    return binary_mask(array.reshape(-1), width, str(data))


def _volume(array: np.ndarray, where: str) -> Tensor:
    """(slices, coils, H, W) of whichever slice axis is used."""
    allowed = (READOUT, PHASE, SLICE_ENCODE, COIL, SLICE)
    for axis, length in enumerate(array.shape):
        if length != 1 and axis not in allowed:
            raise InputError(f"{where}: dimension {axis} is {length}, must be 1 (only {allowed} may be longer)")
    height, width, encodes, coils = array.shape[: COIL + 1]
    if encodes != 1 and array.shape[SLICE] != 1:
        raise InputError(f"{where}: dimensions {SLICE_ENCODE} and {SLICE} are both longer than 1, must be one of them")
    volume = torch.from_numpy(array.reshape(height, width, encodes, coils, -1))
    return volume.permute(2, 4, 3, 0, 1).flatten(0, 1)


def _files(name: str | Path) -> tuple[Path, Path]:
    path = Path(name)
    stem = path.with_suffix("") if path.suffix in (".cfl", ".hdr") else path
    return stem.with_name(f"{stem.name}.hdr"), stem.with_name(f"{stem.name}.cfl")


def _dimensions(header: Path) -> tuple[int, ...]:
    try:
        lines = header.read_text(encoding="utf-8").splitlines()
        start = [line.strip() for line in lines].index("# Dimensions")
        shape = tuple(int(length) for length in lines[start + 1].split())
    except OSError as error:
        raise InputError(f"{header}: {(error.strerror or str(error)).lower()}") from error
    except (ValueError, IndexError) as error:
        raise InputError(f"{header}: no line of integers after '# Dimensions'") from error
    if not 0 < len(shape) <= DIMENSIONS or min(shape) < 1:
        raise InputError(f"{header}: dimensions {shape}, must be at most {DIMENSIONS} integers of at least 1")
    return shape + (1,) * (DIMENSIONS - len(shape))

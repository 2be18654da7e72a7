"""From fastMRI slices to the images that the prior of Active Diffusion Subsampling is trained on."""

from __future__ import annotations

from pathlib import Path

import h5py  # type: ignore[import-untyped]
import numpy as np
import torch
from torch import Tensor

from core.errors import InputError
from simulators.mri.operators import ifft2c, to_channels
from simulators.mri.readers.hdf5 import dataset, open_hdf5
from simulators.mri.readers.header import fastmri_data
from simulators.mri.readers.kspace import KSpace, acquired_lines, fit_kspace

# Mean norm of the knee k-space, and the factor that brings the images to about [-1, 1] (Nolan et al. 2025, TMLR, and
# the preprocessing of SeqMRI, Yin et al. 2021, that they follow).
KSPACE_NORM = 7.072103529760345e-07
IMAGE_SCALE = 100.0


def training_images(volume: KSpace, size: int | tuple[int, int] = 128) -> Tensor:
    """Images (slices, 2, size, size), float32, as the published prior was trained on.

    K-space, not the image, is centre-cropped (a low-resolution image of the full field of view), divided by the mean
    norm, transformed by the centred orthonormal inverse FFT, and divided by 100.

    Raises:
        InputError: the volume is undersampled, or has several coils.
    """
    if volume.coils != 1:
        raise InputError(f"{volume.path or 'k-space'}: {volume.coils} coils: training images need single-coil k-space")
    kspace = _center_crop(volume.require_full().kspace[:, 0], size)
    return to_channels(ifft2c(kspace / KSPACE_NORM)) / IMAGE_SCALE


def read_reference_slice(path: str | Path, checkerboard: bool = True) -> tuple[KSpace, Tensor]:
    """One preprocessed slice as the authors of Active Diffusion Subsampling store it, and its image (2, H, W).

    The file has ``data/kspace`` (centred) and ``data/complex_image``, each complex (H, W), or real with the two parts
    on the first or the last axis; both come in the file's own scale. Their FFT is not shifted, which leaves a sign
    (-1)^(i + j) on the image.

    Args:
        path: the HDF5 file.
        checkerboard: take that sign away, so that image and k-space agree under the centred transform.

    Raises:
        InputError: no whole HDF5 file, an absent key, another shape, or values that are NaN, infinite or all zero.
    """
    path = Path(path)
    with open_hdf5(path) as file:
        kspace, image = (_complex_plane(dataset(file, key)) for key in ("data/kspace", "data/complex_image"))
    if kspace.shape != image.shape:
        raise InputError(f"{path}: data/complex_image is {tuple(image.shape)}, data/kspace {tuple(kspace.shape)}")
    if not torch.isfinite(torch.view_as_real(image)).all():
        raise InputError(f"{path}: data/complex_image: NaN or infinite values")
    if checkerboard:
        rows, columns = (torch.arange(length) for length in image.shape)
        image = image * (1.0 - 2.0 * ((rows[:, None] + columns) % 2))
    kspace = kspace[None, None]
    volume = KSpace(kspace, acquired_lines(kspace), (0, kspace.shape[-1]), path=path)
    return volume, to_channels(image)


def _center_crop(kspace: Tensor, size: int | tuple[int, int]) -> Tensor:
    """``fit_kspace`` of (slices, H, W), by the package's crop wherever that keeps DC in its place."""
    shape = (size, size) if isinstance(size, int) else size
    # complex_center_crop starts at (H - h) // 2. That leaves DC at h // 2, except one row too far where H is even and h
    # is odd. Nor does it pad. Both are left to fit_kspace.
    if any(not 0 < new <= old or new % 2 > old % 2 for old, new in zip(kspace.shape[-2:], shape, strict=True)):
        return fit_kspace(kspace, size)
    cropped = fastmri_data("transforms").complex_center_crop(torch.view_as_real(kspace), shape)
    return torch.view_as_complex(cropped)


def _complex_plane(array: h5py.Dataset) -> Tensor:
    values = array[()]
    if array.ndim == 3 and np.issubdtype(array.dtype, np.floating) and 2 in (array.shape[0], array.shape[-1]):
        real, imaginary = np.moveaxis(values, 0 if array.shape[0] == 2 else -1, 0)
        values = real + 1j * imaginary
    if values.ndim != 2 or not np.iscomplexobj(values):
        raise InputError(
            f"{array.file.filename}: {array.name.strip('/')}: {array.dtype} of shape {array.shape}, must be complex "
            "(H, W), or real with two parts on the first or the last axis"
        )
    return torch.from_numpy(values.astype(np.complex64))

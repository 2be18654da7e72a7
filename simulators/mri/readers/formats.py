"""One entry for every format: by suffix, and for HDF5 by what is inside."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from core.errors import InputError
from simulators.mri.readers.arrays import read_nifti, read_numpy
from simulators.mri.readers.bart import read_bart
from simulators.mri.readers.fastmri import read_fastmri
from simulators.mri.readers.hdf5 import open_hdf5
from simulators.mri.readers.ismrmrd import read_ismrmrd
from simulators.mri.readers.kspace import KSpace
from simulators.mri.readers.preprocessing import read_reference_slice

KINDS = ("image", "kspace")
HDF5 = (".h5", ".hdf5", ".mrd")
UNTYPED = {
    ".npy": read_numpy,
    ".npz": read_numpy,
    ".nii": read_nifti,
    ".nii.gz": read_nifti,
    ".cfl": read_bart,
    ".hdr": read_bart,
}
ALLOWED = f"{', '.join(HDF5)} (fastMRI, ISMRMRD, preprocessed slices), {', '.join(UNTYPED)}"


def read(path: str | Path, kind: str | None = None) -> KSpace | Tensor:
    """What a file holds: k-space, or images (images, channels, H, W).

    Args:
        path: a file of one of the formats ``ALLOWED``; a BART file may be named without suffix.
        kind: ``image`` or ``kspace``, for the formats that do not say which they hold: NumPy, NIfTI, BART.

    Raises:
        InputError: an unknown format or kind, a kind that is needed and not given, or one that HDF5 k-space does not
            have; and all that the reader of the format refuses.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path}: is a folder, not a file")
    if kind is not None and kind not in KINDS:
        raise InputError(f"kind {kind}: must be one of {', '.join(KINDS)}")
    name = path.name.lower()
    if path.with_name(f"{path.name}.cfl").is_file():
        name = f"{name}.cfl"
    if name.endswith(HDF5):
        if kind == "image":
            raise InputError(f"{path}: kind image: the HDF5 formats hold kspace")
        return _read_hdf5(path)
    for suffix, reader in UNTYPED.items():
        if name.endswith(suffix):
            if kind is None:
                raise InputError(
                    f"{path}: a {suffix} file does not say what it holds: kind must be {' or '.join(KINDS)}"
                )
            return reader(path, kind)
    raise InputError(f"{path}: unknown format; allowed: {ALLOWED}")


def _read_hdf5(path: Path) -> KSpace:
    with open_hdf5(path) as file:
        keys = sorted(file)
        layout = next((key for key in ("kspace", "dataset/data", "data/kspace") if key in file), None)
    if layout == "kspace":
        return read_fastmri(path)
    if layout == "dataset/data":
        return read_ismrmrd(path)
    if layout == "data/kspace":
        return read_reference_slice(path)[0]
    raise InputError(
        f"{path}: has {', '.join(keys) or 'nothing'}, must have kspace (fastMRI), dataset/data (ISMRMRD) or "
        "data/kspace (preprocessed slice)"
    )

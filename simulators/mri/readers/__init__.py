"""Readers of MRI files: fastMRI, ISMRMRD, BART, NIfTI and NumPy."""

from simulators.mri.readers.arrays import read_nifti, read_numpy
from simulators.mri.readers.bart import (
    kspace_from_cfl,
    kspace_to_cfl,
    read_bart,
    read_cfl,
    read_mask_cfl,
    write_cfl,
    write_mask_cfl,
)
from simulators.mri.readers.fastmri import FastMRIVolume, fastmri_dataset, fastmri_slices, fastmri_volume, read_fastmri
from simulators.mri.readers.formats import read
from simulators.mri.readers.ismrmrd import read_ismrmrd
from simulators.mri.readers.kspace import KSpace, fit_kspace, stack
from simulators.mri.readers.masks import LineOrder, read_mask_csv, write_mask_csv
from simulators.mri.readers.preprocessing import read_reference_slice, training_images
from simulators.mri.readers.splits import read_split

__all__ = [
    "FastMRIVolume",
    "KSpace",
    "LineOrder",
    "fastmri_dataset",
    "fastmri_slices",
    "fastmri_volume",
    "fit_kspace",
    "kspace_from_cfl",
    "kspace_to_cfl",
    "read",
    "read_bart",
    "read_cfl",
    "read_fastmri",
    "read_ismrmrd",
    "read_mask_cfl",
    "read_mask_csv",
    "read_nifti",
    "read_numpy",
    "read_reference_slice",
    "read_split",
    "stack",
    "training_images",
    "write_cfl",
    "write_mask_cfl",
    "write_mask_csv",
]

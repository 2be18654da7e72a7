"""Readers of files of turbulence: vorticity in MATLAB, NetCDF and Zarr, spectra and densities in text."""

from simulators.turbulence.readers.fields import read_fields
from simulators.turbulence.readers.py2d import load_py2d_ic
from simulators.turbulence.readers.spectra_files import DensityFile, SpectrumFile, read_density, read_spectrum

__all__ = ["DensityFile", "SpectrumFile", "load_py2d_ic", "read_density", "read_fields", "read_spectrum"]

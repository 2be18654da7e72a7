"""MRI without a scanner: images, coils, what is measured of them, and an instrument that answers requests only."""

from simulators.mri.acquisition_noise import Imperfections, noise_std
from simulators.mri.adaptivity import Adaptivity
from simulators.mri.atlas import Atlas
from simulators.mri.coils import coil_maps, combine, estimate_maps, whiten
from simulators.mri.digits import Digits
from simulators.mri.knee import Knee
from simulators.mri.mnist import read_mnist
from simulators.mri.operators import (
    Columns,
    KSpaceLines,
    KSpacePoints,
    MulticoilLines,
    Operator,
    Pixels,
    fft2c,
    ifft2c,
    to_channels,
    to_complex,
)
from simulators.mri.phantom2d import Phantom2D
from simulators.mri.quality import magnitude, nmse, psnr, ssim
from simulators.mri.scanner import Instrument, RecordedScanner, Scanner

__all__ = [
    "Adaptivity",
    "Atlas",
    "Columns",
    "Digits",
    "Imperfections",
    "Instrument",
    "KSpaceLines",
    "KSpacePoints",
    "Knee",
    "MulticoilLines",
    "Operator",
    "Phantom2D",
    "Pixels",
    "RecordedScanner",
    "Scanner",
    "coil_maps",
    "combine",
    "estimate_maps",
    "fft2c",
    "ifft2c",
    "magnitude",
    "nmse",
    "noise_std",
    "psnr",
    "read_mnist",
    "ssim",
    "to_channels",
    "to_complex",
    "whiten",
]

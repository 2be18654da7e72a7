"""Snapshots of a direct simulation that come with the package: case ``kolmogorov4``, filtered, on 128 x 128 points."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike, NDArray

from core.errors import InputError
from simulators.turbulence.grid import SMALLEST

COUNT = 20
"""Snapshots, numbered from 1."""
POINTS = 128
"""Points on each side of a snapshot."""
FILTER_WIDTH = 2 * (2 * np.pi / POINTS)
"""Width D of the Gaussian filter G = exp(-k^2 D^2/24) that the snapshots went through."""

_FILE = Path(__file__).parent / "data" / "kolmogorov4_nx128.npz"


def snapshots(files: Sequence[int] = range(1, COUNT + 1)) -> NDArray[np.float32]:
    """Vorticity ``(len(files), 128, 128)`` as shipped, that is filtered; x on axis 1, y on axis 2.

    Source: Jakhar et al. (2024), J. Adv. Model. Earth Syst. 16(7), e2023MS003874; see the folder ``data``.

    Args:
        files: numbers from 1 to 20.

    Raises:
        InputError: no number, or another one.
    """
    chosen = list(files)
    unknown = [number for number in chosen if number not in range(1, COUNT + 1)]
    if unknown or not chosen:
        raise InputError(f"files = {unknown or chosen}: must be snapshots numbered from 1 to {COUNT}")
    with np.load(_FILE, allow_pickle=False) as archive:
        omega: NDArray[np.float32] = archive["omega"]
    return omega[np.array(chosen) - 1]


def initial_fields(files: Sequence[int], n: int, dtype: DTypeLike = np.float64) -> NDArray[np.floating]:
    """The vorticity of the direct simulation itself, sharply truncated to the modes of a grid of n points.

    The Gaussian filter is divided out, and the modes with ``|kx|, |ky| < n/2`` are kept.

    Args:
        files: numbers from 1 to 20.
        n: points on each side; even, from 8 to 128.
        dtype: of the result; the computation is in double precision.

    Returns:
        ``(len(files), n, n)``.

    Raises:
        InputError: another number of a snapshot or of points.
    """
    if not SMALLEST <= n <= POINTS or n % 2:
        raise InputError(f"n = {n}: must be an even number of points from {SMALLEST} to {POINTS}")
    spectrum = np.fft.rfft2(snapshots(files).astype(np.float64))
    # The wavenumbers of a transform of n points, in its order; without the Nyquist one along y.
    kx, ky = np.fft.fftfreq(n, 1 / n).round().astype(int), np.arange(n // 2)
    kept = spectrum[:, kx][:, :, ky] * np.exp((kx[:, None] ** 2 + ky**2) * FILTER_WIDTH**2 / 24)
    kept[:, n // 2] = 0  # the Nyquist wavenumber
    # irfft2 pads the missing Nyquist column with zeros.
    fields: NDArray[np.floating] = np.fft.irfft2(kept * (n / POINTS) ** 2, s=(n, n)).astype(dtype)
    return fields

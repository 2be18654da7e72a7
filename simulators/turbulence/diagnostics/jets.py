"""Zonal jets: profiles of the zonal-mean wind and how they vary."""

from __future__ import annotations

import math

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from core.errors import InputError
from simulators.turbulence.diagnostics.records import Record, as_numbers, described, runs, within
from simulators.turbulence.grid import Grid


def zonal_wind(grid: Grid, vorticity_hat: Tensor) -> Tensor:
    """u(y), the mean over x of the velocity along x, ``(..., N)``, of spectra ``(..., N, N/2+1)``."""
    mean = grid.dy[0] * grid.inverse_k2[0] * vorticity_hat[..., 0, :]
    return torch.fft.irfft(mean, n=grid.n) / grid.n


def jet_summary(
    wind: Record, time: Record, *, start: float = -math.inf, stop: float = math.inf, modes: int = 2
) -> xr.Dataset:
    """Mean profile, variability and leading empirical orthogonal functions of the zonal-mean wind.

    The functions are those of the anomalies from the mean over all runs and times, which share one climate. Each is
    given as the wind that belongs to one standard deviation of its amplitude, its largest value positive.

    Args:
        wind: ``(start, time, y)`` from ``zonal_wind``.
        time: ``(time,)``.
        start: first instant of the window.
        stop: its end, excluded.
        modes: number of functions.

    Returns:
        Dims ``start``, ``time``, ``y`` and ``mode`` (from 1 on).

    Raises:
        InputError: shapes that do not fit, an empty window, values that are not finite, more modes than profiles or
            points, or a wind that never changes.
    """
    winds, times = as_numbers(wind), as_numbers(time)
    if winds.ndim != 3 or winds.shape[1] != len(times):
        raise InputError(f"wind: has shape {winds.shape}, must be (start, time, y) with {len(times)} times")
    chosen = within(times, start, stop)
    winds, times = winds[:, chosen], times[chosen]
    if not np.isfinite(winds).all():
        raise InputError("wind: has values that are not finite, leave out the runs that blew up")
    profiles = winds.reshape(-1, winds.shape[-1])
    if not 1 <= modes <= min(profiles.shape):
        raise InputError(f"modes = {modes}: must be between 1 and {min(profiles.shape)}")
    anomalies = profiles - profiles.mean(0)
    left, singular, right = np.linalg.svd(anomalies, full_matrices=False)
    total = (singular**2).sum()
    if not total > 0:
        raise InputError("wind: never changes, it has no modes of variability")
    scale = math.sqrt(len(profiles))
    rows = np.arange(modes)
    sign = np.sign(right[rows, np.abs(right[:modes]).argmax(1)])
    n = winds.shape[-1]
    return xr.Dataset(
        {
            "wind": (("start", "y"), winds.mean(1), described("time- and zonal-mean wind u")),
            "wind_deviation": (("start", "y"), winds.std(1), described("standard deviation in time of u(y)")),
            "eof": (
                ("mode", "y"),
                right[:modes] * (sign * singular[:modes] / scale)[:, None],
                described("wind of one standard deviation of the mode"),
            ),
            "amplitude": (
                ("start", "time", "mode"),
                (left[:, :modes] * sign * scale).reshape(*winds.shape[:2], modes),
                described("amplitude of the mode", "standard deviation"),
            ),
            "explained_variance": ("mode", singular[:modes] ** 2 / total, described("share of the variance")),
        },
        coords={
            "start": runs(len(winds)),
            "time": ("time", times, described("time", "time")),
            "y": ("y", 2 * np.pi * np.arange(n) / n, described("y")),
            "mode": ("mode", rows + 1, described("empirical orthogonal function")),
        },
    )

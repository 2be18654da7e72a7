"""Spectra of enstrophy and energy, of two kinds, and how far one is from a reference.

One-dimensional spectra are those of Mojgani et al. (2023), arXiv 2312.00907: of the discrete transform omega_hat,

    Z_x(kx) = sum over ky of |omega_hat|^2 / (2 N^4),      E_x(kx) = sum over ky of |omega_hat|^2 / (N^4 k^2),

likewise Z_y and E_y, for k = 0..N/2-1; one side only and not doubled, so that Z(0) + 2 (Z(1) + ... + Z(N/2-1)) is the
enstrophy <omega^2>/2, and the same sum of E is <u^2 + v^2>, twice the energy (the paper's code leaves out that 1/2).

Angle-averaged spectra sum the densities |omega_hat|^2/(2 N^4) and |omega_hat|^2/(2 N^4 k^2) over the shells
k - 1/2 < |k| <= k + 1/2; over all shells they add up to the enstrophy and the energy.

Everything here but ``spectrum_summary`` is torch and holds any leading dimensions.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from core.errors import InputError
from core.stats import mean_interval
from simulators.turbulence.diagnostics.records import Record, as_numbers, described, runs, within
from simulators.turbulence.grid import Grid, resample

Axis = Literal["both", "x", "y", "stacked"]
Kind = Literal["enstrophy", "energy"]
Band = Literal["full", "les"]
FLOOR = 1e-12
"""Of the weighted error: a spectrum that meets the reference exactly has no endless score."""


def enstrophy_spectrum(vorticity_hat: Tensor, axis: Axis = "both") -> Tensor:
    """One-dimensional spectrum Z(k), k = 0..N/2-1.

    Args:
        vorticity_hat: ``(..., N, N/2+1)``, unnormalised ``rfft2`` of omega.
        axis: ``both`` for the mean of Z_x and Z_y, ``x`` or ``y`` for one of them, ``stacked`` for the pair.

    Returns:
        ``(..., N/2)``, or ``(..., 2, N/2)`` for ``stacked``, x first.

    Raises:
        InputError: another axis.
    """
    return _one_dimensional(vorticity_hat, axis, "enstrophy")


def energy_spectrum(vorticity_hat: Tensor, axis: Axis = "both") -> Tensor:
    """One-dimensional spectrum E(k), k = 0..N/2-1, as ``enstrophy_spectrum``; it adds up to twice the energy."""
    return _one_dimensional(vorticity_hat, axis, "energy")


def _one_dimensional(vorticity_hat: Tensor, axis: Axis, kind: Kind) -> Tensor:
    n, halves = vorticity_hat.shape[-2], torch.view_as_real(vorticity_hat)
    along_ky, gather, inverse_k2 = _weights(n, axis, halves.dtype, halves.device)
    # Real and imaginary parts stay side by side: every sum is then over contiguous numbers, several times faster.
    power = halves.square().flatten(-2)
    if kind == "energy":
        power = power * inverse_k2
    spectrum = torch.cat((power @ along_ky, power.sum(-2)), -1) @ gather
    return spectrum.unflatten(-1, (2, n // 2)) if axis == "stacked" else spectrum


@lru_cache(maxsize=64)
def _weights(n: int, axis: Axis, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """What turns squared real and imaginary parts ``(N, N+2)`` into spectra.

    Returns:
        ``(N+2,)`` weights of the sum over ky, negative ones included; the matrix from those sums (N) and the sums over
        kx (N+2) to the spectrum; ``(N, N+2)`` 2/k^2.
    """
    if axis not in get_args(Axis):
        raise InputError(f"axis = {axis!r}: must be one of {', '.join(get_args(Axis))}")
    with torch.inference_mode(False):  # a cached tensor must also serve a later backward pass
        half = n // 2
        along_ky = torch.full((half + 1,), 2.0)
        along_ky[[0, -1]] = 1.0
        k = torch.arange(half)
        x, y = (torch.zeros(2 * n + 2, half, dtype=torch.float64) for _ in range(2))
        # omega is real: |omega_hat(-kx, -ky)| = |omega_hat(kx, ky)|, so the half plane's sums at kx and -kx average.
        x[k, k] += 0.5
        x[-k % n, k] += 0.5
        y[n + 2 * k, k] = y[n + 2 * k + 1, k] = 1.0
        gather = {"both": (x + y) / 2, "x": x, "y": y, "stacked": torch.cat((x, y), 1)}[axis] / (2 * n**4)
        inverse_k2 = Grid(n).inverse_k2.repeat_interleave(2, -1)
        return (
            along_ky.repeat_interleave(2).to(device, dtype),
            gather.to(device, dtype),
            (2 * inverse_k2).to(device, dtype),
        )


def angle_average(grid: Grid, density: Tensor) -> Tensor:
    """Sums of a spectral density over the shells k - 1/2 < |k| <= k + 1/2, k = 0..N/2-1.

    Args:
        grid: of N points.
        density: ``(..., N, N/2+1)`` real, of one mode each; modes of the other half plane are added here.

    Returns:
        ``(..., N/2)``.
    """
    shell, twice = _shells(grid.n, density.dtype, density.device)
    weighted = (density * twice).flatten(-2)
    sums = weighted.new_zeros(*weighted.shape[:-1], grid.n // 2 + 1).index_add(-1, shell, weighted)
    return sums[..., :-1]


@lru_cache(maxsize=64)
def _shells(n: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Shell ``(N (N/2+1),)`` of every mode of the half plane, N/2 for the corners, and how often the mode counts."""
    with torch.inference_mode(False):
        grid = Grid(n)
        shell = (grid.k2.sqrt() - 0.5).ceil().long().clamp(0, n // 2)
        twice = torch.where((grid.ky > 0) & (grid.ky < n / 2), 2.0, 1.0)
        return shell.flatten().to(device), twice.to(device, dtype)


def angle_averaged(vorticity_hat: Tensor, kind: Kind = "enstrophy") -> Tensor:
    """Angle-averaged spectrum of ``(..., N, N/2+1)``, k = 0..N/2-1; the corners beyond are left out.

    Source: the definition of the package py2d (Jakhar et al. 2024, doi 10.1029/2023MS003874).

    Raises:
        InputError: another kind.
    """
    _check_kind(kind)
    halves = torch.view_as_real(vorticity_hat)
    grid = Grid(vorticity_hat.shape[-2], halves.dtype, halves.device)
    density = halves.square().sum(-1) * (0.5 / grid.n**4)
    return angle_average(grid, density * grid.inverse_k2 if kind == "energy" else density)


def snapshot_spectra(
    fields: Tensor, n_les: int, band: Band = "full", axis: Axis | Literal["angle"] = "both", kind: Kind = "enstrophy"
) -> Tensor:
    """Spectra of resolved snapshots at the wavenumbers of a coarse grid, k = 0..n_les/2-1.

    A one-dimensional spectrum sums over all wavenumbers of the other axis: ``full`` takes all that the snapshots hold,
    as in Mojgani et al. (2023); ``les`` only those below n_les/2, which are all that the coarse flow can have.

    Args:
        fields: ``(S, N, N)`` vorticity.
        n_les: points of the coarse grid; at most N.
        band: ``full`` or ``les``.
        axis: as in ``enstrophy_spectrum``, or ``angle`` for the angle-averaged spectrum.
        kind: ``enstrophy`` or ``energy``.

    Returns:
        ``(S, n_les/2)``, or ``(S, 2, n_les/2)`` for ``stacked``.

    Raises:
        InputError: a coarse grid finer than the snapshots, no snapshot, or an unknown name.
    """
    _check_kind(kind)
    if band not in get_args(Band):
        raise InputError(f"band = {band!r}: must be one of {', '.join(get_args(Band))}")
    if fields.ndim != 3 or not len(fields) or fields.shape[-2] != fields.shape[-1]:
        raise InputError(f"fields: have shape {tuple(fields.shape)}, must be snapshots (S, N, N)")
    if not 8 <= n_les <= fields.shape[-1] or n_les % 2:
        raise InputError(
            f"n_les = {n_les}: must be even, at least 8 and at most the snapshots' {fields.shape[-1]} points"
        )
    spectrum = torch.fft.rfft2(fields)
    if band == "les":
        spectrum = resample(spectrum, n_les)
    if axis == "angle":
        return angle_averaged(spectrum, kind)[..., : n_les // 2]
    return _one_dimensional(spectrum, axis, kind)[..., : n_les // 2]


def reference_spectrum(
    fields: Tensor, n_les: int, band: Band = "full", axis: Axis | Literal["angle"] = "both", kind: Kind = "enstrophy"
) -> Tensor:
    """Mean over snapshots of ``snapshot_spectra``: ``(n_les/2,)``, or ``(2, n_les/2)`` for ``stacked``."""
    return snapshot_spectra(fields, n_les, band, axis, kind).mean(0)


def check_reference(spectrum: Tensor, n_les: int, enstrophy: float | None = None) -> Tensor:
    """The first n_les/2 wavenumbers of a reference spectrum of enstrophy ``(..., K)``, or a refusal.

    Args:
        spectrum: one-dimensional, as ``enstrophy_spectrum``.
        n_les: points of the coarse grid.
        enstrophy: <omega^2>/2 of the flow it should belong to; None where it is not known.

    Raises:
        InputError: too short; a value that is not finite or, but for k = 0, not above 0; or a sum more than a factor 2
            from ``enstrophy``, the sign of another definition or normalisation.
    """
    half = n_les // 2
    if spectrum.shape[-1] < half:
        raise InputError(f"reference spectrum: has {spectrum.shape[-1]} wavenumbers, the grid needs n_les/2 = {half}")
    refused = ~(torch.isfinite(spectrum) & (spectrum > 0))
    refused[..., 0] &= spectrum[..., 0] != 0
    if refused.any():
        index = int(refused.nonzero()[0, -1])
        value = float(spectrum[refused][0])
        raise InputError(f"reference spectrum: is {value:g} at k = {index}, every value must be finite and above 0")
    if enstrophy is not None:
        total = float((2 * spectrum.sum(-1) - spectrum[..., 0]).mean())
        if not enstrophy / 2 <= total <= 2 * enstrophy:
            raise InputError(
                f"reference spectrum: adds up to {total:g}, must be within a factor 2 of the enstrophy {enstrophy:g}; "
                "it may have another definition or normalisation"
            )
    return spectrum[..., :half]


def log_spectrum_error(spectrum: Tensor, reference: Tensor) -> Tensor:
    """Root mean square over k = 1..N/2-2 of log10(Z/Z_ref), decades; the primary error of a spectrum.

    Args:
        spectrum: ``(..., N/2)``.
        reference: ``(N/2,)``, or anything that broadcasts.

    Returns:
        ``(...)``.
    """
    return (spectrum / reference)[..., 1:-1].log10().square().mean(-1).sqrt()


def tail_ratio(spectrum: Tensor, reference: Tensor) -> Tensor:
    """Z/Z_ref at k = N/2-2 of ``(..., N/2)``: above 1 where the smallest scales hold too much."""
    return (spectrum / reference)[..., -2]


def weighted_error(spectrum: Tensor, reference: Tensor) -> Tensor:
    """Sum over k of [k (Z - Z_ref)]^2 of ``(..., N/2)``, held above 1e-12."""
    k = torch.arange(spectrum.shape[-1], dtype=spectrum.dtype, device=spectrum.device)
    return (k * (spectrum - reference)).square().sum(-1).clamp(min=FLOOR)


def z1(spectrum: Tensor, reference: Tensor) -> Tensor:
    """The inverse of ``weighted_error``.

    Source: Mojgani et al. (2023), the reward of its final scripts.
    """
    return 1 / weighted_error(spectrum, reference)


def spectrum_summary(
    spectra: Tensor,
    reference: Tensor,
    time: Record,
    *,
    start: float = -math.inf,
    stop: float = math.inf,
    kind: Kind = "enstrophy",
    level: float = 0.95,
) -> xr.Dataset:
    """Time means of the spectra of several runs, their ensemble mean with a bootstrap band, and their errors.

    The band resamples runs, whose number is what decides its width; a single run has none (NaN). Runs
    that are not finite keep their NaN and are left out of mean and band.

    Args:
        spectra: ``(start, time, N/2)`` of the runs.
        reference: ``(N/2,)``.
        time: ``(time,)``.
        start: first instant of the window.
        stop: its end, excluded.
        kind: what the spectra are of.
        level: of the band.

    Returns:
        Dims ``start`` and ``k``.

    Raises:
        InputError: shapes that do not fit, an empty window or an unknown kind.
    """
    _check_kind(kind)
    times = as_numbers(time)
    if spectra.ndim != 3 or spectra.shape[1] != len(times) or reference.shape != spectra.shape[2:]:
        raise InputError(
            f"spectra, reference, time: have shapes {tuple(spectra.shape)}, {tuple(reference.shape)}, {times.shape}; "
            "must be (start, time, k), (k,), (time,)"
        )
    means = spectra[:, within(times, start, stop)].double().mean(1).cpu()
    target = reference.double().cpu()
    per_run, symbol = as_numbers(means), {"enstrophy": "Z", "energy": "E"}[kind]
    sound = per_run[np.isfinite(per_run).all(1)]
    mean = low = high = np.full(per_run.shape[1], math.nan)
    if len(sound):
        mean = sound.mean(0)
    if len(sound) > 1:
        band = [mean_interval(z, level=level) for z in sound.T]
        low, high = np.array([(b.low, b.high) for b in band]).T
    name = f"{kind} spectrum"
    return xr.Dataset(
        {
            symbol: (("start", "k"), per_run, described(f"time-mean {name}")),
            f"{symbol}_mean": ("k", mean, described(f"time- and ensemble-mean {name}")),
            f"{symbol}_low": ("k", low, described(f"lower end of its {100 * level:g} % bootstrap interval")),
            f"{symbol}_high": ("k", high, described(f"upper end of its {100 * level:g} % bootstrap interval")),
            f"{symbol}_reference": ("k", as_numbers(target), described(f"reference {name}")),
            "log_error": (
                "start",
                as_numbers(log_spectrum_error(means, target)),
                described("rms over k = 1..N/2-2 of log10 of the ratio to the reference", "decades"),
            ),
            "tail_ratio": (
                "start",
                as_numbers(tail_ratio(means, target)),
                described("ratio to the reference at k = N/2-2"),
            ),
            "z1": ("start", as_numbers(z1(means, target)), described("1 / sum of [k (spectrum - reference)]^2")),
        },
        coords={"start": runs(len(per_run)), "k": ("k", np.arange(per_run.shape[1]), described("wavenumber"))},
    )


def _check_kind(kind: str) -> None:
    if kind not in get_args(Kind):
        raise InputError(f"kind = {kind!r}: must be one of {', '.join(get_args(Kind))}")

"""How far a simulation is from the reference: its spectrum, its distribution, its stability."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from simulators.turbulence.diagnostics import jensen_shannon, kl, log_spectrum_error, tail_ratio, z1

Band = Literal["full", "les"]
Letter = Literal["Z", "E"]
Numbers = NDArray[np.float64]
TAIL = 3
"""Multiple of sigma beyond which the tail is judged."""


def reference_spectrum(reference: xr.Dataset, band: Band, letter: Letter = "Z") -> xr.DataArray:
    """Mean over snapshots and over the spectra along x and y, ``(k,)``."""
    return reference[f"{letter}_{band}"].mean(("snapshot", "axis"))


def window(found: xr.Dataset) -> xr.Dataset:
    """The samples of the window of the statistics."""
    return found.sel(time=slice(found.attrs["discard"] + 1e-6, found.attrs["until"] + 1e-6))


def mean_spectrum(found: xr.Dataset, letter: Letter = "Z") -> xr.DataArray:
    """Time-mean spectrum ``(..., k)``; NaN for a simulation that blew up."""
    return window(found)[letter].mean("time", skipna=False).mean("axis")


def spectrum_errors(found: xr.Dataset, reference: xr.Dataset, band: Band) -> xr.DataArray:
    """Root mean square over k of log10 Z/Z_ref, decades, ``(..., start)``; NaN for a simulation that blew up."""
    spectrum = mean_spectrum(found)
    target = torch.from_numpy(reference_spectrum(reference, band).values)
    errors = log_spectrum_error(torch.from_numpy(spectrum.values.astype(np.float64)), target)
    return spectrum.isel(k=0, drop=True).copy(data=errors.numpy())


def spectrum_tails(found: xr.Dataset, reference: xr.Dataset, band: Band) -> xr.DataArray:
    """Z/Z_ref at k = N/2-2, ``(..., start)``."""
    spectrum = mean_spectrum(found)
    target = torch.from_numpy(reference_spectrum(reference, band).values)
    ratio = tail_ratio(torch.from_numpy(spectrum.values.astype(np.float64)), target)
    return spectrum.isel(k=0, drop=True).copy(data=ratio.numpy())


def divergences(found: xr.Dataset, reference: xr.Dataset, *, symmetric: bool = True) -> xr.DataArray:
    """Divergence of the vorticity's distribution, nats, ``(..., start)``: Jensen-Shannon, or KL(reference || found)."""
    counts = torch.from_numpy(found["counts"].values)
    values = (jensen_shannon if symmetric else kl)(torch.from_numpy(reference["counts"].values), counts)
    return found["points"].copy(data=values.numpy())


def extreme_quantiles(found: xr.Dataset, probability: float = 0.999) -> xr.DataArray:
    """Quantile of |omega|, in sigma, from the histogram: linear within a bin; NaN where nothing was counted."""
    counts = found["counts"].transpose(..., "omega").values.astype(np.float64)
    half = counts.shape[-1] // 2
    folded = counts[..., half:] + counts[..., half - 1 :: -1]
    edges = np.linspace(0.0, half * float(found["omega"][1] - found["omega"][0]), half + 1)
    total = np.concatenate([np.zeros((*folded.shape[:-1], 1)), folded.cumsum(-1)], axis=-1)

    def quantile(cumulative: Numbers) -> float:
        if not cumulative[-1]:
            return np.nan
        return float(np.interp(probability * cumulative[-1], cumulative, edges))

    return found["points"].copy(data=np.apply_along_axis(quantile, -1, total))


def tail_counts(found: xr.Dataset) -> tuple[Numbers, Numbers]:
    """Values beyond 3 sigma_ref and values in all, each ``(start,)``."""
    return (
        np.asarray(found["exceeded"].sel(q=TAIL).values, dtype=np.float64),
        np.asarray(found["points"].values, dtype=np.float64),
    )


def tail_distance(exceeded: Numbers, points: Numbers, reference: xr.Dataset) -> Numbers:
    """log10 of P(|omega| > 3 sigma_ref) over the reference's, decades.

    Half a value stands in for none, so that a tail that is never reached is far and not infinitely far.

    Args:
        exceeded: values in the tail.
        points: values in all.
        reference: statistics of the reference.
    """
    with np.errstate(divide="ignore"):  # a simulation that blew up at once has counted nothing
        return np.asarray(np.log10(np.maximum(exceeded, 0.5) / points / reference_tail(reference)))


def spectrum_scores(found: xr.Dataset, reference: xr.Dataset, band: Band) -> xr.DataArray:
    """The paper's reward z1 of the time-mean spectrum, ``(..., start)``."""
    spectrum = mean_spectrum(found)
    target = torch.from_numpy(reference_spectrum(reference, band).values)
    values = z1(torch.from_numpy(spectrum.values.astype(np.float64)), target)
    return spectrum.isel(k=0, drop=True).copy(data=values.numpy())


def reference_tail(reference: xr.Dataset) -> float:
    """P(|omega| > 3 sigma_ref) of the reference; half a value stands in for none, as in ``tail_distance``."""
    return max(float(reference["exceeded"].sel(q=TAIL)), 0.5) / float(reference["points"])


def finite(found: xr.Dataset) -> xr.DataArray:
    """Whether a simulation stayed finite up to the end of the window of the statistics, ``(..., start)``."""
    last = window(found)["enstrophy"].isel(time=-1, drop=True)
    return last.copy(data=np.isfinite(last.values))


def chosen(training: xr.Dataset, reference: xr.Dataset, band: Band) -> int:
    """The place of the constant with the smallest mean error from the training starts; one that blew up never wins."""
    errors = spectrum_errors(training, reference, band).mean("start", skipna=False).values
    return int(np.argmin(np.where(np.isfinite(errors), errors, np.inf)))

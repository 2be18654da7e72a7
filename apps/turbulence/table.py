"""The table of the turbulence study: every number with its interval over starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import xarray as xr

from apps.turbulence.claims import Evidence
from apps.turbulence.metrics import (
    Numbers,
    divergences,
    extreme_quantiles,
    finite,
    spectrum_errors,
    spectrum_scores,
    spectrum_tails,
    tail_counts,
    tail_distance,
)
from core.stats import proportion_interval, t_interval
from core.study import Row

MEASURES = (
    "Spectrum error: root mean square over k = 1..N/2-2 of log10 of the time-mean enstrophy spectrum over the "
    "reference's (decades), the mean of the spectra along x and y; coarse band: against a reference that sums over the "
    "wavenumbers of the coarse grid alone, which are all that a simulation has; ratio at small scales: that of the "
    "spectra at k = N/2-2; tail: log10 of P(|omega| > 3 sigma) over the reference's; divergence: Jensen-Shannon of the "
    "distribution of the vorticity; sigma: standard deviation of the reference's vorticity on the coarse grid; "
    "backscatter: share of points where the closure gives enstrophy back to the resolved flow.",
    "Intervals are 95 % Student intervals over starts; a start's number is the mean over training seeds of agents, and "
    "over realisations (perturbed starts) of closures. A simulation that blew up has no number: the row says so by "
    "its n, and the share that stays finite is below 100 %.",
    "Closures with several constants are tuned on the training starts and scored on the others; the reference and the "
    "training starts are all that any closure has seen.",
)


COLUMNS: dict[tuple[str, str], Callable[[xr.Dataset, Evidence], Numbers]] = {
    ("spectrum error", "decades"): lambda d, e: spectrum_errors(d, e.reference, e.band).values,
    ("spectrum error, coarse band", "decades"): lambda d, e: spectrum_errors(d, e.reference, "les").values,
    ("spectrum ratio at small scales", "1"): lambda d, e: spectrum_tails(d, e.reference, e.band).values,
    ("score z1 of the spectrum", "1"): lambda d, e: spectrum_scores(d, e.reference, e.band).values,
    ("tail beyond 3 sigma", "decades"): lambda d, e: tail_distance(*tail_counts(d), e.reference),
    ("divergence of the distribution", "nat"): lambda d, e: divergences(d, e.reference).values,
    ("KL divergence of the distribution", "nat"): lambda d, e: divergences(d, e.reference, symmetric=False).values,
    ("quantile 99.9 % of the vorticity", "sigma"): lambda d, e: extreme_quantiles(d).values,
    ("standard deviation of the vorticity", "sigma"): lambda d, e: d["std"].values / d.attrs["sigma"],
    ("kurtosis of the vorticity", "1"): lambda d, e: d["kurtosis"].values,
    ("enstrophy taken by the closure", "1"): lambda d, e: d["dissipation"].values,
    ("backscatter", "% of points"): lambda d, e: 100 * d["backscatter"].values,
}


def rows_of(scenario: str, evidence: Evidence, learned: Mapping[str, Sequence[xr.Dataset]]) -> list[Row]:
    """The rows of a scenario, closures first, then what was learned."""
    groups: dict[str, list[xr.Dataset]] = {}
    for name, (settings, _) in evidence.closures.items():
        parts = evidence.evaluated(name)
        tuned = f" ({float(parts[0]['constant']):g})" if settings.constants else ""
        groups[f"{name}{tuned}"] = parts
    groups |= {name: list(found) for name, found in learned.items()}
    rows = []
    for method, found in groups.items():
        for (metric, unit), measure in COLUMNS.items():
            values = np.mean([_known(measure(d, evidence), d) for d in found], axis=0)
            rows.append(_row(scenario, method, metric, unit, values))
        whole = np.concatenate([finite(d).values for d in found])
        share = proportion_interval(int(whole.sum()), len(whole))
        values = (100 * share.mean, 100 * share.low, 100 * share.high)
        rows.append(Row(scenario, method, "simulations that stay finite", "%", *values, len(whole)))
    return rows


def _known(values: Numbers, found: xr.Dataset) -> Numbers:
    """NaN where a simulation blew up: what it counted before is no statistic of it."""
    return np.where(finite(found).values, np.asarray(values, dtype=np.float64), np.nan)


def _row(scenario: str, method: str, metric: str, unit: str, values: Numbers) -> Row:
    kept = values[~np.isnan(values)]
    if len(kept) < 2:
        return Row(scenario, method, metric, unit, None, n=len(kept))
    i = t_interval(kept)
    return Row(scenario, method, metric, unit, i.mean, i.low, i.high, i.n)

"""How rare the extremes of the vorticity are, how much of a gap a closure closes, and how many snapshots it takes.

The largest |omega| in the box over a block of time is modelled by the generalised extreme-value distribution
(Coles 2001, An introduction to statistical modeling of extreme values, chapter 3).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from scipy.special import gamma
from scipy.stats import genextreme

from core.errors import InputError
from core.stats.interval import check_level
from simulators.turbulence.diagnostics.records import Numbers, Record, as_numbers, described, spacing

FEWEST_MAXIMA = 10


@dataclass(frozen=True)
class ExtremeValues:
    """P(M <= z) = exp(-[1 + xi (z - mu)/s]^(-1/xi)), the distribution of a block's maximum.

    Attributes:
        shape: xi; above 0 for a heavy tail, below 0 for a bounded one (scipy's ``c`` is -xi).
        location: mu.
        scale: s.
    """

    shape: float
    location: float
    scale: float

    def quantile(self, probability: float | Numbers) -> Numbers:
        """The level that a block's maximum exceeds with 1 - ``probability``."""
        return np.asarray(genextreme.ppf(probability, -self.shape, self.location, self.scale))

    def exceedance(self, level: float | Numbers) -> Numbers:
        """P(M > level)."""
        return np.asarray(genextreme.sf(level, -self.shape, self.location, self.scale))


def block_maxima(peak: Record, time: Record, block: float) -> Numbers:
    """Maxima over successive stretches of ``block`` time units of each run; an incomplete last one is left out.

    Args:
        peak: ``(start, time)``, largest |omega| in the box.
        time: ``(time,)``, equally spaced.
        block: rounded to whole steps.

    Returns:
        ``(start, blocks)``.

    Raises:
        InputError: shapes that do not fit, unequal steps, values that are not finite, or a block shorter than a step
            or longer than the record.
    """
    values, step = as_numbers(peak), spacing(time)
    instants = len(as_numbers(time))
    if values.ndim != 2 or not len(values) or values.shape[1] != instants:
        raise InputError(f"peak: has shape {values.shape}, must be (start, time) with {instants} times")
    if not np.isfinite(values).all():
        run = int(np.argwhere(~np.isfinite(values))[0, 0])
        raise InputError(f"peak[{run}]: is not finite, leave out the runs that blew up")
    if not step <= block <= instants * step * (1 + 1e-9):
        raise InputError(f"block = {block:g}: must be between a step, {step:g}, and the record, {instants * step:g}")
    length = min(round(block / step), instants)
    whole = instants // length * length
    return values[:, :whole].reshape(len(values), -1, length).max(-1)


def fit_extremes(maxima: Record) -> ExtremeValues:
    """Generalised extreme-value distribution of block maxima (n,), by maximum likelihood.

    The search (scipy) starts from Hosking's L-moments; those stay where it ends at no better likelihood, outside
    |xi| < 1, where the likelihood has no useful maximum, or with a value outside the distribution's range.

    Source: Hosking, Wallis and Wood (1985), Technometrics 27, 251-261, for the start.

    Raises:
        InputError: fewer than 10 maxima, a value that is not finite, or all of them the same.
    """
    values = np.sort(as_numbers(maxima).ravel())
    if len(values) < FEWEST_MAXIMA:
        raise InputError(f"maxima: are {len(values)}, at least {FEWEST_MAXIMA} are needed; shorten the blocks")
    if not (np.isfinite(values).all() and values[-1] > values[0]):
        raise InputError("maxima: must be finite and not all the same")
    start = _l_moments(values)
    c, location, scale = genextreme.fit(values, -start.shape, loc=start.location, scale=start.scale)
    found = ExtremeValues(-float(c), float(location), float(scale))
    sound = np.isfinite((c, location, scale)).all() and scale > 0 and abs(c) < 1
    return found if sound and _likelihood(found, values) >= _likelihood(start, values) else start


def _likelihood(model: ExtremeValues, values: Numbers) -> float:
    return float(genextreme.logpdf(values, -model.shape, model.location, model.scale).sum())


def _l_moments(values: Numbers) -> ExtremeValues:
    """Estimate from probability-weighted moments of sorted values."""
    n = len(values)
    rank = np.arange(n)
    b0, b1 = values.mean(), (values * rank).mean() / (n - 1)
    b2 = (values * rank * (rank - 1)).mean() / ((n - 1) * (n - 2))
    c = (2 * b1 - b0) / (3 * b2 - b0) - math.log(2) / math.log(3)
    shape = 7.8590 * c + 2.9554 * c**2
    if abs(shape) < 1e-6:
        shape = 1e-6
    scale = (2 * b1 - b0) * shape / (gamma(1 + shape) * (1 - 2.0**-shape))
    return ExtremeValues(-float(shape), float(b0 + scale * (gamma(1 + shape) - 1) / shape), float(scale))


def return_levels(
    peak: Record,
    time: Record,
    sigma: float,
    *,
    periods: Sequence[float] = (20.0, 50.0, 100.0, 200.0, 500.0),
    thresholds: Sequence[float] = (),
    block: float = 5.0,
    resamples: int = 200,
    level: float = 0.95,
    seed: int = 0,
) -> xr.Dataset:
    """Levels of |omega| that one box exceeds once in a period on average, and periods of given levels.

    The interval resamples runs with replacement, then blocks within each run drawn, and fits again.

    Args:
        peak: ``(start, time)``, largest |omega| in the box.
        time: ``(time,)``, equally spaced.
        sigma: sigma_ref, the unit of the levels.
        periods: return periods, time units; above ``block``.
        thresholds: levels, in sigma_ref, whose return period is wanted.
        block: time units over which maxima are taken; long enough for them to be independent.
        resamples: of the bootstrap.
        level: of the intervals.
        seed: of the bootstrap.

    Returns:
        Dims ``period``, ``threshold``, ``parameter`` (xi, mu, s) and ``draw`` (bootstrap).

    Raises:
        InputError: as ``block_maxima`` and ``fit_extremes``, or an impossible number.
    """
    check_level(level)
    for name, value in (("sigma", sigma), ("resamples", resamples)):
        if not 0 < value < math.inf:
            raise InputError(f"{name} = {value}: must be above 0 and finite")
    maxima = block_maxima(peak, time, block) / sigma
    length = spacing(time) * round(block / spacing(time))
    for period in periods:
        if not length < period < math.inf:
            raise InputError(f"periods: hold {period:g}, must be above the block of {length:g}")
    probability, thresholds_ = 1 - length / np.asarray(periods, dtype=np.float64), np.asarray(thresholds, dtype=float)
    rng = np.random.default_rng(seed)
    copies, blocks = maxima.shape

    def resampled() -> Numbers:
        chosen = rng.integers(copies, size=(copies, 1))
        return np.asarray(maxima[chosen, rng.integers(blocks, size=(copies, blocks))])

    fits = [fit_extremes(maxima), *(fit_extremes(resampled()) for _ in range(resamples))]
    parameters = np.array([(f.shape, f.location, f.scale) for f in fits])
    levels = np.array([f.quantile(probability) for f in fits])
    with np.errstate(divide="ignore"):  # a bounded tail never reaches a level beyond its end
        waits = np.array([length / f.exceedance(thresholds_) for f in fits])
    ends = ((1 - level) / 2, (1 + level) / 2)

    def interval(name: str, values: Numbers, dim: str, long_name: str, unit: str) -> dict[str, object]:
        # The nearest draw rather than one between two: an infinite period has no midpoint.
        low, high = np.quantile(values[1:], ends, axis=0, method="nearest")
        return {
            name: (dim, values[0], described(long_name, unit)),
            f"{name}_low": (dim, low, described(f"lower end of its {100 * level:g} % bootstrap interval", unit)),
            f"{name}_high": (dim, high, described(f"upper end of its {100 * level:g} % bootstrap interval", unit)),
        }

    return xr.Dataset(
        {
            **interval("level", levels, "period", "return level of |omega|", "sigma_ref"),
            **interval("return_period", waits, "threshold", "return period of |omega| > threshold", "time"),
            **interval("gev", parameters, "parameter", "parameters of the extreme-value distribution", "1"),
            "level_draws": (("draw", "period"), levels[1:], described("return levels of the bootstrap", "sigma_ref")),
        },
        coords={
            "period": ("period", np.asarray(periods, dtype=np.float64), described("return period", "time")),
            "threshold": ("threshold", thresholds_, described("level of |omega|", "sigma_ref")),
            "parameter": ("parameter", ["shape", "location", "scale"]),
        },
        attrs={"block": length, "maxima": maxima.size, "sigma_ref": sigma, "level": level},
    )


def gap_closed(closure: xr.Dataset, none: xr.Dataset, reference: xr.Dataset) -> xr.Dataset:
    """Share of the gap between no closure and the reference that a closure closes, at each return period.

    1 - |closure - reference| / |none - reference|: 1 is the reference itself, 0 no better than none, below 0 worse.

    Args:
        closure: from ``return_levels``; all three with the same periods, sigma_ref and number of resamples.
        none: of the runs without closure.
        reference: of the resolved flow.

    Returns:
        ``share`` with the percentile interval of its bootstrap draws, along ``period``; NaN where none and the
        reference are equal.

    Raises:
        InputError: different periods, sigma_ref or numbers of resamples.
    """
    given = {"closure": closure, "none": none, "reference": reference}
    for name, value in given.items():
        same = value["period"].equals(reference["period"]) and value.attrs["sigma_ref"] == reference.attrs["sigma_ref"]
        if not same or value.sizes["draw"] != reference.sizes["draw"]:
            raise InputError(f"{name}: must have the periods, sigma_ref and number of resamples of the reference")

    def share(variable: str) -> Numbers:
        model, without, truth = (as_numbers(value[variable].values) for value in given.values())
        gap = np.abs(without - truth)
        return 1 - np.abs(model - truth) / np.where(gap > 0, gap, np.nan)

    level = reference.attrs["level"]
    low, high = np.nanquantile(share("level_draws"), [(1 - level) / 2, (1 + level) / 2], axis=0)
    text = f"end of its {100 * level:g} % bootstrap interval"
    return xr.Dataset(
        {
            "share": ("period", share("level"), described("share of the gap of the return level that is closed")),
            "share_low": ("period", low, described(f"lower {text}")),
            "share_high": ("period", high, described(f"upper {text}")),
        },
        coords={"period": reference["period"]},
    )


def snapshots_needed(
    spectra: Record, *, target: float = 0.03, counts: Sequence[int] = (5, 10, 20, 50, 100)
) -> xr.Dataset:
    """Standard error of log10 of a reference spectrum against the number of independent snapshots it averages.

    For S snapshots it is sd(Z)/(mean(Z) sqrt(S) ln 10) at each k (first order), from the spread between snapshots.

    Args:
        spectra: ``(S, N/2)`` of independent snapshots.
        target: wanted rms of that error over k = 1..N/2-2, decades.
        counts: numbers of snapshots to tabulate.

    Returns:
        ``error`` along ``snapshots`` and ``k``, ``rms_error`` along ``snapshots``, and ``needed``.

    Raises:
        InputError: fewer than two snapshots, values not finite or not above 0 from k = 1 on, or an impossible number.
    """
    values = as_numbers(spectra)
    if values.ndim != 2 or len(values) < 2 or values.shape[1] < 4:
        raise InputError(f"spectra: have shape {values.shape}, must be (S, k) of at least 2 snapshots")
    if not (np.isfinite(values).all() and (values[:, 1:] > 0).all()):
        raise InputError("spectra: must be finite, and above 0 from k = 1 on")
    if not 0 < target < math.inf or not all(count >= 1 for count in counts):
        raise InputError(f"target = {target}, counts = {tuple(counts)}: must be above 0")
    mean = values.mean(0)
    single = values.std(0, ddof=1) / np.where(mean > 0, mean, np.nan) / math.log(10)
    rms = math.sqrt((single[1:-1] ** 2).mean())
    root = np.sqrt(np.asarray(counts, dtype=np.float64))
    return xr.Dataset(
        {
            "error": (
                ("snapshots", "k"),
                single / root[:, None],
                described("standard error of log10 of the mean spectrum", "decades"),
            ),
            "rms_error": ("snapshots", rms / root, described("its rms over k = 1..N/2-2", "decades")),
            "needed": (
                (),
                math.ceil((rms / target) ** 2),
                described(f"snapshots for an rms error of {target:g} decades"),
            ),
        },
        coords={
            "snapshots": ("snapshots", np.asarray(counts), described("number of snapshots")),
            "k": ("k", np.arange(values.shape[1]), described("wavenumber")),
        },
    )

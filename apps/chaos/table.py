"""The table of the chaos study: every number with its interval over systems."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy import stats

from apps.chaos.evidence import Evidence, pairs
from apps.chaos.valid_time import THRESHOLDS
from core.errors import InputError
from core.stats import (
    Interval,
    average_ranks,
    kaplan_meier_median,
    mean_interval,
    rank_correlation,
    signed_rank_test,
)
from core.study import Row

LYAPUNOV_TIMES = "Lyapunov times"
HORIZONS = (0.1, 0.3, 1.0, 3.0, 10.0)
"""In Lyapunov times, at which errors are correlated with the exponent."""
FEWEST_FOR_CORRELATION = 8
INVARIANTS = {
    "correlation_dimension": ("correlation dimension error", "1"),
    "power_spectrum": ("power spectrum error", "1"),
    "largest_exponent": ("largest exponent error", "Lyapunov exponents"),
}
MEASURES = (
    "Valid time V1: samples before the error, root mean square over channels in standard deviations of the truth, "
    "first exceeds 0.4; V2: before the cumulative sMAPE exceeds 30 (of 200), as in Zhang and Gilpin (2025); V3: up to "
    "the last sample at which the cumulative sMAPE is below 40, as in the code of Gilpin (2023), which is generous. In "
    "Lyapunov times of the largest exponent named in the data; a forecast that holds to its end counts with its "
    "length, so that its numbers are lower bounds, and the Kaplan-Meier median (first replicate of each system) treats "
    "it as censored, as if the lengths of forecasts in Lyapunov times had nothing to do with valid times. A forecast "
    "that is no number has valid time 0 and no sMAPE.",
    "A system's number is the mean over its replicates; intervals are 95 % bootstrap intervals over systems, of shares "
    "Wilson's with as many trials as systems, of correlations Fisher's, of mean ranks half of Nemenyi's critical "
    "difference to either side. Each interval is for its row alone: only the claims are adjusted for their number. "
    "Methods meet the same series with the same seeds. sMAPE is of raw units, on the scale 0 to 200, at a horizon the "
    "cumulative one.",
    "Seconds are wall seconds of this machine for one series, of methods that train a group together the group's "
    "divided by its series; they include what other runs on the machine took.",
)


def rows_of(evidence: Evidence, reference: str) -> list[Row]:
    """The rows of a scenario; differences are to the method named ``reference``."""
    found = [row for method in evidence.methods for row in _of_method(evidence, method)]
    if reference in evidence.methods:
        for method in evidence.methods:
            if method != reference:
                a, b = pairs(evidence.by_system(method), evidence.by_system(reference))
                name = f"valid time less that of {reference}, median"
                found.append(_row(evidence, method, name, LYAPUNOV_TIMES, signed_rank_test, a, b))
    found += _ranks(evidence)
    return found + [row for method in evidence.methods for row in _correlations(evidence, method)]


def _of_method(evidence: Evidence, method: str) -> list[Row]:
    data = evidence.methods[method]
    rows = []
    for definition in THRESHOLDS:
        values = _known(evidence.by_system(method, definition))
        rows.append(_row(evidence, method, f"valid time {definition}, median", LYAPUNOV_TIMES, median_interval, values))
    values = _known(evidence.by_system(method))
    rows.append(_row(evidence, method, "valid time V1, mean", LYAPUNOV_TIMES, mean_interval, values))
    times = evidence.valid_time(method).isel(replicate=0).values
    known = np.isfinite(times)
    if known.sum() > 1:
        flags = _flags(data["censored"].sel(definition="V1").isel(replicate=0, system=known))
        name = "valid time V1, Kaplan-Meier"
        rows.append(_row(evidence, method, name, LYAPUNOV_TIMES, kaplan_meier_median, times[known], flags))
    one = _known(evidence.curve(method, "smape", np.ones(1))[:, 0])
    rows.append(_row(evidence, method, "sMAPE at one Lyapunov time, median", "%", median_interval, one))
    for name, title, unit in (
        ("smape", "sMAPE of the short forecast, mean", "%"),
        ("nrmse", "NRMSE of the short forecast, median", "1"),
    ):
        values = _known(data["short"].sel(metric=name).mean("replicate").values)
        rows.append(_row(evidence, method, title, unit, mean_interval if name == "smape" else median_interval, values))
    for name, (title, unit) in INVARIANTS.items() if "invariant" in data else ():
        error = data["invariant"].sel(quantity=name).mean("replicate")
        error = error / evidence.systems["lyapunov"] if name == "largest_exponent" else error
        rows.append(_row(evidence, method, f"{title}, median", unit, median_interval, _known(error.values)))
    if "crps" in data:
        rows.append(
            _row(
                evidence,
                method,
                "CRPS at one Lyapunov time, median",
                "std",
                median_interval,
                _known(evidence.curve(method, "crps", np.ones(1))[:, 0]),
            )
        )
    for title, name in (("forecasts that diverge", "diverged"), ("forecasts valid to their end", "censored")):
        each = data[name].sel(definition="V1") if name == "censored" else data[name]
        rows.append(_row(evidence, method, title, "%", _percent, _known(each.mean("replicate").values)))
    for name, title in (("fit_seconds", "seconds of training"), ("forecast_seconds", "seconds of forecasting")):
        values = _known(data[name].mean("replicate").values)
        rows.append(_row(evidence, method, f"{title}, median", "s", median_interval, values))
    return rows


def median_interval(values: NDArray[np.float64]) -> Interval:
    """Median and its bootstrap interval."""
    return signed_rank_test(values, np.zeros_like(values))


def _percent(shares: NDArray[np.float64]) -> Interval:
    """Mean of the systems' shares with Wilson's interval of as many trials as systems.

    Forecasts of one system are alike: counted one by one they would make it too short. Where they differ it is wide.
    """
    n = len(shares)
    if not n:
        raise InputError("no forecast")
    share = float(shares.mean())
    z = float(stats.norm.ppf(0.975))
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return Interval(100 * share, 100 * max(0.0, middle - half), 100 * min(1.0, middle + half), n)


def _known(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return values[np.isfinite(values)]


def _flags(data: xr.DataArray) -> NDArray[np.bool_]:
    """Those of the forecasts that were made; where one was not, the stored flag is NaN."""
    return _known(data.values.ravel()).astype(bool)


def _row(
    evidence: Evidence,
    method: str,
    metric: str,
    unit: str,
    interval: Callable[..., Interval],
    *samples: NDArray[Any],
) -> Row:
    """A row, without interval where there are too few systems for one; a single system's number stands by itself."""
    try:
        found = interval(*samples)
    except InputError:
        n = len(samples[0])
        alone = float(samples[0][0] - (samples[1][0] if len(samples) > 1 else 0)) if n == 1 else None
        return Row(evidence.name, method, metric, unit, alone, n=n)
    return Row(evidence.name, method, metric, unit, found.mean, found.low, found.high, found.n)


def _ranks(evidence: Evidence) -> list[Row]:
    """Mean rank of every method over systems, by valid time; two whose intervals overlap are not told apart."""
    if not evidence.methods:
        return []
    scores = np.stack([evidence.by_system(method) for method in evidence.methods])
    scores = scores[:, np.isfinite(scores).any(0)]
    if min(scores.shape) < 2:
        return []
    ranks = average_ranks(scores, higher_is_better=True)
    half = ranks.critical_difference / 2
    return [
        Row(
            evidence.name,
            method,
            "rank by valid time, mean",
            "1",
            float(mean),
            float(mean - half),
            float(mean + half),
            scores.shape[1],
        )
        for method, mean in zip(evidence.methods, ranks.ranks, strict=True)
    ]


def _correlations(evidence: Evidence, method: str) -> list[Row]:
    """Rank correlation of the error with the largest exponent, at horizons in Lyapunov times."""
    rows = []
    exponent = evidence.systems["lyapunov"].values
    errors = evidence.curve(method, "smape", np.array(HORIZONS))
    for place, horizon in enumerate(HORIZONS):
        a, b = pairs(exponent, errors[:, place])
        if len(a) >= FEWEST_FOR_CORRELATION:
            name = f"rank correlation of exponent and sMAPE at {horizon:g} Lyapunov times"
            rows.append(_row(evidence, method, name, "1", rank_correlation, a, b))
    return rows

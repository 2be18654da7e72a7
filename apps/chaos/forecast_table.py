"""What forecasts from past origins say of a forecaster, as rows of a table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from core.stats import mean_interval
from core.study.analysis import Row


def summary_rows(found: xr.Dataset) -> list[Row]:
    """What the rolling forecasts say of the forecaster: means over origins with 95 % intervals.

    Args:
        found: by ``forecast_series``.
    """
    method = str(found.attrs["method"])
    title = f"{Path(str(found.attrs['source'])).name}: forecasts from past origins"
    valid = found["valid_samples"].values.astype(np.float64)
    rows = [mean_row(title, method, "valid time", "samples", valid)]
    for unit, rate in (("periods", "samples_per_period"), ("Lyapunov times", "samples_per_lyapunov_time")):
        if np.isfinite(found.attrs[rate]):
            rows.append(mean_row(title, method, "valid time", unit, valid / found.attrs[rate]))
    rows.append(
        mean_row(title, method, "valid to the end", "%", 100 * found["valid_censored"].values.astype(np.float64))
    )
    rows.append(mean_row(title, method, "nrmse", "1", found["nrmse"].values))
    rows.append(mean_row(title, method, "sMAPE", "%", found["smape"].values))
    level = f"coverage of {100 * found.attrs['level']:g} % intervals"
    rows.append(mean_row(title, method, level, "%", 100 * found["coverage"].values))
    if "ensemble_coverage" in found:
        rows.append(mean_row(title, method, f"{level}, ensemble", "%", 100 * found["ensemble_coverage"].values))
    return rows


def mean_row(scenario: str, method: str, metric: str, unit: str, values: NDArray[np.float64]) -> Row:
    """Mean over origins ``(K,)`` with its bootstrap interval; a value that is not finite leaves none."""
    known = values[np.isfinite(values)]
    if len(known) < 2 or len(known) < len(values) / 2:
        return Row(scenario, method, metric, unit, float(known.mean()) if len(known) else None, n=len(known))
    interval = mean_interval(known)
    return Row(scenario, method, metric, unit, interval.mean, interval.low, interval.high, interval.n)

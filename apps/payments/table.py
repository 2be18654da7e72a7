"""The table of the payments study: every number with its interval over worlds."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from apps.payments.metrics import BASIS_POINTS
from apps.payments.runs import online_value
from apps.payments.series import lag_one_autocorrelation, swing, zig_zags
from core.stats import Interval, paired_t_test, proportion_interval, t_interval
from core.study import Row

MEASURES = (
    "online value: true approval rate of the deployed policies, averaged over generations 1 and later (generation 0 "
    "is uniform); uplift: its difference from the baseline arm in the same worlds; bps: basis points, 1 approval in "
    "10,000 payments; model error: mean over available actions of (f - P)^2 on a fixed evaluation set, P the "
    "simulator's truth; oscillation: lag-1 autocorrelation over generations 1 and later, about -1/G where nothing "
    "alternates; degradation: online value of generation 1 minus that of generation 2; AUC, log-loss and calibration "
    "are measured on uniform decisions.",
    "Intervals are 95 % Student intervals over worlds (Wilson's for a share of reversals, whose changes overlap). "
    "Tuned numbers were chosen on other worlds, before the worlds that are scored were played.",
    "Claims are about this simulator: they show what can happen to a processor that retrains on its own log.",
)

Numbers = NDArray[np.float64]


def _later(name: str, scale: float = 1.0) -> Callable[[xr.Dataset], Numbers]:
    """The mean over generations 1 and later, a world each."""
    return lambda data: scale * data[name].isel(generation=slice(1, None)).mean("generation").values


def _absolute(name: str) -> Callable[[xr.Dataset], Numbers]:
    """The mean size over generations 1 and later, in basis points."""
    return lambda data: BASIS_POINTS * abs(data[name].isel(generation=slice(1, None))).mean("generation").values


def _series(data: xr.Dataset, name: str, first: int) -> Numbers:
    found: Numbers = data[name].transpose("world", "generation").values[:, first:]
    return found


def _degradation(data: xr.Dataset) -> Numbers:
    value = _series(data, "value", 1)
    found: Numbers = BASIS_POINTS * (value[:, 0] - value[:, 1])
    return found


COLUMNS: dict[tuple[str, str], Callable[[xr.Dataset], Numbers]] = {
    ("regret", "bps"): _later("regret"),
    ("rejections avoided", "share"): _later("rejections_avoided"),
    ("greedy value", "share"): _later("greedy_value"),
    ("model error", "1e-4"): _later("mse_uniform", 1e4),
    ("oscillation of the model error", "1"): lambda d: lag_one_autocorrelation(_series(d, "mse_uniform", 1)),
    ("oscillation of the online value", "1"): lambda d: lag_one_autocorrelation(_series(d, "value", 1)),
    ("swing of the online value", "bps"): lambda d: BASIS_POINTS * swing(_series(d, "value", 2)),
    ("degradation", "bps"): _degradation,
    ("approvals in the log", "share"): _later("approvals"),
    ("entropy", "nat"): _later("entropy"),
    ("propensity", "1"): _later("propensity"),
    ("predicted gap", "1"): _later("gap"),
    ("AUC", "1"): _later("auc"),
    ("average precision of declines", "1"): _later("average_precision_declines"),
    ("log-loss", "nat"): _later("log_loss"),
    ("Brier score", "1"): _later("brier"),
    ("calibration error", "1"): _later("ece"),
    ("C_2 of the next policy", "1"): _later("c2"),
    ("C_phi of the next policy", "1"): _later("c_phi"),
    ("error of the model's own estimate", "bps"): _absolute("model_error"),
    ("its bound", "bps"): _later("model_error_bound", BASIS_POINTS),
    ("online log-loss", "nat"): _later("online_log_loss"),
    ("learning rate", "1"): _later("learning_rate"),
    ("rows learned from", "rows"): _later("rows"),
}
"""Metric and unit, and its number in each world."""


def rows_of(
    scenario: str, found: Mapping[str, xr.Dataset], tuned: Mapping[str, xr.Dataset], baseline: str
) -> list[Row]:
    """The rows of one scenario, arm by arm."""

    def row(arm: str, metric: str, unit: str, i: Interval, scale: float = 1.0) -> Row:
        return Row(scenario, arm, metric, unit, scale * i.mean, scale * i.low, scale * i.high, i.n)

    rows = []
    for arm, data in found.items():
        value = online_value(data).values
        rows.append(row(arm, "online value", "share", t_interval(value)))
        if arm != baseline:
            gain = paired_t_test(value, online_value(found[baseline]).values)
            rows.append(row(arm, "uplift", "bps", gain, BASIS_POINTS))
        if arm in tuned:
            rows.append(Row(scenario, arm, f"tuned {tuned[arm].attrs['parameter']}", "1", float(tuned[arm]["chosen"])))
        for (metric, unit), number in COLUMNS.items():
            values = number(data)
            if np.isfinite(values).all():
                rows.append(row(arm, metric, unit, t_interval(values)))
        reversals, changes = zig_zags(_series(data, "value", 1))
        share = proportion_interval(int(reversals.sum()), changes * len(reversals))
        rows.append(row(arm, "reversals of the online value", "share", share))
        if arm in tuned:
            rows += _sweep(scenario, arm, tuned[arm])
    return rows


def _sweep(scenario: str, arm: str, tuned: xr.Dataset) -> list[Row]:
    """The online value of every number that was tried, over the tuning worlds."""
    rows = []
    for setting in tuned["setting"].values:
        i = t_interval(tuned["value"].sel(setting=setting).values)
        rows.append(
            Row(scenario, f"{arm} at {setting:g}", "online value in tuning", "share", i.mean, i.low, i.high, i.n)
        )
    return rows

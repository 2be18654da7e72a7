"""The numbers of an MRI study: rows with intervals, and what they say in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from apps.mri.calibration import coverage, errors_and_spread
from apps.mri.methods import NAMES
from core.stats import Interval, holm, mean_interval, paired_difference, proportion_interval
from core.study import Row
from core.study.numbers import estimate

if TYPE_CHECKING:
    from apps.mri.study import Comparison

RESAMPLES = 2000
METRICS = {"psnr": "dB", "ssim": "1", "mae": "1", "nmse": "1", "nmse_region": "1", "actions": "1"}
FAULTS = {
    "restarts": "particles that guidance blew up",
    "collapsed": "subjects whose particles agreed on everything",
    "saturated": "subjects whose particles disagreed on everything, beyond what the score can tell",
    "dropped": "requests that were not delivered",
}
"""What goes wrong and is survived: counts in a run's dataset."""
MEASURES = (
    "All metrics are taken of what is looked at: the magnitude of complex images, and real images mapped from [-1, 1] "
    "to [0, 1]. PSNR and SSIM take the largest value of each target as their range; SSIM has a uniform 7 x 7 window. "
    "The estimate is the mean over the particles of what is looked at."
)


def metrics_of(data: xr.Dataset) -> dict[str, np.ndarray]:
    """Mean over the seeds of every metric, subject by subject."""
    return {m: data[m].mean("seed").values.astype(float) for m in METRICS if m in data}


def rows_of(s: Comparison, metrics: Mapping[str, Mapping[str, np.ndarray]]) -> list[Row]:
    """Every metric of every method, and by how much ADS is better in the main one."""
    rows: list[Row] = []
    for method, values in metrics.items():
        for metric, unit in METRICS.items():
            if metric not in values or (metric == "actions" and np.ptp(values[metric]) == 0):
                continue
            name = metric.upper() if "_" not in metric and metric != "actions" else metric.replace("_", " ")
            rows.append(_row(s, method, name, unit, mean_interval(values[metric], resamples=RESAMPLES)))
    return rows + _gains(s, metrics)


def _row(s: Comparison, method: str, metric: str, unit: str, i: Interval) -> Row:
    return Row(s.name, method, metric, unit, i.mean, i.low, i.high, i.n)


def _gains(s: Comparison, metrics: Mapping[str, Mapping[str, np.ndarray]]) -> list[Row]:
    """By how much ADS is better than each other method, in how many subjects, and p adjusted for all rivals (Holm)."""
    main = "mae" if s.operator in ("pixels", "columns") else "psnr"
    sign = -1 if main == "mae" else 1
    rivals = [method for method in metrics if method != "ads"] if "ads" in metrics else []
    pairs = [(sign * metrics["ads"][main], sign * metrics[method][main]) for method in rivals]
    gains = [paired_difference(*pair, resamples=10_000) for pair in pairs]
    if not gains:
        return []
    adjusted = holm(np.array([gain.p for gain in gains], float))
    rows: list[Row] = []
    for method, (ours, theirs), gain, p in zip(rivals, pairs, gains, adjusted, strict=True):
        rows.append(_row(s, method, f"gain of ADS in {main.upper()}", METRICS[main], gain))
        if untied := int((ours != theirs).sum()):
            share = proportion_interval(int((ours > theirs).sum()), untied)
            rows.append(_row(s, method, "ADS is better, ties left out", "share", share))
        rows.append(Row(s.name, method, "p of the gain (Holm)", "1", float(p), n=gain.n))
    return rows


def coverage_rows(s: Comparison, found: Mapping[str, xr.Dataset]) -> list[Row]:
    """Share of pixels within the nominal 90 % interval of the particles, of the subjects whose images are kept."""
    rows = []
    for method, data in found.items():
        if "std" in data:
            share = coverage(*errors_and_spread(data), 0.9)
            if share.n > 1:
                name = "coverage of nominal 90 %"
                rows.append(Row(s.name, method, name, "share", share.mean, share.low, share.high, share.n))
    return rows


def losses_of(s: Comparison, metrics: Mapping[str, Mapping[str, np.ndarray]]) -> list[str]:
    """Where other methods are clearly better than ADS, in words."""
    if "ads" not in metrics:
        return []
    said = []
    for metric in ("mae",) if s.operator in ("pixels", "columns") else ("psnr", "ssim"):
        sign = -1 if metric == "mae" else 1
        better = []
        for method, values in metrics.items():
            lead = paired_difference(sign * values[metric], sign * metrics["ads"][metric], resamples=RESAMPLES)
            if method != "ads" and lead.low > 0:
                unit = METRICS[metric].removeprefix("1")
                better.append(
                    f"{NAMES[method]} (by {estimate(lead.mean, lead.low, lead.high)} {unit})".replace(" )", ")")
                )
        if better:
            said.append(f"{s.name}: better than ADS in {metric.upper()}: {', '.join(better)}.")
    return said


def regret_rows(s: Comparison, found: list[xr.Dataset]) -> list[Row]:
    """Mean distance in NMSE from the best mask of each subject."""
    data = xr.concat(found, "subject")
    rows = []
    for method in (*data.method.values, "greedy"):
        # As a keyword, ``method`` is the way of sel to look up.
        errors = data.nmse.sel({"method": method}) if method != "greedy" else data.nmse_greedy
        regret = mean_interval(errors.values - data.nmse_best.values, resamples=RESAMPLES)
        name = "clairvoyant greedy" if method == "greedy" else str(method)
        rows.append(Row(s.name, name, "regret in NMSE", "1", regret.mean, regret.low, regret.high, regret.n))
    return rows


def notes_of(s: Comparison, found: Mapping[str, xr.Dataset]) -> list[str]:
    """What a reader of the numbers must know: one head, more actions than the budget, faults."""
    notes = []
    if s.images.kind == "atlas":
        notes.append(
            f"{s.name}: there is one averaged head: training and test slices differ by plane, contrast, pose and phase "
            "only. On smooth anatomy of low resolution a low-pass mask ties with ADS and a mask searched on training "
            "data may be better; adaptivity pays where subjects differ in k-space."
        )
    warnings = {w for data in found.values() if (w := str(data.attrs.get("warning", "")))}
    notes += [f"{s.name}: {warning}" for warning in sorted(warnings)]
    if {"subpo", "ads"} <= set(found):
        notes.append(
            f"{s.name}: SubPO chooses from exact posterior samples, ADS from the particles of its diffusion: "
            "ads_exact is SubPO's equal in what it knows."
        )
    taken = found["ads"].actions.values if "ads" in found else np.array([s.budget])
    if s.sampling.schedule == "reference" and np.any(taken != s.budget):
        notes.append(f"{s.name}: the reference's schedule took {taken.max():.0f} actions, the budget is {s.budget}.")
    faults = {fault: int(sum(float(data[fault].sum()) for data in found.values())) for fault in FAULTS}
    if any(faults.values()):
        said = ", ".join(f"{count} {fault}" for fault, count in faults.items() if count)
        notes.append(f"{s.name}: {said} ({'; '.join(f'{name}: {what}' for name, what in FAULTS.items())}).")
    return notes

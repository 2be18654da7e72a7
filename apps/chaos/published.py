"""Published results beside ours: checks of the metric and of the integration, and comparisons of scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import xarray as xr
from numpy.typing import NDArray

from apps.chaos import published_tables as tables
from apps.chaos.metrics import nrmse, smape
from core.errors import InputError
from core.stats import Interval, average_ranks, rank_correlation
from simulators.chaos import Flow, integrate, load, names, stored

TRAINED = 1000
"""Samples that the published short forecasts were fitted to."""
SPACING = 12 / 1199
"""Between two samples of the published series, in periods."""
_TOLERANCE = 1e-10


def published_smape_check() -> xr.Dataset:
    """The sMAPE of the stored forecasts of three methods, recomputed, against the published table.

    It tests the metric, not a forecaster.

    Returns:
        By ``row`` of the table: ``system``, ``method``, ``published``, ``ours`` and the relative ``deviation``
        |ours - published| / published.

    Raises:
        InputError: a file that is not what it should be, or a row without forecast.
    """
    table, stored_forecasts = tables.smape_200(), tables.forecasts_200()
    ours = []
    for system, method in zip(table["system"], table["method"], strict=True):
        if method not in stored_forecasts.get(system, {}):
            raise InputError(f"published_smape_200step.csv: {system} {method}: has no stored forecast")
        ours.append(float(smape(stored_forecasts[system][tables.TRUTH], stored_forecasts[system][method])))
    theirs = table["smape"].to_numpy()
    return xr.Dataset(
        {
            "published": ("row", theirs, {"units": "%"}),
            "ours": ("row", np.array(ours), {"units": "%"}),
            "deviation": ("row", np.abs(np.array(ours) - theirs) / theirs, {"units": "1"}),
        },
        {"system": ("row", table["system"].to_numpy(object)), "method": ("row", table["method"].to_numpy(object))},
    )


def published_systems() -> tuple[str, ...]:
    """The 133 systems of the published tables, by name."""
    return tuple(sorted(set(tables.smape_200()["system"])))


def checked_systems() -> tuple[str, ...]:
    """The published systems that can be integrated from their first sample: autonomous, and states seen as they are.

    Raises:
        MissingExtra: dysts is not installed.
    """
    catalogue = set(names("ode"))
    found = [stored(name) for name in published_systems() if name in catalogue]
    return tuple(s.name for s in found if not s.postprocessed and not s.nonautonomous)


def published_truth_check(
    systems: Sequence[str] | None = None,
    *,
    samples: int = 25,
    tolerance: float = 1e-2,
    progress: Callable[[float, str], None] | None = None,
) -> xr.Dataset:
    """The published series, integrated from their first samples by our simulator.

    Args:
        systems: which; by default ``checked_systems()``.
        samples: that are compared, the first among them.
        tolerance: a series is met where the error is below.
        progress: told the share done and the system.

    Returns:
        By ``system``: ``error``, the root mean over samples and channels of ((ours - published) / standard deviation
        of the 200 published samples)^2, NaN where the integration failed, and ``met``.

    Raises:
        InputError: a system that is not among ``checked_systems()``, or not 2 to 200 samples.
        MissingExtra: dysts is not installed.
    """
    if not 2 <= samples <= 200:
        raise InputError(f"samples: {samples} is outside [2, 200]")
    published = tables.forecasts_200()
    possible = checked_systems()
    chosen = possible if systems is None else tuple(systems)
    errors, engines = [], set()
    for number, name in enumerate(chosen):
        if name not in possible:
            raise InputError(f"system {name!r}: is not among the {len(possible)} that start from a published sample")
        if progress is not None:
            progress(number / len(chosen), name)
        flow, truth = load(name), published[name][tables.TRUTH]
        assert isinstance(flow, Flow)
        times = torch.arange(samples, dtype=torch.float64) * (SPACING * flow.period)
        start = torch.from_numpy(truth[:1])
        found = integrate(flow, start, times, rtol=_TOLERANCE, atol=_TOLERANCE)
        engines.add(found.engine)
        errors.append(float(nrmse(truth[:samples], found.states[0].cpu().numpy(), std=truth.std(0))))
    error = np.array(errors)
    return xr.Dataset(
        {"error": ("system", error, {"units": "standard deviations"}), "met": ("system", error < tolerance)},
        {"system": np.array(chosen, dtype=object)},
        {"samples": samples, "tolerance": tolerance, "rtol": _TOLERANCE, "engine": ", ".join(sorted(engines))},
    )


def published_scores(method: str, folder: Path | None = None) -> xr.Dataset:
    """The published sMAPE (0 to 200) of a method on forecasts of 200 samples, the mean over its repeats.

    Args:
        method: such as ``nbeats``; ``esn``, ``nvar`` and ``node`` come with the project.
        folder: of the other tables; $SZILARD_DATA/chaos if None.

    Returns:
        ``smape`` by ``system`` after 1000 samples and, where there is the folder, ``smape_by_train_length`` by
        ``system`` and ``train_length``. Of esn, nvar and node the two are different runs: in the sweep their
        hyper-parameter was chosen on the segment that is scored.

    Raises:
        InputError: a method that is not published, or only in tables that are absent.
    """
    return _published(method, *_tables(folder))


def method_ranks(scores: xr.DataArray) -> xr.Dataset:
    """Mean ``rank`` over systems of each method (1 the lowest score), of ``scores`` with dims system and method.

    Attributes of the result: ``critical_difference`` (Nemenyi, 95 %), ``friedman_p`` and ``systems``. A NaN ranks last.

    Raises:
        InputError: other dims, or fewer than two methods or systems.
    """
    found = average_ranks(_scores(scores).transpose("method", "system").values)
    attrs = {"critical_difference": found.critical_difference, "friedman_p": found.p, "systems": found.systems}
    return xr.Dataset({"rank": ("method", found.ranks)}, {"method": scores["method"].values}, attrs)


def compare_with_published(
    ours: xr.DataArray, *, train_length: int = TRAINED, folder: Path | None = None
) -> xr.Dataset:
    """Our sMAPE of 200 samples beside the published one.

    Args:
        ours: ``system`` x ``method``, sMAPE (0 to 200) in the units of the systems.
        train_length: samples that were fitted, one of the published sweep.
        folder: of the published tables; $SZILARD_DATA/chaos if None.

    Returns:
        Of the systems and methods that both have: ``ours`` and ``published`` by system and method; by method
        Spearman's ``correlation`` over systems with ``correlation_low``, ``correlation_high`` (95 %, NaN for fewer
        than four systems) and ``correlation_n``, and the mean ranks ``rank_ours``, ``rank_published`` over the systems
        that every method has in both. Attributes: Spearman's ``method_correlation`` of the mean ranks with ``_low``
        and ``_high``, and the methods that are ``not_published``.

    Raises:
        InputError: other dims, no common system and method, or a train length that was not published.
    """
    scores = _scores(ours)
    short, sweep = _tables(folder)
    known = set(short["method"]) | (set() if sweep is None else set(sweep["method"]))
    asked = scores["method"].values.tolist()
    absent = [str(method) for method in asked if method not in known]
    theirs = {}
    for method in (m for m in asked if m in known):
        found = _published(method, short, sweep)
        theirs[method] = found["smape"] if train_length == TRAINED else _at_length(found, method, train_length)
    if not theirs:
        raise InputError(f"method: none of {', '.join(absent)} is published here; there are {', '.join(sorted(known))}")
    along = xr.Variable("method", np.array(list(theirs), dtype=object))
    published = xr.concat(list(theirs.values()), along, join="outer")
    mine, published = xr.align(scores, published, join="inner")
    if not mine.sizes["system"]:
        raise InputError("system: no system of these scores is published")
    together = xr.Dataset({"ours": mine, "published": published.transpose(*mine.dims).astype(float)})
    each = [
        _correlation(a, b)
        for a, b in zip(*(together[k].transpose("method", ...).values for k in together), strict=True)
    ]
    whole = together.to_array().transpose("variable", "method", "system").values
    both = np.isfinite(whole).all((0, 1))
    ranks = np.full(whole.shape[:2], np.nan)
    if both.sum() > 1 and len(theirs) > 1:
        ranks = np.stack([average_ranks(part[:, both]).ranks for part in whole])
    methods = _correlation(*ranks)
    return together.assign(
        correlation=("method", [c.mean for c in each]),
        correlation_low=("method", [c.low for c in each]),
        correlation_high=("method", [c.high for c in each]),
        correlation_n=("method", [c.n for c in each]),
        rank_ours=("method", ranks[0]),
        rank_published=("method", ranks[1]),
    ).assign_attrs(
        method_correlation=methods.mean,
        method_correlation_low=methods.low,
        method_correlation_high=methods.high,
        not_published=", ".join(absent),
        train_length=train_length,
    )


def compare_with_summary(ours: Mapping[str, float], quantity: str = "smape_at_one_lyapunov_time") -> Interval:
    """Spearman's correlation, over methods, of our numbers and a quantity of the published summary.

    ``n`` of the result counts the methods that both have; all else is NaN where these are fewer than four.

    Raises:
        InputError: a quantity that the summary has not.
    """
    table = tables.summary()
    if quantity not in set(table["quantity"]):
        raise InputError(f"quantity {quantity!r}: must be among {', '.join(sorted(set(table['quantity'])))}")
    theirs = table[table["quantity"] == quantity].set_index("method")["value"]
    common = [method for method in ours if method in theirs.index]
    return _correlation(np.array([ours[m] for m in common], dtype=float), theirs[common].to_numpy())


def _scores(scores: xr.DataArray) -> xr.DataArray:
    if set(scores.dims) != {"system", "method"}:
        raise InputError(f"scores: have the dims {', '.join(map(str, scores.dims))}, expected system and method")
    return scores.reset_coords(drop=True)


def _tables(folder: Path | None) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    there = tables.available(tables.SWEEP, folder)
    return tables.smape_200(), tables.smape_by_train_length(folder) if there else None


def _published(method: str, short: pd.DataFrame, sweep: pd.DataFrame | None) -> xr.Dataset:
    own = short[short["method"] == method].set_index("system")["smape"].sort_index()
    rows = None if sweep is None else sweep[sweep["method"] == method]
    if rows is None or rows.empty:
        if own.empty:
            known = sorted(set((short if sweep is None else sweep)["method"]))
            hint = "" if sweep is not None else f"; {tables.SWEEP} has more: name its folder or set $SZILARD_DATA"
            raise InputError(f"method {method!r}: must be among {', '.join(known)}{hint}")
        return xr.Dataset({"smape": ("system", own.to_numpy())}, {"system": own.index.to_numpy(object)})
    grid = rows.groupby(["system", "train_length"])["smape"].mean().unstack("train_length")
    scores = grid[TRAINED] if own.empty else own.reindex(grid.index)
    by_length = (("system", "train_length"), grid.to_numpy())
    return xr.Dataset(
        {"smape": ("system", scores.to_numpy()), "smape_by_train_length": by_length},
        {"system": grid.index.to_numpy(object), "train_length": grid.columns.to_numpy(int)},
    )


def _at_length(found: xr.Dataset, method: str, train_length: int) -> xr.DataArray:
    if "smape_by_train_length" not in found:
        raise InputError(f"train_length {train_length}: of {method} only {TRAINED} is shipped: set $SZILARD_DATA")
    lengths = found["train_length"].values.tolist()
    if train_length not in lengths:
        raise InputError(f"train_length {train_length}: must be among {', '.join(map(str, lengths))}")
    return found["smape_by_train_length"].sel(train_length=train_length, drop=True)


def _correlation(x: NDArray[np.float64], y: NDArray[np.float64]) -> Interval:
    """Of the finite pairs; NaN where there is none to speak of."""
    keep = np.isfinite(x) & np.isfinite(y)
    x, y, n = x[keep], y[keep], int(keep.sum())
    if n < 4 or np.ptp(x) == 0.0 or np.ptp(y) == 0.0:
        return Interval(math.nan, math.nan, math.nan, n)
    return rank_correlation(x, y)

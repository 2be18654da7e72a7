"""The leaderboard: methods by rank, every pair tested, every system listed, and the published numbers beside ours."""

from __future__ import annotations

from contextlib import suppress
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

from apps.chaos import published_tables
from apps.chaos.evidence import Evidence, pairs
from apps.chaos.protocol import Protocol, Scenario
from apps.chaos.published import TRAINED, compare_with_published
from apps.chaos.study import ChaosStudy
from core import files
from core.errors import InputError
from core.stats import average_ranks, holm, signed_rank_test
from core.study.results import Results


def leaderboard(evidence: Evidence) -> pd.DataFrame:
    """Methods from the best mean rank by valid time on, with their medians over systems; V1 to V3 in Lyapunov times.

    Ranks are NaN for a single method, or fewer than two systems with a Lyapunov time.
    """
    if not evidence.methods:
        return pd.DataFrame()
    scores = np.stack([evidence.by_system(name) for name in evidence.methods])
    scores = scores[:, np.isfinite(scores).any(0)]
    ranks = np.full(len(scores), np.nan)
    if min(scores.shape) > 1:
        ranks = average_ranks(scores, higher_is_better=True).ranks
    rows = []
    for name, rank, score in zip(evidence.methods, ranks, scores, strict=True):
        data = evidence.methods[name]
        rows.append(
            {
                "method": name,
                "mean rank": rank,
                "V1": _median(score),
                "V2": _median(evidence.by_system(name, "V2")),
                "V3": _median(evidence.by_system(name, "V3")),
                "sMAPE at 1 Lyapunov time": _median(evidence.curve(name, "smape", np.ones(1))),
                "short sMAPE": float(data["short"].sel(metric="smape").mean()),
                "seconds of training": float(data["fit_seconds"].mean("replicate").median()),
                "systems": int(np.isfinite(score).sum()),
            }
        )
    return pd.DataFrame(rows).sort_values("mean rank", ignore_index=True)


def published_leaderboard() -> pd.DataFrame:
    """The published numbers of the methods, where they are known, from the smallest error on."""
    rows = published_tables.summary()
    table = rows.pivot(index="method", columns="quantity", values="value").rename_axis(columns=None)
    return table.sort_values(next(iter(rows["quantity"]))).reset_index()


def pairwise(evidence: Evidence) -> pd.DataFrame:
    """Every pair of methods: median difference of the valid time with its interval, wins, and Holm's p."""
    rows = []
    for first, second in combinations(evidence.methods, 2):
        a, b = pairs(evidence.by_system(first), evidence.by_system(second))
        if len(a) >= 2:
            test = signed_rank_test(a, b)
            rows.append(
                {
                    "first": first,
                    "second": second,
                    "median difference": test.mean,
                    "low": test.low,
                    "high": test.high,
                    "systems won by the first": int((a > b).sum()),
                    "systems": test.n,
                    "p": test.p,
                }
            )
    table = pd.DataFrame(rows)
    return table.assign(**{"adjusted p": holm(table["p"].to_numpy())}) if len(table) else table


def by_system(evidence: Evidence) -> pd.DataFrame:
    """Valid times V1 in Lyapunov times, systems by methods."""
    values = {name: evidence.by_system(name) for name in evidence.methods}
    return pd.DataFrame(values, index=pd.Index(evidence.systems["system"].values, name="system"))


def against_published(evidence: Evidence) -> xr.Dataset:
    """Our sMAPE of the short forecast beside the published one, see ``compare_with_published``."""
    ours = xr.concat(
        [data["short"].sel(metric="smape", drop=True).mean("replicate") for data in evidence.methods.values()],
        xr.Variable("method", list(evidence.methods)),
    )
    return compare_with_published(ours)


def write_tables(directory: Path, out: Path) -> list[Path]:
    """Write the leaderboard, the pairs and the systems as CSV, and the published numbers beside ours where these are
    of the same task (``published_task``).

    Args:
        directory: folder of a finished study.
        out: folder to write to.

    Raises:
        InputError: no finished study of this application.
    """
    out.mkdir(parents=True, exist_ok=True)
    study, collected = _finished(directory)
    written = []
    for scenario, evidence in zip(study.scenarios, collected, strict=True):
        tables = {"leaderboard": leaderboard(evidence), "pairwise": pairwise(evidence), "systems": by_system(evidence)}
        if published_task(study.protocol, scenario):
            with suppress(InputError):  # none of the systems and methods of this study is published
                tables["published"] = against_published(evidence).to_dataframe()
        for name, table in tables.items():
            path = out / f"{evidence.name}-{name}.csv"
            files.write(path, table.to_csv(index=name in ("systems", "published")))
            written.append(path)
    return written


def published_task(protocol: Protocol, scenario: Scenario) -> bool:
    """Whether the short forecast is the published one: 200 samples, 100 a period, after 1000 without noise."""
    sampled = (protocol.points, protocol.timescale, protocol.short) == (100, "period", 200)
    fitted = scenario.train_length or protocol.context
    return sampled and fitted == TRAINED and scenario.plain


def stored_evidence(directory: Path) -> list[Evidence]:
    """The results of a finished study, scenario by scenario.

    Raises:
        InputError: no finished study of this application.
    """
    return _finished(directory)[1]


def _finished(directory: Path) -> tuple[ChaosStudy, list[Evidence]]:
    config = directory / "config.yaml"
    if not config.is_file():
        raise InputError(f"{directory}: holds no study")
    study = ChaosStudy.load(config)
    results = Results(directory, study.runs())
    if results.missing():
        raise InputError(f"{directory}: not finished; szilard chaos run goes on with it")
    return study, study.evidence(results)


def _median(values: np.ndarray) -> float:
    return float(np.nanmedian(values)) if np.isfinite(values).any() else float("nan")

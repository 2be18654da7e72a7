"""Evidence about policies from a log of payments: sums over parts of it, which add up to those of the whole."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from apps.payments.log import manifest
from apps.payments.log.join import JOINED, REPORT
from apps.payments.log.tables import Logged, logged, logged_chunks
from apps.payments.metrics import PROPENSITY_EDGES, WEIGHT_EDGES
from apps.payments.oracles import ImbalanceSettings, Oracle, OracleSettings, Rows, fit_oracle
from core import files
from core.bandits import Limits, LoggedRows, PoissonBootstrap, Sums, folds_of, hashed, logged_rows, uniform
from core.errors import InputError, require
from simulators.payments.context import FUNDINGS, INTERACTIONS, SCHEMES, PaymentContext, Sizes

FOLDS = 3
HELD_OUT = FOLDS - 1
"""The fold that a policy does not learn from, so that it can be judged on it."""
LEAST_SEGMENT = 100
"""Rows below which a segment is not judged: the normal approximation would be none."""
CALIBRATION_BINS = 20
"""Of the reward model's reliability, of equal width in the predicted probability."""
NAMES = {"scheme": SCHEMES, "funding": FUNDINGS, "interaction": INTERACTIONS}

Cluster = Literal["row", "day", "merchant", "issuer"]


class Target(Protocol):
    """A policy that can be evaluated."""

    def probabilities(self, context: PaymentContext, mask: Tensor) -> Tensor:
        """Probability ``(n, K)`` of every action, 0 where it is not available."""
        ...


@dataclass(frozen=True)
class UniformTarget:
    """Every available action alike."""

    def probabilities(self, context: PaymentContext, mask: Tensor) -> Tensor:
        """1 / n_A."""
        return uniform(mask)


@dataclass(frozen=True)
class Histograms:
    """Counts that the pictures need; they add.

    Attributes:
        weights: rows by log10 weight, of each policy.
        propensities: rows by log10 propensity.
        calibration: rows, predictions and rewards summed by predicted probability ``(3, bins)``.
    """

    weights: Mapping[str, NDArray[np.float64]]
    propensities: NDArray[np.float64]
    calibration: NDArray[np.float64]

    def __add__(self, other: Histograms) -> Histograms:
        weights = {policy: counts + other.weights[policy] for policy, counts in self.weights.items()}
        propensities = self.propensities + other.propensities
        return Histograms(weights, propensities, self.calibration + other.calibration)


@dataclass(frozen=True)
class Evidence:
    """What the rows of a log, or of a part of it, say of the policies; parts add.

    Attributes:
        whole: sums of all rows.
        segments: sums of the rows of each segment.
        histograms: for the pictures.
    """

    whole: Sums
    segments: Mapping[str, Sums]
    histograms: Histograms

    def __add__(self, other: Evidence) -> Evidence:
        segments = dict(self.segments)
        for name, sums in other.segments.items():
            segments[name] = segments[name] + sums if name in segments else sums
        return Evidence(self.whole + other.whole, segments, self.histograms + other.histograms)


@dataclass(frozen=True)
class Evaluator:
    """Turns a part of a log into evidence; a plain object that can travel to another machine.

    Attributes:
        policies: by name.
        models: of the reward, one a fold of the log, fitted without its rows; none evaluates by weights alone.
        limits: what is made of large weights.
        bootstrap: whose replicates are summed, None for none.
        cluster: what the bootstrap draws as one.
        segment: column whose levels are evaluated by themselves, None for none.
        levels: of that column that are kept apart; the others count as one segment.
        logging: a model of the policy that logged, for a log without propensities.
        distributions: whether the log has the probabilities of all actions.
        fold: only the rows of this fold are looked at; None for all.
        reward_range: bounds that hold for every reward.
    """

    policies: Mapping[str, Target]
    models: tuple[Oracle[Any], ...] = ()
    limits: Limits = field(default_factory=Limits)
    bootstrap: PoissonBootstrap | None = None
    cluster: Cluster = "row"
    segment: str | None = None
    levels: tuple[int, ...] = ()
    logging: Target | None = None
    distributions: bool = False
    fold: int | None = None
    reward_range: tuple[float, float] = (0.0, 1.0)

    def select(self, rows: Logged) -> Logged:
        """The rows that are looked at."""
        return rows if self.fold is None else rows.take(fold_of(rows) == self.fold)

    def __call__(self, rows: Logged) -> Evidence:
        """The evidence of n rows.

        Raises:
            InputError: a propensity, action or reward that cannot be.
        """
        model, estimated = self._predictions(rows), rows.pi if self.distributions else None
        if self.logging is not None:
            estimated = self.logging.probabilities(rows.context, rows.mask)
            rows = replace(rows, propensity=estimated.gather(1, rows.action[:, None]).squeeze(1))
        seen = {
            name: logged_rows(
                rows.action,
                rows.reward,
                rows.propensity,
                policy.probabilities(rows.context, rows.mask),
                model,
                rows.mask,
                logging_probabilities=estimated,
                reward_range=self.reward_range,
            )
            for name, policy in self.policies.items()
        }
        if estimated is None:
            # Whether the logged policy ever took an action is then unknown: the mask alone does not say it.
            seen = {name: replace(part, missing=None) for name, part in seen.items()}
        ids = self._ids(rows)
        segments = {
            name: self._sums({policy: part.take(mask) for policy, part in seen.items()}, ids[mask])
            for name, mask in self._segments(rows)
        }
        return Evidence(self._sums(seen, ids), segments, _histograms(seen, rows))

    def _sums(self, rows: Mapping[str, LoggedRows], ids: Tensor) -> Sums:
        return Sums.of(rows, bootstrap=self.bootstrap, ids=ids if self.bootstrap else None, **vars(self.limits))

    def _predictions(self, rows: Logged) -> Tensor | None:
        if not self.models:
            return None
        fold = fold_of(rows)
        found = torch.empty(rows.mask.shape, dtype=torch.float64)
        for k, fitted in enumerate(self.models):
            mine = fold == k
            found[mine] = fitted.predict_all(rows.context.take(mine), torch.float64)
        return found

    def _ids(self, rows: Logged) -> Tensor:
        if self.cluster == "row":
            return words(rows.ids)
        return rows.day if self.cluster == "day" else getattr(rows.context, self.cluster)

    def _segments(self, rows: Logged) -> Iterator[tuple[str, Tensor]]:
        if self.segment is None:
            return
        column = getattr(rows.context, self.segment)
        others = torch.ones(len(rows), dtype=torch.bool)
        for level in self.levels:
            mask = column == level
            others &= ~mask
            if bool(mask.any()):
                yield segment_name(self.segment, level), mask
        if bool(others.any()):
            yield f"other {self.segment}s", others


def segment_name(column: str, level: int) -> str:
    """A segment in words."""
    names = NAMES.get(column, ())
    return f"{column} {names[level] if 0 <= level < len(names) else level}"


def words(ids: Tensor) -> Tensor:
    """``(n,)`` int64 of 16-byte ids ``(n, 16)``, which are hashes: their first half is as good as the whole."""
    return ids[:, :8].contiguous().view(torch.int64).squeeze(1)


def fold_of(rows: Logged) -> Tensor:
    """``(n,)`` fold of each row, by the hash of its transaction: it stays as the log grows."""
    return folds_of(words(rows.ids), FOLDS)


def _histograms(seen: Mapping[str, LoggedRows], rows: Logged) -> Histograms:
    def counts(values: Tensor, edges: NDArray[np.float64]) -> NDArray[np.float64]:
        inside = np.log10(values.numpy().clip(10.0 ** edges[0], 10.0 ** edges[-1]))
        return np.histogram(inside, edges)[0].astype(np.float64)

    weights = {name: counts(part.target / part.propensity, WEIGHT_EDGES) for name, part in seen.items()}
    predicted = next(iter(seen.values())).q_logged
    calibration = np.zeros((3, CALIBRATION_BINS))
    if predicted is not None:
        cell = (predicted * CALIBRATION_BINS).long().clamp_(0, CALIBRATION_BINS - 1)
        columns = (torch.ones_like(predicted), predicted, rows.reward)
        calibration = torch.stack([torch.bincount(cell, x, CALIBRATION_BINS) for x in columns]).numpy()
    return Histograms(weights, counts(rows.propensity, PROPENSITY_EDGES), calibration)


@dataclass(frozen=True)
class PaymentsLog:
    """A joined log: its Parquet file, and how many actions its masks are over.

    Attributes:
        path: of the file.
        sizes: of the portfolio that its contexts are of.
        propensities: whether they were logged.
    """

    path: Path
    sizes: Sizes
    propensities: bool = True

    @property
    def actions(self) -> int:
        """K."""
        return self.sizes.actions

    @property
    def rows(self) -> int:
        """Decisions in the file, with a reward or without."""
        return int(require("pyarrow.parquet", "payments").read_metadata(self.path).num_rows)

    @staticmethod
    def open(place: Path, actions: int | None = None, *, propensities: bool = True) -> PaymentsLog:
        """The joined log in a file or in the folder of a join, of as many levels as its contexts have.

        Args:
            place: the file or the folder.
            actions: K; what ``join.json`` beside the file says if None.
            propensities: whether they were logged.

        Raises:
            InputError: there is none, or its columns are not those of a joined log.
        """
        path = place / JOINED if place.is_dir() else place
        if not path.is_file():
            raise InputError(
                f"{path}: no such log; szilard payments join makes one, and --format open_bandit reads a campaign"
            )
        pl = require("polars", "payments")
        try:
            known = pl.scan_parquet(path)
            if propensities and "propensity" not in known.collect_schema():
                raise InputError(
                    f"{path}: the column propensity is missing, without which nothing can be evaluated; "
                    "--estimate-propensities models it, and decides nothing"
                )
            most = known.select(pl.col("issuer", "merchant", "country").max()).collect(engine="streaming").row(0)
        except pl.exceptions.PolarsError as error:
            line = next(iter(str(error).splitlines()), type(error).__name__)
            raise InputError(f"{path}: not a joined log in Parquet: {line}") from error
        report = path.with_name(REPORT)
        said = int(files.read_json(report, ("actions",))["actions"]) if report.exists() else None
        if actions is None and said is None:
            raise InputError(f"{path}: no {REPORT} beside it says how many actions there are: give --actions")
        if actions is not None and said is not None and actions != said:
            raise InputError(f"--actions {actions}: {report} says {said}")
        actions = said if actions is None else actions
        assert actions is not None
        issuers, merchants, countries = (max(1, 1 + int(level or 0)) for level in most)
        flags = max(Sizes().flags, (actions - 1).bit_length())
        return PaymentsLog(path, Sizes(issuers, merchants, countries, flags), propensities)

    def tables(self) -> Iterator[Any]:
        """The rows as Arrow tables, a part at a time."""
        pa, parquet = require("pyarrow", "payments"), require("pyarrow.parquet", "payments")
        with parquet.ParquetFile(self.path) as file:
            yield from (pa.Table.from_batches([batch]) for batch in file.iter_batches())

    def sample(self, rows: int, seed: int = 0) -> Logged:
        """About ``rows`` of the rows, chosen by the hash of their transactions; all where there are fewer."""
        parts = []
        share = min(1.0, rows / max(self.rows, 1))
        limit = int((2 * share - 1) * 2**63) if share < 1 else 2**63 - 1
        for part in self._chunks():
            parts.append(part.take(hashed(words(part.ids), seed) <= limit))
        if not parts:
            raise InputError(f"{self.path}: no decision in it has a reward")
        return Logged.cat(parts)

    @property
    def distributions(self) -> bool:
        """Whether every decision has the probabilities of all actions."""
        pl = require("polars", "payments")
        known = pl.scan_parquet(self.path)
        if "pi" not in known.collect_schema():
            return False
        return known.select(pl.col("pi").null_count()).collect(engine="streaming").item() == 0

    def checksum(self) -> str:
        """SHA-256 of the file."""
        return manifest.sha256(self.path)

    def reduce(self, evaluator: Evaluator, progress: Callable[[int], None]) -> Evidence:
        """The evidence of all rows, part by part; on a Ray cluster by Ray Data, where this code runs on one.

        Args:
            evaluator: of a part.
            progress: told the rows that are done.
        """
        ray = sys.modules.get("ray")
        # A cluster of one core is busy with whoever asks: Ray Data would wait for it forever.
        if ray is not None and ray.is_initialized() and ray.cluster_resources().get("CPU", 0) > 1:
            return self._reduce_on_ray(evaluator)
        found: Evidence | None = None
        done = 0
        for part in self._chunks():
            done += len(part)
            part = evaluator.select(part)
            if not len(part):
                continue
            evidence = evaluator(part)
            found = evidence if found is None else found + evidence
            progress(done)
        if found is None:
            raise InputError(f"{self.path}: no decision in it has a reward")
        return found

    def _chunks(self) -> Iterator[Logged]:
        return logged_chunks(self.path, self.actions, propensities=self.propensities)

    def _reduce_on_ray(self, evaluator: Evaluator) -> Evidence:
        data = require("ray.data", "ray")
        data.DataContext.get_current().enable_progress_bars = False
        parts = data.read_parquet(str(self.path)).map_batches(
            _part, batch_format="pyarrow", batch_size=1 << 17, fn_args=(evaluator, self.actions, self.propensities)
        )
        # Parts come in any order; sums of floats do not mind more than rounding.
        found = [row["evidence"] for row in parts.iter_rows() if row["evidence"] is not None]
        if not found:
            raise InputError(f"{self.path}: no decision in it has a reward")
        return reduce(lambda a, b: a + b, found)


def _part(table: Any, evaluator: Evaluator, actions: int, propensities: bool) -> dict[str, NDArray[Any]]:
    torch.set_num_threads(1)
    rows = evaluator.select(logged(table, actions, propensities=propensities))
    found = np.empty(1, dtype=object)
    found[0] = evaluator(rows) if len(rows) else None
    return {"evidence": found}


def fit_models(sample: Logged, sizes: Sizes, settings: OracleSettings, seed: int = 0) -> tuple[Oracle[Any], ...]:
    """Reward models for cross-fitting on a sample of a log, each without the rows of its fold.

    Raises:
        InputError: rows that cannot be learned from.
        OracleNotFitted: a fold's rows have one label only.
    """
    fold = fold_of(sample)
    models = []
    for k in range(FOLDS):
        training = sample.take(fold != k)
        rows = Rows(training.context, training.action, training.reward)
        models.append(fit_oracle(settings, ImbalanceSettings(), rows, sizes, seed=seed + k))
    return tuple(models)


def largest_levels(sample: Logged, column: str, count: int) -> tuple[int, ...]:
    """The ``count`` levels of a category with the most rows."""
    levels, counts = getattr(sample.context, column).unique(return_counts=True)
    order = counts.argsort(descending=True, stable=True)[:count]
    return tuple(levels[order].sort().values.tolist())

"""Reading decisions and rewards: files that are torn or of another schema are named, impossible rows set apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.payments.log import manifest
from apps.payments.log.schema import OPTIONAL, check_schema, found_mask_kind
from core.errors import InputError, require
from simulators.payments.context import CATEGORIES, NUMERICS

if TYPE_CHECKING:
    import polars as pl
    import pyarrow as pa

SUM_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Source:
    """Rows of one kind.

    Attributes:
        frame: them, of the wanted types; a value that does not fit its type is null.
        rows: how many.
        schema: Arrow schema wanted.
        ignored: a line for each file that was not read.
        lost: rows in those files, as far as is known.
    """

    frame: pl.LazyFrame
    rows: int
    schema: pa.Schema
    ignored: tuple[str, ...] = ()
    lost: int = 0


def parquet_files(place: Path) -> tuple[list[Path], dict[str, int]]:
    """The Parquet files of a log (those that its manifest names and that are intact), of a folder, or one file.

    Returns:
        The files in the order of their names, and the rows behind each line that tells of a damaged one.

    Raises:
        InputError: there is no such place, or no Parquet file in it.
    """
    if (place / manifest.NAME).exists():
        entries = manifest.read(place).files
        damaged = manifest.damaged(place, entries)
        ignored = {line: entry.rows for entry, line in damaged.items()}
        return sorted(place / entry.path for entry in entries if entry not in damaged), ignored
    found = sorted(place.rglob("*.parquet")) if place.is_dir() else [place]
    if not found or not found[0].is_file():
        raise InputError(f"{place}: no Parquet file there")
    return found, {}


def scan(places: Path | Sequence[Path], schema: pa.Schema, *, strict: bool = False) -> Source:
    """Rows of logs, folders and files as one lazy frame.

    A file that is torn, or lacks a column, or has one of another type, is ignored and named.

    Args:
        places: what to read.
        schema: wanted; masks may be of any kind that the first readable file has.
        strict: refuse instead of ignoring.

    Raises:
        InputError: no file can be read; or, if ``strict``, a file cannot.
    """
    pl = require("polars", "payments")
    pa, parquet = require("pyarrow", "payments"), require("pyarrow.parquet", "payments")
    groups: dict[Any, list[Path]] = {}
    ignored: dict[str, int] = {}
    rows = 0
    for place in [places] if isinstance(places, Path) else places:
        paths, damaged = parquet_files(place)
        ignored |= damaged
        for path in paths:
            try:
                footer = parquet.read_metadata(path)
            except (OSError, pa.ArrowInvalid) as error:
                ignored[f"{path}: is torn or no Parquet file ({str(error).splitlines()[0]})"] = 0
                continue
            found = footer.schema.to_arrow_schema().remove_metadata()
            try:
                check_schema(found, schema)
            except InputError as error:
                ignored[f"{path}: {error}; its {footer.num_rows} rows are ignored"] = footer.num_rows
                continue
            groups.setdefault(found, []).append(path)
            rows += footer.num_rows
    if ignored and (strict or not groups):
        raise InputError(next(iter(ignored)))
    frames = [cast(pl.scan_parquet(paths, hive_partitioning=False), found, schema) for found, paths in groups.items()]
    frame = pl.concat(frames) if frames else pl.from_arrow(schema.empty_table()).lazy()
    return Source(frame, rows, schema, tuple(ignored), sum(ignored.values()))


def cast(frame: pl.LazyFrame, found: pa.Schema, wanted: pa.Schema) -> pl.LazyFrame:
    """The wanted columns in their types; null where a value does not fit or an optional column is absent."""
    pl = require("polars", "payments")
    types = pl.from_arrow(wanted.empty_table()).schema
    return frame.select(
        (pl.col(name) if name in found.names else pl.lit(None).alias(name)).cast(kind, strict=False)
        for name, kind in types.items()
    )


def decision_reason(schema: pa.Schema, actions: int, *, context: bool = True) -> pl.Expr:
    """Why a decision is refused, in words; null for one that is possible.

    Args:
        schema: of the decisions.
        actions: K.
        context: refuse decisions without their context.
    """
    pl = require("polars", "payments")
    action, propensity = pl.col("action"), pl.col("propensity")
    kind = found_mask_kind(schema)
    if kind == "bits":
        one = pl.lit(1, dtype=pl.UInt64)
        bit = pl.lit(2, dtype=pl.UInt64).pow(action.clip(0, 63).cast(pl.UInt32))
        empty, beyond = pl.col("mask") == 0, pl.lit(False)
        if actions < 64:
            beyond = pl.col("mask") >= one * 2**actions
        chosen = pl.col("mask") & bit != 0
    elif kind == "list":
        empty, beyond = (
            pl.col("mask").list.len() == 0,
            ~pl.col("mask").list.eval(pl.element().is_between(0, actions - 1)).list.all(),
        )
        chosen = pl.col("mask").list.contains(action)
    else:
        allowed, forced, bits = pl.col("allowed").cast(pl.Int64), pl.col("forced").cast(pl.Int64), action.cast(pl.Int64)
        empty, beyond = pl.lit(False), (allowed | forced) >= actions
        chosen = (bits & ~(allowed | forced) == 0) & (bits & forced == forced)
    pi = pl.col("pi")
    spared = OPTIONAL if context else (*OPTIONAL, *CATEGORIES, *NUMERICS)
    required = [name for name in schema.names if name not in spared]
    reasons = {
        **{f"{name} is missing": pl.col(name).is_null() for name in required},
        "decision_id is not of 16 bytes": pl.col("decision_id").bin.size() != 16,
        **{f"{name} is not finite": ~pl.col(name).is_finite() for name in NUMERICS},
        "propensity is not in (0, 1]": ~((propensity > 0) & (propensity <= 1)),
        "no action is available": empty,
        f"the mask has an action beyond the {actions} that there are": beyond,
        f"the action is not one of 0 to {actions - 1}": ~action.is_between(0, actions - 1),
        "the action is not available": ~chosen,
        "gamma is negative or not finite": ~((pl.col("gamma") >= 0) & pl.col("gamma").is_finite()),
        "eps is not in [0, 1]": ~pl.col("eps").is_between(0, 1),
        "pi does not sum to 1": (pi.list.eval(pl.element().cast(pl.Float64)).list.sum() - 1).abs() > SUM_TOLERANCE,
        "pi has a probability that is negative or not a number": ~pi.list.eval(pl.element() >= 0).list.all(),
    }
    return _first_reason(reasons)


def reward_reason(*, net_value: bool = False) -> pl.Expr:
    """Why a reward is refused, in words; null for one that is possible.

    Args:
        net_value: rewards are amounts, not approvals in [0, 1].
    """
    pl = require("polars", "payments")
    reward = pl.col("reward")
    possible = reward.is_finite() if net_value else (reward >= 0) & (reward <= 1)
    return _first_reason(
        {
            **{f"{name} is missing": pl.col(name).is_null() for name in ("decision_id", "event_time", "reward")},
            "decision_id is not of 16 bytes": pl.col("decision_id").bin.size() != 16,
            "the reward is not finite" if net_value else "the reward is not in [0, 1]": ~possible,
        }
    )


def _first_reason(reasons: dict[str, pl.Expr]) -> pl.Expr:
    pl = require("polars", "payments")
    # What cannot be told of a null is not held against it: optional columns may be null, others have their own reason.
    return pl.coalesce(pl.when(wrong.fill_null(False)).then(pl.lit(reason)) for reason, wrong in reasons.items())


def refuse_rows(frame: pl.LazyFrame, reason: pl.Expr, name: str) -> None:
    """Refuse a frame with impossible rows.

    Raises:
        InputError: naming the first three.
    """
    numbered = frame.select(reason.alias("reason")).with_row_index("row")
    bad = numbered.filter(require("polars", "payments").col("reason").is_not_null()).head(3).collect()
    if len(bad):
        raise InputError(f"{name}: " + "; ".join(f"row {row}: {why}" for row, why in bad.rows()))

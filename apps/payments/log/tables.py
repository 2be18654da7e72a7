"""Between the log's Arrow tables and the tensors of a policy: contexts, masks, and rows to learn and evaluate from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from apps.payments.log.schema import check_schema, decision_schema, found_mask_kind, mask_kind
from core.errors import InputError, require
from simulators.payments.context import CATEGORIES, NUMERICS, PaymentContext, dense_mask

if TYPE_CHECKING:
    import pyarrow as pa

    from apps.payments.policy import Decisions, Policy

US_PER_DAY = 86_400_000_000


def contexts(table: pa.Table) -> PaymentContext:
    """The contexts in a table of decisions.

    Raises:
        InputError: a column is missing, or a value in it.
    """
    columns = {}
    for name in CATEGORIES + NUMERICS:
        if name not in table.column_names:
            raise InputError(f"{name}: the column is missing")
        if table[name].null_count:
            raise InputError(f"{name}: {table[name].null_count} values are missing")
        dtype = np.int64 if name in CATEGORIES else np.float64
        columns[name] = torch.from_numpy(table[name].to_numpy().astype(dtype))
    return PaymentContext(**columns)


def masks(table: pa.Table, actions: int) -> Tensor:
    """``(n, K)`` bool, the available actions of each decision, from whichever kind of mask the table has.

    Raises:
        InputError: no mask, or an action beyond K in it (its row is named).
    """
    kind = found_mask_kind(table.schema)
    if kind == "flags":
        allowed, forced = (torch.from_numpy(table[name].to_numpy().astype(np.int64)) for name in ("allowed", "forced"))
        return dense_mask(allowed, forced, (actions - 1).bit_length())
    if kind == "bits":
        words = np.ascontiguousarray(table["mask"].to_numpy().astype("<u8"))
        bits = np.unpackbits(words.view(np.uint8).reshape(-1, 8), axis=1, bitorder="little").astype(bool)
        width = min(actions, bits.shape[1])
        dense = np.zeros((len(bits), actions), dtype=bool)
        dense[:, :width], beyond = bits[:, :width], bits[:, width:].any(1)
    else:
        lists = table["mask"].combine_chunks()
        ids = lists.flatten().to_numpy(zero_copy_only=False)
        rows = np.repeat(np.arange(len(lists)), np.diff(lists.offsets.to_numpy()))
        outside = (ids < 0) | (ids >= actions)
        dense, beyond = np.zeros((len(lists), actions), dtype=bool), np.zeros(len(lists), dtype=bool)
        dense[rows[~outside], ids[~outside]] = True
        beyond[rows[outside]] = True
    if beyond.any():
        raise InputError(f"mask[{int(beyond.argmax())}]: has actions beyond the {actions} that there are")
    return torch.from_numpy(dense)


def mask_column(mask: Tensor) -> pa.Array:
    """Masks ``(n, K)`` as they are written: one u64 up to 64 actions, a list of action ids beyond."""
    pa = require("pyarrow", "payments")
    dense = mask.cpu().numpy()
    if mask_kind(dense.shape[1]) == "bits":
        words = np.zeros((len(dense), 8), dtype=np.uint8)
        packed = np.packbits(dense, axis=1, bitorder="little")
        words[:, : packed.shape[1]] = packed
        return pa.array(words.view("<u8")[:, 0])
    offsets = np.concatenate([[0], np.cumsum(dense.sum(1))])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(np.nonzero(dense)[1], pa.int16()))


def fixed_binary(values: NDArray[np.uint8]) -> pa.Array:
    """``(n, width)`` bytes as a column of fixed width."""
    pa = require("pyarrow", "payments")
    content = pa.py_buffer(np.ascontiguousarray(values))
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(values.shape[1]), len(values), [None, content])


def instants(microseconds: NDArray[np.int64]) -> pa.Array:
    """``(n,)`` microseconds since 1970 as a column of UTC timestamps."""
    pa = require("pyarrow", "payments")
    return pa.array(microseconds, pa.int64()).cast(pa.timestamp("us", "UTC"))


def decision_batch(
    policy: Policy,
    ids: NDArray[np.uint8],
    event_time: NDArray[np.int64],
    tenants: list[str],
    context: PaymentContext,
    mask: Tensor,
    decisions: Decisions,
    *,
    keep_probabilities: bool = False,
) -> pa.RecordBatch:
    """Decisions as rows of the log.

    Args:
        policy: that decided.
        ids: ``(n, 16)`` bytes.
        event_time: ``(n,)`` microseconds since 1970, UTC.
        tenants: n names.
        context: of the n payments.
        mask: ``(n, K)`` bool.
        decisions: what was decided.
        keep_probabilities: write the probabilities of all actions too.
    """
    pa = require("pyarrow", "payments")
    schema, n = decision_schema(mask.shape[1]), len(ids)
    same = {
        "policy_id": policy.policy_id,
        "generation": policy.generation,
        "model_sha": policy.model_sha,
        "rule": policy.rule,
        "eps": policy.epsilon,
    }
    columns = {name: pa.array([value] * n, schema.field(name).type) for name, value in same.items()}
    columns |= {
        "decision_id": fixed_binary(ids),
        "event_time": instants(event_time),
        "tenant": pa.array(tenants, pa.string()),
        "gamma": _column(decisions.gamma, n, pa.float64()),
        "action": _column(decisions.action, n, pa.int16()),
        "propensity": _column(decisions.propensity, n, pa.float64()),
        "mask": mask_column(mask),
        "explore_coin": _column(decisions.coin, n, pa.bool_()),
        "pi": pa.nulls(n, schema.field("pi").type),
    }
    if keep_probabilities:
        pi = decisions.probabilities.cpu().numpy().astype(np.float32)
        flat = pa.FixedSizeListArray.from_arrays(pa.array(pi.reshape(-1)), pi.shape[1])
        columns["pi"] = flat.cast(schema.field("pi").type)
    columns |= {name: _column(value, n, schema.field(name).type) for name, value in context.columns().items()}
    return pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema)


def _column(values: Tensor | None, n: int, kind: pa.DataType) -> pa.Array:
    pa = require("pyarrow", "payments")
    return pa.nulls(n, kind) if values is None else pa.array(values.cpu().numpy(), kind)


@dataclass(frozen=True)
class Logged:
    """Decisions whose reward is known, n rows.

    Attributes:
        ids: ``(n, 16)`` bytes of the decisions, uniform: folds and samples are taken by them.
        context: of the payments.
        mask: ``(n, K)`` bool.
        action: ``(n,)`` int64.
        propensity: ``(n,)`` float64.
        reward: ``(n,)`` float64.
        generation: ``(n,)`` int64, of the policy that decided.
        day: ``(n,)`` int64, days since 1970 of the decision.
        coin: ``(n,)`` bool, false where an exploration slice took its best action; true of other rules.
        pi: ``(n, K)`` probabilities of the policy that logged; NaN where they were not.
    """

    ids: Tensor
    context: PaymentContext
    mask: Tensor
    action: Tensor
    propensity: Tensor
    reward: Tensor
    generation: Tensor
    day: Tensor
    coin: Tensor
    pi: Tensor

    def __len__(self) -> int:
        return len(self.action)

    def take(self, index: Tensor | slice) -> Logged:
        """The rows that an index, a slice or a mask selects."""
        columns = {f.name: getattr(self, f.name)[index] for f in fields(self) if f.name != "context"}
        return Logged(context=self.context.take(index), **columns)

    @staticmethod
    def cat(parts: Sequence[Logged]) -> Logged:
        """The rows of all parts, in order."""
        columns = {
            f.name: torch.cat([getattr(p, f.name) for p in parts]) for f in fields(Logged) if f.name != "context"
        }
        return Logged(context=PaymentContext.cat([part.context for part in parts]), **columns)


def logged(table: pa.Table, actions: int, *, propensities: bool = True) -> Logged:
    """The matched rows of a joined table as tensors.

    Args:
        table: joined.
        actions: K.
        propensities: whether they were logged; NaN if not.

    Raises:
        InputError: a column or a value of the context is missing, or a mask has unknown actions.
    """
    pa, compute = require("pyarrow", "payments"), require("pyarrow.compute", "payments")
    table = table.filter(compute.is_valid(table["reward"])).combine_chunks()
    if not propensities:
        unknown = pa.array(np.full(len(table), np.nan))
        others = table.drop_columns("propensity") if "propensity" in table.column_names else table
        table = others.append_column("propensity", unknown)
    column = {
        name: torch.from_numpy(table[name].to_numpy().astype(dtype))
        for name, dtype in {
            "action": np.int64,
            "propensity": np.float64,
            "reward": np.float64,
            "generation": np.int64,
        }.items()
    }
    ids = np.frombuffer(b"".join(table["decision_id"].to_pylist()), dtype=np.uint8).reshape(-1, 16)
    day = table["event_time"].cast("int64").to_numpy() // US_PER_DAY
    coin = torch.ones(len(table), dtype=torch.bool)
    if "explore_coin" in table.column_names:
        coin = torch.from_numpy(compute.fill_null(table["explore_coin"], True).to_numpy(zero_copy_only=False))
    return Logged(
        ids=torch.from_numpy(ids.copy()),
        context=contexts(table),
        mask=masks(table, actions),
        day=torch.from_numpy(day),
        coin=coin,
        pi=_distributions(table, actions),
        **column,
    )


def _distributions(table: pa.Table, actions: int) -> Tensor:
    """``(n, K)`` logged probabilities, NaN in the rows that have none.

    Raises:
        InputError: a distribution over another number of actions.
    """
    found = torch.full((len(table), actions), torch.nan, dtype=torch.float64)
    if "pi" not in table.column_names or table["pi"].null_count == len(table):
        return found
    lists = table["pi"].combine_chunks()
    known = torch.from_numpy(lists.is_valid().to_numpy(zero_copy_only=False))
    values = torch.from_numpy(lists.flatten().to_numpy(zero_copy_only=False).astype(np.float64))
    width, rest = divmod(values.numel(), int(known.sum()))
    if rest or width > actions:
        raise InputError(f"pi: is not over the {actions} actions that there are")
    # A log of fewer actions than combinations of interventions never takes the others.
    found[known] = torch.nn.functional.pad(values.view(-1, width), (0, actions - width))
    return found


def logged_chunks(joined: Path, actions: int, rows: int = 1 << 17, *, propensities: bool = True) -> Iterator[Logged]:
    """The rows with a reward of a joined file, a part of at most ``rows`` at a time: the file may exceed the memory.

    Args:
        joined: the file.
        actions: K.
        rows: of a part.
        propensities: whether they were logged; a file may lack the column if not.

    Raises:
        InputError: as ``logged``, or a file that cannot be read.
    """
    pa, parquet = require("pyarrow", "payments"), require("pyarrow.parquet", "payments")
    try:
        file = parquet.ParquetFile(joined)
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"{joined}: no readable Parquet file: {error}") from error
    with file:
        wanted = decision_schema(actions, found_mask_kind(file.schema_arrow))
        if not propensities:
            wanted = wanted.remove(wanted.get_field_index("propensity"))
        check_schema(file.schema_arrow, wanted)
        for batch in file.iter_batches(rows):
            found = logged(pa.Table.from_batches([batch]), actions, propensities=propensities)
            if len(found):
                yield found

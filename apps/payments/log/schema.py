"""The columns of the production log: what a decision and a reward are on file, and what fits into them."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from core.errors import InputError, require
from simulators.payments.context import CATEGORIES, NUMERICS

if TYPE_CHECKING:
    import pyarrow as pa

MaskKind = Literal["bits", "list", "flags"]
"""How a mask is on file: one u64, a list of action ids, or the bit fields ``allowed`` and ``forced`` of flags."""
BITS = 64
"""Most actions that a mask of one u64 holds."""
OPTIONAL = ("gamma", "eps", "pi", "explore_coin")
"""Columns of a decision that may be null or absent."""


def transaction_key(tenant: str, transaction_id: str) -> bytes:
    """The 128-bit id of a decision, a hash of whose payment it is; also the counter of its random number."""
    name = tenant.encode()
    return hashlib.blake2b(len(name).to_bytes(4, "little") + name + transaction_id.encode(), digest_size=16).digest()


def key_array(keys: list[bytes]) -> NDArray[np.uint8]:
    """Ids as ``(n, 16)`` bytes."""
    return np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(len(keys), 16)


def mask_kind(actions: int) -> MaskKind:
    """The kind in which masks over so many actions are written by default."""
    return "bits" if actions <= BITS else "list"


@lru_cache
def decision_schema(actions: int, kind: MaskKind | None = None) -> pa.Schema:
    """Arrow schema of decisions.

    Args:
        actions: K, of which the mask is.
        kind: of the mask; one u64 up to 64 actions and a list beyond if None.

    Raises:
        InputError: more than 64 actions in a mask of one u64.
    """
    pa = require("pyarrow", "payments")
    kind = kind or mask_kind(actions)
    if kind == "bits" and actions > BITS:
        raise InputError(f"mask: one u64 holds at most {BITS} actions, here are {actions}: use a list or flags")
    masks = {
        "bits": [("mask", pa.uint64())],
        "list": [("mask", pa.list_(pa.int16()))],
        "flags": [("allowed", pa.uint16()), ("forced", pa.uint16())],
    }
    return pa.schema(
        [
            ("decision_id", pa.binary(16)),
            ("event_time", pa.timestamp("us", "UTC")),
            ("tenant", pa.string()),
            ("policy_id", pa.string()),
            ("generation", pa.int32()),
            ("model_sha", pa.binary(32)),
            ("rule", pa.string()),
            ("gamma", pa.float64()),
            ("eps", pa.float64()),
            ("action", pa.int16()),
            ("propensity", pa.float64()),
            *masks[kind],
            ("pi", pa.list_(pa.float32())),
            ("explore_coin", pa.bool_()),
            *((name, pa.int64()) for name in CATEGORIES),
            *((name, pa.float64()) for name in NUMERICS),
        ]
    )


@lru_cache
def reward_schema() -> pa.Schema:
    """Arrow schema of rewards: what was answered to a decision, when, and by whom."""
    pa = require("pyarrow", "payments")
    return pa.schema(
        [
            ("decision_id", pa.binary(16)),
            ("event_time", pa.timestamp("us", "UTC")),
            ("reward", pa.float32()),
            ("source", pa.string()),
            ("attempt", pa.int16()),
        ]
    )


def found_mask_kind(found: pa.Schema) -> MaskKind:
    """The kind of the masks in a file.

    Raises:
        InputError: no column holds a mask.
    """
    pa = require("pyarrow", "payments")
    if "mask" in found.names:
        kind = found.field("mask").type
        return "list" if pa.types.is_list(kind) or pa.types.is_large_list(kind) else "bits"
    if {"allowed", "forced"} <= set(found.names):
        return "flags"
    raise InputError("mask: the column is missing (or the columns allowed and forced)")


def check_schema(found: pa.Schema, wanted: pa.Schema) -> None:
    """Refuse columns that are missing, or whose type cannot be read as the wanted one without loss of meaning.

    Raises:
        InputError: naming the column, what it is and what it must be.
    """
    pa = require("pyarrow", "payments")
    for field in wanted:
        if field.name not in found.names:
            if field.name in OPTIONAL:
                continue
            raise InputError(f"{field.name}: the column is missing")
        kind = found.field(field.name).type
        if pa.types.is_timestamp(kind) and kind.tz is None:
            raise InputError(f"{field.name}: the timestamps have no time zone, UTC is wanted")
        if not _fits(kind, field.type) and not (pa.types.is_null(kind) and field.name in OPTIONAL):
            raise InputError(f"{field.name}: is {kind}, must be {field.type}")


def _fits(found: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether values of one type can stand for those of another; widths are checked value by value, on reading."""
    types = require("pyarrow", "payments").types
    if types.is_dictionary(found):
        return _fits(found.value_type, wanted)
    if types.is_list(wanted):
        return (types.is_list(found) or types.is_large_list(found)) and _fits(found.value_type, wanted.value_type)
    if types.is_fixed_size_binary(wanted):
        return found == wanted or types.is_binary(found) or types.is_large_binary(found)
    if types.is_floating(wanted):
        return bool(types.is_floating(found) or types.is_integer(found))
    alike = {
        types.is_integer: (types.is_integer,),
        types.is_string: (types.is_string, types.is_large_string),
        types.is_boolean: (types.is_boolean,),
        types.is_timestamp: (types.is_timestamp,),
    }
    return any(is_one(found) for kind, ones in alike.items() if kind(wanted) for is_one in ones)

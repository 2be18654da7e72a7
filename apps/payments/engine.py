"""The engine of the decision service: the policy, the log behind it, and the index that makes decisions idempotent."""

from __future__ import annotations

import struct
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from apps.payments.counters import Counters
from apps.payments.log.join import HORIZON
from apps.payments.log.parquet_log import PARTITIONS, ROWS, SECONDS, Fsync, ParquetLog, Recovery
from apps.payments.log.schema import decision_schema, key_array, mask_kind, reward_schema, transaction_key
from apps.payments.log.tables import contexts, decision_batch, fixed_binary, instants, masks
from apps.payments.policy import Policy, counters_of
from core import files
from core.errors import InputError, require
from simulators.payments.context import CATEGORIES, NUMERICS, PaymentContext

if TYPE_CHECKING:
    import pyarrow as pa

RewardStatus = Literal["recorded", "duplicate", "late", "early", "unknown"]
"""What a reward is on arrival; all are logged, and the join decides for good."""
_RECORD = np.dtype([("time", "<i8"), ("propensity", "<f8"), ("action", "<i2"), ("policy", "<u2"), ("content", "<i8")])
_PACKED = struct.Struct("<qdhHq")
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_INDEXED = ["decision_id", "event_time", "propensity", "action", "policy_id", "generation", "model_sha"]


class Conflict(InputError):
    """A transaction that was decided before came again with another content."""


@dataclass(frozen=True)
class Answer:
    """A decision, as it was logged first.

    Attributes:
        decision_id: 16 bytes.
        action: chosen.
        propensity: probability with which it was.
        policy_id: of the policy that decided.
        generation: of that policy.
        model_sha: its SHA-256, 32 bytes.
        event_time: microseconds since 1970, UTC.
        repeated: it had been decided before this request.
    """

    decision_id: bytes
    action: int
    propensity: float
    policy_id: str
    generation: int
    model_sha: bytes
    event_time: int
    repeated: bool


@dataclass(frozen=True)
class Reward:
    """An answer of the world to a decision.

    Attributes:
        decision_id: 16 bytes.
        reward: in [0, 1].
        event_time: microseconds since 1970, UTC.
        source: who said so.
        attempt: number of the try that it answers, 0 for the first.
    """

    decision_id: bytes
    reward: float
    event_time: int
    source: str = ""
    attempt: int = 0


class Engine:
    """Decides payments by a policy, each transaction once, and answers when the decision is in the log.

    The logs lie in ``decisions`` and ``rewards`` of ``folder``; the index of all decisions in them, about 250 bytes
    each, is rebuilt at the start.

    Args:
        policy: saved, so that it has a ``model_sha``.
        folder: of the logs; made if absent.
        fsync: see ``ParquetLog``.
        keep_probabilities: log the probabilities of all actions.
        horizon: after which a reward counts as late.
        rows: of a segment before it becomes Parquet.
        seconds: after which it does.

    Raises:
        InputError: the policy was not saved, the log is another service's, damaged, or of other actions.
    """

    def __init__(
        self,
        policy: Policy,
        folder: Path,
        *,
        fsync: Fsync = "batch",
        keep_probabilities: bool = False,
        horizon: timedelta = HORIZON,
        rows: int = ROWS,
        seconds: float = SECONDS,
    ) -> None:
        if policy.model_sha is None:
            raise InputError(f"policy {policy.policy_id}: save it first, its log names the checksum of its files")
        self.policy, self.counters = policy, Counters()
        self._keep_probabilities = keep_probabilities
        levels = policy.sizes.levels
        self._levels = torch.tensor([[levels[name]] for name in CATEGORIES])
        self._horizon = horizon // timedelta(microseconds=1)
        _check_actions(folder, policy.sizes.actions)
        schemas = {"decisions": decision_schema(policy.sizes.actions), "rewards": reward_schema()}
        self._logs: dict[str, ParquetLog] = {}
        try:
            for name, schema in schemas.items():
                log = ParquetLog(folder / name, schema, PARTITIONS[name], fsync=fsync, rows=rows, seconds=seconds)
                self._logs[name] = log
            self._policies: list[tuple[str, int, bytes]] = []
            self._index: dict[bytes, bytes] = {}
            self._answered: set[bytes] = set()
            self._rebuild()
        except BaseException:
            self.close()
            raise
        self._policy_number = self._number((policy.policy_id, policy.generation, policy.model_sha))
        self._pending: dict[bytes, Future[None]] = {}
        self._lock = Lock()
        self.failure: str | None = None
        self.counters.gauge("indexed_decisions", "Decisions in the index.", lambda: len(self._index))

    @property
    def recovery(self) -> dict[str, Recovery]:
        """What the start found of an earlier process, by log."""
        return {name: log.recovery for name, log in self._logs.items()}

    @property
    def trouble(self) -> list[str]:
        """What should be looked at, a line each: rows are safe, but the disk may be full or a file damaged."""
        found = [
            f"{name}: not rolled into Parquet: {log.roll_failure}"
            for name, log in self._logs.items()
            if log.roll_failure
        ]
        found += [line for recovery in self.recovery.values() for line in recovery.damaged]
        return found + ([f"the last commit failed: {self.failure}"] if self.failure else [])

    def close(self) -> None:
        """Commit and roll what is under way, and let the logs go."""
        for log in self._logs.values():
            log.close()

    def decide(
        self, tenants: Sequence[str], transactions: Sequence[str], context: PaymentContext, mask: Tensor
    ) -> Future[list[Answer]]:
        """Decide n payments; the future is done when all of them are in the log.

        A transaction that was decided before, by whichever policy, gets that decision again.

        Args:
            tenants: whose payments they are, n names.
            transactions: their ids, unique for a tenant.
            context: of the payments.
            mask: ``(n, K)`` bool, the available actions.

        Returns:
            A future of n answers; it holds an ``OSError`` if the log could not be written.

        Raises:
            Conflict: a transaction was decided with another context or mask (its row is named); nothing is decided.
            InputError: a payment that the policy refuses.
        """
        keys = list(map(transaction_key, tenants, transactions))
        contents = fingerprints(context, mask).tolist()
        with self._lock:
            fresh = self._fresh(keys, contents, transactions)
            new = {keys[i] for i in fresh}
            waited = [self._pending[key] for key in keys if key in self._pending]
            batch = self._decided(fresh, keys, tenants, context, mask, contents) if fresh else None
            done = self._logs["decisions"].append(batch) if fresh or waited else None
            self._pending.update((key, done) for key in new if done)
            answers = [self._answer(key, repeated=key not in new) for key in keys]
        self.counters.add("duplicate_decisions", len(keys) - len(fresh))
        result: Future[list[Answer]] = Future()

        def committed(done: Future[None]) -> None:
            if error := done.exception():
                self.failure = str(error)
                with self._lock:
                    for key in new:
                        del self._index[key], self._pending[key]
            elif new:
                self.failure = None
                with self._lock:
                    for key in new:
                        del self._pending[key]
                self.counters.add("decisions", len(new))
            # The log commits in order: what was waited for is done too.
            failures = [failed for future in waited if (failed := future.exception())]
            _finish(result, answers, error or next(iter(failures), None))

        if done is None:
            result.set_result(answers)
        else:
            done.add_done_callback(committed)
        return result

    def reward(self, rewards: Sequence[Reward]) -> Future[list[RewardStatus]]:
        """Log rewards; the future is done when they are committed.

        All are logged, whatever their status: which of them counts is for the join to say.

        Returns:
            A future of the status of each; it holds an ``OSError`` if the log could not be written.

        Raises:
            InputError: a reward outside [0, 1] (its row is named).
        """
        for row, reward in enumerate(rewards):
            if not 0 <= reward.reward <= 1:
                raise InputError(f"row {row}: reward = {reward.reward}: must be in [0, 1]")
        if not rewards:
            empty: Future[list[RewardStatus]] = Future()
            empty.set_result([])
            return empty
        with self._lock:
            statuses = [self._status(reward) for reward in rewards]
            done = self._logs["rewards"].append(_reward_batch(rewards))
        result: Future[list[RewardStatus]] = Future()

        def committed(done: Future[None]) -> None:
            self.failure = str(error) if (error := done.exception()) else None
            if error:
                self._answered -= {r.decision_id for r, s in zip(rewards, statuses, strict=True) if s == "recorded"}
            else:
                self.counters.add("rewards", len(rewards))
                for status in get_args(RewardStatus)[1:]:
                    self.counters.add(f"{status}_rewards", statuses.count(status))
            _finish(result, statuses, error)

        done.add_done_callback(committed)
        return result

    def _fresh(self, keys: list[bytes], contents: list[int], transactions: Sequence[str]) -> list[int]:
        """The rows that have no decision yet; of a transaction that is there twice, the first."""
        fresh: dict[bytes, int] = {}
        for row, (key, content) in enumerate(zip(keys, contents, strict=True)):
            if (packed := self._index.get(key)) is not None:
                known = _PACKED.unpack(packed)[4]
            else:
                known = contents[fresh.setdefault(key, row)]
            if known != content:
                self.counters.add("conflicts")
                raise Conflict(
                    f"row {row}: transaction_id = {transactions[row]}: was decided before, with another context or "
                    "other available actions"
                )
        return list(fresh.values())

    def _decided(
        self,
        rows: list[int],
        keys: list[bytes],
        tenants: Sequence[str],
        context: PaymentContext,
        mask: Tensor,
        contents: list[int],
    ) -> pa.RecordBatch:
        """Decide some rows, enter them into the index, and return them as the log has them."""
        if len(rows) < len(keys):
            index = torch.tensor(rows)
            context, mask = context.take(index), mask[index]
        ids = key_array([keys[i] for i in rows])
        with torch.inference_mode():
            decisions = self.policy.decide(context, mask, counters_of(ids))
        now = time.time_ns() // 1000
        levels = torch.stack([getattr(context, name) for name in CATEGORIES])
        unknown = ((levels < 0) | (levels >= self._levels)).sum(1).tolist()
        for category, count in zip(CATEGORIES, unknown, strict=True):
            self.counters.add("unknown_categories", count, f'category="{category}"')
        drawn = zip(rows, decisions.propensity.tolist(), decisions.action.tolist(), strict=True)
        for i, propensity, action in drawn:
            self._index[keys[i]] = _PACKED.pack(now, propensity, action, self._policy_number, contents[i])
        return decision_batch(
            self.policy,
            ids,
            np.full(len(rows), now),
            [tenants[i] for i in rows],
            context,
            mask,
            decisions,
            keep_probabilities=self._keep_probabilities,
        )

    def _answer(self, key: bytes, *, repeated: bool) -> Answer:
        moment, propensity, action, policy, _ = _PACKED.unpack(self._index[key])
        policy_id, generation, model_sha = self._policies[policy]
        return Answer(key, action, propensity, policy_id, generation, model_sha, moment, repeated)

    def _status(self, reward: Reward) -> RewardStatus:
        status = self._in_time(reward.decision_id, reward.event_time)
        if status == "recorded" and reward.decision_id in self._answered:
            return "duplicate"
        if status == "recorded":
            self._answered.add(reward.decision_id)
        return status

    def _in_time(self, key: bytes, moment: int) -> RewardStatus:
        """The status of a reward, other rewards apart."""
        packed = self._index.get(key)
        if packed is None:
            return "unknown"
        delay = moment - _PACKED.unpack(packed)[0]
        if not 0 <= delay <= self._horizon:
            return "late" if delay > 0 else "early"
        return "recorded"

    def _number(self, policy: tuple[str, int, bytes]) -> int:
        """The number under which the index knows a policy."""
        if policy not in self._policies:
            self._policies.append(policy)
        return self._policies.index(policy)

    def _rebuild(self) -> None:
        """Read the index from the logs."""
        compute = require("pyarrow.compute", "payments")
        actions = self.policy.sizes.actions
        columns = [
            name for name in decision_schema(actions).names if name in (*_INDEXED, *CATEGORIES, *NUMERICS, "mask")
        ]
        for table in self._logs["decisions"].tables(columns):
            records = np.zeros(len(table), _RECORD)
            records["time"] = table["event_time"].cast("int64").to_numpy()
            for name in ("propensity", "action"):
                records[name] = table[name].to_numpy()
            records["content"] = fingerprints(contexts(table), masks(table, actions))
            policies = table.select(["policy_id", "generation", "model_sha"])
            for policy in policies.group_by(policies.column_names).aggregate([]).to_pylist():
                same = [compute.equal(policies[name], value) for name, value in policy.items()]
                theirs = compute.and_(compute.and_(same[0], same[1]), same[2]).to_numpy()
                records["policy"][theirs] = self._number(tuple(policy.values()))
            packed, size = records.tobytes(), _RECORD.itemsize
            for row, key in enumerate(table["decision_id"].to_pylist()):
                self._index.setdefault(key, packed[row * size : (row + 1) * size])
        for table in self._logs["rewards"].tables(["decision_id", "event_time"]):
            moments = table["event_time"].cast("int64").to_pylist()
            for key, moment in zip(table["decision_id"].to_pylist(), moments, strict=True):
                if self._in_time(key, moment) == "recorded":
                    self._answered.add(key)


def fingerprints(context: PaymentContext, mask: Tensor) -> NDArray[np.int64]:
    """``(n,)``, a hash of what was known of each payment and of what was available to it."""
    columns = context.columns().values()
    available = np.packbits(mask.cpu().numpy(), axis=1, bitorder="little")
    words = np.zeros((len(columns) + -(-available.shape[1] // 8), len(available)), dtype=np.uint64)
    for word, column in zip(words, columns, strict=False):
        # Adding 0 makes one of the two zeros of IEEE 754.
        word[:] = (column.cpu().numpy() + 0.0).view(np.uint64)
    padded = np.zeros((len(available), 8 * (len(words) - len(columns))), dtype=np.uint8)
    padded[:, : available.shape[1]] = available
    words[len(columns) :] = padded.view("<u8").T
    # Each column is mixed in a way of its own before they are added up: the floats of flags differ in few bits.
    words ^= (np.arange(len(words), dtype=np.uint64) * _FACTOR)[:, None]
    for shift in (32, 29, 32):
        words ^= words >> np.uint64(shift)
        words *= _FACTOR
    return (words ^ (words >> np.uint64(32))).sum(0).view(np.int64)


def _finish(result: Future[Any], value: Any, error: BaseException | None) -> None:
    if error is None:
        result.set_result(value)
    else:
        result.set_exception(error)


def _reward_batch(rewards: Sequence[Reward]) -> pa.RecordBatch:
    pa = require("pyarrow", "payments")
    schema = reward_schema()
    columns = {
        "decision_id": fixed_binary(key_array([reward.decision_id for reward in rewards])),
        "event_time": instants(np.array([reward.event_time for reward in rewards], dtype=np.int64)),
    }
    for name in ("reward", "source", "attempt"):
        columns[name] = pa.array([getattr(reward, name) for reward in rewards], schema.field(name).type)
    return pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema)


def _check_actions(folder: Path, actions: int) -> None:
    """Refuse a log over other actions; a new one is marked as over these.

    Raises:
        InputError: so it is, or the folder cannot be written.
    """
    path = folder / "log.json"
    held = int(files.read_json(path, ("actions",))["actions"]) if path.exists() else 0
    if held and (held > actions or mask_kind(held) != mask_kind(actions)):
        raise InputError(
            f"{folder}: is a log of decisions over {held} actions, the policy has {actions}: choose another"
        )
    if held != actions:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            files.write_json(path, {"format": 1, "actions": actions})
        except OSError as error:
            raise InputError(f"{folder}: cannot be written: {error.strerror}") from error

"""The production log of decisions and rewards: durable, readable as Parquet, joined exactly once."""

from apps.payments.log.dsjson import join_dsjson, read_dsjson, write_dsjson
from apps.payments.log.join import HORIZON, JoinReport, join_log, join_rewards, joined_schema
from apps.payments.log.parquet_log import ParquetLog, Recovery, recover
from apps.payments.log.reading import Source, scan
from apps.payments.log.schema import decision_schema, reward_schema, transaction_key
from apps.payments.log.tables import Logged, contexts, decision_batch, logged, logged_chunks, masks

__all__ = [
    "HORIZON",
    "JoinReport",
    "Logged",
    "ParquetLog",
    "Recovery",
    "Source",
    "contexts",
    "decision_batch",
    "decision_schema",
    "join_dsjson",
    "join_log",
    "join_rewards",
    "joined_schema",
    "logged",
    "logged_chunks",
    "masks",
    "read_dsjson",
    "recover",
    "reward_schema",
    "scan",
    "transaction_key",
    "write_dsjson",
]

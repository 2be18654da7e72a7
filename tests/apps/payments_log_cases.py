"""Payments, a policy of random weights and rows of a log, for the tests of the log, the join and the service."""

from datetime import UTC, datetime

import numpy as np
import torch

from apps.payments.exploration import Exploration
from apps.payments.log.schema import key_array, transaction_key
from apps.payments.log.tables import decision_batch, fixed_binary, instants
from apps.payments.oracles import FactoredOracle, FactoredSettings, factored
from apps.payments.policy import Policy, counters_of
from simulators.payments.context import NUMERICS, PaymentContext, Sizes

SIZES = Sizes(issuers=12, merchants=6, countries=4)
NOON = int(datetime(2026, 3, 1, 12, tzinfo=UTC).timestamp() * 1e6)
HOUR, DAY = 3_600_000_000, 86_400_000_000


def payments(n, seed=0, sizes=SIZES):
    """Contexts and masks."""
    g = torch.Generator().manual_seed(seed)
    levels = {name: torch.randint(size, (n,), generator=g) for name, size in sizes.levels.items()}
    numbers = dict(zip(NUMERICS, torch.rand(len(NUMERICS), n, generator=g, dtype=torch.float64), strict=True))
    mask = torch.rand(n, sizes.actions, generator=g) < 0.3
    mask[:, 0] = True
    return PaymentContext(**levels, **numbers), mask


def oracle(sizes=SIZES, seed=4):
    weights = torch.randn(len(factored.Coefficients(sizes)), generator=torch.Generator().manual_seed(seed))
    return FactoredOracle(FactoredSettings(), sizes, 0.3 * weights.double())


def saved_policy(folder, policy_id="igw-3", generation=3, sizes=SIZES, **exploration):
    rule = Exploration(**({"rule": "igw", "gamma": 50.0} | exploration))
    return Policy(policy_id, generation, oracle(sizes), sizes, rule).save(folder)


def decisions(policy, ids, times, seed=0, keep_probabilities=False):
    """A batch of logged decisions on the transactions ``ids`` (texts) at ``times``, microseconds."""
    context, mask = payments(len(ids), seed, policy.sizes)
    keys = key_array([transaction_key("shop", name) for name in ids])
    decided = policy.decide(context, mask, counters_of(keys))
    tenants = ["shop"] * len(ids)
    return decision_batch(
        policy, keys, np.asarray(times), tenants, context, mask, decided, keep_probabilities=keep_probabilities
    )


def rewards(rows):
    """A batch of rewards from (id, time, reward[, source[, attempt]])."""
    import pyarrow as pa

    defaults = ("bank", 0)
    ids, times, values, sources, attempts = zip(*((*row, *defaults[len(row) - 3 :]) for row in rows), strict=True)
    return pa.record_batch(
        {
            "decision_id": fixed_binary(key_array([transaction_key("shop", name) for name in ids])),
            "event_time": instants(np.array(times)),
            "reward": pa.array(values, pa.float32()),
            "source": pa.array(sources),
            "attempt": pa.array(attempts, pa.int16()),
        }
    )


def changed(batch, column, row, value):
    """The same batch with one value replaced."""
    import pyarrow as pa

    kind = batch.schema.field(column).type
    values = batch[column].to_pylist()
    values[row] = value
    index = batch.schema.get_field_index(column)
    return batch.set_column(index, column, pa.array(values, kind))

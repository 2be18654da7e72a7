"""The decision service under load on the loopback: latency, throughput, and what a kill under load loses (nothing)."""

from __future__ import annotations

import json
import math
import multiprocessing
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from apps.payments.exploration import Exploration
from apps.payments.log.reading import parquet_files
from apps.payments.log.schema import key_array
from apps.payments.log.tables import contexts, masks
from apps.payments.oracles import FactoredSettings, Rows
from apps.payments.policy import Policy, counters_of
from benchmarks.mri_peers import missing
from benchmarks.payments_load import Reply, offer
from simulators.payments import Payments, dense_mask
from simulators.payments.context import CATEGORIES, NUMERICS

START = """
import sys
from pathlib import Path
from apps.payments.service import serve
serve(Path(sys.argv[1]), Path(sys.argv[2]), port=0)
"""


def main(requests: int = 3000) -> None:
    """Print latencies of single payments and of batches, and the outcome of a kill under load."""
    if reasons := list(filter(None, map(missing, ("fastapi", "uvicorn", "pyarrow")))):
        print(f"  the service cannot run here: {reasons[0]}")
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        policy = deployed(folder / "policy")
        with service(folder / "policy", folder / "log") as server, _another_process() as process:
            for rate, size, count in ((50, 1, requests // 4), (200, 1, requests), (50, 64, requests // 6)):
                bodies = batches(count, size, seed=size + rate)
                # The first requests open the connections and do not count.
                first = batches(100, size, seed=9999 + size + rate)
                process.submit(offer, server.port, "/v1/decide", first, rate).result()
                found = _latencies(process.submit(offer, server.port, "/v1/decide", bodies, rate).result())
                print(f"  {rate} requests/s, payments in each {size}: {found}")
            bodies = batches(requests // 3, 64, seed=7)
            started = time.perf_counter()
            replies = process.submit(offer, server.port, "/v1/decide", bodies, 1e6).result()
            seconds = time.perf_counter() - started
            print(f"  as fast as it can, 64 payments a request: {64 * len(replies) / seconds:,.0f} payments/s")
        print(f"  killed under load: {kill_under_load(folder / 'policy', folder / 'killed', policy, requests)}")


@dataclass(frozen=True)
class Server:
    """A running service.

    Attributes:
        process: its own.
        port: on the loopback.
    """

    process: subprocess.Popen[str]
    port: int


@contextmanager
def service(policy: Path, log: Path) -> Iterator[Server]:
    """A service in a process of its own, ended at the exit unless it was killed before.

    Raises:
        RuntimeError: it does not start.
    """
    process = subprocess.Popen([sys.executable, "-c", START, policy, log], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if line.startswith("serving"):
                break
        else:
            raise RuntimeError(f"the service did not start, exit code {process.wait()}")
        yield Server(process, int(line.rsplit(":", 1)[1]))
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait()
        process.stdout.close()


def deployed(folder: Path, rows: int = 5000) -> Policy:
    """A stored policy of the default world, its oracle fitted to uniform decisions."""
    world, generator = Payments(seed=1), torch.Generator().manual_seed(1)
    state = world.reset(rows, generator)
    mask = dense_mask(state.allowed, state.forced, world.sizes.flags)
    action = torch.multinomial(mask.double(), 1, generator=generator).squeeze(1)
    answers = world.step(state, action, world.noise(rows, generator)).reward
    oracle = FactoredSettings().fit(Rows(state, action, answers), world.sizes)
    exploration = Exploration(rule="igw", gamma=300.0)
    return Policy("benchmark", 1, oracle, world.sizes, exploration).save(folder)


def batches(count: int, size: int, seed: int) -> list[bytes]:
    """Requests of new payments of the default world."""
    state = Payments(seed=1).reset(count * size, torch.Generator().manual_seed(seed))
    mask = dense_mask(state.allowed, state.forced, 5)
    columns = {name: getattr(state, name).tolist() for name in CATEGORIES + NUMERICS}
    rows = [
        {name: column[i] for name, column in columns.items()}
        | {"tenant": "shop", "transaction_id": f"{seed}-{i}", "available": mask[i].nonzero()[:, 0].tolist()}
        for i in range(count * size)
    ]
    return [json.dumps(rows[start : start + size]).encode() for start in range(0, len(rows), size)]


def kill_under_load(stored: Path, log: Path, policy: Policy, requests: int, rate: float = 200.0) -> str:
    """Kill a service under load, start it again, ask again, and compare the answers with the log and the policy.

    Returns:
        What was found, in words.

    Raises:
        AssertionError: a decision was lost, doubled or changed, or a propensity is not the policy's.
    """
    bodies = batches(requests, 1, seed=5)
    with service(stored, log) as server:

        def kill(answers: int) -> None:
            if answers == 2 * requests // 5:
                server.process.kill()

        replies = offer(server.port, "/v1/decide", bodies, rate, answered=kill)
    answered = [i for i, reply in enumerate(replies) if reply.status == 200]
    lost = [i for i, reply in enumerate(replies) if not reply.status]
    again = lost + answered[::4]
    with service(stored, log) as server:
        repeated = offer(server.port, "/v1/decide", [bodies[i] for i in again], rate)
    assert all(reply.status == 200 for reply in repeated), [r for r in repeated if r.status != 200][:2]
    changed = check(policy, log, [*(replies[i] for i in answered), *repeated])
    return (
        f"{len(answered)} requests answered before, {len(lost)} not; all {requests} decisions are in the log once, "
        f"{len(answered[::4])} asked again are the same, {changed} propensities differ from the policy's"
    )


def check(policy: Policy, log: Path, replies: Sequence[Reply]) -> int:
    """Hold replies against the log, and the log against the policy.

    Returns:
        How many logged propensities are not the policy's to the last bit (a difference over 1e-12 raises).

    Raises:
        AssertionError: an answer is not in the log exactly once with its action and propensity, or the log has a
            decision that the policy does not make.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    paths, damaged = parquet_files(log / "decisions")
    table = pa.concat_tables(pq.read_table(path, partitioning=None) for path in paths)
    rows = table.select(["decision_id", "action", "propensity"]).to_pylist()
    logged = {row["decision_id"].hex(): (row["action"], row["propensity"]) for row in rows}
    assert not damaged, damaged
    assert len(logged) == len(rows), "a decision is in the log twice"
    for reply in replies:
        for answer in json.loads(reply.body):
            assert logged[answer["decision_id"]] == (answer["action"], answer["propensity"]), answer
    mask = masks(table, policy.sizes.actions)
    ids = counters_of(key_array(table["decision_id"].to_pylist()))
    decided = policy.decide(contexts(table), mask, ids)
    assert decided.action.tolist() == table["action"].to_pylist(), "an action is not the policy's"
    difference = np.abs(decided.propensity.numpy() - table["propensity"].to_numpy())
    assert difference.max() <= 1e-12, "a propensity is not the policy's"
    return int((difference > 0).sum())


def _another_process() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))


def _latencies(replies: list[Reply]) -> str:
    refused = sum(reply.status != 200 for reply in replies)
    assert not refused, f"{refused} requests were refused"
    found = sorted(1000 * reply.seconds for reply in replies)
    at = {share: found[math.ceil(share * len(found)) - 1] for share in (0.5, 0.9, 0.99)}
    return f"p50 {at[0.5]:.2f} ms, p90 {at[0.9]:.2f} ms, p99 {at[0.99]:.2f} ms"


if __name__ == "__main__":
    main()

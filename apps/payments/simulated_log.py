"""A log written by the simulator: what a service would have left, the policies that decided, and the truth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from apps.payments.exploration import WEIGHED
from apps.payments.generations import Decided, GenerationLoop
from apps.payments.log.parquet_log import PARTITIONS, ParquetLog
from apps.payments.log.schema import BITS, decision_schema, key_array, reward_schema, transaction_key
from apps.payments.log.tables import decision_batch, fixed_binary, instants
from apps.payments.policy import Decisions, Policy
from apps.payments.scenario import Arm, Scenario
from core import files
from core.errors import InputError, require

if TYPE_CHECKING:
    import pyarrow as pa

TENANT = "simulator"
START = 1_735_689_600 * 10**6
"""Microseconds since 1970 of the first generation: 2025-01-01 UTC."""
HOUR = 3_600 * 10**6


@dataclass(frozen=True)
class SimulatedLog:
    """What ``simulate_log`` wrote.

    Attributes:
        decisions: rows.
        rewards: rows; answers that never came have none.
        values: true online value of each generation.
        next_policy: folder of the policy that was learned last and has not decided yet.
    """

    decisions: int
    rewards: int
    values: tuple[float, ...]
    next_policy: Path


def simulate_log(
    scenario: Scenario, arm: Arm, seed: int, out: Path, progress: Callable[[float, str], None] | None = None
) -> SimulatedLog:
    """Play an arm in one world and write what a service would have logged.

    ``decisions`` and ``rewards`` are a log that ``join_log`` takes; ``policies/generation_G`` holds the policy of each
    generation, the last of which has not decided; ``truth.json`` the true values.

    Args:
        scenario: the worlds.
        arm: with its tuned number set.
        seed: of the world.
        out: folder, which must not exist or be empty.
        progress: called with the share that is done and a message.

    Raises:
        InputError: the folder holds something.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"--out {out}: exists and is not empty")
    out.mkdir(parents=True, exist_ok=True)
    loop = GenerationLoop(scenario, arm, seed, measure=False)
    schema = decision_schema(scenario.sizes.actions)
    decisions = ParquetLog(out / "decisions", schema, PARTITIONS["decisions"], fsync="off")
    rewards = ParquetLog(out / "rewards", reward_schema(), PARTITIONS["rewards"], fsync="off")
    counts = {"decisions": 0, "rewards": 0}
    try:
        for generation in range(scenario.generations):
            policy = _policy(loop, out, seed)

            def write(decided: Decided, policy: Policy = policy, generation: int = generation) -> None:
                made, answered = _batches(decided, policy, generation, counts["decisions"], scenario, seed)
                for log, batch in ((decisions, made), (rewards, answered)):
                    log.append(batch).result()
                counts["decisions"] += made.num_rows
                counts["rewards"] += answered.num_rows

            loop.step(write)
            if progress is not None:
                progress((generation + 1) / scenario.generations, f"generation {generation}")
        _policy(loop, out, seed)
    finally:
        decisions.close()
        rewards.close()
    values = tuple(float(value) for value in loop.records["value"])
    files.write_json(out / "log.json", {"actions": scenario.sizes.actions})
    files.write_json(out / "truth.json", {"world": seed, "online_value": values, "notes": loop.notes})
    return SimulatedLog(counts["decisions"], counts["rewards"], values, _folder(out, scenario.generations))


def _folder(out: Path, generation: int) -> Path:
    return out / "policies" / f"generation_{generation}"


def _policy(loop: GenerationLoop, out: Path, seed: int) -> Policy:
    """The policy that is deployed next, stored."""
    exploration = loop.arm.exploration if loop.oracle else loop.arm.exploration.model_copy(update={"rule": "uniform"})
    name = f"{loop.arm.name}-world{seed}-generation{loop.generation}"
    oracle = loop.oracle[0] if len(loop.oracle) == 1 else loop.oracle or None
    policy = Policy(name, loop.generation, oracle, loop.scenario.sizes, exploration, loop.learned)
    return policy.save(_folder(out, loop.generation))


def _batches(
    decided: Decided, policy: Policy, generation: int, first: int, scenario: Scenario, seed: int
) -> tuple[pa.RecordBatch, pa.RecordBatch]:
    """A block as rows of both logs."""
    pa = require("pyarrow", "payments")
    rows = decided.rows
    n = len(rows.action)
    ids = key_array([transaction_key(TENANT, f"{seed}-{first + i}") for i in range(n)])
    hours = generation * scenario.duration + rows.state.time.double().cpu().numpy()
    gamma = policy.exploration.gammas(decided.mask, policy.learned.examples) if policy.rule in WEIGHED else None
    coin = rows.coin if policy.rule == "epsilon_slice" else None
    gap = rows.propensity.new_zeros(n)
    decisions = Decisions(rows.action, rows.propensity, decided.probabilities, gap, gamma, coin)
    when = START + (HOUR * hours).astype(np.int64)
    few = scenario.sizes.actions <= BITS
    made = decision_batch(policy, ids, when, [TENANT] * n, rows.state, decided.mask, decisions, keep_probabilities=few)
    arrival = rows.arrival.double().cpu().numpy()
    known = np.isfinite(arrival)
    count = int(known.sum())
    answered = pa.record_batch(
        [
            fixed_binary(ids[known]),
            instants(START + (HOUR * arrival[known]).astype(np.int64)),
            pa.array(rows.reward.cpu().numpy()[known], pa.float32()),
            pa.array([TENANT] * count, pa.string()),
            pa.array(np.zeros(count), pa.int16()),
        ],
        schema=reward_schema(),
    )
    return made, answered

"""What a study costs before it is started: a pilot of every arm, extrapolated to the study's size."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from apps.payments.generations import BLOCK, GenerationLoop
from apps.payments.measures import Measures
from apps.payments.scenario import Arm, Scenario
from apps.payments.study import Comparison, PaymentsStudy
from core.study.engines import usable_cores
from core.study.numbers import duration

PILOT = 2**14
"""Payments of the pilot's generations: enough for the cost of a row to have settled."""
BLOCK_TABLES = 6
"""Tables of payments x actions that a block of decisions holds at once, about."""


@dataclass(frozen=True)
class Cost:
    """Of one arm.

    Attributes:
        scenario: its name.
        arm: its name.
        plays: worlds, those of its tuning included.
        seconds: of one of them, on average.
        memory: bytes of its log and its block of decisions.
    """

    scenario: str
    arm: str
    plays: int
    seconds: float
    memory: float


def cost_of(study: PaymentsStudy, device: str = "cpu", progress: Callable[[str], None] | None = None) -> list[Cost]:
    """Time and memory of every arm, from two generations of a pilot on this machine.

    Deciding and measuring are linear in the payments, learning is taken to be linear in the rows. Runs that several
    arms share are counted for each.

    Args:
        study: what would be run.
        device: where.
        progress: told the arm at work.

    Raises:
        MissingExtra: an oracle's package is not installed.
    """
    found = []
    for comparison in study.scenarios:
        for arm in comparison.arms:
            if progress is not None:
                progress(f"{comparison.name} {arm.name}")
            found.append(_pilot(study, comparison, arm, device))
    return found


def _pilot(study: PaymentsStudy, comparison: Comparison, arm: Arm, device: str) -> Cost:
    tunings = 0 if arm.tune is None else len(arm.tune.grid) * study.tuning.count
    scenario = comparison.scenario
    n = min(PILOT, scenario.payments)
    small = Scenario(**{**scenario.model_dump(), "payments": n, "evaluation": min(scenario.evaluation, n)})
    if arm.tune is not None:
        arm = arm.at(arm.tune.grid[0])
    short = arm.model_copy(update={"window": 1}) if arm.window != "all" else arm
    loop = GenerationLoop(small, short, 0, device, measure=False)
    loop.step()
    whole = _seconds(loop.step, device)
    rows = loop.matured()
    learning = _seconds(lambda: loop.fit(rows), device)
    deciding = max(whole - learning, 0.0)
    kept = range(1, scenario.generations + 1)
    windows = [g if arm.window == "all" else min(g, int(arm.window)) for g in kept]
    scale = scenario.payments / n
    playing = scale * (scenario.generations * deciding + sum(windows) * learning)
    measures = Measures(small, 0, loop.device)
    measuring = _seconds(lambda: measures.of_model(loop, measures.policy(loop)), device)
    measuring *= scenario.generations * scenario.evaluation / small.evaluation
    # Worlds of the tuning are played without measuring their models.
    plays = study.worlds.count + tunings
    seconds = playing + measuring * study.worlds.count / plays
    block = 8 * BLOCK_TABLES * min(BLOCK, scenario.payments) * scenario.sizes.actions
    bytes_a_row = sum(x.element_size() for x in loop.last.tensors().values())
    # The rows are once in the window, once more joined for the fit.
    memory = 2 * max(windows) * scenario.payments * bytes_a_row + block
    return Cost(comparison.name, arm.name, plays, seconds, float(memory))


def _seconds(work: Callable[[], object], device: str) -> float:
    """CPU seconds, which other processes do not lengthen; on a GPU wall seconds."""
    clock = time.perf_counter if device == "cuda" else time.process_time
    started = clock()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - started


def print_cost(study: PaymentsStudy, device: str) -> None:
    """Print the cost of a study, arm by arm, and of the whole on this machine's cores."""
    console = Console(highlight=False)
    with console.status("pilot") as status:
        costs = cost_of(study, device, lambda what: status.update(f"pilot: {escape(what)}"))
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for column in ("scenario", "arm", "worlds", "time a world", "memory"):
        table.add_column(column, justify="left" if column in ("scenario", "arm") else "right")
    for c in costs:
        cells = (c.scenario, c.arm, str(c.plays), duration(c.seconds), f"{c.memory / 2**30:.2f} GiB")
        table.add_row(*(escape(cell) for cell in cells))
    console.print(table)
    total = sum(c.plays * c.seconds for c in costs)
    workers = 1 if device == "cuda" else usable_cores()
    console.print(
        f"{study.study} on {device}: about {duration(total)} in all, {duration(total / workers)} with {workers} at "
        "once; by a pilot, linear in rows."
    )

"""How many turns of dialogues a policy plays in a second, and how much memory that takes."""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import dataclass

import torch

from apps.crs.evaluation import OVER, Cases, evaluate
from apps.crs.policies import Policy
from core.study.task import one_thread
from simulators.crs import Conversation

MIB = 1 << 20


@dataclass(frozen=True)
class Speed:
    """Dialogues that were played for the clock.

    Attributes:
        dialogues: that were played.
        steps: turns of all of them.
        wall: seconds.
        cpu: seconds of this process, all threads.
    """

    dialogues: int
    steps: int
    wall: float
    cpu: float

    @property
    def per_cpu_second(self) -> float:
        """Turns in a second of the processor."""
        return self.steps / max(self.cpu, 1e-9)

    @property
    def per_second(self) -> float:
        """Turns in a second of the clock on the wall."""
        return self.steps / max(self.wall, 1e-9)


def measure(world: Conversation, policy: Policy, cases: Cases, *, batch: int = 64) -> Speed:
    """Play the cases with one thread, after one batch that warms up and does not count.

    The time is that of ``evaluate``: the world, the policy, the users' luck, and the record of the dialogues.
    """
    first = Cases(cases.pairs[:batch], cases.opening[:batch], cases.seed)
    with one_thread():
        evaluate(world, policy, first, batch=batch)
        _wait(world)
        wall, cpu = time.perf_counter(), time.process_time()
        played = evaluate(world, policy, cases, batch=batch)
        _wait(world)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return Speed(len(cases.pairs), int((played["action"].values != OVER).sum()), wall, cpu)


def peak_memory(device: torch.device) -> float:
    """MiB that this process has had at most; on a GPU, that tensors there have had."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / MIB
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MIB


def _wait(world: Conversation) -> None:
    if world.device.type == "cuda":
        torch.cuda.synchronize(world.device)

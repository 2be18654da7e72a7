"""When to acquire: the diffusion steps at which Active Diffusion Subsampling takes its samples."""

from __future__ import annotations

from typing import Literal

from core.errors import InputError

Schedule = Literal["exact", "reference"]


def acquisition_steps(count: int, window: tuple[int, int], steps: int, schedule: Schedule = "exact") -> list[int]:
    """The step of each acquisition, in order; a step stands as often as it acquires.

    ``exact`` spreads ``count`` acquisitions evenly from the window's start. ``reference`` is the rule of the authors'
    code: every step of the window that is divisible by max(length // count, 1), which is more than ``count`` where
    the division leaves a rest.

    Args:
        count: acquisitions to make.
        window: first step and the step after the last.
        steps: steps of the diffusion.
        schedule: which rule.

    Raises:
        InputError: the window is empty or outside the steps, or an unknown rule.
    """
    start, end = window
    if not 0 <= start < end <= steps:
        raise InputError(f"window: steps {start} to {end}, must be 0 <= start < end <= steps = {steps}")
    if count == 0:
        return []
    if schedule == "exact":
        return [min(start + round(i * (end - start) / count), end - 1) for i in range(count)]
    if schedule != "reference":
        raise InputError(f"schedule: {schedule!r}, must be exact or reference")
    interval = max((end - start) // count, 1)
    return [k for k in range(start, end) if k % interval == 0]

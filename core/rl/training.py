"""A training that shows its progress, writes its learning curve and goes on after a kill."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback

from core import files
from core.rl.algorithm import DeviceAlgorithm
from core.rl.resume import ResumeCallback

CHECKPOINT_SECONDS = 20.0
"""What a killed training loses at most."""


class CurveCallback(BaseCallback):
    """Reports the share done and appends the learning curve to a file, one line an update."""

    def __init__(self, total: int, curve: Path | None, report: Callable[[float, str], None] | None) -> None:
        super().__init__()
        self.total, self.curve, self.report = total, curve, report

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        returns = [episode["r"] for episode in self.model.ep_info_buffer or ()]
        mean = float(np.mean(returns)) if returns else None
        if self.curve is not None and mean is not None:
            with self.curve.open("a") as lines:
                lines.write(json.dumps({"timesteps": self.model.num_timesteps, "return": mean}) + "\n")
        if self.report is not None:
            self.report(self.model.num_timesteps / self.total, "" if mean is None else f"return {mean:.4g}")


def learn(
    model: DeviceAlgorithm,
    timesteps: int,
    *,
    checkpoint: Path | None = None,
    curve: Path | None = None,
    progress: Callable[[float, str], None] | None = None,
    callbacks: Sequence[BaseCallback] = (),
) -> None:
    """Train ``model`` up to ``timesteps`` steps of the rows of its environment, counted from its beginning.

    Args:
        model: just constructed, always with the same arguments.
        timesteps: in all.
        checkpoint: file from which an interrupted training goes on, bit for bit, and which it keeps up to date.
        curve: file of the learning curve (JSON lines: timesteps, mean return of the last training episodes).
        progress: told the share done and a message.
        callbacks: further ones, called before the state is kept.

    Raises:
        TrainingDiverged: a loss or parameter is not finite; ``checkpoint`` holds the last good state that was saved.
    """
    watching: list[BaseCallback] = [CurveCallback(timesteps, curve, progress), *callbacks]
    if checkpoint is not None:
        if checkpoint.exists():
            model.restore_state(checkpoint)
        watching.append(ResumeCallback(checkpoint, CHECKPOINT_SECONDS))
    if curve is not None and curve.exists():
        files.write(curve, "".join(f"{json.dumps(x)}\n" for x in read_curve(curve, model.num_timesteps)))
    remaining = timesteps - model.num_timesteps
    if remaining > 0:
        model.learn(remaining, callback=watching, reset_num_timesteps=False)
        if checkpoint is not None:
            model.save_state(checkpoint)


def read_curve(path: Path, until: float = math.inf) -> list[dict[str, float]]:
    """The learning curve in a file, up to so many steps; a line that a kill cut short is left out."""
    points = []
    for line in path.read_text().splitlines():
        try:
            points.append(json.loads(line))
        except ValueError:
            break
    return [point for point in points if point["timesteps"] <= until]

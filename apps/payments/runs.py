"""The runs of the payments study: an arm in a world, and the choice of its number on worlds of their own."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import xarray as xr

from apps.payments.generations import play
from apps.payments.scenario import Arm, Scenario
from core.study import Context, Run


class Play(Run):
    """All generations of an arm in one world."""

    scenario: Scenario
    """The worlds."""
    arm: Arm
    """What is played."""
    world: int
    """Seed of the world."""
    measure: bool = True
    """Measure every model on the evaluation set."""
    tuned: Tune | None = None
    """The choice of the arm's number."""

    @property
    def label(self) -> str:
        """Name on the screen."""
        return f"{self.scenario.name} {self.arm.name} world {self.world}"

    def execute(self, inputs: Mapping[str, xr.Dataset], context: Context) -> xr.Dataset:
        """Every series of the arm, and the number it was played with."""
        arm = self.arm if self.tuned is None else self.arm.at(float(inputs["tuned"]["chosen"]))
        found = play(
            self.scenario,
            arm,
            self.world,
            device=context.device,
            measure=self.measure,
            checkpoint=context.checkpoint,
            progress=context.progress,
        )
        return found if self.tuned is None else found.assign(tuned=inputs["tuned"]["chosen"])


class Tune(Run):
    """The number of an arm's rule with the highest mean online value over the tuning worlds."""

    arm: Arm
    """Whose number is chosen."""
    plays: tuple[Play, ...]
    """Every value of the grid in every tuning world, value by value."""

    @property
    def label(self) -> str:
        """Name on the screen."""
        return f"{self.arm.name} chosen"

    def execute(self, inputs: Mapping[str, xr.Dataset], context: Context) -> xr.Dataset:
        """``value`` by grid point and world, and the ``chosen`` number."""
        assert self.arm.tune is not None
        grid = self.arm.tune.grid
        values = np.array([float(online_value(inputs[f"plays.{i}"])) for i in range(len(self.plays))])
        values = values.reshape(len(grid), -1)
        worlds = [play.world for play in self.plays[: values.shape[1]]]
        best = grid[int(values.mean(1).argmax())]
        data = {"value": (("setting", "world"), values, {"long_name": "mean online value", "units": "1"})}
        found = xr.Dataset(data, {"setting": list(grid), "world": worlds})
        return found.assign(chosen=best).assign_attrs(parameter=self.arm.tune.parameter)


Play.model_rebuild()


def online_value(data: xr.Dataset) -> xr.DataArray:
    """Mean online value of the learned policies, generation 0 left out."""
    return data["value"].isel(generation=slice(1, None)).mean("generation")

"""A small study with everything in it: inputs, a product, a checkpoint, a union, and ways to fail.

Each step of a walk takes ``$TOY_DELAY`` seconds.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
import xarray as xr
from matplotlib.figure import Figure as Drawing
from pydantic import Field, model_validator

from core.study import Analysis, Claim, Config, Context, Figure, Product, Results, Row, Run, Study


class Table(Product):
    """Squares, slowly."""

    size: int = 4
    delay: float = 0.0

    def make(self, directory: Path, context: Context) -> None:
        (directory / "attempts.txt").open("a").write("x")
        time.sleep(self.delay)
        np.savetxt(directory / "squares.txt", np.arange(self.size) ** 2)


class Scale(Run):
    """An input: a number that the walks are multiplied with."""

    value: float = 2.0

    def execute(self, inputs: Mapping[str, xr.Dataset], context: Context) -> xr.Dataset:
        return xr.Dataset({"scale": ((), self.value, {"units": "days"})})


class Walk(Run):
    """A random walk that keeps its state after every step and goes on from there."""

    seed: int
    steps: int = 5
    scale: Scale | None = None
    table: Table | None = None
    fault: Literal["", "raise", "exit"] = ""

    @property
    def label(self) -> str:
        return f"walk {self.seed}"

    def execute(self, inputs: Mapping[str, xr.Dataset], context: Context) -> xr.Dataset:
        if self.fault == "raise":
            raise ValueError(f"seed {self.seed} is unlucky\nand more")
        if self.fault == "exit":
            os._exit(7)
        if self.table is not None:
            assert (context.product(self.table) / "squares.txt").exists()
        generator = np.random.default_rng(self.seed)
        state, path = context.checkpoint / "state.json", [0.0]
        if state.exists():
            kept = json.loads(state.read_text())
            generator.bit_generator.state, path = kept["generator"], kept["path"]
            context.log(event="resumed", step=len(path) - 1)
        factor = float(inputs["scale"]["scale"]) if self.scale else 1.0
        while len(path) <= self.steps:
            path.append(path[-1] + factor * generator.standard_normal())
            temporary = state.with_suffix(".tmp")
            temporary.write_text(json.dumps({"generator": generator.bit_generator.state, "path": path}))
            temporary.replace(state)
            context.progress(len(path) / (self.steps + 1), f"step {len(path) - 1}")
            time.sleep(float(os.environ.get("TOY_DELAY", "0")))
        return xr.Dataset({"position": ("step", path, {"units": "m"})}, attrs={"seed": self.seed})


class Small(Config):
    kind: Literal["small"]
    width: int = Field(gt=0)


class Large(Config):
    kind: Literal["large"]
    height: int = 1


class Options(Config):
    rate: float = Field(default=1e-3, gt=0)
    mode: Literal["fast", "slow"] = "fast"
    low: int = 0
    high: int = 1

    @model_validator(mode="after")
    def _ordered(self) -> Options:
        if self.low > self.high:
            raise ValueError(f"low {self.low} must be at most high {self.high}")
        return self


class ToyStudy(Study):
    """Walks from several seeds."""

    app: ClassVar[str] = "toy"
    seeds: int = Field(default=2, ge=1, le=100)
    steps: int = 5
    fault: Literal["", "raise", "exit"] = ""
    share: bool = False
    threshold: float | None = -1e6
    options: Options = Options()
    worlds: tuple[Annotated[Small | Large, Field(discriminator="kind")], ...] = ()

    def walks(self) -> list[Walk]:
        scale, table = (Scale(), Table(delay=0.2)) if self.share else (None, None)
        last = self.seeds - 1
        return [
            Walk(
                seed=i,
                steps=self.steps,
                scale=scale,
                table=table,
                fault=self.fault if i == last else "",
            )
            for i in range(self.seeds)
        ]

    def runs(self) -> list[Run]:
        return list(self.walks())

    def analyse(self, results: Results) -> Analysis:
        ends = np.array([float(results[walk]["position"][-1]) for walk in self.walks()])
        holds = None if self.threshold is None else bool(ends.mean() > self.threshold)
        rows = [
            Row("line <1>", "walk", "end", "m", ends.mean(), ends.min() - 1, ends.max() + 1, len(ends)),
            Row("line <1>", "walk", "not a number", "1", float("nan"), None, float("inf"), None),
        ]
        claim = Claim("far", "The walk ends & stays <far>.", holds, "because", ends.mean(), -1.0, 1.0, len(ends), 0.04)
        data = xr.Dataset({"end": ("seed", ends)})
        return Analysis(rows, [claim], [Figure("ends", "Where walks end.", lambda: _draw(ends))], data, ["A note."])


def _draw(ends: np.ndarray) -> Drawing:
    drawing = Drawing(figsize=(5, 3))
    drawing.add_subplot().plot(ends)
    return drawing

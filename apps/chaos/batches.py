"""A group fitted and scored in batches, each kept on disk when it is done, so that a killed run loses one at most."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

import torch
import xarray as xr

from apps.chaos.fitting import ScaledFitted, fit_scaled
from apps.chaos.forecasters import Forecaster
from apps.chaos.groups import Group
from apps.chaos.protocol import Method
from core import files
from core.study import Context
from core.study.store import load_result

Scoring: TypeAlias = Callable[[Group, ScaledFitted], xr.Dataset]
"""Scores of a fitted group, with the dim ``series`` first."""
ALONE_AT_ONCE = 8
"""Series between two saves, of forecasters that fit them one by one."""


@dataclass(frozen=True)
class Batches:
    """How groups are fitted within a run.

    Attributes:
        method: says how many series are fitted together, and how they are scaled.
        seed: of what a batch shares.
        context: of the run.
    """

    method: Method
    seed: int
    context: Context

    def scores(
        self, forecaster: Forecaster, group: Group, scoring: Scoring, name: str, span: tuple[float, float]
    ) -> Iterator[tuple[Group, xr.Dataset]]:
        """Each batch of a group with its scores and ``fit_seconds``, the wall seconds of a fit for each series.

        Args:
            forecaster: the method's, with its hyper-parameters.
            group: the series.
            scoring: makes forecasts and scores them.
            name: of this work within the run.
            span: shares of the run that are done before and after.
        """
        size = self.method.at_once or (len(group) if forecaster.together else ALONE_AT_ONCE)
        begin = 0
        while begin < len(group):
            part = group.pick(range(begin, min(begin + size, len(group))))
            end = begin + len(part)
            folder = self.context.checkpoint / f"{name}-{begin}-{end}"
            kept = folder.with_suffix(".nc")
            if not kept.exists():
                low, high = (span[0] + (span[1] - span[0]) * at / len(group) for at in (begin, end))
                try:
                    scores = self._scored(forecaster, part, scoring, folder, (low, high))
                except torch.OutOfMemoryError:
                    if len(part) == 1:
                        raise
                    size = (len(part) + 1) // 2
                    self.context.log(event="out of memory", series_at_once=size)
                    continue
                files.write(kept, partial(scores.to_netcdf, engine="h5netcdf"))
                shutil.rmtree(folder)
            yield part, load_result(kept)
            begin = end

    def _scored(
        self, forecaster: Forecaster, part: Group, scoring: Scoring, folder: Path, span: tuple[float, float]
    ) -> xr.Dataset:
        folder.mkdir(exist_ok=True)
        started = time.perf_counter()
        fitted = fit_scaled(
            forecaster,
            part.train,
            seeds=part.seeds,
            seed=self.seed,
            dt=part.dt,
            flows=part.flows(forecaster),
            observed=range(part.scored) if forecaster.physical else None,
            normalize=self.method.normalize,
            device=self.context.device,
            checkpoint=folder,
            progress=lambda done, text: self.context.progress(span[0] + done * (span[1] - span[0]), text),
        )
        seconds = time.perf_counter() - started
        scores = scoring(part, fitted)
        return scores.assign(fit_seconds=("series", [seconds / len(part)] * len(part)))

"""The runs of the chaos study: series of a system, the choice of hyper-parameters, forecasts, and published numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product

import numpy as np
import pandas as pd
import torch
import xarray as xr

from apps.chaos.batches import Batches
from apps.chaos.fitting import ScaledFitted
from apps.chaos.groups import Group, forecast_groups, tuning_groups
from apps.chaos.metrics import smape
from apps.chaos.protocol import Method, Protocol, Scenario
from apps.chaos.published import published_smape_check, published_truth_check
from apps.chaos.scores import DESCRIBED, score
from core.seeds import stream
from core.study import Context, Run
from simulators.chaos import Estimated, Sampling, estimated, load, sample, stored


class SystemSeries(Run):
    """The series of one system: one for tuning and the test series, from initial conditions on the attractor."""

    system: str
    """Name in the catalogue."""
    protocol: Protocol
    """How they are sampled."""

    @property
    def label(self) -> str:
        """Name on the screen."""
        return f"{self.system} series"

    def execute(self, inputs: Mapping[str, xr.Dataset], context: Context) -> xr.Dataset:
        """``train`` (time, channel) and ``test`` (replicate, time, channel), in the units of the system."""
        p = self.protocol
        generator = torch.Generator().manual_seed(stream(p.seed, f"{self.system} initial conditions"))
        train, test = p.context + p.folds * p.validation, p.context + p.horizon
        longest = max(train, test)
        points = p.points if p.grid == "exact" else p.points * (test - 1) / test
        sampling = Sampling(
            samples=longest,
            points=points,
            timescale=p.timescale,
            burn_in=p.burn_in,
            rtol=p.tolerance,
            atol=p.tolerance,
        )
        flow = load(self.system)
        found = sample(flow, 1 + p.replicates, generator, sampling)
        states = found.states.cpu().numpy()
        data = xr.Dataset(
            {
                "train": (("tuning_sample", "channel"), states[0, :train]),
                "test": (("replicate", "sample", "channel"), states[1:, :test]),
            }
        )
        ours = estimated(self.system)
        attrs = {
            "system": self.system,
            "dt": found.dt,
            "period": flow.period,
            "dimension": flow.dimension,
            "lyapunov_stored": stored(self.system).maximum_lyapunov,
            "lyapunov_estimated": np.nan if ours is None else _told_from_zero(ours),
            "integrator": found.engine,
            "tolerance": p.tolerance,
            "versions": found.dataset().attrs["versions"],
        }
        return data.assign_attrs(attrs)


def _told_from_zero(ours: Estimated) -> float:
    """The largest exponent; 0 where it is within three standard errors of it."""
    return ours.values[0] if ours.values[0] > 3 * ours.standard_errors[0] else 0.0


class Tune(Run):
    """The hyper-parameters of a method with the smallest sMAPE on the validation blocks, for each system."""

    method: Method
    """What is tuned."""
    scenario: Scenario
    """What is known of the series."""
    protocol: Protocol
    """Splits."""
    series: tuple[SystemSeries, ...]
    """The systems."""

    @property
    def label(self) -> str:
        """Name on the screen."""
        return f"{self.scenario.name} {self.method.name} tuned"

    def execute(self, inputs: Mapping[str, xr.Dataset], context: Context) -> xr.Dataset:
        """``score`` (candidate, system), raw sMAPE, and the ``chosen`` candidate of each system."""
        data = [inputs[f"series.{i}"] for i in range(len(self.series))]
        candidates = self.method.candidates()
        blocks = [
            group.served_by(self.method.forecaster)
            for fold in range(self.protocol.folds)
            for group in tuning_groups(data, self.scenario, self.protocol, fold)
        ]
        work = list(product(range(len(candidates)), range(len(blocks))))
        total = np.zeros((len(candidates), len(data)))
        batches = Batches(self.method, self.protocol.seed, context)
        for number, (c, b) in enumerate(work):
            candidate, block = candidates[c], blocks[b]
            if candidate.shortest > block.train.shape[1]:
                total[c, [place for place, _ in block.members]] = np.nan
                continue
            span = (number / len(work), (number + 1) / len(work))
            for part, errors in batches.scores(candidate, block, _validation_error, f"{c}-{b}", span):
                np.add.at(total[c], [place for place, _ in part.members], errors["smape"].values)
        count = np.bincount([place for block in blocks for place, _ in block.members], minlength=len(data))
        # A candidate that cannot be fitted, or whose forecast is no number, is chosen only where all are alike.
        scores = np.where(np.isfinite(total) & (count > 0), total / np.maximum(count, 1), np.inf)
        return xr.Dataset(
            {
                "score": (("candidate", "system"), scores, {"long_name": "validation sMAPE", "units": "%"}),
                "chosen": ("system", scores.argmin(0)),
            },
            {"system": [s.system for s in self.series]},
        )


def _validation_error(part: Group, fitted: ScaledFitted) -> xr.Dataset:
    keep = slice(part.scored)
    forecast = fitted.forecast(part.truth.shape[1])[0].cpu()
    return xr.Dataset({"smape": ("series", np.asarray(smape(part.truth[..., keep], forecast[..., keep])))})


class Forecasts(Run):
    """Forecasts of a method in a scenario, for every system and replicate, and their scores."""

    method: Method
    """Who forecasts."""
    scenario: Scenario
    """What is known of the series."""
    protocol: Protocol
    """Splits."""
    series: tuple[SystemSeries, ...]
    """The systems."""
    tuned: Tune | None = None
    """The choice of hyper-parameters."""

    @property
    def label(self) -> str:
        """Name on the screen."""
        return f"{self.scenario.name} {self.method.name}"

    def execute(self, inputs: Mapping[str, xr.Dataset], context: Context) -> xr.Dataset:
        """Forecasts and scores with the dims ``system`` and ``replicate``; what could not be forecast is NaN."""
        data = [inputs[f"series.{i}"] for i in range(len(self.series))]
        candidates = self.method.candidates()
        chosen = inputs["tuned"]["chosen"].values if self.tuned is not None else np.zeros(len(data), int)
        parts = [
            (candidate, group.pick(rows))
            for whole in forecast_groups(data, self.scenario, self.protocol)
            for group in [whole.served_by(self.method.forecaster)]
            for candidate in sorted(set(chosen.tolist()))
            # Delay vectors may leave too few samples of the series of a system.
            if candidates[candidate].shortest <= group.train.shape[1]
            if (rows := [i for i, (place, _) in enumerate(group.members) if chosen[place] == candidate])
        ]
        scoring = partial(score, protocol=self.protocol, members=self.method.members)
        batches = Batches(self.method, self.protocol.seed, context)
        found: list[tuple[Group, xr.Dataset]] = []
        for number, (candidate, group) in enumerate(parts):
            span = (number / len(parts), (number + 1) / len(parts))
            found += batches.scores(candidates[candidate], group, scoring, f"group-{number}", span)
        table = _by_system(found, len(data), self.protocol.replicates)
        for name in set(DESCRIBED) & set(table.variables):
            table[name].attrs.update(zip(("long_name", "units"), DESCRIBED[name], strict=True))
        for name in self.method.fields:
            table[f"tuned_{name}"] = ("system", [getattr(candidates[c], name) for c in chosen])
        return table.assign_coords(system=[s.system for s in self.series])


def _by_system(found: Sequence[tuple[Group, xr.Dataset]], systems: int, replicates: int) -> xr.Dataset:
    """Rows of series as ``system`` x ``replicate``; NaN where a series is missing, and in channels that it lacks."""
    if not found:
        return xr.Dataset()
    joined = xr.concat([data for _, data in found], "series", join="outer")
    members = [member for group, _ in found for member in group.members]
    rows = [place * replicates + replicate for place, replicate in members]
    full = joined.assign_coords(series=rows).reindex(series=range(systems * replicates))
    index = pd.MultiIndex.from_product([range(systems), range(replicates)], names=["system", "replicate"])
    coords = xr.Coordinates.from_pandas_multiindex(index, "series")
    return full.drop_vars("series").assign_coords(coords).unstack("series").transpose("system", "replicate", ...)


class PublishedMetric(Run):
    """The published sMAPE, recomputed from the published forecasts of three methods."""

    @property
    def label(self) -> str:
        """Name on the screen."""
        return "published sMAPE"

    def execute(self, inputs: Mapping[str, xr.Dataset], context: Context) -> xr.Dataset:
        """The deviations, one a row of the published table."""
        return published_smape_check()


class PublishedTruth(Run):
    """The published series, integrated again from their first samples."""

    @property
    def label(self) -> str:
        """Name on the screen."""
        return "published series"

    def execute(self, inputs: Mapping[str, xr.Dataset], context: Context) -> xr.Dataset:
        """The normalised error of each system."""
        return published_truth_check(progress=context.progress)

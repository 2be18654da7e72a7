"""The chaos study: which forecasters are compared on which systems, and what follows from the results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal, Self

import numpy as np
import xarray as xr
from pydantic import Field, model_validator

from apps.chaos import figures
from apps.chaos.claims import CLAIMS, ClaimId, decide
from apps.chaos.evidence import Evidence, describe_systems
from apps.chaos.protocol import Method, Protocol, Scenario
from apps.chaos.published import published_systems
from apps.chaos.runs import Forecasts, PublishedMetric, PublishedTruth, SystemSeries, Tune
from apps.chaos.table import MEASURES, rows_of
from core.errors import InputError, MissingExtra, require
from core.study import Analysis, Results, Row, Run, Study
from simulators.chaos import load, names


class ChaosStudy(Study):
    """Forecasters of chaotic systems under one protocol.

    After Gilpin (2023), "Model scale versus domain knowledge in statistical forecasting of chaotic systems", Physical
    Review Research 5, 043252, arXiv 2303.08011.
    """

    app: ClassVar[str] = "chaos"
    headline: ClassVar[tuple[str, ...]] = (
        "valid time V1, median",
        "sMAPE at one Lyapunov time, median",
        "seconds of training, median",
    )

    systems: Annotated[tuple[str, ...], Field(min_length=1)] | Literal["published", "all"] = "published"
    """Names of the catalogue, those with published errors, or all."""
    protocol: Protocol = Protocol()
    """Sampling and splits."""
    methods: tuple[Method, ...] = Field(min_length=1)
    """The forecasters."""
    scenarios: tuple[Scenario, ...] = Field(default=(Scenario(name="whole"),), min_length=1)
    """Ways to pose the task; the claims are about the first."""
    reference: str = "nbeats"
    """The method that differences in the table are to."""
    systems_per_run: int = Field(default=0, ge=0)
    """Systems that one run forecasts; 0 for all. Part of the results: another grouping changes last bits."""
    claims: tuple[ClaimId, ...] = CLAIMS
    """The claims to decide."""
    strict: bool = False
    """Refuse to start when a method's package is absent; else the method is left out and the report says so."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for what, found in (
            ("methods", [m.name for m in self.methods]),
            ("scenarios", [s.name for s in self.scenarios]),
        ):
            if len(set(found)) < len(found):
                raise InputError(f"{what}: two have the same name")
        if isinstance(self.systems, tuple) and len(set(self.systems)) < len(self.systems):
            raise InputError("systems: one is named twice")
        known = {m.name for m in self.methods}
        for s in self.scenarios:
            for name in s.methods or ():
                if name not in known:
                    raise InputError(f"scenario {s.name}: methods: {name}: must be among {', '.join(sorted(known))}")
            if s.train_length is not None and s.train_length > self.protocol.context:
                raise InputError(
                    f"scenario {s.name}: train_length = {s.train_length}: must be at most the context, "
                    f"{self.protocol.context}"
                )
            length = (s.train_length or self.protocol.context) - (s.embedding - 1)
            for method in self._taking_part(s):
                if method.forecaster.physical and (s.observe is not None or s.embedding > 1):
                    raise InputError(f"scenario {s.name}: {method.name} uses the equations and must see every channel")
                for candidate in method.candidates():
                    if candidate.shortest > length:
                        raise InputError(
                            f"scenario {s.name}: {method.name} needs at least {candidate.shortest} training samples, "
                            f"there are {length}"
                        )
        return self

    def _taking_part(self, scenario: Scenario) -> list[Method]:
        return [m for m in self.methods if scenario.methods is None or m.name in scenario.methods]

    def cautions(self) -> list[str]:
        """The methods that are left out."""
        return [f"{name} is left out: {reason}" for name, reason in self.absent().items()]

    def absent(self) -> dict[str, str]:
        """Methods whose packages are not installed, with what would bring them."""
        found = {}
        for method in self.methods:
            for module, extra in method.forecaster.packages:
                try:
                    require(module, extra)
                except MissingExtra as error:
                    found[method.name] = str(error)
        return found

    def series(self) -> list[SystemSeries]:
        """The runs that make the series, one a system.

        Raises:
            InputError: an unknown system.
            MissingExtra: dysts is not installed.
        """
        if self.systems == "published":
            chosen: Sequence[str] = published_systems()
        elif self.systems == "all":
            chosen = names()
        else:
            chosen = self.systems
        unknown = [name for name in chosen if name not in names()]
        if unknown:
            load(unknown[0])
        return [SystemSeries(system=name, protocol=self.protocol) for name in chosen]

    def methods_of(self, scenario: Scenario) -> list[Method]:
        """Who takes part in a scenario on this machine.

        Raises:
            MissingExtra: a package is absent and the study is strict.
        """
        absent = self.absent()
        found = [m for m in self._taking_part(scenario) if m.name not in absent]
        if absent and (self.strict or not found):
            raise MissingExtra(next(iter(absent.values())))
        return found

    def forecast_runs(self, scenario: Scenario, method: Method) -> list[Forecasts]:
        """The runs of a method in a scenario."""
        series = self.series()
        size = self.systems_per_run or len(series)
        # Who else takes part is no part of a run; what does not change the tuning is no part of that.
        scenario = scenario.model_copy(update={"methods": None})
        whole = Scenario(name="tuning", noise=scenario.noise, observe=scenario.observe, embedding=scenario.embedding)
        tuned_in = scenario if scenario.retune else whole
        found = []
        for begin in range(0, len(series), size):
            part = tuple(series[begin : begin + size])
            tuned = None
            if len(method.candidates()) > 1:
                tuned = Tune(method=method, scenario=tuned_in, protocol=self.protocol, series=part)
            found.append(Forecasts(method=method, scenario=scenario, protocol=self.protocol, series=part, tuned=tuned))
        return found

    def runs(self) -> list[Run]:
        """Everything: what tests the published numbers, and each method in each scenario."""
        found: list[Run] = [
            run for s in self.scenarios for method in self.methods_of(s) for run in self.forecast_runs(s, method)
        ]
        return found + list(self.published_runs().values())

    def published_runs(self) -> dict[str, Run]:
        """The runs that decide the claims on published numbers."""
        known: dict[str, Run] = {
            "published_smape_reproduced": PublishedMetric(),
            "published_truth_reproduced": PublishedTruth(),
        }
        return {claim: known[claim] for claim in self.claims if claim in known}

    def analyse(self, results: Results) -> Analysis:
        """Table, claims, figures and data of the study."""
        collected = self.evidence(results)
        systems = collected[0].systems
        table: list[Row] = [row for evidence in collected for row in rows_of(evidence, self.reference)]
        published = {claim: results[run] for claim, run in self.published_runs().items()}
        drawn = figures.of_study(collected, [results[run] for run in self.series()], self)
        groups = {"/systems": systems}
        for evidence in collected:
            groups |= {f"/{evidence.name}/{name}": data for name, data in evidence.methods.items()}
        notes = [f"{caution}." for caution in self.cautions()]
        notes += [
            f"Scenario {s.name}: {method.name} could be fitted to no series."
            for s, evidence in zip(self.scenarios, collected, strict=True)
            for method in self.methods_of(s)
            if method.name not in evidence.methods
        ]
        notes += [*_about_systems(systems), *self._about_tuning()]
        return Analysis(
            table,
            decide(collected[0], published, self.claims),
            drawn,
            xr.DataTree.from_dict(groups),
            [*notes, *MEASURES],
        )

    def _about_tuning(self) -> list[str]:
        """How hard each method was tuned, and with how many samples."""
        tried = ", ".join(f"{m.name} {len(m.candidates())}" for m in self.methods if len(m.candidates()) > 1)
        notes = [f"Settings that were tried on the validation part, for every system: {tried}; others are not tuned."]
        once = [s.name for s in self.scenarios if s.train_length is not None and not s.retune]
        if once:
            length = self.protocol.context
            notes.append(f"Tuned with {length} samples, more than are fitted: {', '.join(once)}.")
        return notes if tried else []

    def evidence(self, results: Results) -> list[Evidence]:
        """The results of every scenario."""
        systems = describe_systems([results[run] for run in self.series()], self.protocol.lyapunov)
        return [self._evidence(s, systems, results) for s in self.scenarios]

    def _evidence(self, scenario: Scenario, systems: xr.Dataset, results: Results) -> Evidence:
        found, scalings = {}, set()
        for method in self.methods_of(scenario):
            parts = [results[run].drop_attrs(deep=False) for run in self.forecast_runs(scenario, method)]
            parts = [part for part in parts if "forecast" in part]
            if not parts:
                continue
            joined = xr.concat(parts, "system", join="outer") if len(parts) > 1 else parts[0]
            # An encoding as whole numbers does not outlive the NaN of a system without forecast.
            found[method.name] = joined.reindex(system=systems["system"]).drop_encoding()
            scalings.add("raw" if method.normalize == "none" else "standardised")
        everyone = tuple(method.name for method in self.methods)
        return Evidence(scenario.name, systems, found, " or ".join(sorted(scalings, reverse=True)), everyone)


def _about_systems(systems: xr.Dataset) -> list[str]:
    """What the reader must know of the systems in use."""
    notes = []
    without = systems["system"].values[~np.isfinite(systems["lyapunov"].values)]
    if len(without):
        notes.append(
            "Not chaotic (the catalogue states at most 0.01, or ours is within three errors of zero) and left out of "
            f"all Lyapunov times: {', '.join(without)}."
        )
    stored = systems["system"].values[systems["lyapunov_source"].values == "stored"]
    if 0 < len(stored) < systems.sizes["system"]:
        notes.append(f"Exponents as the catalogue states them, for want of our own: {', '.join(stored)}.")
    return notes

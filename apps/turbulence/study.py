"""The turbulence study: which closures are compared in which flows, and what follows from the results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Self

import numpy as np
import xarray as xr
from pydantic import Field, model_validator

from apps.turbulence import figures
from apps.turbulence.claims import CLAIMS, ClaimId, Evidence, decide
from apps.turbulence.learning import (
    Agents,
    Learner,
    PPOSettings,
    StoredPolicy,
    TrainedPolicy,
    Training,
    check_updates,
)
from apps.turbulence.runs import (
    ClosureEnsemble,
    ClosureSettings,
    PolicyEnsemble,
    ReferenceStatistics,
    ResolvedEnsemble,
    SamplingSettings,
)
from apps.turbulence.scenario import Discretisation, Scenario
from apps.turbulence.table import MEASURES, rows_of
from core.errors import InputError
from core.study import Analysis, Config, Results, Row, Run, Study
from core.study.loading import from_options
from simulators.turbulence.agents import states


class Arm(Config):
    """Agents that learn."""

    name: str = Field(default="smarl", pattern=r"^[A-Za-z0-9_.-]+$")
    """Name in the report."""
    agents: Agents = Agents()
    """What they see, do and are paid for."""
    learner: Learner = PPOSettings()
    """How they learn."""
    stored: tuple[StoredPolicy, ...] = ()
    """Policies that are there already; then nothing is trained."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        check_updates(self.agents, self.learner)
        return self

    def policies(self, scenario: Scenario, seeds: int) -> list[TrainedPolicy | StoredPolicy]:
        """Those that are there, or one for each training seed."""
        if self.stored:
            return list(self.stored)
        return [
            TrainedPolicy(training=Training(scenario=scenario, agents=self.agents, learner=self.learner, seed=seed))
            for seed in range(seeds)
        ]


class Comparison(Scenario):
    """A scenario, and what is compared in it."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    """Name in the report."""
    closures: tuple[ClosureSettings, ...] = ()
    """Closures of the literature."""
    arms: tuple[Arm, ...] = ()
    """Agents that learn; the claims are about the first."""
    resolved: Discretisation | None = None
    """Also simulate the flow on this fine grid, for its extremes."""

    @model_validator(mode="after")
    def _named(self) -> Self:
        names = [c.name for c in self.closures] + [arm.name for arm in self.arms]
        if not names or len(set(names)) < len(names):
            raise InputError(f"scenario {self.name}: needs closures or arms, each with a name of its own")
        return self

    @property
    def scenario(self) -> Scenario:
        """The flow alone: runs that differ in what is compared beside them are the same runs."""
        return Scenario(**{name: getattr(self, name) for name in Scenario.model_fields})


class TurbulenceStudy(Study):
    """Closures of two-dimensional turbulence: of the literature, tuned, and learned by agents on the grid.

    After Mojgani, Waelchli, Guan, Koumoutsakos and Hassanzadeh (2023), "Extreme event prediction with multi-agent
    reinforcement learning-based parametrization of atmospheric and oceanic turbulence", arXiv 2312.00907.
    """

    app: ClassVar[str] = "turbulence"
    headline: ClassVar[tuple[str, ...]] = ("spectrum error", "tail beyond 3 sigma", "simulations that stay finite")

    seeds: int = Field(default=3, ge=1, le=1000)
    """Trainings of each arm, seeded 0, 1, ..."""
    sampling: SamplingSettings = SamplingSettings()
    """When statistics are taken."""
    long: float = Field(default=200.0, ge=0)
    """How long the trained agents are simulated; 0 as long as the others."""
    scenarios: tuple[Comparison, ...] = Field(min_length=1)
    """The flows and what is compared in them."""
    transfer: tuple[str, ...] = ()
    """Scenarios whose trained agents and tuned constants are also simulated in all others."""
    claims: tuple[ClaimId, ...] = CLAIMS
    """The claims to decide, on the first scenario."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [s.name for s in self.scenarios]
        if len(set(names)) < len(names):
            raise InputError("scenarios: two have the same name")
        for name in self.transfer:
            if name not in names:
                raise InputError(f"transfer = {name}: must be one of the scenarios {', '.join(names)}")
        self.sampling.sampling(self.long)
        for s in self.scenarios:
            for source, arm in [*((s, arm) for arm in s.arms), *self.movers(s)]:
                for policy in arm.policies(source.scenario, 1):
                    self._check_simulated(s, arm.name, policy.training)
        return self

    def _check_simulated(self, s: Comparison, name: str, training: Training) -> None:
        """Refuse, before anything is trained, agents that cannot be simulated in a scenario."""
        agents, n, trained = training.agents, s.grid.n, training.scenario.grid.n
        steps, held = max(1, round(self.sampling.every / s.grid.dt)), agents.steps_per_action
        if steps % held:
            raise InputError(
                f"scenario {s.name}: every = {self.sampling.every:g} is {steps} steps of dt = {s.grid.dt:g}: must be "
                f"a multiple of the {held} that {name} holds an action"
            )
        if n % agents.agents_per_side:
            raise InputError(f"scenario {s.name}: agents_per_side = {agents.agents_per_side}: must divide grid.n = {n}")
        seen = [states.names(agents.state, m, agents=agents.agents_per_side) for m in (n, trained)]
        if seen[0] != seen[1]:
            raise InputError(
                f"scenario {s.name}: {name} sees state = {agents.state}, which depends on the grid: trained on "
                f"{trained} points it cannot move to {n}"
            )

    def movers(self, s: Comparison) -> list[tuple[Comparison, Arm]]:
        """The arms of other scenarios that are simulated in this one."""
        sources = [other for other in self.scenarios if other.name in self.transfer and other.name != s.name]
        return [(source, arm) for source in sources for arm in source.arms]

    def tuning_run(self, s: Comparison, closure: ClosureSettings) -> ClosureEnsemble:
        """The run of a closure with all its constants from the training starts."""
        return self._closure_run(s, closure, role="training")

    def closure_runs(self, s: Comparison, closure: ClosureSettings) -> list[ClosureEnsemble]:
        """The runs of a closure from the evaluation starts, one a realisation."""
        long = self.long if closure.long else 0.0
        return [self._closure_run(s, closure, realisation=i, long=long) for i in range(self.sampling.realisations)]

    def _closure_run(self, s: Comparison, closure: ClosureSettings, **options: Any) -> ClosureEnsemble:
        reference = ReferenceStatistics(scenario=s.scenario)
        return ClosureEnsemble(
            scenario=s.scenario, closure=closure, sampling=self._sampling, reference=reference, **options
        )

    @property
    def _sampling(self) -> SamplingSettings:
        """Without the number of realisations, which is no part of a run."""
        return self.sampling.model_copy(update={"realisations": 1})

    def policy_runs(self, s: Comparison, arm: Arm, source: Comparison | None = None) -> list[PolicyEnsemble]:
        """The runs of an arm, one a training seed; it was trained in ``source``, or here."""
        reference = ReferenceStatistics(scenario=s.scenario)
        trained = s if source is None else source
        return [
            PolicyEnsemble(
                scenario=s.scenario,
                policy=policy,
                sampling=self._sampling,
                long=self.long if source is None else 0.0,
                reference=reference,
            )
            for policy in arm.policies(trained.scenario, self.seeds)
        ]

    def resolved_run(self, s: Comparison) -> ResolvedEnsemble | None:
        """The run of the flow itself; None where it is not asked for."""
        if s.resolved is None:
            return None
        reference = ReferenceStatistics(scenario=s.scenario)
        return ResolvedEnsemble(scenario=s.scenario, grid=s.resolved, sampling=self._sampling, reference=reference)

    def runs(self) -> list[Run]:
        """Everything, the longest first."""
        found: list[Run] = []
        for s in self.scenarios:
            found += [run for arm in s.arms for run in self.policy_runs(s, arm)]
            found += [run for source, arm in self.movers(s) for run in self.policy_runs(s, arm, source)]
            found += [self.tuning_run(s, c) for c in s.closures if len(c.constants) > 1]
            found += [run for c in s.closures for run in self.closure_runs(s, c)]
            resolved = self.resolved_run(s)
            found += [] if resolved is None else [resolved]
        return found

    def analyse(self, results: Results) -> Analysis:
        """Table, claims, figures and data of the study."""
        table: list[Row] = []
        drawn = []
        groups: dict[str, xr.Dataset] = {}
        collected: dict[str, Evidence] = {}
        for s in self.scenarios:
            reference = results[ReferenceStatistics(scenario=s.scenario)]
            learned = {arm.name: [results[run] for run in self.policy_runs(s, arm)] for arm in s.arms}
            name, policies = next(iter(learned.items()), ("", []))
            evidence = Evidence(
                reference,
                {c.name: (c, [results[run] for run in self.closure_runs(s, c)]) for c in s.closures},
                {c.name: results[self.tuning_run(s, c)] for c in s.closures if len(c.constants) > 1},
                policies,
                name,
                s.band,
                max(self.long, self.sampling.duration) if self.long else 0.0,
            )
            collected[s.name] = evidence
            resolved = self.resolved_run(s)
            truth = None if resolved is None else results[resolved]
            drawn += figures.of_scenario(s.name, evidence, learned, truth)
            groups |= _data(s.name, evidence, learned)
            moved = {
                f"{arm.name} from {source.name}": [results[run] for run in self.policy_runs(s, arm, source)]
                for source, arm in self.movers(s)
            }
            table += rows_of(s.name, evidence, learned | moved)
        for s in self.scenarios:
            table += self._borrowed(s, collected)
        if self.transfer:
            drawn.append(figures.transfer_matrix(table, [s.name for s in self.scenarios]))
        first = next(iter(collected.values()))
        return Analysis(table, decide(first, self.claims), drawn, xr.DataTree.from_dict(groups), list(MEASURES))

    def _borrowed(self, s: Comparison, collected: dict[str, Evidence]) -> list[Row]:
        """The rows of closures whose constants were tuned in another scenario."""
        here, found = collected[s.name], {}
        for source in (other for other in self.scenarios if other.name in self.transfer and other.name != s.name):
            for name, (settings, data) in here.closures.items():
                theirs = collected[source.name].closures.get(name)
                if len(settings.constants) > 1 and theirs is not None and theirs[0].constants == settings.constants:
                    place = collected[source.name].place(name)
                    found[f"{name} from {source.name}"] = [part.isel(constant=place) for part in data]
        return rows_of(s.name, replace(here, closures={}), found)


def evaluation_of(
    closures: Sequence[ClosureSettings] = (),
    arms: Sequence[Arm] = (),
    scenario: Scenario | None = None,
    *,
    name: str = "evaluation",
    sampling: SamplingSettings | None = None,
) -> TurbulenceStudy:
    """A study without claims: closures and trained policies in one scenario, the shipped one by default.

    Raises:
        InputError: nothing to simulate, two of one name, or policies that cannot be simulated there.
    """
    compared = {"name": name, "closures": tuple(closures), "arms": tuple(arms)}
    comparison = from_options(Comparison, (scenario or Scenario()).model_dump() | compared, name)
    values = {"study": name, "scenarios": (comparison,), "sampling": sampling or SamplingSettings(), "long": 0.0}
    return from_options(TurbulenceStudy, values | {"claims": ()}, name)


def _data(scenario: str, evidence: Evidence, learned: dict[str, list[xr.Dataset]]) -> dict[str, xr.Dataset]:
    """The results of a scenario as groups."""
    found = {f"/{scenario}/reference": evidence.reference}
    groups = [(name, parts, "realisation") for name, (_, parts) in evidence.closures.items()]
    groups += [(name, parts, "seed") for name, parts in learned.items()]
    for name, parts, dim in groups:
        # Trainings need not have equally many updates: a shorter curve ends in NaN.
        aligned = [part.assign_coords(update=np.arange(part.sizes.get("update", 0))) for part in parts]
        found[f"/{scenario}/{name}"] = xr.concat(aligned, xr.Variable(dim, np.arange(len(parts))), join="outer")
    return found

"""The fishery study: which methods are compared in which worlds, and what follows from the results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self, get_args

import numpy as np
import xarray as xr
from pydantic import Field, model_validator

from apps.fishery import figures
from apps.fishery.claims import CLAIMS, ClaimId, Evidence, decide
from apps.fishery.learning import PPOSettings, TrainedPolicy
from apps.fishery.runs import LEARNED, Evaluate, Logistic, Method, Rule, Smoothing, Solver, Tune
from apps.fishery.scenario import Scenario
from apps.fishery.surplus_production import SurplusProductionFit
from core.errors import InputError, require
from core.stats import Interval, clustered_difference, mean_interval, paired_difference, proportion_interval
from core.study import Analysis, Claim, Config, Figure, Results, Row, Run, Study
from core.study.numbers import estimate

TABLE_RESAMPLES = 2000
REFERENCE = "constant_mortality"
MEASURES = (
    "K is a species' carrying capacity. A species at or below the threshold (0.05 K unless set) ends the episode and "
    "costs 100/(t+1) K, t counted from 0. return: all rewards of an episode; return_paper: without its last step, as "
    "published; survived: no extinction; frac_full: the last year was reached, an extinction in it included; "
    "annual_catch: mean over all years, those after an extinction counting as 0."
)


class Tuning(Config):
    """How the rules are tuned."""

    replicates: int = Field(default=100, ge=2, le=100_000)
    """Episodes a grid point, the same for all points."""
    points: int | None = Field(default=None, ge=2, le=1001)
    """Points on each axis of a grid; the paper's (101, or 51 x 51) if null."""
    seed: int = Field(default=1, ge=0, lt=2**32)
    """Of the replicates."""


class Evaluation(Config):
    """How the methods are compared."""

    replicates: int = Field(default=2000, ge=2, le=1_000_000)
    """Fresh episodes, the same for every method."""
    seed: int = Field(default=2, ge=0, lt=2**32)
    """Of the episodes."""
    record: int = Field(default=100, ge=1)
    """Episodes kept whole in the results."""
    resamples: int = Field(default=10_000, ge=100, le=1_000_000)
    """Of the bootstrap that decides the claims."""


class Comparison(Scenario):
    """A scenario and the methods compared in it."""

    methods: tuple[Method, ...] = Field(min_length=1)
    """What is compared."""
    tuning: Tuning = Tuning()
    """Of the harvest rules."""
    ppo: PPOSettings = PPOSettings()
    """Of the learner."""
    smoothing: Smoothing = Smoothing()
    """Of ``ppo_gp``."""
    solver: Solver = Solver()
    """Of the exact solutions."""
    logistic: Logistic = Logistic()
    """Data of the poor model."""

    @property
    def scenario(self) -> Scenario:
        """The world alone: runs that differ in the methods around them are the same runs."""
        return Scenario(**{name: getattr(self, name) for name in Scenario.model_fields})


class FisheryStudy(Study):
    """Harvest rules, exact solutions and PPO on models of rising complexity and on fitted stocks.

    After Montealegre-Mora et al. (2023), "Pretty darn good control", Bull. Math. Biol.
    """

    app: ClassVar[str] = "fishery"
    headline: ClassVar[tuple[str, ...]] = ("return", "survived", "annual_catch")

    seeds: int = Field(default=3, ge=1, le=1000)
    """Training seeds of the learner."""
    scenarios: tuple[Comparison, ...] = Field(min_length=1)
    """The worlds and what is compared in each."""
    evaluation: Evaluation = Evaluation()
    """Of all methods."""
    claims: tuple[ClaimId, ...] = CLAIMS
    """The claims to decide."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [s.name for s in self.scenarios]
        if len(set(names)) < len(names):
            raise InputError("scenarios: two have the same name")
        if self.evaluation.record > self.evaluation.replicates:
            raise InputError("evaluation.record: must be at most evaluation.replicates")
        for s in self.scenarios:
            one = s.model == 1 or s.stock is not None
            exact = [m for m in s.methods if m.startswith("dynamic_programming")]
            if "ppo_gp" in s.methods and s.observe_time:
                raise InputError(f"scenarios: {s.name}: ppo_gp knows populations alone: observe_time must be false")
            if exact and not one:
                raise InputError(f"scenarios: {s.name}: {exact[0]} takes one-species worlds (model 1 or a stock)")
        return self

    def evaluations(self, comparison: Comparison, method: Method) -> list[Evaluate]:
        """The runs of one method in one scenario: one a training seed, or one alone."""
        plain = Evaluate(
            scenario=comparison.scenario,
            method=method,
            replicates=self.evaluation.replicates,
            seed=self.evaluation.seed,
            record=self.evaluation.record,
            tuned=self.tuning(comparison, method),
            smoothing=comparison.smoothing if method == "ppo_gp" else None,
            solver=comparison.solver if method.startswith("dynamic_programming") else None,
            logistic=comparison.logistic if method == "poor_model" else None,
        )
        if method not in LEARNED:
            return [plain]
        policies = [
            TrainedPolicy(scenario=comparison.scenario, settings=comparison.ppo, seed=seed)
            for seed in range(self.seeds)
        ]
        return [plain.model_copy(update={"learned": policy}) for policy in policies]

    def tuning(self, comparison: Comparison, method: Method) -> Tune | None:
        """The run that tunes a method's rule; None where nothing is tuned."""
        for rule in get_args(Rule):
            if method.partition("_0.")[0] == rule:
                return Tune(scenario=comparison.scenario, rule=rule, **comparison.tuning.model_dump())
        return None

    def runs(self) -> list[Run]:
        """Every method in every scenario; the longest first, so that no core waits at the end.

        Raises:
            MissingExtra: a method needs scikit-learn, which is not installed.
        """
        if any("ppo_gp" in s.methods for s in self.scenarios):
            require("sklearn", "fishery")
        # Each first use of a policy trains it: those that share one come later, so that no worker waits for another.
        order = (*LEARNED, *(m for m in get_args(Method) if m not in LEARNED))
        return [run for m in order for s in self.scenarios if m in s.methods for run in self.evaluations(s, m)]

    def analyse(self, results: Results) -> Analysis:
        """Table, claims, figures and data of the study."""
        table: list[Row] = []
        drawn: list[Figure] = []
        notes: list[str] = []
        groups: dict[str, xr.Dataset] = {}
        evidence: dict[tuple[int, str], list[xr.Dataset]] = {}
        for s in self.scenarios:
            found: dict[str, list[xr.Dataset]] = {
                method: [results[run] for run in self.evaluations(s, method)] for method in s.methods
            }
            tuned: dict[str, xr.Dataset] = {m: results[t] for m in s.methods if (t := self.tuning(s, m)) is not None}
            fit = s.fit("profile")
            # The claims speak of the paper's models as they are, and of one scenario each.
            new = s.model is not None and all(number != s.model for number, _ in evidence)
            if s.model is not None and new and s.scenario == Scenario(name=s.name, model=s.model):
                evidence |= {(int(s.model), method): data for method, data in found.items()}
            table += _rows(s.name, found, tuned, fit)
            drawn += figures.of_scenario(s.name, found, tuned)
            if fit is not None:
                drawn.append(figures.of_fit(s.name, fit))
                notes.append(
                    f"{s.name}: catch and index do not tell process noise from observation error; the policies were "
                    f"evaluated with an assumed process noise of {s.world().sigma:g}."
                )
            notes += _losses(s.name, found)
            groups[f"/{s.name}"] = _policies(found)
        claims: list[Claim] = decide(Evidence(evidence, self.evaluation.resamples), self.claims)
        notes.append(MEASURES)
        notes.append(
            "Intervals are 95 % percentile bootstrap intervals over replicates (Wilson's for a share), and over "
            "training seeds crossed with replicates for learned methods. All methods of a scenario met the same "
            f"{self.evaluation.replicates} fresh episodes, which took no part in tuning or training."
        )
        return Analysis(table, claims, drawn, xr.DataTree.from_dict(groups), notes)


def _interval(data: list[xr.Dataset], metric: str) -> Interval:
    values = np.stack([d[metric].values.astype(float) for d in data])
    # A bootstrap of equal values has no width: a share of none or all keeps Wilson's interval over the replicates.
    if metric in ("survived", "frac_full") and (len(data) == 1 or np.ptp(values) == 0):
        return proportion_interval(int(values[0].sum()), values.shape[1])
    if len(data) > 1:
        return clustered_difference(values, resamples=TABLE_RESAMPLES)
    return mean_interval(values[0], resamples=TABLE_RESAMPLES)


def _fit_rows(scenario: str, fit: SurplusProductionFit) -> list[Row]:
    """What the data say of the stock; an end of an interval that meets a bound is open."""
    units = {"r": "1/year", "K": fit.stock.catch_unit, "msy": f"{fit.stock.catch_unit}/year"}
    count = int(np.isfinite(fit.stock.index).sum())
    rows = []
    for name, unit in units.items():
        ends = fit.intervals[name]
        low, high = (None if ends.low_open else ends.low), (None if ends.high_open else ends.high)
        rows.append(Row(scenario, "surplus production fit", name, unit, getattr(fit, name), low, high, count))
    return rows


def _rows(
    scenario: str,
    found: Mapping[str, list[xr.Dataset]],
    tuned: Mapping[str, xr.Dataset],
    fit: SurplusProductionFit | None,
) -> list[Row]:
    """The rows of one scenario, method by method."""

    def row(method: str, metric: str, unit: str, i: Interval, scale: float = 1.0) -> Row:
        return Row(scenario, method, metric, unit, scale * i.mean, scale * i.low, scale * i.high, i.n)

    rows = [] if fit is None else _fit_rows(scenario, fit)
    for method, data in found.items():
        rows.append(row(method, "return", "K", _interval(data, "return")))
        if method != REFERENCE and REFERENCE in found:
            ours = np.stack([d["return"].values for d in data])
            theirs = found[REFERENCE][0]["return"].values
            if len(ours) > 1:
                gain = clustered_difference(ours - theirs, resamples=TABLE_RESAMPLES)
            else:
                gain = paired_difference(ours[0], theirs, resamples=TABLE_RESAMPLES)
            rows.append(row(method, f"return - {REFERENCE}", "K", gain))
        if method in tuned and "_0." not in method:
            chosen_values = {n: v for n, v in tuned[method].data_vars.items() if v.ndim == 0}
            units = {"mortality": "1/year", "y2": "1/year"}
            for name, value in chosen_values.items():
                unit = units.get(str(name).partition("_")[0], "K")
                rows.append(Row(scenario, method, f"tuned {name}", unit, float(value)))
            chosen = mean_interval(tuned[method]["in_sample_return"].values, resamples=TABLE_RESAMPLES)
            rows.append(row(method, "return in sample", "K", chosen))
        rows.append(row(method, "return_paper", "K", _interval(data, "return_paper")))
        rows.append(row(method, "survived", "share", _interval(data, "survived")))
        rows.append(row(method, "frac_full", "share", _interval(data, "frac_full")))
        if fit is not None:
            unit = f"{fit.stock.catch_unit}/year"
            rows.append(row(method, "annual_catch", unit, _interval(data, "annual_catch"), fit.K))
    return rows


def _losses(scenario: str, found: Mapping[str, list[xr.Dataset]]) -> list[str]:
    """Where the learned policy earns less than a rule or an exact solution, in words."""
    rivals = [m for m in found if m not in LEARNED and m != "unharvested" and len(found[m]) == 1]
    if "ppo" not in found or not rivals:
        return []
    best = max(rivals, key=lambda m: float(found[m][0]["return"].mean()))
    ours = np.stack([d["return"].values for d in found["ppo"]])
    gap = clustered_difference(ours - found[best][0]["return"].values, resamples=TABLE_RESAMPLES)
    verdict = "more" if gap.low > 0 else "less" if gap.high < 0 else "neither clearly more nor less"
    return [
        f"{scenario}: PPO returns {verdict} than the best of the other methods, {best}: a difference of "
        f"{estimate(gap.mean, gap.low, gap.high)} K over {len(ours)} training seeds."
    ]


def _policies(found: Mapping[str, list[xr.Dataset]]) -> xr.Dataset:
    """All methods of a scenario along the dim ``policy``; learned ones once for each seed."""
    names = [m if len(data) == 1 else f"{m} seed {i}" for m, data in found.items() for i in range(len(data))]
    parts = [d.drop_vars("training_return", errors="ignore") for data in found.values() for d in data]
    parts = [d.drop_dims("timesteps", errors="ignore").drop_attrs(deep=False) for d in parts]
    return xr.concat(parts, xr.Variable("policy", names), coords="minimal", compat="override", join="override")

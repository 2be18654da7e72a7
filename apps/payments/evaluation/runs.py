"""The run of an evaluation: a log is read once, and what it says of every policy is stored."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import xarray as xr
from pydantic import Field, model_validator
from scipy.stats import false_discovery_control

from apps.payments.evaluation.evidence import (
    CALIBRATION_BINS,
    LEAST_SEGMENT,
    Cluster,
    Evaluator,
    Evidence,
    PaymentsLog,
    Target,
    UniformTarget,
    fit_models,
    largest_levels,
)
from apps.payments.evaluation.propensities import fit_action_model
from apps.payments.log.open_bandit import OpenBanditLog, read_open_bandit
from apps.payments.oracles import FactoredSettings, Oracle, OracleNotFitted, OracleSettings
from apps.payments.policy import Policy
from core.bandits import (
    LOGGED,
    NET_VALUE,
    Anytime,
    Bernstein,
    IntervalMethod,
    Limits,
    Normal,
    Percentile,
    PoissonBootstrap,
    Sums,
)
from core.errors import InputError
from core.stats import Interval
from core.study import Config, Context, Run
from simulators.payments.context import CATEGORIES, Sizes

Format = Literal["payments", "open_bandit"]
IntervalName = Literal["normal", "bootstrap", "bernstein", "anytime"]
METHODS: dict[str, IntervalMethod] = {
    "normal": Normal(),
    "bootstrap": Percentile(),
    "bernstein": Bernstein(),
    "anytime": Anytime(),
}
UNIFORM = "uniform"
ENDS = ("mean", "low", "high")
DISCOVERY_RATE = 0.05


class Candidate(Config):
    """A policy to be evaluated."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    """Name in the report."""
    source: str = UNIFORM
    """``uniform``; or a policy's folder; or, on an Open Bandit log, the log whose item frequencies are the policy."""
    checksum: str = ""
    """Of what lies there, so that a changed policy is evaluated anew."""
    seen: bool = False
    """It was trained on all rows of the log: nothing is decided about it."""


class Estimation(Config):
    """How policies are evaluated."""

    clip: float = Field(default=10.0, gt=0)
    """Largest weight of ``clipped_ips``."""
    switch: float = Field(default=5.0, gt=0)
    """Weight above which ``switch_dr`` trusts the reward model."""
    shrink: float = Field(default=5.0, gt=0)
    """Lambda of ``dros``."""
    max_weight: float | None = Field(default=None, gt=0)
    """Bound that no weight exceeds, with which Bernstein's intervals exist for IPS and DR."""
    net_value: bool = False
    """Rewards are amounts, not approvals in [0, 1]; there is then no reward model."""
    replicates: int = Field(default=1000, ge=0, le=100_000)
    """Of the bootstrap; 0 does without."""
    cluster: Cluster = "row"
    """What the bootstrap draws: rows, or what hangs together."""
    model: OracleSettings | None = FactoredSettings()
    """Of the reward, cross-fitted; null evaluates by weights alone."""
    fit_rows: int = Field(default=200_000, ge=100)
    """Rows of the log that the reward model is fitted to."""
    segment: str | None = None
    """Column whose levels are evaluated by themselves."""
    segments: int = Field(default=20, ge=1, le=1000)
    """Levels that are kept apart: those with the most rows."""
    estimate_propensities: bool = False
    """Of a log that did not record them: nothing is then decided, because what the model of the logged policy lacks
    biases every estimate."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Of the fits and the bootstrap."""

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.cluster != "row" and self.bootstrap is None:
            raise InputError(f"cluster = {self.cluster}: is drawn by the bootstrap: replicates must be at least 2")
        if self.segment is not None and self.segment not in CATEGORIES:
            raise InputError(f"segment = {self.segment}: must be one of {', '.join(CATEGORIES)}")
        return self

    @property
    def limits(self) -> Limits:
        """What is made of large weights."""
        return Limits(self.clip, self.switch, self.shrink, math.inf if self.max_weight is None else self.max_weight)

    @property
    def deciding(self) -> IntervalName:
        """The interval that decides: over rows by the delta method, over clusters by the bootstrap that draws them."""
        return "normal" if self.cluster == "row" else "bootstrap"

    @property
    def bootstrap(self) -> PoissonBootstrap | None:
        """The bootstrap, if there is one."""
        return PoissonBootstrap(self.replicates, self.seed) if self.replicates >= 2 else None


class EvaluateLog(Run):
    """Every policy on one log."""

    log: str
    """Path of the log."""
    format: Format
    """``payments``: a joined log; ``open_bandit``: a campaign's folder or CSV file."""
    checksum: str
    """Of the log."""
    candidates: tuple[Candidate, ...]
    """The policies."""
    estimation: Estimation
    """How."""
    sizes: Sizes = Sizes()
    """Of the portfolio, on a payments log."""
    fold: int | None = None
    """Only the rows of this fold are evaluated: those that a candidate did not learn from."""
    baseline: str = LOGGED
    """What the policies are compared with: the policy that logged, or a candidate."""

    @property
    def label(self) -> str:
        """Name on the screen."""
        return f"evaluate {Path(self.log).name}"

    def execute(self, inputs: Mapping[str, xr.Dataset], context: Context) -> xr.Dataset:
        """Estimates, differences from the log's own policy and diagnostics, with what the pictures need."""
        if self.format == "open_bandit":
            return self._open_bandit()
        log = PaymentsLog(Path(self.log), self.sizes, not self.estimation.estimate_propensities)
        policies = {c.name: _policy(c) for c in self.candidates}
        how, notes = self.estimation, []
        models: tuple[Oracle[Any], ...] = ()
        sample = log.sample(how.fit_rows, how.seed)
        if how.net_value:
            notes.append("Rewards are amounts: there is no reward model, only weights are used.")
        elif how.model is not None:
            context.log(message="fitting the reward model")
            try:
                models = fit_models(sample, log.sizes, how.model, how.seed)
            except OracleNotFitted as reason:
                notes.append(f"No reward model: {reason}; only weights are used.")
        logging = None
        if how.estimate_propensities:
            context.log(message="fitting the propensities")
            logging = fit_action_model(sample)
        levels = () if how.segment is None else largest_levels(sample, how.segment, how.segments)
        evaluator = Evaluator(
            policies,
            models,
            how.limits,
            how.bootstrap,
            how.cluster,
            how.segment,
            levels,
            logging,
            logging is None and log.distributions,
            self.fold,
            NET_VALUE if how.net_value else (0.0, 1.0),
        )
        total = max(log.rows, 1)
        evidence = log.reduce(evaluator, lambda done: context.progress(done / total))
        return evidence_data(evidence, notes, self.baseline)

    def _open_bandit(self) -> xr.Dataset:
        log = read_open_bandit(Path(self.log))
        rows = {c.name: log.rows(_items(c, log)) for c in self.candidates}
        bootstrap = self.estimation.bootstrap
        ids = np.arange(len(log)) if bootstrap else None
        sums = Sums.of(rows, bootstrap=bootstrap, ids=ids, **vars(self.estimation.limits))
        found = estimates(sums, self.baseline)
        for c in self.candidates:
            if c.source != UNIFORM:
                own = read_open_bandit(Path(c.source), log.items).click_rate
                found[f"own_rate_{c.name}"] = ("end", [own.mean, own.low, own.high])
        notes = ["The reward model is a table of shrunk click rates by item and position of the log, not cross-fitted."]
        return found.assign_attrs(notes="\n".join(notes))


def _policy(candidate: Candidate) -> Target:
    return UniformTarget() if candidate.source == UNIFORM else Policy.load(Path(candidate.source))


def _items(candidate: Candidate, log: OpenBanditLog) -> Any:
    if candidate.source == UNIFORM:
        return log.impressions.new_full(log.impressions.shape, 1 / log.items)
    return read_open_bandit(Path(candidate.source), log.items).item_frequencies()


def estimates(sums: Sums, baseline: str = LOGGED) -> xr.Dataset:
    """Every estimate with every interval that its assumptions allow, differences from a baseline, and diagnostics."""
    policies = list(sums.policies)
    names = list(dict.fromkeys(name for policy in policies for name in sums.estimators(policy)))
    shape = (len(policies), len(names), len(METHODS), len(ENDS))
    value, gain, p = np.full(shape, np.nan), np.full(shape, np.nan), np.full(shape[:3], np.nan)
    for i, policy in enumerate(policies):
        for j, name in enumerate(names):
            for k, method in enumerate(METHODS.values()):
                try:
                    value[i, j, k] = _ends(sums.estimate(name, policy, method))
                    if policy == baseline:
                        continue
                    against = sums.difference(name, policy, baseline, method)
                except InputError:  # an interval that needs a bound, or a bootstrap, that is not there
                    continue
                gain[i, j, k] = _ends(against)
                p[i, j, k] = np.nan if against.p is None else against.p
    diagnosed = [sums.diagnostics(policy) for policy in policies]
    dims = ("policy", "estimator", "interval", "end")
    own = sums.estimate("ips", LOGGED)
    return xr.Dataset(
        {
            "value": (dims, value, {"long_name": "value of the policy", "units": "1"}),
            "difference": (dims, gain, {"long_name": f"value less that of {baseline}", "units": "1"}),
            "p": (dims[:3], p, {"long_name": "p-value of the difference"}),
            "logged": ("end", _ends(own), {"long_name": "mean reward of the log"}),
            "mean_weight": (("policy", "end"), [_ends(d.mean_weight) for d in diagnosed]),
            "ess": ("policy", [d.ess for d in diagnosed], {"long_name": "effective sample size", "units": "rows"}),
            "max_weight": ("policy", [d.max_weight for d in diagnosed]),
            "missing_mass": ("policy", [np.nan if d.missing_mass is None else d.missing_mass for d in diagnosed]),
            "verdict": ("policy", [d.verdict for d in diagnosed]),
            "reason": ("policy", ["; ".join(d.reasons) for d in diagnosed]),
        },
        {"policy": policies, "estimator": names, "interval": list(METHODS), "end": list(ENDS)},
    ).assign_attrs(rows=sums.n)


def evidence_data(evidence: Evidence, notes: list[str], baseline: str = LOGGED) -> xr.Dataset:
    """``estimates`` of the whole log and, along ``segment``, of its parts; and the histograms."""
    found = estimates(evidence.whole, baseline)
    histograms = evidence.histograms
    found["weight_counts"] = (
        ("policy", "weight_bin"),
        np.stack([histograms.weights[p] for p in evidence.whole.policies]),
    )
    found["propensity_counts"] = ("propensity_bin", histograms.propensities)
    found["calibration"] = (("sum", "bin"), histograms.calibration)
    found = found.assign_coords(bin=(np.arange(CALIBRATION_BINS) + 0.5) / CALIBRATION_BINS)
    large = {name: sums for name, sums in evidence.segments.items() if sums.n >= LEAST_SEGMENT}
    if large:
        parts = [estimates(sums, baseline) for sums in large.values()]
        segments = xr.concat(parts, xr.Variable("segment", list(large)), combine_attrs="drop", join="outer")
        found = found.merge(segments.rename({name: f"segment_{name}" for name in segments.data_vars}))
        found["segment_rows"] = ("segment", [sums.n for sums in large.values()])
    return found.assign_attrs(notes="\n".join(notes), rows=evidence.whole.n)


def _ends(i: Interval) -> list[float]:
    return [i.mean, i.low, i.high]


def discoveries(at: xr.Dataset) -> np.ndarray:
    """Which segments ``(S,)`` differ, at a false-discovery rate of 5 % over all of them."""
    p = np.nan_to_num(at["segment_p"].values, nan=1.0)
    found: np.ndarray = false_discovery_control(p) <= DISCOVERY_RATE
    return found

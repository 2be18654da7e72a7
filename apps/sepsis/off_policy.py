"""Several policies judged from one log, beside the truth where a simulator knows it, and a flag where nothing follows.

The thinner the overlap of policy and log, the fewer patients carry an estimate: where their effective number is below
5 % or below 30 the value is not identifiable, and no order of policies is derived from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from apps.sepsis.clinician import Clinician
from apps.sepsis.estimates import EstimateSettings, estimate, log_weights, logged_outcome, target_probabilities
from apps.sepsis.outcomes import is_simulated, true_outcome
from apps.sepsis.policies import LearnedPolicy
from apps.sepsis.table import MOST_FLOORED
from core.offline import Estimate, effective_sample_size, enough_overlap
from core.stats import Interval, mean_interval
from core.study import Row
from simulators.sepsis.cohort import Cohort

SCENARIO = "mean discounted outcome"
NOT_IDENTIFIABLE, EXTRAPOLATES = "not identifiable", "extrapolates"
RANKED_BY = ("WDR", "WPDIS", "WIS")
"""Estimators that may order policies, the first that was asked for."""


@dataclass(frozen=True)
class PolicyEstimates:
    """What a log says of a policy.

    Attributes:
        name: of the policy.
        estimates: by estimator.
        log_weights: ``(E,)`` of the test patients.
        truth: what the policy leads to in the simulator; None for records.
    """

    name: str
    estimates: tuple[Estimate, ...]
    log_weights: Tensor
    truth: Interval | None

    def by(self, estimator: str) -> Estimate | None:
        """The estimate of that name."""
        return next((e for e in self.estimates if e.name == estimator), None)

    def flag(self, e: Estimate) -> str:
        """Why an estimate must not be relied on; empty if nothing is known against it.

        An estimate by a model alone has no weights that could warn; where too few patients count, the log does not
        cover the policy, and the model extrapolates.
        """
        if e.verdict == "model alone":
            ess, _ = effective_sample_size(self.log_weights)
            return "" if enough_overlap(ess, e.episodes) else EXTRAPOLATES
        return NOT_IDENTIFIABLE if e.verdict == NOT_IDENTIFIABLE else ""

    @property
    def identifiable(self) -> bool:
        """Whether nothing is known against any of the estimates."""
        return not any(map(self.flag, self.estimates))


@dataclass(frozen=True)
class OffPolicyReport:
    """Policies beside each other.

    Attributes:
        policies: one or more.
        logged: the clinician's own mean discounted outcome.
        settings: of the estimates.
        steps: that were logged.
    """

    policies: tuple[PolicyEstimates, ...]
    logged: Interval
    settings: EstimateSettings
    steps: int

    @property
    def flags(self) -> list[str]:
        """A line for each policy about which the log says nothing, and one if the clinician's policy is doubtful."""
        lines = []
        raised = max((e.floored for policy in self.policies for e in policy.estimates), default=0)
        if raised > MOST_FLOORED * self.steps:
            lines.append(
                f"clinician: next to no probability for {raised} of {self.steps} logged actions, which was raised "
                f"(more than {MOST_FLOORED:.0%}: estimate it better)"
            )
        for policy in self.policies:
            if not policy.identifiable:
                ess, largest = effective_sample_size(policy.log_weights)
                lines.append(
                    f"{policy.name}: not identifiable, {ess:.1f} of {len(policy.log_weights)} patients count "
                    f"(the largest carries {100 * largest:.0f} % of all weight); what a model says of it extrapolates"
                )
        return lines

    @property
    def order(self) -> str:
        """In which order the policies stand, best first, or why none is given."""
        if len(self.policies) < 2:
            return ""
        if all(p.truth is not None for p in self.policies):
            best = sorted(self.policies, key=lambda p: -p.truth.mean)  # type: ignore[union-attr]
            return "by true outcome, whose intervals are in the table: " + " > ".join(p.name for p in best)
        if any(not p.identifiable for p in self.policies):
            return "not ranked: the log does not identify the outcome of every policy"
        name = next((name for name in RANKED_BY if self.policies[0].by(name) is not None), None)
        if name is None:
            return f"not ranked: needs one of {', '.join(RANKED_BY)}"
        held = sorted(((p.by(name), p.name) for p in self.policies), key=lambda x: -x[0].value)  # type: ignore[union-attr]
        return f"by {name}, whose intervals are in the table: " + " > ".join(which for _, which in held)

    def rows(self) -> list[Row]:
        """The table."""
        logged = self.logged
        rows = [Row(SCENARIO, "clinician, as logged", "on policy", "", logged.mean, logged.low, logged.high, logged.n)]
        rows += [
            Row(SCENARIO, p.name, "truth", "", p.truth.mean, p.truth.low, p.truth.high, p.truth.n)
            for p in self.policies
            if p.truth is not None
        ]
        for name in self.settings.estimators:
            for policy in self.policies:
                if (e := policy.by(name)) is not None:
                    flag = policy.flag(e).upper()
                    method = f"{policy.name} ({flag})" if flag else policy.name
                    rows.append(Row(SCENARIO, method, name, "", e.value, e.low, e.high, e.episodes))
        for policy in self.policies:
            weighed = next((e for e in policy.estimates if e.name != "FQE"), None)
            if weighed is not None:
                ess, n = weighed.ess, weighed.episodes
                rows.append(Row("overlap", policy.name, "effective sample size", "patients", ess, n=n))
        return rows

    def content(self) -> dict[str, Any]:
        """JSON data."""
        return {
            "settings": self.settings.model_dump(mode="json"),
            "clinician": asdict(self.logged),
            "policies": [
                {
                    "name": p.name,
                    "identifiable": p.identifiable,
                    "truth": None if p.truth is None else asdict(p.truth),
                    "estimates": [asdict(e) for e in p.estimates],
                }
                for p in self.policies
            ],
            "order": self.order,
            "flags": self.flags,
        }


def compare_policies(
    cohort: Cohort,
    policies: Mapping[str, LearnedPolicy],
    clinician: Clinician | None,
    settings: EstimateSettings,
    seed: int,
    *,
    subjects: int = 3000,
    checkpoint: Path | None = None,
    progress: Callable[[float, str], None] | None = None,
) -> OffPolicyReport:
    """Estimate every policy from the test patients of a cohort.

    Args:
        cohort: the log.
        policies: by name.
        clinician: the estimated behaviour policy; needed where the cohort does not know its own.
        settings: estimators and their constants.
        seed: of bootstrap and model.
        subjects: new patients for the truth, where there is a simulator.
        checkpoint: folder that survives a kill.
        progress: told the share done and a message.

    Raises:
        InputError: as ``estimates.estimate``.
    """
    found = []
    for i, (name, policy) in enumerate(policies.items()):

        def told(share: float, message: str, i: int = i, name: str = name) -> None:
            if progress is not None:
                progress((i + share) / len(policies), f"{name}: {message}")

        told(0.0, "estimates")
        kept = None if checkpoint is None else checkpoint / f"fitted_q_{i}.safetensors"
        estimates = estimate(cohort, policy, clinician, settings, seed, checkpoint=kept, progress=told)
        truth = None
        if is_simulated(cohort):
            target = target_probabilities(policy, settings)
            lived = true_outcome(cohort, target, subjects, settings.gamma, device=cohort.state.device)
            truth = mean_interval(lived.cpu())
        weights = log_weights(cohort, policy, clinician, settings).cpu()
        found.append(PolicyEstimates(name, tuple(estimates), weights, truth))
    steps = len(cohort.steps("test"))
    return OffPolicyReport(tuple(found), logged_outcome(cohort, settings.gamma), settings, steps)

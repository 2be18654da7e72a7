"""What is said of a policy when it has been trained: its survival where that is known, its verdicts, its card."""

from __future__ import annotations

from pathlib import Path

from apps.sepsis.arguments import Arguments
from apps.sepsis.debate import compare
from apps.sepsis.evidence import share
from apps.sepsis.model_card import write_model_card
from apps.sepsis.outcomes import is_simulated, true_survival
from apps.sepsis.policies import LearnedPolicy
from apps.sepsis.settings import Arm, Learner, PolicySettings
from apps.sepsis.table import row_of
from core.seeds import stream
from core.stats import mean_interval, paired_difference, proportion_interval
from core.study import Row
from core.study.provenance import version
from simulators.sepsis.cohort import Cohort
from simulators.sepsis.report import describe


def policy_rows(
    cohort: Cohort,
    policy: LearnedPolicy,
    clipped: float,
    subjects: int,
    *,
    rival: LearnedPolicy | None = None,
    arguments: Arguments | None = None,
    seed: int = 0,
) -> list[Row]:
    """Survival beside that of the logged patients and of the baseline, the judge's preference, clipped targets.

    Args:
        cohort: the log; on the device of the policies.
        policy: greedy.
        clipped: share of the targets that the bound on Q cut.
        subjects: new patients for the true survival.
        rival: the baseline.
        arguments: judge and debaters.
        seed: of the debates.
    """
    test = cohort.subset("test")
    lived = proportion_interval(int((test.outcome > 0).sum()), test.patients)
    rows = [row_of("survival", "clinician, logged test patients", "survived", "%", lived, 100)]
    if is_simulated(cohort):
        device = cohort.state.device
        true = true_survival(cohort, policy.greedy, subjects, device=device).cpu()
        rows.append(row_of("survival", "policy", "true survival", "%", mean_interval(true), 100))
        if rival is not None:
            other = true_survival(cohort, rival.greedy, subjects, device=device).cpu()
            rows.append(row_of("survival", "baseline", "true survival", "%", mean_interval(other), 100))
            rows.append(
                row_of("survival", "policy", "less the baseline", "points", paired_difference(true, other), 100)
            )
    steps = cohort.steps("test")
    action = policy.greedy(steps.state)
    agreed = share((action == steps.action).float(), steps.patient)
    if agreed is not None:
        rows.append(row_of("decisions", "policy", "as logged", "% of test steps", agreed, 100))
    if rival is not None and arguments is not None:
        other_action = rival.greedy(steps.state)
        shown = arguments.evidence(steps.state, action, other_action, stream(seed, "debates of policies"))
        said = compare(arguments.judge, steps.state, shown, action, other_action)
        preferred = share((said > 0).float(), steps.patient, action != other_action)
        if preferred is not None:
            rows.append(
                row_of("decisions", "policy", "preferred to the baseline where they differ", "%", preferred, 100)
            )
    return [*rows, Row("training", "policy", "clipped targets", "%", 100 * clipped)]


def write_card(
    path: Path, cohort: Cohort, arm: Arm, learner: Learner, settings: PolicySettings, rows: list[Row], seed: int
) -> None:
    """Write the model card of a policy trained on a cohort, which is on the CPU."""
    training = {"lambda": arm.lam, "reward": arm.reward, "alpha": learner.alpha, **settings.model_dump(mode="json")}
    write_model_card(
        path,
        f"Sepsis treatment policy, lambda {arm.lam:g}",
        describe(cohort, measures=False),
        training,
        table=rows,
        provenance={"version": version(), "seed": seed},
    )

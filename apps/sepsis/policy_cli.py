"""The verbs that train a policy, judge it off-line and explain where it departs from another."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from apps.sepsis.estimates import EstimateSettings
from apps.sepsis.settings import (
    Arm,
    Learner,
    PolicySettings,
)
from apps.sepsis.verb_inputs import (
    CohortArgument,
    DebatersOption,
    JudgeArgument,
    OutOption,
    RedactOption,
    SubjectsOption,
    finish,
    identity,
    open_cohort,
    open_judge,
    open_policy,
    redacted,
)
from core.errors import InputError, require
from core.study.commands import Device, DeviceOption, SeedOption, Set, open_device
from core.study.loading import from_options
from core.study.terminal import print_rows

if TYPE_CHECKING:
    from apps.sepsis.policies import LearnedPolicy


class RewardKind(StrEnum):
    """What the judge hears before it pays."""

    debate = "debate"
    state = "state"


def policy(
    cohort: CohortArgument,
    out: OutOption = Path("runs/policy"),
    lam: Annotated[float, typer.Option(help="Lambda: share of the judge in the reward, 0 to 1.")] = 0.5,
    reward: Annotated[
        RewardKind, typer.Option(help="The judge hears a debate, or sees the state.")
    ] = RewardKind.debate,
    judge: Annotated[Path | None, typer.Option(help="Folder of the judge, of lambda above 0.")] = None,
    baseline: Annotated[Path | None, typer.Option(help="Folder of a policy of lambda 0 to argue against.")] = None,
    debaters: DebatersOption = "first_order",
    alpha: Annotated[float, typer.Option(help="Weight of conservative Q-learning; 0 is plain double DQN.")] = 0.0,
    subjects: SubjectsOption = 3000,
    overrides: Set = None,
    seed: SeedOption = 0,
    device: DeviceOption = Device.auto,
) -> None:
    """Train a policy from the log, paid for survival and for actions that it can justify to a judge.

    Example: szilard sepsis policy runs/cohort --lam 0 --set nets=3 --set updates=1500 --out runs/lam0

    Example: szilard sepsis policy runs/cohort --lam 0.5 --judge runs/judge --baseline runs/lam0 --out runs/lam05
    """
    from apps.sepsis.arguments import Arguments, arguments_by
    from apps.sepsis.output_folder import contents, output_folder
    from apps.sepsis.policies import train_policy
    from apps.sepsis.policy_results import policy_rows, write_card
    from apps.sepsis.products import PAID
    from apps.sepsis.rewards import total_reward
    from core import files
    from core.seeds import stream

    arm = from_options(Arm, {"lam": lam, "reward": reward.value, "learner": "learner"}, "policy")
    learner = from_options(Learner, {"name": "learner", "alpha": alpha}, "policy")
    settings = from_options(PolicySettings, {}, "policy", overrides or ())
    _check_parts(arm, judge, baseline)
    data, target = open_cohort(cohort), open_device(device)
    arguments: Arguments | None = None
    rival: LearnedPolicy | None = None
    if judge is not None and baseline is not None:
        arbiter = open_judge(judge, data, "policy", whole=arm.reward == "state").to(target)
        arguments = (
            Arguments(arbiter, "first_order") if arm.reward == "state" else arguments_by(arbiter, debaters, target)
        )
        rival = open_policy(baseline, data, target, lam_zero=True)
    asked = {
        **{"lam": lam, "reward": reward, "alpha": alpha, "seed": seed, "settings": settings.model_dump(mode="json")},
        "judge": None if judge is None else contents(judge),
        "baseline": None if baseline is None else contents(baseline),
        "debaters": identity(debaters) if arm.lam > 0 and arm.reward == "debate" else None,
    }
    with output_folder(out, "policy", data, asked) as folder:
        on_cpu, data = data, data.to(target)
        scores = None
        if arguments is not None and rival is not None:
            folder.progress(0.0, "debates on the logged actions")
            steps = data.steps()
            scores = arguments.scores(steps.state, steps.action, rival.greedy(steps.state), stream(seed, PAID))
        paid = total_reward(data, arm.lam, scores, shaping=settings.shaping, kind=settings.debate_reward)
        trained, clipped = train_policy(
            data,
            paid,
            settings,
            learner,
            seed,
            lam=arm.lam,
            device=target,
            checkpoint=folder.checkpoint("nets"),
            progress=folder.progress,
        )
        trained.save(out)
        files.write_json(out / "training.json", {"clipped_share": clipped, "lam": lam, "alpha": alpha})
        rows = policy_rows(data, trained, clipped, subjects, rival=rival, arguments=arguments, seed=seed)
        write_card(out / "model_card.md", on_cpu, arm, learner, settings, rows, seed)
        folder.write_rows("policy", rows)
    finish(rows, out)


def _check_parts(arm: Arm, judge: Path | None, baseline: Path | None) -> None:
    if arm.lam > 0 and (judge is None or baseline is None):
        raise InputError(
            f"--lam {arm.lam:g}: needs --judge, a folder of judge, and --baseline, of a policy with --lam 0"
        )
    if arm.lam == 0 and (judge is not None or baseline is not None):
        raise InputError(f"--{'judge' if judge is not None else 'baseline'}: has no part in a policy with --lam 0")


def ope(
    cohort: CohortArgument,
    policies: Annotated[
        list[str], typer.Argument(metavar="POLICY...", help="Folders that policy has written; [NAME=]DIR.")
    ],
    out: OutOption = Path("runs/ope"),
    clinician: Annotated[
        Path | None, typer.Option(help="Folder of clinician; needed where the log has no probabilities.")
    ] = None,
    subjects: SubjectsOption = 3000,
    overrides: Set = None,
    seed: SeedOption = 0,
    device: DeviceOption = Device.auto,
) -> None:
    """Estimate policies from the log alone, with every estimator, the overlap, and the truth where it is known.

    A policy that the log hardly ever followed is flagged, and then nothing is ranked.

    Example: szilard sepsis ope runs/cohort runs/lam0 runs/lam05 --out runs/ope --set target=softened
    """
    from apps.sepsis.clinician import load_clinician
    from apps.sepsis.estimates import ESTIMATORS
    from apps.sepsis.figures.off_policy import estimates, overlap
    from apps.sepsis.off_policy import compare_policies
    from apps.sepsis.off_policy_page import write_off_policy_page
    from apps.sepsis.output_folder import contents, made, output_folder
    from core import files

    settings = from_options(EstimateSettings, {"estimators": ESTIMATORS}, "ope", overrides or ())
    data, target = open_cohort(cohort), open_device(device)
    named = _named(policies)
    known = data.behaviour is not None and settings.behaviour == "known"
    if clinician is None and not known:
        raise InputError("--clinician: needed, a folder of clinician; the behaviour policy is not known from the log")
    held = {name: open_policy(folder, data, target) for name, folder in named.items()}
    if clinician is not None:
        made(clinician, data)
    asked = {
        **{"settings": settings.model_dump(mode="json"), "seed": seed, "subjects": subjects},
        "policies": {name: contents(folder) for name, folder in named.items()},
        "clinician": None if clinician is None else contents(clinician),
    }
    with output_folder(out, "ope", data, asked) as folder:
        data = data.to(target)
        behaviour = None if clinician is None else load_clinician(clinician, data, target)
        report = compare_policies(
            data,
            held,
            behaviour,
            settings,
            seed,
            subjects=subjects,
            checkpoint=folder.checkpoint(),
            progress=folder.progress,
        )
        files.write_json(out / "estimates.json", report.content())
        folder.write_figure("estimates", estimates(report))
        folder.write_figure("overlap", overlap(report))
        write_off_policy_page(out / "estimates.html", report)
    print_rows(report.rows())
    _print_flags(report.flags)
    if report.order:
        print(report.order)
    print(out / "estimates.html")


def _named(policies: Sequence[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for text in policies:
        name, equals, source = text.partition("=")
        folder = Path(source if equals else text)
        name = name if equals else folder.name
        if name in found:
            raise InputError(f"{text}: two policies are named {name}; tell them apart with NAME=DIR")
        found[name] = folder
    return found


def _print_flags(flags: Sequence[str]) -> None:
    from rich.console import Console
    from rich.markup import escape

    for line in flags:
        Console(highlight=False, soft_wrap=True).print(f"[red bold]{escape(line)}[/]")


def explain(
    cohort: CohortArgument,
    judge: JudgeArgument,
    policy: Annotated[Path, typer.Argument(metavar="POLICY", help="Folder that policy has written.")],
    baseline: Annotated[Path, typer.Option(help="Folder of the policy it is held against.")],
    out: OutOption = Path("runs/explain"),
    debaters: DebatersOption = "first_order",
    cases: Annotated[int, typer.Option(help="Debates to write down.", min=1)] = 20,
    sample: Annotated[int, typer.Option(help="Steps that SHAP, LIME and twins look at, at most.", min=2)] = 200,
    shap: Annotated[bool, typer.Option("--shap", help="Compare with SHAP of softmax Q.")] = False,
    lime: Annotated[bool, typer.Option("--lime", help="Compare with LIME of softmax Q.")] = False,
    counterfactual: Annotated[
        bool, typer.Option("--counterfactual", help="sepsis44: does what is cited bear on the outcome?")
    ] = False,
    redact: RedactOption = None,
    seed: SeedOption = 0,
    device: DeviceOption = Device.auto,
) -> None:
    """Debate a policy against its baseline where they differ: who wins, with which features, and whether these matter.

    Example: szilard sepsis explain runs/cohort runs/judge runs/lam05 --baseline runs/lam0 --out runs/explain
    """
    from apps.sepsis.arguments import arguments_by
    from apps.sepsis.figures.debates import feature_map
    from apps.sepsis.justification import (
        attribution_rows,
        background,
        counterfactual_rows,
        justification_rows,
        justify,
        write_cases,
    )
    from apps.sepsis.output_folder import contents, output_folder

    data, target = open_cohort(cohort), open_device(device)
    if counterfactual and data.origin.get("source") != "sepsis44":
        raise InputError(f"--counterfactual: twins exist in sepsis44 alone; {cohort} is {data.origin.get('source')}")
    kinds = [name for name, wanted in (("shap", shap), ("lime", lime)) if wanted]
    for name in kinds:
        require(name, "explanations")
    arbiter = open_judge(judge, data, "explain").to(target)
    chosen, rival = (open_policy(folder, data, target) for folder in (policy, baseline))
    arguments = arguments_by(arbiter, debaters, target)
    hidden = redacted(data, redact)
    asked = {
        **{"judge": contents(judge), "policy": contents(policy), "baseline": contents(baseline), "seed": seed},
        **{"debaters": identity(debaters), "sample": sample, "kinds": kinds, "counterfactual": counterfactual},
    }
    with output_folder(out, "explain", data, asked) as folder:
        data = data.to(target)
        found = justify(data, arguments, chosen, rival, seed)
        rows = justification_rows(found)
        part, parts, done = found.sample(sample, seed), len(kinds) + counterfactual, 0
        for name in kinds:
            told = folder.within(done / parts, (done + 1) / parts)
            rows += attribution_rows(part, arguments, chosen, background(data, name, seed), name, seed, told)
            done += 1
        if counterfactual:
            more, twins = counterfactual_rows(part, data, seed, folder.within(done / parts, 1.0))
            rows += more
            folder.write_dataset("twins.nc", twins.drop_vars("patient"))
        folder.write_dataset("results.nc", found.dataset())
        folder.write_figure("features", feature_map(found.counts().cpu().numpy(), len(found.debate), "policy's"))
        folder.write_rows("explain", rows)
        print(write_cases(out, arbiter, data, found.sample(cases, seed), redact=hidden))
    finish(rows, out)

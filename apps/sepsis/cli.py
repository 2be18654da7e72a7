"""The verbs of ``szilard sepsis``."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from apps.sepsis.estimates import EstimateSettings
from apps.sepsis.judge import JudgeSettings
from apps.sepsis.learned_debaters import ConfuserSettings, DebaterSettings
from apps.sepsis.settings import (
    Arm,
    ClinicianSettings,
    Learner,
    MechanisticPatients,
    PolicySettings,
    TabularPatients,
)
from apps.sepsis.study import SepsisStudy
from core.errors import InputError, require
from core.study import add_study_commands
from core.study.commands import Device, DeviceOption, SeedOption, Set
from core.study.loading import from_options
from core.study.runner import resolve_device
from core.study.terminal import print_rows
from simulators.sepsis.cohort import FRACTIONS, Cohort
from simulators.sepsis.features import STATE

if TYPE_CHECKING:
    import torch

    from apps.sepsis.judge import Judge, JudgeEnsemble
    from apps.sepsis.policies import LearnedPolicy
    from core.study import Row
    from simulators.sepsis.report import CohortReport

app = typer.Typer(
    no_args_is_help=True, help="Treatment policies that can be justified to a judge, and debates that test the judge."
)
add_study_commands(app, SepsisStudy)

COHORT = "cohort.nc"


class World(StrEnum):
    """A simulator of patients."""

    sepsis44 = "sepsis44"
    icusepsis44 = "icusepsis44"


class Layout(StrEnum):
    """Layout of a user's records."""

    auto = "auto"
    mimic_sepsis = "mimic_sepsis"
    ai_clinician = "ai_clinician"


class Rejected(StrEnum):
    """Which actions are held against the logged one."""

    random = "random"
    offset = "offset"
    exhaustive = "exhaustive"


class Training(StrEnum):
    """How debaters are trained."""

    isolated = "isolated"
    precommit = "precommit"
    self_play = "self_play"
    maxmin = "maxmin"


class RewardKind(StrEnum):
    """What the judge hears before it pays."""

    debate = "debate"
    state = "state"


CohortArgument = Annotated[
    Path, typer.Argument(metavar="COHORT", help="A file cohort.nc of simulate or ingest, or the folder that holds it.")
]
JudgeArgument = Annotated[Path, typer.Argument(metavar="JUDGE", help="Folder that judge has written.")]
OutOption = Annotated[Path, typer.Option(help="Folder of the results.")]
RejectedOption = Annotated[Rejected, typer.Option(help="Actions held against the logged one.")]
DebatersOption = Annotated[
    str,
    typer.Option(
        metavar="NAME|DIR",
        help="first_order, lookahead, exact or random, or a folder with debaters that debate has trained.",
    ),
]
RedactOption = Annotated[
    bool | None,
    typer.Option("--redact/--show", help="Withhold values in transcripts.  [default: unless patients are simulated]"),
]
SubjectsOption = Annotated[int, typer.Option(help="New patients for the truth, where there is a simulator.", min=2)]


@app.command()
def simulate(
    out: Annotated[Path, typer.Option(help="Folder of the cohort.")],
    world: Annotated[World, typer.Option(help="The simulator.")] = World.sepsis44,
    patients: Annotated[int, typer.Option(help="How many.", min=20)] = 2000,
    seed: SeedOption = 0,
    temperature: Annotated[float | None, typer.Option(help="sepsis44: spread of the doses.  [default: 0.8]")] = None,
    bias: Annotated[float | None, typer.Option(help="sepsis44: fluid given too much, levels.  [default: 0.8]")] = None,
    kappa: Annotated[float | None, typer.Option(help="icusepsis44: spread of a cluster.  [default: 1]")] = None,
    minari: Annotated[
        str | None, typer.Option(metavar="ID", help="Also write a Minari dataset, such as sepsis/physician-v0.")
    ] = None,
) -> None:
    """Simulate patients as a physician treats them: a cohort whose truth is known, split 70/15/15.

    Example: szilard sepsis simulate --out runs/cohort --patients 2000
    """
    from apps.sepsis.ingestion import write_report
    from apps.sepsis.products import simulated
    from simulators.sepsis.report import describe

    kind: type[MechanisticPatients] | type[TabularPatients]
    kind = MechanisticPatients if world is World.sepsis44 else TabularPatients
    given = {"temperature": temperature, "bias": bias, "kappa": kappa}
    values: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    source = from_options(kind, values | {"patients": patients, "fractions": FRACTIONS}, f"simulate --world {world}")
    if minari is not None:
        require("minari", "sepsis")
        if not re.fullmatch(r"([\w-]+/)*[\w-]+-v\d+", minari):
            raise InputError(f"--minari {minari}: must read NAME-v0 or FOLDER/NAME-v0")
        if (folder := out / "minari" / minari).exists():
            raise InputError(f"{folder}: exists; choose another version or remove it")
    cohort = simulated(source, seed)
    _make_folder(out)
    cohort.save(out / COHORT)
    report = describe(cohort, seed=seed)
    write_report(out, report)
    if minari is not None:
        from core.offline import to_minari

        print(
            to_minari(
                cohort.dataset(cohort.rewards()),
                minari,
                out / "minari",
                algorithm_name="the physician of the simulator",
                author="szilard sepsis simulate",
                description=f"{patients} simulated patients of {world}, seed {seed}; the reward is the outcome.",
            )
        )
    _print_cohort(report, out)


@app.command()
def ingest(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="CSV or Parquet extracted from MIMIC.")],
    out: Annotated[Path, typer.Option(help="Folder of the cohort.")],
    raw: Annotated[Path | None, typer.Option(help="The same trajectories in units, if FILE is normalised.")] = None,
    layout: Annotated[Layout, typer.Option(help="Of the file.")] = Layout.auto,
    column_map: Annotated[Path | None, typer.Option(help="YAML: NAME: column in the file.")] = None,
    split_seed: Annotated[int, typer.Option(help="Of the split by patient.", min=0)] = 5568,
    horizon: Annotated[int | None, typer.Option(help="Keep so many first steps.  [default: all]", min=2)] = None,
    mortality: Annotated[
        str | None, typer.Option(help="AI-Clinician: column that says who died.  [default: died within 48 h]")
    ] = None,
    recompute_scores: Annotated[bool, typer.Option(help="Put SOFA and SIRS computed here into the state.")] = False,
    close_gaps: Annotated[bool, typer.Option(help="Close up steps that are not consecutive.")] = False,
) -> None:
    """Read records that you extracted from MIMIC; nothing that names a patient is kept, and no row is ever printed.

    Example: szilard sepsis ingest sepsis_final_data_RAW_withTimes.csv --out runs/mimic
    """
    from apps.sepsis.ingestion import ingest as ingest_records

    options: dict[str, Any] = {} if mortality is None else {"mortality": mortality}
    report = ingest_records(
        file,
        out,
        layout=layout.value,
        raw=raw,
        column_map=column_map,
        split_seed=split_seed,
        horizon=horizon,
        recompute_scores=recompute_scores,
        gaps="close" if close_gaps else "refuse",
        **options,
    )
    _print_cohort(report, out)


@app.command()
def clinician(
    cohort: CohortArgument,
    out: OutOption = Path("runs/clinician"),
    overrides: Set = None,
    seed: SeedOption = 0,
    device: DeviceOption = Device.auto,
) -> None:
    """Estimate the clinician's policy from the log, by cloning or (--set kind=neighbours) from the nearest states.

    Example: szilard sepsis clinician runs/cohort --out runs/clinician --set epochs=20
    """
    from apps.sepsis.clinician import clinician_rows, save_clinician, train_clinician
    from apps.sepsis.output_folder import output_folder
    from core.seeds import stream

    settings = from_options(ClinicianSettings, {}, "clinician", overrides or ())
    data = _cohort(cohort)
    target = _device(device)
    asked = {"settings": settings.model_dump(mode="json"), "seed": seed}
    with output_folder(out, "clinician", data, asked) as folder:
        data = data.to(target)
        trained = train_clinician(
            data,
            settings,
            stream(seed, "clinician"),
            device=target,
            checkpoint=folder.checkpoint("clinician.safetensors"),
            progress=folder.progress,
        )
        save_clinician(out, trained)
        rows = clinician_rows(data, trained)
        folder.write_rows("clinician", rows)
    _finish(rows, out)


@app.command()
def judge(
    cohort: CohortArgument,
    out: OutOption = Path("runs/judge"),
    items: Annotated[int | None, typer.Option(help="Features it is shown; 44 is all.  [default: 6]")] = None,
    rejected: RejectedOption = Rejected.random,
    labels: Annotated[Path | None, typer.Option(help="CSV of clinicians' answers to learn from instead.")] = None,
    add_logged: Annotated[bool, typer.Option(help="Learn from the logged choices beside the labels.")] = False,
    truth: Annotated[bool, typer.Option(help="Learn from the preferences of the simulator's scorer instead.")] = False,
    members: Annotated[int, typer.Option(help="Judges to train, which abstain where they disagree.", min=1)] = 1,
    query: Annotated[int, typer.Option(help="Write so many most useful pairs to be labelled.", min=0)] = 0,
    overrides: Set = None,
    seed: SeedOption = 0,
    device: DeviceOption = Device.auto,
) -> None:
    """Train a judge, or several, that says which of two actions is the better justified by a few features.

    Example: szilard sepsis judge runs/cohort --out runs/judge --items 6 --set epochs=15
    """
    import torch

    from apps.sepsis.judge import JudgeEnsemble, most_useful_pairs, train_ensemble, train_judge
    from apps.sepsis.judging import judge_rows, labelled_pairs, logged_pairs, scored_pairs, together
    from apps.sepsis.output_folder import output_folder
    from apps.sepsis.preferences import write_preferences
    from core.seeds import stream

    values = {} if items is None else {"items": items}
    settings = from_options(JudgeSettings, values, "judge", overrides or ())
    if truth and labels is not None:
        raise InputError("--truth, --labels: either")
    if query and members < 2:
        raise InputError("--query: needs --members 2 or more, who can disagree")
    if add_logged and labels is None:
        raise InputError("--add-logged: needs --labels")
    data, target = _cohort(cohort), _device(device)
    answers = None if labels is None else labelled_pairs(labels, data)
    asked = {
        "settings": settings.model_dump(mode="json"),
        **{"rejected": rejected, "truth": truth, "members": members, "seed": seed, "add_logged": add_logged},
        "labels": None if labels is None else labels.read_text(encoding="utf-8-sig"),
    }
    with output_folder(out, "judge", data, asked) as folder:
        data = data.to(target)
        logged = [logged_pairs(data, split, rejected.value, seed) for split in ("train", "test")]
        pairs, sources = logged[0], {"logged choices": logged[1]}
        if truth:
            pairs = scored_pairs(data, "train", seed)
            sources = {"true preferences": scored_pairs(data, "test", seed)} | sources
        if answers is not None:
            held = [answers[split].to(target) for split in ("train", "validation")]
            pairs = together(together(*held), pairs) if add_logged else together(*held)
            sources = {"labels": answers["test"].to(target)} | sources
        options: dict[str, Any] = {"device": target, "progress": folder.progress}
        which = stream(seed, f"judge {settings.items}")
        trained: Judge | JudgeEnsemble
        if members == 1:
            kept = folder.checkpoint("judge.safetensors")
            trained = train_judge(pairs, settings, which, checkpoint=kept, **options)
        else:
            kept = folder.checkpoint("judges")
            trained = train_ensemble(pairs, settings, which, members=members, checkpoint=kept, **options)
        trained.save(out)
        rows = [row for name, test in sources.items() for row in judge_rows(trained, test, name, seed)]
        if query and isinstance(trained, JudgeEnsemble):
            generator = torch.Generator(target).manual_seed(stream(seed, "questions"))
            questions = most_useful_pairs(trained, data.steps("train"), query, generator)
            write_preferences(out / "questions.csv", questions, answered=False)
            print(out / "questions.csv")
        folder.write_rows("judge", rows)
    _finish(rows, out)


@app.command()
def debate(
    cohort: CohortArgument,
    judge: JudgeArgument,
    out: OutOption = Path("runs/debate"),
    train: Annotated[Training | None, typer.Option(help="Train debaters first.  [default: use --debaters]")] = None,
    debaters: DebatersOption = "first_order",
    confuser: Annotated[bool, typer.Option(help="Also train an attacker against the debaters.")] = False,
    rejected: RejectedOption = Rejected.random,
    pairs: Annotated[int, typer.Option(help="Test pairs at most.", min=2)] = 3000,
    transcripts: Annotated[int, typer.Option(help="Debates to write down.", min=0)] = 20,
    redact: RedactOption = None,
    overrides: Set = None,
    seed: SeedOption = 0,
    device: DeviceOption = Device.auto,
) -> None:
    """Let debaters argue for logged and against other actions, and see how often the judge sides with the logged one.

    alone: one side shows all features; itself: both sides are such debaters; refuted: a one-step search argues against
    the debater; confused: an attacker does who was trained against it. --set changes the training: --set
    iterations=100, or, of the attacker, --set confuser.iterations=100.

    Example: szilard sepsis debate runs/cohort runs/judge --train maxmin --set generations=20 --out runs/debate
    """
    from apps.sepsis.arguments import save_debaters
    from apps.sepsis.debating import debate_rows, debate_trial, train_players
    from apps.sepsis.figures.debates import feature_map
    from apps.sepsis.judging import logged_pairs
    from apps.sepsis.output_folder import contents, output_folder
    from apps.sepsis.transcripts import write_transcripts

    if train is not None and debaters != "first_order":
        raise InputError("--train, --debaters: either")
    data, target = _cohort(cohort), _device(device)
    arbiter = _judge(judge, data, "debate").to(target)
    prefix = "confuser."
    own = [text for text in overrides or () if not text.startswith(prefix)]
    attack = [text.removeprefix(prefix) for text in overrides or () if text.startswith(prefix)]
    values = {"items": arbiter.items}
    settings = from_options(DebaterSettings, values, "debate", own)
    attacker = from_options(ConfuserSettings, values, "debate", attack) if confuser else None
    if (own and train is None) or (attack and not confuser):
        raise InputError(f"--set {(own or attack)[0]}: nothing is trained; give --train, or --confuser")
    hidden = _redacted(data, redact)
    asked = {
        **{"judge": contents(judge), "train": train, "seed": seed, "rejected": rejected, "pairs": pairs},
        **{"debaters": None if train else _identity(debaters), "settings": settings.model_dump(mode="json")},
        "confuser": None if attacker is None else attacker.model_dump(mode="json"),
    }
    with output_folder(out, "debate", data, asked) as folder:
        data = data.to(target)
        players = train_players(
            arbiter,
            logged_pairs(data, "train", rejected.value, seed),
            debaters if train is None else train.value,
            seed,
            settings=settings if train else None,
            confuser=attacker,
            device=target,
            checkpoint=folder.checkpoint(),
            progress=folder.progress,
        )
        if players.learned is not None:
            save_debaters(out, players.kind, players.learned, players.confuser)
        elif players.confuser is not None:
            players.confuser.save(out / "confuser")
        trial = debate_trial(arbiter, players, logged_pairs(data, "test", rejected.value, seed, pairs), seed)
        rows = debate_rows(arbiter, players, trial, seed)
        folder.write_dataset("results.nc", trial.dataset())
        folder.write_figure("features", feature_map(*trial.shown(), "logged"))
        folder.write_rows("debate", rows)
        if transcripts:
            written = trial.transcripts(arbiter, data, transcripts, redact=hidden)
            print(write_transcripts(out, written, f"Debates, {players.kind}")[1])
    _finish(rows, out)


@app.command()
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
    data, target = _cohort(cohort), _device(device)
    arguments: Arguments | None = None
    rival: LearnedPolicy | None = None
    if judge is not None and baseline is not None:
        arbiter = _judge(judge, data, "policy", whole=arm.reward == "state").to(target)
        arguments = (
            Arguments(arbiter, "first_order") if arm.reward == "state" else arguments_by(arbiter, debaters, target)
        )
        rival = _policy(baseline, data, target, lam_zero=True)
    asked = {
        **{"lam": lam, "reward": reward, "alpha": alpha, "seed": seed, "settings": settings.model_dump(mode="json")},
        "judge": None if judge is None else contents(judge),
        "baseline": None if baseline is None else contents(baseline),
        "debaters": _identity(debaters) if arm.lam > 0 and arm.reward == "debate" else None,
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
    _finish(rows, out)


def _check_parts(arm: Arm, judge: Path | None, baseline: Path | None) -> None:
    if arm.lam > 0 and (judge is None or baseline is None):
        raise InputError(
            f"--lam {arm.lam:g}: needs --judge, a folder of judge, and --baseline, of a policy with --lam 0"
        )
    if arm.lam == 0 and (judge is not None or baseline is not None):
        raise InputError(f"--{'judge' if judge is not None else 'baseline'}: has no part in a policy with --lam 0")


@app.command()
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
    data, target = _cohort(cohort), _device(device)
    named = _named(policies)
    known = data.behaviour is not None and settings.behaviour == "known"
    if clinician is None and not known:
        raise InputError("--clinician: needed, a folder of clinician; the behaviour policy is not known from the log")
    held = {name: _policy(folder, data, target) for name, folder in named.items()}
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


@app.command()
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

    data, target = _cohort(cohort), _device(device)
    if counterfactual and data.origin.get("source") != "sepsis44":
        raise InputError(f"--counterfactual: twins exist in sepsis44 alone; {cohort} is {data.origin.get('source')}")
    kinds = [name for name, wanted in (("shap", shap), ("lime", lime)) if wanted]
    for name in kinds:
        require(name, "explanations")
    arbiter = _judge(judge, data, "explain").to(target)
    chosen, rival = (_policy(folder, data, target) for folder in (policy, baseline))
    arguments = arguments_by(arbiter, debaters, target)
    hidden = _redacted(data, redact)
    asked = {
        **{"judge": contents(judge), "policy": contents(policy), "baseline": contents(baseline), "seed": seed},
        **{"debaters": _identity(debaters), "sample": sample, "kinds": kinds, "counterfactual": counterfactual},
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
    _finish(rows, out)


def _cohort(path: Path) -> Cohort:
    if path.is_dir() and not (path / COHORT).is_file():
        raise InputError(f"{path}: holds no {COHORT}; szilard sepsis simulate and ingest write one")
    return Cohort.load(path / COHORT if path.is_dir() else path)


def _device(device: Device) -> torch.device:
    import torch

    return torch.device(resolve_device(device, torch.cuda.is_available()))


def _judge(folder: Path, cohort: Cohort, verb: str, *, whole: bool = False) -> Judge | JudgeEnsemble:
    """A judge for debates, which sees an even number of features, or one that sees them all."""
    from apps.sepsis.judge import load_judge
    from apps.sepsis.output_folder import made

    judge = load_judge(folder)
    made(folder, cohort)
    if whole and judge.items != len(STATE):
        raise InputError(f"{folder}: sees {judge.items} features; {verb} needs one that sees all {len(STATE)}")
    if not whole and (judge.items % 2 or judge.items >= len(STATE)):
        raise InputError(f"{folder}: sees {judge.items} features; {verb} needs an even number, 2 to {len(STATE) - 2}")
    return judge


def _policy(folder: Path, cohort: Cohort, device: torch.device, *, lam_zero: bool = False) -> LearnedPolicy:
    from apps.sepsis.output_folder import made
    from apps.sepsis.policies import LearnedPolicy

    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; must be one that policy has written")
    found = LearnedPolicy.load(folder, device)
    lam = made(folder, cohort).get("asked", {}).get("lam", 0)
    if lam_zero and lam:
        raise InputError(f"--baseline {folder}: of --lam {lam:g}; must be of --lam 0")
    return found


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


def _identity(debaters: str) -> str:
    """The debaters by name, or by what is in their folder."""
    from apps.sepsis.output_folder import contents

    return contents(Path(debaters)) if Path(debaters).is_dir() else debaters


def _redacted(cohort: Cohort, redact: bool | None) -> bool:
    """Whether values are withheld; with real patients they are unless somebody says otherwise, and is warned."""
    synthetic = bool(cohort.origin.get("synthetic"))
    if redact is False and not synthetic:
        print("szilard: warning: --show writes values of real patients; keep the transcripts private", file=sys.stderr)
    return not synthetic if redact is None else redact


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {out}: {(error.strerror or str(error)).lower()}") from error


def _print_cohort(report: CohortReport, out: Path) -> None:
    from core.stats import proportion_interval
    from core.study.numbers import estimate

    for stage in report.flow:
        print(f"{stage.name}: {stage.trajectories:,} trajectories, {stage.steps:,} steps")
    patients = report.flow[-1].trajectories
    lived = proportion_interval(round(report.survived * patients), patients)
    print(f"survived: {estimate(100 * lived.mean, 100 * lived.low, 100 * lived.high)} %")
    print("split: " + ", ".join(f"{split.name} {split.trajectories:,}" for split in report.splits))
    for line in report.warnings:
        print(f"warning: {line}")
    print(out / COHORT)


def _print_flags(flags: Sequence[str]) -> None:
    from rich.console import Console
    from rich.markup import escape

    for line in flags:
        Console(highlight=False, soft_wrap=True).print(f"[red bold]{escape(line)}[/]")


def _finish(rows: list[Row], out: Path) -> None:
    print_rows(rows)
    print(out)

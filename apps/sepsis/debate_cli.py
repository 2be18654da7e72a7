"""The verbs that train a judge and let debaters argue before it."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from apps.sepsis.judge import JudgeSettings
from apps.sepsis.learned_debaters import ConfuserSettings, DebaterSettings
from apps.sepsis.verb_inputs import (
    CohortArgument,
    DebatersOption,
    JudgeArgument,
    OutOption,
    RedactOption,
    finish,
    identity,
    open_cohort,
    open_judge,
    redacted,
)
from core.errors import InputError
from core.study.commands import Device, DeviceOption, SeedOption, Set, open_device
from core.study.loading import from_options

if TYPE_CHECKING:
    from apps.sepsis.judge import Judge, JudgeEnsemble


class Rejected(StrEnum):
    """Which actions are held against the logged one."""

    random = "random"
    offset = "offset"
    exhaustive = "exhaustive"


RejectedOption = Annotated[Rejected, typer.Option(help="Actions held against the logged one.")]


class Training(StrEnum):
    """How debaters are trained."""

    isolated = "isolated"
    precommit = "precommit"
    self_play = "self_play"
    maxmin = "maxmin"


def judge(
    cohort: CohortArgument,
    out: OutOption = Path("runs/judge"),
    items: Annotated[int | None, typer.Option(help="Features it is shown; 44 is all.  \\[default: 6]")] = None,
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
    data, target = open_cohort(cohort), open_device(device)
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
    finish(rows, out)


def debate(
    cohort: CohortArgument,
    judge: JudgeArgument,
    out: OutOption = Path("runs/debate"),
    train: Annotated[Training | None, typer.Option(help="Train debaters first.  \\[default: use --debaters]")] = None,
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
    data, target = open_cohort(cohort), open_device(device)
    arbiter = open_judge(judge, data, "debate").to(target)
    prefix = "confuser."
    own = [text for text in overrides or () if not text.startswith(prefix)]
    attack = [text.removeprefix(prefix) for text in overrides or () if text.startswith(prefix)]
    values = {"items": arbiter.items}
    settings = from_options(DebaterSettings, values, "debate", own)
    attacker = from_options(ConfuserSettings, values, "debate", attack) if confuser else None
    if (own and train is None) or (attack and not confuser):
        raise InputError(f"--set {(own or attack)[0]}: nothing is trained; give --train, or --confuser")
    hidden = redacted(data, redact)
    asked = {
        **{"judge": contents(judge), "train": train, "seed": seed, "rejected": rejected, "pairs": pairs},
        **{"debaters": None if train else identity(debaters), "settings": settings.model_dump(mode="json")},
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
    finish(rows, out)

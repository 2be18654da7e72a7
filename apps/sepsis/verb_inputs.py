"""What the verbs of ``szilard sepsis`` share: their options, and the files that they are given, opened and checked."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from core.errors import InputError
from core.study.terminal import print_rows
from simulators.sepsis.cohort import Cohort
from simulators.sepsis.features import STATE

if TYPE_CHECKING:
    import torch

    from apps.sepsis.judge import Judge, JudgeEnsemble
    from apps.sepsis.policies import LearnedPolicy
    from core.study import Row


COHORT = "cohort.nc"

CohortArgument = Annotated[
    Path, typer.Argument(metavar="COHORT", help="A file cohort.nc of simulate or ingest, or the folder that holds it.")
]
JudgeArgument = Annotated[Path, typer.Argument(metavar="JUDGE", help="Folder that judge has written.")]
OutOption = Annotated[Path, typer.Option(help="Folder of the results.")]
DebatersOption = Annotated[
    str,
    typer.Option(
        metavar="NAME|DIR",
        help="first_order, lookahead, exact or random, or a folder with debaters that debate has trained.",
    ),
]
RedactOption = Annotated[
    bool | None,
    typer.Option("--redact/--show", help="Withhold values in transcripts.  \\[default: unless patients are simulated]"),
]
SubjectsOption = Annotated[int, typer.Option(help="New patients for the truth, where there is a simulator.", min=2)]


def open_cohort(path: Path) -> Cohort:
    """The cohort in a file, or in the folder that holds it.

    Raises:
        InputError: there is none, or it is damaged.
    """
    if path.is_dir() and not (path / COHORT).is_file():
        raise InputError(f"{path}: holds no {COHORT}; szilard sepsis simulate and ingest write one")
    return Cohort.load(path / COHORT if path.is_dir() else path)


def open_judge(folder: Path, cohort: Cohort, verb: str, *, whole: bool = False) -> Judge | JudgeEnsemble:
    """A judge for debates, which sees an even number of features, or one that sees them all.

    Raises:
        InputError: no judge, one that sees another number of features, or one made from another normalisation.
    """
    from apps.sepsis.judge import load_judge
    from apps.sepsis.output_folder import made

    judge = load_judge(folder)
    made(folder, cohort)
    if whole and judge.items != len(STATE):
        raise InputError(f"{folder}: sees {judge.items} features; {verb} needs one that sees all {len(STATE)}")
    if not whole and (judge.items % 2 or judge.items >= len(STATE)):
        raise InputError(f"{folder}: sees {judge.items} features; {verb} needs an even number, 2 to {len(STATE) - 2}")
    return judge


def open_policy(folder: Path, cohort: Cohort, device: torch.device, *, lam_zero: bool = False) -> LearnedPolicy:
    """A policy that fits the cohort, with ``lam_zero`` one that was paid for survival alone.

    Raises:
        InputError: no policy, or one that does not fit.
    """
    from apps.sepsis.output_folder import made
    from apps.sepsis.policies import LearnedPolicy

    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; must be one that policy has written")
    found = LearnedPolicy.load(folder, device)
    lam = made(folder, cohort).get("asked", {}).get("lam", 0)
    if lam_zero and lam:
        raise InputError(f"--baseline {folder}: of --lam {lam:g}; must be of --lam 0")
    return found


def identity(debaters: str) -> str:
    """The debaters by name, or by what is in their folder."""
    from apps.sepsis.output_folder import contents

    return contents(Path(debaters)) if Path(debaters).is_dir() else debaters


def redacted(cohort: Cohort, redact: bool | None) -> bool:
    """Whether values are withheld; with real patients they are unless somebody says otherwise, and is warned."""
    synthetic = bool(cohort.origin.get("synthetic"))
    if redact is False and not synthetic:
        print("szilard: warning: --show writes values of real patients; keep the transcripts private", file=sys.stderr)
    return not synthetic if redact is None else redact


def finish(rows: list[Row], out: Path) -> None:
    """Print what was found, and where it is, last."""
    print_rows(rows)
    print(out)

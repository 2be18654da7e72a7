"""The verbs of ``szilard sepsis``."""

from __future__ import annotations

import typer

from apps.sepsis.cohort_cli import clinician, ingest, simulate
from apps.sepsis.debate_cli import debate, judge
from apps.sepsis.policy_cli import explain, ope, policy
from apps.sepsis.study import SepsisStudy
from core.study import add_study_commands

app = typer.Typer(
    no_args_is_help=True, help="Treatment policies that can be justified to a judge, and debates that test the judge."
)
add_study_commands(app, SepsisStudy)
for verb in (simulate, ingest, clinician, judge, debate, policy, ope, explain):
    app.command()(verb)

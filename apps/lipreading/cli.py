"""The verbs of ``szilard lipreading``."""

from __future__ import annotations

import typer

from apps.lipreading.doctor_cli import doctor
from apps.lipreading.evaluate_cli import evaluate, transcribe
from apps.lipreading.prepare_cli import prepare
from apps.lipreading.study import LipReadingStudy
from apps.lipreading.train_cli import simulate, train
from core.study import add_study_commands

app = typer.Typer(no_args_is_help=True, help="Silent clips into text, and objectives that train on the error rate.")
add_study_commands(app, LipReadingStudy)
for verb in (simulate, prepare, doctor, train, evaluate, transcribe):
    app.command()(verb)

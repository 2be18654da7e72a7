"""The verbs of ``szilard payments``."""

import typer

from apps.payments.study import PaymentsStudy
from core.study import add_study_commands

app = typer.Typer(no_args_is_help=True, help="Exploration for payment decisions, learned and proven on logs.")
add_study_commands(app, PaymentsStudy)

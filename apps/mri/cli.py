"""The verbs of ``szilard mri``."""

from __future__ import annotations

import typer

from apps.mri.study import MRIStudy
from core.study import add_study_commands

app = typer.Typer(no_args_is_help=True, help="Adaptive MRI acquisition by diffusion posterior sampling.")
add_study_commands(app, MRIStudy)

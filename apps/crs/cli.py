"""The verbs of ``szilard crs``."""

from __future__ import annotations

import typer

from apps.crs.catalogue_cli import data, embed
from apps.crs.policy_cli import bench, compare, evaluate, train
from apps.crs.study import CRSStudy
from apps.crs.talk_cli import chat, serve
from core.study import add_study_commands

app = typer.Typer(no_args_is_help=True, help="What to ask, what to recommend and when, in dialogues about a catalogue.")
add_study_commands(app, CRSStudy)
app.add_typer(data, name="data")
for verb in (embed, train, evaluate, compare, bench, chat, serve):
    app.command()(verb)

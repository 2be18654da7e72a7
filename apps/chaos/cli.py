"""The verbs of ``szilard chaos``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import pandas as pd
import typer
from pandas.api.types import is_numeric_dtype
from rich.console import Console
from rich.table import Table

from apps.chaos.leaderboard import leaderboard, published_leaderboard, stored_evidence, write_tables
from apps.chaos.series_cli import add_series_commands
from apps.chaos.study import ChaosStudy
from core.study import add_study_commands

app = typer.Typer(no_args_is_help=True, help="Forecasting of chaotic systems: how long, at what cost, and who won.")
add_study_commands(app, ChaosStudy)
add_series_commands(app)


@app.command("leaderboard")
def show_leaderboard(
    directory: Annotated[
        Path | None,
        typer.Argument(metavar="DIR", help="Folder that run has written.  \\[default: the published results]"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Also write it, every pair, every system and the published numbers as CSV here.")
    ] = None,
) -> None:
    """Rank the methods of a study by valid time, or show the published ones.

    Example: szilard chaos leaderboard runs/quick --out runs/quick/tables
    """
    if directory is None:
        _print("published (Gilpin 2023)", published_leaderboard())
        return
    for evidence in stored_evidence(directory):
        _print(f"{evidence.name} (V1 to V3: valid times, Lyapunov times)", leaderboard(evidence))
    if out is not None:
        for path in write_tables(directory, out):
            print(path)


def _print(title: str, table: pd.DataFrame) -> None:
    """A table with its numbers at three digits."""
    shown = Table(title=title, box=None, header_style="bold", padding=(0, 2, 0, 0), title_justify="left")
    cells = [["" if pd.isna(x) else x if isinstance(x, str) else f"{x:.3g}" for x in table[name]] for name in table]
    for name, column in zip(table, cells, strict=True):
        # Headings are broken between words, numbers never.
        justify: Literal["right", "left"] = "right" if is_numeric_dtype(table[name]) else "left"
        shown.add_column(str(name).replace("_", " "), justify=justify, min_width=max(map(len, column), default=0))
    for row in zip(*cells, strict=True):
        shown.add_row(*row)
    Console(highlight=False).print(shown)

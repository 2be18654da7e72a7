"""Options of the verbs that read a series, and what these verbs have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from apps.chaos.series import Series, read_series
from apps.chaos.series_times import Resampling
from core.errors import InputError


class Resample(StrEnum):
    """How an even grid is interpolated."""

    cubic = "cubic"
    linear = "linear"


class Normalize(StrEnum):
    """How what is fitted is scaled."""

    train_zscore = "train_zscore"
    none = "none"


FileArgument = Annotated[
    Path, typer.Argument(metavar="FILE", help="A series: .csv, .tsv, .txt, .parquet, .nc or .zarr.")
]
ChannelOption = Annotated[
    list[str] | None, typer.Option("--channel", help="Column or variable; may be repeated.  \\[default: all]")
]
TimeOption = Annotated[
    str | None, typer.Option(help="Column or dimension of time, or none.  \\[default: found by name or order]")
]
SelectOption = Annotated[
    list[str] | None,
    typer.Option(
        "--select", metavar="NAME=VALUE", help="One of several series in a file, such as trajectory=0; may be repeated."
    ),
]
DtOption = Annotated[
    float | None,
    typer.Option("--dt", help="Time between samples, where the file has no times or --resample makes new."),
]
ResampleOption = Annotated[Resample | None, typer.Option(help="Interpolate an uneven series onto an even grid.")]
DropGapsOption = Annotated[bool, typer.Option("--drop-gaps", help="Keep the longest part without missing values.")]
HorizonOption = Annotated[int, typer.Option(help="Samples to forecast.", min=1)]
NormalizeOption = Annotated[Normalize, typer.Option(help="How what is fitted is scaled.")]
FreshOption = Annotated[bool, typer.Option("--resume/--fresh", help="Go on with work that was stopped, or start anew.")]


def read_given(
    path: Path,
    channel: list[str] | None,
    time: str | None,
    select: list[str] | None,
    dt: float | None,
    resample: Resample | None,
    drop_gaps: bool,
) -> Series:
    """The series that the options of a verb name.

    Raises:
        InputError: as ``read_series``, or a selection that is none.
        MissingExtra: a package for the format is not installed.
    """
    chosen = {}
    for text in select or ():
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise InputError(f"--select {text}: must read NAME=VALUE, such as trajectory=0")
        chosen[name] = value
    how: Resampling | None = None if resample is None else resample.value
    return read_series(path, time=time, channels=channel or (), select=chosen, dt=dt, resample=how, drop_gaps=drop_gaps)


def describe(series: Series) -> None:
    """Print what was read."""
    unit = f" {series.time_unit}" if series.time_unit else ""
    print(f"{series.source}: {len(series):,} samples of {', '.join(series.channels)}; dt {series.dt:.6g}{unit}")


def warn(said: Sequence[str]) -> None:
    """Print what the user should know to stderr, one line each."""
    console = Console(stderr=True, highlight=False)
    for line in said:
        console.print(f"warning: {escape(line)}", style="yellow", soft_wrap=True)


@contextmanager
def progress_bar(text: str) -> Iterator[Callable[[float, str], None]]:
    """A bar on stderr, moved by the share done and a message."""
    console = Console(stderr=True)
    with Progress(transient=True, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(text, total=1.0)
        yield lambda share, said: bar.update(task, completed=share, description=f"{text}: {said}")

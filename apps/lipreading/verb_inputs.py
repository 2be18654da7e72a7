"""What the verbs of ``szilard lipreading`` share."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from core.errors import InputError
from core.study.commands import Device
from core.study.runner import resolve_device

if TYPE_CHECKING:
    import torch

ModelArgument = Annotated[Path, typer.Argument(metavar="MODEL", help="Folder that train has written.")]
SamplesOption = Annotated[
    int, typer.Option(help="Transcripts sampled of a clip, whose agreement is the confidence.", min=2)
]


def open_device(device: Device) -> torch.device:
    """Where to compute.

    Raises:
        InputError: a GPU was asked for and there is none.
    """
    import torch

    return torch.device(resolve_device(device, torch.cuda.is_available()))


@contextmanager
def working(what: str, *, resumable: bool = False) -> Iterator[Callable[[float, str], None]]:
    """A bar on stderr that is told the share done and a message.

    Args:
        what: is done.
        resumable: whether the same command goes on after Ctrl-C, which is then said.

    Raises:
        StudyError: a training has diverged.
    """
    from core.rl import TrainingDiverged
    from core.study import StudyError

    console = Console(stderr=True)
    try:
        with Progress(transient=True, console=console, disable=not console.is_terminal) as bar:
            task = bar.add_task(what, total=1.0)
            yield lambda share, said: bar.update(task, completed=share, description=f"{what}: {said}")
    except TrainingDiverged as error:
        raise StudyError(f"{what}: {error}") from error
    except KeyboardInterrupt:
        if resumable:
            print("interrupted; the same command goes on from here", file=sys.stderr)
        raise


def check_file(path: Path | None, name: str) -> None:
    """Refuse, before anything is computed, a file that cannot be written.

    Raises:
        InputError: it is a folder, or is in none.
    """
    if path is not None and (path.is_dir() or not path.parent.is_dir()):
        raise InputError(f"{name} {path}: {'is a folder' if path.is_dir() else f'{path.parent} is no folder'}")

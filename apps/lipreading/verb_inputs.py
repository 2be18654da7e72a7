"""What the verbs of ``szilard lipreading`` share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from core.errors import InputError

ModelArgument = Annotated[Path, typer.Argument(metavar="MODEL", help="Folder that train has written.")]
SamplesOption = Annotated[
    int, typer.Option(help="Transcripts sampled of a clip, whose agreement is the confidence.", min=2)
]


def check_file(path: Path | None, name: str) -> None:
    """Refuse, before anything is computed, a file that cannot be written.

    Raises:
        InputError: it is a folder, or is in none.
    """
    if path is not None and (path.is_dir() or not path.parent.is_dir()):
        raise InputError(f"{name} {path}: {'is a folder' if path.is_dir() else f'{path.parent} is no folder'}")

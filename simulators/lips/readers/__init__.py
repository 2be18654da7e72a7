"""Recordings of others: the layouts of GRID, LRW, LRW-1000, and a folder of one's own clips."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from core.errors import InputError
from simulators.lips.readers.folder import INDEX, read_folder
from simulators.lips.readers.grid import read_grid
from simulators.lips.readers.lrw import read_lrw
from simulators.lips.readers.lrw1000 import read_lrw1000
from simulators.lips.readers.recording import Recording

Corpus = Literal["grid", "lrw", "lrw1000", "folder"]

__all__ = ["Corpus", "Recording", "read_folder", "read_grid", "read_lrw", "read_lrw1000", "recognise"]


def recognise(root: Path) -> Corpus:
    """Which layout a folder has, by its names of files.

    Raises:
        InputError: no such folder.
    """
    if not root.is_dir():
        raise InputError(f"{root}: no such folder")
    if (root / INDEX).exists():
        return "folder"
    if root.name == "lipread_mp4" or (root / "lipread_mp4").is_dir():
        return "lrw"
    if (root / "info").is_dir() and (root / "images").is_dir():
        return "lrw1000"
    speakers = [path for path in root.iterdir() if path.is_dir() and path.name[:1] == "s" and path.name[1:].isdecimal()]
    return "grid" if speakers else "folder"

"""Lists of files that make a split, one file name a line."""

from __future__ import annotations

from pathlib import Path

from core.configs import ROOT
from core.errors import InputError


def read_split(split: str | Path) -> tuple[str, ...]:
    """File names of a split: a text file, else the name of a packaged list.

    ``knee_val`` (48 files) and ``knee_test`` (49) are the two parts of fastMRI's knee_singlecoil_val that the papers on
    learned sampling use, after SeqMRI (Yin et al. 2021, arXiv 2105.06460).

    Raises:
        InputError: no such list, an empty one, a line that is not a bare file name, or a name twice.
    """
    path = _find(split)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a list of file names ({error})") from error
    names = [line.strip() for line in lines if line.strip()]
    for row, name in enumerate(names, 1):
        if Path(name).name != name:
            raise InputError(f"{path}: name {row} is {name}, must be a file name without a folder")
        if name in names[: row - 1]:
            raise InputError(f"{path}: {name} stands there twice")
    if not names:
        raise InputError(f"{path}: no file name in it")
    return tuple(names)


def _find(split: str | Path) -> Path:
    if Path(split).is_file():
        return Path(split)
    folders = (ROOT / "apps" / "configs" / "mri" / "splits", ROOT / "configs" / "mri" / "splits")
    packaged = {path.stem: path for folder in folders for path in sorted(folder.glob("*.txt"))}
    if str(split) in packaged:
        return packaged[str(split)]
    raise InputError(f"{split}: no such file; packaged splits: {', '.join(sorted(packaged)) or 'none'}")

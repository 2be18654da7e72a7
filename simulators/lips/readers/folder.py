"""One's own clips: videos in a folder, and a table of what is said in them.

<root>/index.csv   utt,speaker,split,sentence; speaker and split may be left out
<root>/**/<utt>.mp4 (or another video suffix), and beside it <utt>.align where there is one
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from core.errors import InputError
from simulators.lips import align, alphabet
from simulators.lips.align import Alignment
from simulators.lips.pack import is_file_name
from simulators.lips.readers.recording import SPLITS, Recording
from simulators.lips.tables import read_records
from simulators.lips.video import SUFFIXES

INDEX = "index.csv"
ARCHIVE = "clips"
"""Of the pack, for clips whose speaker is not told."""


def read_folder(root: Path) -> tuple[list[Recording], list[str]]:
    """The recordings, by row of the table, and no notes.

    Raises:
        InputError: no table, a bad row, two clips of one name, or videos and rows that do not match.
    """
    if not (root / INDEX).exists():
        raise InputError(
            f"{root / INDEX}: no such file; own clips need one with the columns utt, speaker, split, sentence"
        )
    rows = read_records(root / INDEX)
    videos = find_videos(root)
    found: dict[str, Recording] = {}
    for number, row in enumerate(rows, start=2):
        where = f"{root / INDEX}: row {number}"
        recording = _recording({name: cell or "" for name, cell in row.items()}, where, videos)
        if recording.name in found:
            raise InputError(f"{where}: {recording.name} stands twice")
        found[recording.name] = recording
    if odd := sorted(set(videos) - set(found)):
        raise InputError(
            f"{root / INDEX}: no row of {odd[0]}; {len(videos)} videos and {len(found)} sentences must match"
        )
    if not found:
        raise InputError(f"{root / INDEX}: has no row")
    return list(found.values()), []


def videos_below(root: Path) -> list[Path]:
    """All video files below a folder, sorted; hidden ones, as macOS leaves beside each file, are none."""
    return sorted(
        path
        for path in root.rglob("*")
        if path.suffix.lower() in SUFFIXES and path.is_file() and not path.name.startswith(".")
    )


def find_videos(root: Path) -> dict[str, Path]:
    """Video files below a folder by their stem, sorted.

    Raises:
        InputError: two have one stem.
    """
    found: dict[str, Path] = {}
    for path in videos_below(root):
        if path.stem in found:
            raise InputError(f"{path}: {found[path.stem]} has the same name; names must differ")
        found[path.stem] = path
    return found


def _recording(cells: dict[str, str], where: str, videos: dict[str, Path]) -> Recording:
    name = cells.get("utt", "")
    if name not in videos:
        raise InputError(f"{where}: utt {name!r}: no video of that name; there are {len(videos)}")
    sentence = alphabet.check(cells.get("sentence", ""), f"{where}: sentence")
    split = cells.get("split") or "train"
    if split not in SPLITS:
        raise InputError(f"{where}: split {split!r}; must be one of {', '.join(SPLITS)}")
    speaker = cells.get("speaker", "")
    for kind, value in (("utt", name), ("speaker", speaker or ARCHIVE)):
        if not is_file_name(value):
            raise InputError(f"{where}: {kind} {value!r}; must be a name of a file without a folder")
    path = videos[name].with_suffix(".align")
    reader = partial(_align, path, sentence) if path.exists() else None
    return Recording(name, speaker, split, sentence, videos[name], speaker or ARCHIVE, reader)


def _align(path: Path, sentence: str, frames: float, spoken: float) -> Alignment:
    found = align.read(path, frames=frames, spoken=spoken)
    if found.sentence != sentence:
        raise InputError(f"{path}: says {found.sentence!r}; {INDEX} says {sentence!r}")
    return found

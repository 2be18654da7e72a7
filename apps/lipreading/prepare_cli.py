"""The verb that turns a corpus, or one's own clips, into a pack of mouth clips."""

from __future__ import annotations

import sys
from collections import Counter
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from core.errors import InputError
from core.study.commands import SeedOption, working
from core.study.loading import from_options

if TYPE_CHECKING:
    from apps.lipreading.preparation import Prepared


class CorpusName(StrEnum):
    """Layout of the recordings."""

    auto = "auto"
    grid = "grid"
    lrw = "lrw"
    lrw1000 = "lrw1000"
    folder = "folder"


class SplitName(StrEnum):
    """Which recordings of GRID are tested."""

    unseen = "unseen"
    overlapped = "overlapped"


CorpusOption = Annotated[CorpusName, typer.Option(help="Layout of SOURCE; folder: index.csv and videos of your own.")]
CropOption = Annotated[
    str | None,
    typer.Option(
        metavar="CROP",
        help="haar, whole, landmarks, or TOP:BOTTOM,LEFT:RIGHT in pixels.  \\[default: the corpus's usual one]",
    ),
]
LandmarksOption = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Of --crop landmarks: <utt>.csv with frame,x0,y0,... in pixels.")
]


def prepare(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="Folder of the recordings.")],
    out: Annotated[Path, typer.Option(help="Folder of the pack, new or empty.")],
    corpus: CorpusOption = CorpusName.auto,
    split: Annotated[
        SplitName, typer.Option(help="GRID: test s1, s2, s20, s22; or 255 sentences of each speaker.")
    ] = SplitName.unseen,
    split_list: Annotated[
        Path | None, typer.Option(metavar="FILE", help="GRID: CSV of speaker,utt,split in place of these rules.")
    ] = None,
    validation: Annotated[int, typer.Option(help="GRID: sentences of each trained speaker for val.", min=0)] = 0,
    words: Annotated[
        Path | None, typer.Option(metavar="FILE", help="LRW: the allowed words.  \\[default: label_sorted.txt]")
    ] = None,
    crop: CropOption = None,
    landmarks: LandmarksOption = None,
    height: Annotated[int | None, typer.Option(help="Pixels of a frame.  \\[default: the corpus's]")] = None,
    width: Annotated[int | None, typer.Option(help="Likewise.")] = None,
    frames: Annotated[int | None, typer.Option(help="Of a clip; shorter ones are padded, longer ones refused.")] = None,
    resample: Annotated[bool, typer.Option("--resample", help="Bring other rates to 25 frames per second.")] = False,
    steady: Annotated[bool, typer.Option("--steady", help="Shift each clip onto its speaker's first one.")] = False,
    quality: Annotated[int | None, typer.Option(help="Of the JPEG, 50 to 100.  \\[default: 90]")] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out clips that are refused.")] = False,
    workers: Annotated[int, typer.Option(help="Processes.", min=1)] = 1,
    seed: SeedOption = 0,
) -> None:
    """Cut the mouths out of recordings and store them as a pack; the same command goes on after a stop.

    Example: szilard lipreading prepare grid --out runs/grid --split overlapped --workers 8
    """
    from apps.lipreading.preparation import LICENCES, USUAL, PrepareSettings, read_recordings
    from apps.lipreading.preparation import prepare as prepare_pack
    from simulators.lips.readers import Corpus, recognise

    layout: Corpus = recognise(source) if corpus is CorpusName.auto else corpus.value  # type: ignore[assignment]
    _refuse_others(layout, split_list, validation, words)
    given: dict[str, Any] = {"crop": crop, "landmarks": landmarks, "height": height, "width": width, "frames": frames}
    given |= {"quality": quality, "resample": resample, "steady": steady, "skip_bad": skip_bad}
    asked = USUAL[layout] | {name: value for name, value in given.items() if value is not None}
    settings: PrepareSettings = from_options(PrepareSettings, asked, "prepare")
    recordings, notes = read_recordings(
        source, layout, split=split.value, listed=split_list, validation=validation, words=words, seed=seed
    )
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    origin = {"corpus": layout, "split": split.value if layout == "grid" else "given", "seed": seed}
    origin |= {"licence": LICENCES[layout]}
    with working("prepare", resumable=True) as report:
        done = prepare_pack(recordings, out, settings, origin=origin, workers=workers, report=report)
    _print(done, settings.quality)


def _refuse_others(layout: str, split_list: Path | None, validation: int, words: Path | None) -> None:
    """Refuse options of another layout, which would change nothing."""
    options = (("--split-list", split_list, "grid"), ("--validation", validation, "grid"), ("--words", words, "lrw"))
    for name, value, takes in options:
        if value and layout != takes:
            raise InputError(f"{name} {value}: allowed with the layout {takes}; the recordings are {layout}")


def _print(done: Prepared, quality: int) -> None:
    from simulators.lips.pack_writer import NOTES

    counts = Counter(utterance.split for utterance in done.utterances)
    speakers = len({utterance.speaker for utterance in done.utterances if utterance.speaker})
    print(f"clips: {len(done.utterances):,}" + (f" of {speakers} speakers" if speakers else ""))
    print("split: " + ", ".join(f"{name} {count:,}" for name, count in counts.items()))
    print(f"JPEG quality {quality}: changes grey levels by {done.rms:.2f} of 255 (root mean square)")
    out = sum(note.left_out for note in done.notes)
    if done.notes:
        print(f"warning: {len(done.notes):,} notes, {out:,} clips left out: {done.folder / NOTES}")
        print(f"warning: such as {done.notes[0].text}")
    print(done.folder)

"""The verb that looks at data before any training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from apps.lipreading.prepare_cli import CorpusName, CorpusOption, CropOption, LandmarksOption
from core.errors import InputError
from core.study.commands import SeedOption, working

if TYPE_CHECKING:
    from apps.lipreading.doctor import Diagnosis, Report

_COLOURS = {"fine": "green", "warning": "yellow", "fault": "red", "unknown": "dim"}


def doctor(
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="Folder of recordings or of videos, or a pack of prepare.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the page and its JSON.")] = Path("runs/doctor"),
    corpus: CorpusOption = CorpusName.auto,
    crop: CropOption = None,
    landmarks: LandmarksOption = None,
    sample: Annotated[int, typer.Option(help="Clips to look into, drawn at random; 0: all.", min=0)] = 60,
    seed: SeedOption = 0,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 if there is a fault.")] = False,
) -> None:
    """Say what is wrong with data before any training: rate, face, crop, light, alignments, splits; with pictures.

    Example: szilard lipreading doctor my_clips --out runs/doctor
    """
    from apps.lipreading.doctor_page import PAGE, WORDS, write_doctor

    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {out}: {(error.strerror or str(error)).lower()}") from error
    with working("doctor") as report:
        found = _diagnosis(source, corpus, crop, landmarks, sample, seed, report)
    write_doctor(out, found)
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for finding in found.findings:
        level = f"[{_COLOURS[finding.level]}]{WORDS[finding.level]}[/]"
        table.add_row(finding.check, level, escape(finding.text))
    Console(highlight=False).print(table)
    print(out / PAGE)
    if strict and found.worst == "fault":
        raise typer.Exit(1)


def _diagnosis(
    source: Path,
    corpus: CorpusName,
    crop: str | None,
    landmarks: Path | None,
    sample: int,
    seed: int,
    report: Report,
) -> Diagnosis:
    from apps.lipreading.doctor import examine_pack, examine_recordings
    from apps.lipreading.preparation import USUAL, PrepareSettings, read_recordings
    from simulators.lips.crop import parse_crop
    from simulators.lips.pack import Pack
    from simulators.lips.readers import Corpus, Recording, recognise
    from simulators.lips.readers.folder import videos_below

    if not source.is_dir():
        raise InputError(f"{source}: no such folder")
    if corpus is CorpusName.auto and any(source.glob("*_mouth.zip")):
        if crop is not None or landmarks is not None:
            name = f"--landmarks {landmarks}" if crop is None else f"--crop {crop}"
            raise InputError(f"{name}: {source} is a pack, whose mouths are cut out already; allowed for recordings")
        return examine_pack(Pack.open(source), sample=sample, seed=seed, report=report)
    layout: Corpus = recognise(source) if corpus is CorpusName.auto else corpus.value  # type: ignore[assignment]
    settings = PrepareSettings.model_validate(USUAL[layout])
    problems: list[str] = []
    try:
        recordings, _ = read_recordings(source, layout, seed=seed)
    except InputError as error:
        # What the reader refuses is a finding here, and the clips can be looked at all the same.
        problems = [str(error)]
        paths = videos_below(source)
        names = [str(path.relative_to(source).with_suffix("")) for path in paths]
        recordings = [Recording(name, "", "", "", path, "") for name, path in zip(names, paths, strict=True)]
        if not recordings:
            raise
    return examine_recordings(
        recordings,
        str(source),
        layout,
        crop=parse_crop(crop or settings.crop, landmarks),
        height=settings.height,
        width=settings.width,
        frames=settings.frames,
        problems=problems,
        sample=sample,
        seed=seed,
        report=report,
    )

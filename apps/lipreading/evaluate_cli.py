"""The verbs that read clips with a trained model: many with known transcripts, or one."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from apps.lipreading.train_cli import EVALUATION
from apps.lipreading.verb_inputs import ModelArgument, SamplesOption, check_file
from core.errors import InputError
from core.study.commands import Device, DeviceOption, SeedOption, open_device, working
from core.study.terminal import print_rows

if TYPE_CHECKING:
    from apps.lipreading.calibration import Abstention
    from apps.lipreading.reader import Reader
    from apps.lipreading.streaming import Streamed
    from apps.lipreading.transcripts import Transcript

SLACK = 4
"""Symbols by which a transcript may be longer than the longest that was learnt from."""
SAMPLES = 32
"""Usual number of transcripts sampled of a clip."""


class DecodeName(StrEnum):
    """How a transcript is chosen."""

    greedy = "greedy"
    beam = "beam"
    mbr = "mbr"


def evaluate(
    model: ModelArgument,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="PATH|simulated",
            help="A pack, clips of simulate, or new simulated ones.  \\[default: what it was trained on]",
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(help="Of a pack or the model's own clips: train, val or test.  \\[default: val]"),
    ] = None,
    decode: Annotated[
        DecodeName, typer.Option(help="Best symbols, best of a beam, or least risk.")
    ] = DecodeName.greedy,
    width: Annotated[int, typer.Option(help="Of the beam.", min=1)] = 8,
    samples: SamplesOption = SAMPLES,
    by_speaker: Annotated[bool, typer.Option("--by-speaker", help="Intervals over speakers, not over clips.")] = False,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="With mbr: keep confidences for transcribe --error-rate.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Folder of the results.  \\[default: in MODEL]")] = None,
    seed: SeedOption = 0,
    device: DeviceOption = Device.auto,
) -> None:
    """Read clips whose transcripts are known: error rates with intervals, confusions, calibration.

    Example: szilard lipreading evaluate runs/reader --decode mbr --calibrate

    Example: szilard lipreading evaluate runs/reader --data runs/clips --out runs/reader-on-clips
    """
    from apps.lipreading.evaluation import rates, read, slot_rates
    from apps.lipreading.evaluation_data import open_data
    from apps.lipreading.evaluation_folder import make_folder, write_calibration, write_evaluation
    from apps.lipreading.reader import open_reader
    from core.study.provenance import provenance

    if calibrate and decode is not DecodeName.mbr:
        raise InputError("--calibrate: needs confidences of words; allowed with --decode mbr")
    target = open_device(device)
    reader = open_reader(model, target)
    given = open_data(reader, data, split, seed)
    if reader.grammar is not None and given.grammar not in (None, reader.grammar):
        print("note: the model has learnt sentences of another grammar than these", file=sys.stderr)
    folder = out or model / EVALUATION / _folder_name(data, given.split, decode)
    make_folder(folder)
    with working(f"reading {given.name}") as progress:
        reading = read(
            reader.model, given.parts, reader.max_length + SLACK, decode=decode.value, grammar=given.grammar,
            names=given.names, speakers=given.speakers, width=width, samples=samples, seed=seed, progress=progress,
        )  # fmt: skip
    rows = rates(reading, by_speaker=by_speaker, scenario=given.name, method=decode.value)
    if given.grammar is not None:
        rows += slot_rates(reading, given.grammar, by_speaker=by_speaker, scenario=given.name, method=decode.value)
    print_rows(rows)
    count, unit = (len(set(reading.speakers)), "speaker") if by_speaker else (len(reading), "clip")
    over = f"95 % bootstrap intervals over {count:,} {unit}s" if count > 1 else f"no intervals, as there is 1 {unit}"
    print(f"n = {len(reading):,} clips; {over}")
    _print_confusion(reading.hypotheses, reading.references, reading.pronounced)
    asked: dict[str, Any] = {"data": data, "split": given.split, "decode": decode.value, "seed": seed}
    asked |= {"width": width} if decode is DecodeName.beam else {}
    asked |= {"samples": samples} if decode is DecodeName.mbr else {}
    attrs = {"data": given.name, "decode": decode.value, "seed": seed, **provenance(target)}
    write_evaluation(folder, reading, rows, asked, given.grammar, **attrs)
    if calibrate:
        most = len(given.grammar.slots) if given.grammar else max(len(x.split()) for x in reading.references)
        write_calibration(model, reading, samples, most, given.name)
    print(folder)


def transcribe(
    clip: Annotated[
        str, typer.Argument(metavar="CLIP", help="A video, a folder of JPEGs, PACK::NAME, or clips.nc::NUMBER.")
    ],
    model: Annotated[Path, typer.Option(metavar="DIR", help="Folder that train has written.")],
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write words, lattice and n best.")] = None,
    samples: Annotated[
        int | None,
        typer.Option(help="Transcripts sampled of a clip.  \\[default: 32, or the calibration's]", min=2),
    ] = None,
    error_rate: Annotated[
        float | None, typer.Option(help="Hide words so that of those shown at most this share is wrong.")
    ] = None,
    risk: Annotated[float, typer.Option(help="Probability over calibrations with which that may fail.")] = 0.1,
    resample: Annotated[bool, typer.Option("--resample", help="Allow other rates than 25 frames a second.")] = False,
    crop: Annotated[
        str | None,
        typer.Option(
            metavar="CROP",
            help="Where the mouth is: haar, whole, or TOP:BOTTOM,LEFT:RIGHT in pixels.  "
            "\\[default: as of the clips it was trained on, else haar]",
        ),
    ] = None,
    latency: Annotated[
        bool, typer.Option("--latency", help="Also read it as it comes in: how late is each word?")
    ] = False,
    chunk: Annotated[int, typer.Option(help="With --latency: frames between two readings.", min=1)] = 5,
    seed: SeedOption = 0,
    device: DeviceOption = Device.auto,
) -> None:
    """Read one clip: the text, how sure each word is, and whether it is a sentence of the grammar at all.

    Example: szilard lipreading transcribe talk.mp4 --model runs/reader --json talk.json

    Example: szilard lipreading transcribe runs/pack::bbaf2n --model runs/reader --error-rate 0.1
    """
    import torch

    from apps.lipreading.evaluation_data import open_clip
    from apps.lipreading.evaluation_folder import open_abstention
    from apps.lipreading.reader import open_reader
    from apps.lipreading.streaming import stream
    from apps.lipreading.transcripts import transcripts
    from core import files
    from core.seeds import stream as seed_of
    from simulators.lips.crop import parse_crop

    check_file(json, "--json")
    _check_options(clip, resample, crop, samples, error_rate)
    abstention: Abstention | None = None
    if error_rate is not None:
        abstention, samples = open_abstention(model, error_rate, risk)
    count = samples or SAMPLES
    target = open_device(device)
    reader = open_reader(model, target)
    seen, to_clips, said = open_clip(reader, clip, resample=resample, crop=parse_crop(crop or _usual_crop(reader)))
    clips = to_clips(seen, torch.tensor([seen.shape[1]])).check(clip)
    reader.model.eval()
    longest, draw = reader.max_length + SLACK, seed_of(seed, "transcript")
    drawn = reader.model.sample(clips, count, longest, generator=torch.Generator(target).manual_seed(draw))
    (found,) = transcripts(drawn, reader.grammar)
    streamed: Streamed | None = None
    if latency:
        # The same draws, so that the last reading is the text that is printed.
        streamed = stream(reader.model, seen, to_clips, longest, chunk=chunk, samples=count, seed=draw)
    _print_transcript(found, abstention, streamed)
    if json is not None:
        record = {"clip": clip, "model": str(model), "seed": seed, **found.record()}
        record |= {"reference": said} if said else {}
        if abstention is not None:
            record |= {"shown": found.shown(abstention), "threshold": abstention.threshold, "risk": risk}
            record |= {"error_rate": error_rate, "guarantee": abstention.guarantee}
        record |= {} if streamed is None else {"latency": streamed.record()}
        files.write_json(json, record)
        print(json, file=sys.stderr)


def _folder_name(data: str | None, split: str | None, decode: DecodeName) -> str:
    """Of an evaluation: whose clips, which of them if they have splits, and how they were read."""
    from apps.lipreading.simulation import CLIPS

    path = Path(data or "own").resolve()
    name = path.parent.name if path.name == CLIPS else path.name
    return "-".join(part for part in (name, split, decode.value) if part)


def _check_options(clip: str, resample: bool, crop: str | None, samples: int | None, error_rate: float | None) -> None:
    """Refuse what would have no effect."""
    from apps.lipreading.evaluation_data import SEPARATOR

    if error_rate is not None and samples is not None:
        raise InputError(
            f"--samples {samples}: with --error-rate they are as many as the calibration has; leave it out"
        )
    if SEPARATOR in clip and (resample or crop is not None):
        name = "--resample" if crop is None else f"--crop {crop}"
        raise InputError(f"{name}: {clip} is cut, at 25 frames a second, already; allowed for videos and pictures")


def _usual_crop(reader: Reader) -> str:
    """How the mouths that a reader has learnt from were found; points tracked there tell nothing of another clip."""
    return reader.crop if reader.crop is not None and reader.crop != "landmarks" else "haar"


def _print_confusion(hypotheses: list[str], references: list[str], pronounced: bool) -> None:
    from apps.lipreading.confusion import word_confusion

    if not pronounced:
        return
    found = word_confusion(hypotheses, references)
    print(
        f"{found.edits:,} errors in {found.words:,} words: {found.ambiguous:,} words that look alike, "
        f"{found.avoidable:,} others, {found.omitted:,} left out, {found.inserted:,} put in"
    )
    for truth, taken, times, alike in found.pairs[:5]:
        print(f"  {truth} read as {taken}: {times:,}{' (look alike)' if alike else ''}")


def _print_transcript(found: Transcript, abstention: Abstention | None, streamed: Streamed | None) -> None:
    print(found.text if abstention is None else found.shown(abstention))
    print("  ".join(f"{word} {sure:.2f}" for word, sure in zip(found.words, found.confidence, strict=True)))
    if abstention is not None:
        print(abstention.guarantee)
        if abstention.most is not None and len(found.words) > abstention.most:
            print(f"note: {len(found.words)} words; no clip with more than {abstention.most} is shown", file=sys.stderr)
    if found.in_grammar is False:
        print("note: not a sentence of the grammar; the clip may show what the model has never seen", file=sys.stderr)
    if streamed is not None:
        edits = streamed.record()["word_edits_to_whole"]
        print("as it came in" + (f" (word edits to the reading of the whole clip: {edits}):" if edits else ":"))
        for word in streamed.words:
            print(f"  {word.word}: after {word.frames} frames, {word.seconds:.2f} s")
        print(
            f"{streamed.real_time_factor:.2f} s of computing a second of the clip, "
            f"{1000 * max(streamed.compute):.0f} ms at most for a reading"
        )

"""The verbs that make clips and train a reader of them."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from apps.lipreading.calibration import CALIBRATION
from core.errors import InputError
from core.study.commands import Device, DeviceOption, SeedOption, Set, open_device, working

CONFIG, CHECKPOINT, EVALUATION = "config.json", "checkpoint", "evaluation"


def simulate(
    out: Annotated[Path, typer.Option(help="Folder of clips.nc and, of pictures, contact_sheet.png.")],
    clips: Annotated[int, typer.Option(help="How many.", min=1)] = 1000,
    mode: Annotated[str, typer.Option(help="What is seen: features, landmarks or frames.")] = "features",
    grammar: Annotated[str, typer.Option(help="Of the sentences: grid (six words) or mini (the last three).")] = "grid",
    speakers: Annotated[int, typer.Option(help="Different people.", min=1)] = 20,
    noise: Annotated[
        float | None,
        typer.Option(
            help="Standard deviation: of each feature, of landmarks in pixels, of frames in grey levels of 0 to 1.  "
            "\\[default: 0.25, of landmarks 0.5, of frames 0.03]"
        ),
    ] = None,
    frames: Annotated[int, typer.Option(help="Of a clip, at 25 a second.", min=5)] = 75,
    first_frame: Annotated[
        int,
        typer.Option(
            help="Of the 75 of an utterance (0 to 74), the first that is seen; words outside the frames that are seen "
            "stay in the transcript."
        ),
    ] = 0,
    height: Annotated[int, typer.Option(help="Pixels, of frames.", min=24)] = 32,
    width: Annotated[int, typer.Option(help="Pixels, of frames.", min=24)] = 48,
    seed: SeedOption = 0,
) -> None:
    """Simulate a talking mouth: clips with what is said in them, by whom, and when.

    Example: szilard lipreading simulate --out runs/clips --clips 200 --mode frames
    """
    from apps.lipreading.grammars import GRAMMARS
    from apps.lipreading.simulation import CLIPS, write_clips
    from apps.lipreading.simulation import simulate as talk
    from simulators.lips.talking_mouth import TalkingMouth

    if grammar not in GRAMMARS:
        raise InputError(f"--grammar {grammar}: must be one of {', '.join(GRAMMARS)}")
    if (out / CLIPS).exists():
        raise InputError(f"--out {out}: holds a {CLIPS} already, and clips are never written over others")
    mouth = TalkingMouth(
        mode=mode,  # type: ignore[arg-type]
        grammar=GRAMMARS[grammar],
        noise=noise,
        frames=frames,
        first_frame=first_frame,
        height=height,
        width=width,
    )
    for path in write_clips(out, talk(mouth, clips, speakers, seed)):
        print(path)


def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML file: source, model, method and training.")],
    out: Annotated[Path, typer.Option(help="Folder of the model.")],
    overrides: Set = None,
    device: DeviceOption = Device.auto,
    resume: Annotated[bool, typer.Option("--resume/--fresh", help="Go on where it stopped, or start anew.")] = True,
) -> None:
    """Train a reader; the same command goes on with a training that was stopped.

    Example: szilard lipreading train reader.yaml --out runs/reader --set training.updates=800
    """
    from apps.lipreading.reader import MODEL, ReaderConfig, make_reader
    from core import files
    from core.study.loading import load

    settings = load(ReaderConfig, config, overrides or ())
    target = open_device(device)
    begin_folder(out, settings.model_dump(mode="json"), fresh=not resume)
    if (out / MODEL).exists():
        print("was finished before", file=sys.stderr)
    else:
        with working("training", resumable=True) as progress:
            make_reader(settings, out, out / CHECKPOINT, target, progress)
    shutil.rmtree(out / CHECKPOINT, ignore_errors=True)
    files.sync(out)
    print(out)


def begin_folder(out: Path, config: dict[str, Any], *, fresh: bool) -> None:
    """Make the folder of a model, or find the one of an earlier training of the same config.

    A training that left nothing but its config was refused before its first update: another one may take its place.

    Args:
        out: the folder.
        config: of the training, plain data.
        fresh: forget what an earlier training left.

    Raises:
        InputError: a file, a folder with something else in it, or one of another training.
    """
    from apps.lipreading.reader import CURVE, MODEL
    from core import files

    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: is a file, not a folder")
    held = sorted(path.name for path in out.iterdir() if not path.name.startswith(".")) if out.exists() else []
    if held and CONFIG not in held:
        raise InputError(f"--out {out}: holds {held[0]}, which no training wrote; must be empty or new")
    try:
        if held and fresh:
            for name in (MODEL, CURVE, CONFIG, CALIBRATION):
                (out / name).unlink(missing_ok=True)
            for name in (CHECKPOINT, EVALUATION):
                shutil.rmtree(out / name, ignore_errors=True)
        elif _begun(out) and files.read_json(out / CONFIG) != files.jsonable(config):
            raise InputError(f"--out {out}: holds a training of another config; choose another --out, or --fresh")
        (out / CHECKPOINT).mkdir(parents=True, exist_ok=True)
        files.write_json(out / CONFIG, config)
    except OSError as error:
        raise InputError(f"--out {out}: {(error.strerror or str(error)).lower()}") from error


def _begun(out: Path) -> bool:
    """Whether a training has left a model, or a state to go on from."""
    from apps.lipreading.reader import MODEL

    return (out / MODEL).exists() or ((out / CHECKPOINT).is_dir() and any((out / CHECKPOINT).iterdir()))

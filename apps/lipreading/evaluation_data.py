"""Which clips a model reads: those of its own corpus, of a pack, of a file of simulated clips, or a single one."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import xarray as xr
from torch import Tensor

from apps.lipreading.clips import Clips
from apps.lipreading.reader import Reader
from apps.lipreading.simulation import CLIPS, examples, open_clips, simulate
from apps.lipreading.sources import Examples, PackSource, SimulatedSource, Split, references
from core.errors import InputError
from simulators.lips import alphabet
from simulators.lips.crop import Crop
from simulators.lips.grammar import GRID, MINI, Grammar
from simulators.lips.pack import INDEX, Pack, Utterance
from simulators.lips.talking_mouth import TalkingMouth
from simulators.lips.video import read_clip

SPLITS: dict[str, Split] = {"train": "train", "val": "validation", "test": "test"}
USUAL_SPLIT = "val"
SEPARATOR = "::"
"""Between a pack or file and a clip of it."""
SIMULATED = "simulated"
SIMULATED_CLIPS, SIMULATED_SPEAKERS = 500, 10
AT_ONCE = 64


@dataclass
class Data:
    """Clips with references.

    Attributes:
        name: for tables.
        parts: the clips, some at a time.
        names: of all clips, None for their numbers.
        speakers: names by number, None for the numbers.
        grammar: of which all references are sentences, if there is one.
        split: as it was asked for, None of clips that have none.
    """

    name: str
    parts: Iterator[Examples]
    names: list[str] | None
    speakers: list[str] | None
    grammar: Grammar | None
    split: str | None = None


def open_data(reader: Reader, data: str | None, split: str | None = None, seed: int = 0) -> Data:
    """The clips that a word of the command line means.

    Args:
        reader: that shall read them.
        data: a folder of a pack, a file of ``simulate`` or its folder, ``simulated`` for new clips of the simulated
            talker, or None for those of the reader's own corpus.
        split: train, val or test, or whatever the pack has; None is val where there are splits.
        seed: of simulated clips.

    Raises:
        InputError: no such clips, not such as the reader reads, or a split of clips that have none.
    """
    if data is None or (data == SIMULATED and isinstance(source_of(reader), SimulatedSource)):
        return _own(reader, USUAL_SPLIT if split is None else split)
    if data == SIMULATED:
        _no_split(split, f"--data {SIMULATED}")
        return _simulated(reader, seed)
    path = Path(data)
    file = path / CLIPS if path.is_dir() else path
    if file.is_file():
        _no_split(split, str(file))
        found = open_clips(file)
        _same_kind(reader, found, str(file))
        said = [str(text) for text in found["transcript"].values.tolist()]
        grammar = next((g for g in (GRID, MINI) if _fits(g, said)), None)
        return Data(str(file), examples(found, reader.features, device_of(reader)), None, None, grammar)
    if (path / INDEX).is_file():
        return _pack(reader, path, USUAL_SPLIT if split is None else split)
    raise InputError(f"--data {data}: neither a pack (with {INDEX}) nor a file of simulated clips; or: {SIMULATED}")


def open_clip(
    reader: Reader, clip: str, *, resample: bool = False, crop: Crop | None = None
) -> tuple[Tensor, Callable[[Tensor, Tensor], Clips], str]:
    """One clip as ``(1, T, ...)``, what makes of it what the model sees, and what is said in it if that is known.

    Args:
        reader: that shall read it.
        clip: a video file, a folder of pictures, ``PACK::NAME``, or ``FILE::NUMBER`` of simulated clips; the folder of
            a file of ``simulate`` stands for it.
        resample: bring another rate to 25 frames a second.
        crop: finds the mouth in a video.

    Raises:
        InputError: no such clip, one that is refused, or not such as the reader reads.
    """
    place, separator, name = clip.rpartition(SEPARATOR)
    file = Path(place) / CLIPS if (Path(place) / CLIPS).is_file() else Path(place)
    if separator and file.is_file():
        return _of_file(reader, file, name)
    if Path(clip).suffix == ".nc" or any((Path(clip) / held).is_file() for held in (INDEX, CLIPS)):
        raise InputError(f"{clip}: holds many clips; name one, as {clip}{SEPARATOR}<name or number>")
    size = frame_size(reader, clip)
    if separator:
        pack = Pack.open(place)
        rows = [i for i, u in enumerate(pack.utterances) if u.name == name or f"{u.archive}/{u.name}" == name]
        if len(rows) != 1:
            raise InputError(f"{clip}: {len(rows)} clips of that name; must be one of {INDEX}, or ARCHIVE/NAME")
        length = int(pack.length[rows[0]])
        return _sized(pack.frames(rows)[:, :length], size, clip), reader.features, pack.utterances[rows[0]].sentence
    found = read_clip(Path(clip), resample=resample, crop=crop, height=size[0], width=size[1])
    for note in found.notes:
        print(f"note: {note}", file=sys.stderr)
    return torch.from_numpy(found.frames).unsqueeze(0), reader.features, ""


def source_of(reader: Reader) -> SimulatedSource | PackSource:
    """What a reader has learnt from."""
    return reader.config.source


def device_of(reader: Reader) -> torch.device:
    """Where a reader's model is."""
    return next(reader.model.parameters()).device


def frame_size(reader: Reader, where: str) -> tuple[int, int]:
    """Height and width of the frames that ``reader.features`` takes.

    Raises:
        InputError: it takes none; the message begins with ``where``.
    """
    if reader.frame_size is None:
        raise InputError(f"{where}: holds frames; the model has learnt from simulated {reader.inputs}")
    return reader.frame_size


def _no_split(split: str | None, what: str) -> None:
    """Refuse a split of clips that have none, so that no result is labelled with it."""
    if split is not None:
        raise InputError(f"--split {split}: {what} has no splits; leave it out")


def _own(reader: Reader, split: str) -> Data:
    if split not in SPLITS:
        raise InputError(f"--split {split}: the model's own corpus has {', '.join(SPLITS)}")
    source = source_of(reader)
    if isinstance(source, PackSource):
        # Not source.open(): frames pass through the features of the training, not through newly fitted ones.
        found = _pack(reader, source.folder(), getattr(source, SPLITS[split]))
        return replace(found, split=split)
    corpus = source.open(device_of(reader))
    return Data(f"own clips, {split}", corpus.batches(SPLITS[split]), None, None, corpus.grammar, split)


def _pack(reader: Reader, path: Path, split: str) -> Data:
    pack = Pack.open(path)
    rows = pack.split(split).tolist()
    said = [pack.utterances[i] for i in rows]
    speakers = sorted({u.speaker for u in pack.utterances})
    grammar = GRID if _fits(GRID, [u.sentence for u in said]) else None
    parts = _pack_parts(reader, pack, rows, speakers)
    return Data(f"{path}, {split}", parts, _names(said), speakers, grammar, split)


def _pack_parts(reader: Reader, pack: Pack, rows: list[int], speakers: list[str]) -> Iterator[Examples]:
    size = frame_size(reader, str(pack.path))
    for begin in range(0, len(rows), AT_ONCE):
        index = rows[begin : begin + AT_ONCE]
        said = [pack.utterances[i] for i in index]
        seen = reader.features(_sized(pack.frames(index), size, str(pack.path)), pack.length[index])
        tokens, length = alphabet.encode([u.sentence for u in said], str(pack.path / INDEX))
        device = device_of(reader)
        yield Examples(
            Clips(seen.frames.to(device), seen.length.to(device)),
            references(tokens.to(device), length.to(device)),
            torch.tensor([speakers.index(u.speaker) for u in said]),
            torch.empty(len(index), 0, 2),
        )


def _simulated(reader: Reader, seed: int) -> Data:
    """New clips of unseen simulated speakers, as pictures of the size that the reader reads."""
    height, width = frame_size(reader, f"--data {SIMULATED}")
    mouth = TalkingMouth(mode="frames", grammar=GRID, height=height, width=width)
    found = simulate(mouth, SIMULATED_CLIPS, SIMULATED_SPEAKERS, seed)
    return Data("simulated pictures", examples(found, reader.features, device_of(reader)), None, None, GRID)


def _of_file(reader: Reader, path: Path, number: str) -> tuple[Tensor, Callable[[Tensor, Tensor], Clips], str]:
    data = open_clips(path)
    count = data.sizes["clip"]
    if not number.isdecimal() or int(number) >= count:
        raise InputError(f"{path}{SEPARATOR}{number}: must be a number from 0 to {count - 1}")
    _same_kind(reader, data, str(path))
    clip = data.isel(clip=[int(number)])
    seen, said = torch.from_numpy(clip["observation"].values), str(clip["transcript"].values[0])
    if data.attrs["mode"] == "frames":
        return seen, reader.features, said
    return seen.float(), lambda x, length: Clips(x.to(device_of(reader)), length.to(device_of(reader))), said


def _same_kind(reader: Reader, data: xr.Dataset, where: str) -> None:
    """Refuse clips of a file that are not what the model has learnt from."""
    if data.attrs["mode"] != reader.inputs:
        raise InputError(f"{where}: holds {data.attrs['mode']}; the model has learnt from {reader.inputs}")
    high, wide = data["observation"].shape[2:] if reader.inputs == "frames" else (0, 0)
    if reader.inputs == "frames" and (high, wide) != reader.frame_size:
        size = " x ".join(map(str, reader.frame_size or ()))
        raise InputError(f"{where}: frames of {high} x {wide} pixels; the model reads {size}")


def _sized(frames: Tensor, size: tuple[int, int], where: str) -> Tensor:
    if tuple(frames.shape[2:]) != size:
        high, wide = frames.shape[2:]
        raise InputError(f"{where}: frames of {high} x {wide} pixels; the model reads {size[0]} x {size[1]}")
    return frames


def _names(utterances: list[Utterance]) -> list[str]:
    """Names of clips, with their archives where a name stands twice."""
    names = [u.name for u in utterances]
    return names if len(set(names)) == len(names) else [f"{u.archive}/{u.name}" for u in utterances]


def _fits(grammar: Grammar, sentences: list[str]) -> bool:
    return bool(grammar.parses(alphabet.encode(sentences)[0]).all())

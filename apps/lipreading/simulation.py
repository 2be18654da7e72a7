"""Simulated clips in a file: what was said, when, by whom, and what is seen of it; and a sheet to look at."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from apps.lipreading.clips import Clips
from apps.lipreading.sources import Examples, references
from core import files
from core.errors import InputError
from core.seeds import stream
from simulators.lips import alphabet
from simulators.lips.sheets import FPS
from simulators.lips.speakers import Speakers
from simulators.lips.speech import Speech
from simulators.lips.talking_mouth import TalkingMouth

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

CLIPS, SHEET = "clips.nc", "contact_sheet.png"
DIMS = {"features": ("feature",), "landmarks": ("coordinate",), "frames": ("row", "column")}
AT_ONCE = 256


def simulate(mouth: TalkingMouth, clips: int, speakers: int, seed: int) -> xr.Dataset:
    """Clips of the simulated talker as a dataset; grey levels as bytes, times in frames of 40 ms.

    Raises:
        InputError: fewer than one clip or speaker.
    """
    if clips < 1:
        raise InputError(f"clips: {clips}; allowed: at least 1")
    people = Speakers.draw(speakers, stream(seed, "speakers"))
    generator = torch.Generator().manual_seed(stream(seed, "clips"))
    sizes = [min(AT_ONCE, clips - begin) for begin in range(0, clips, AT_ONCE)]
    parts = [_part(mouth.sample(size, generator, people), mouth) for size in sizes]
    data = xr.concat(parts, "clip", data_vars="all")
    time = ("frame", np.arange(mouth.frames) / FPS, {"units": "s"})
    data = data.assign_coords(time=time, slot=list(mouth.grammar.slots))
    noise = "default" if mouth.noise is None else mouth.noise
    return data.assign_attrs(
        mode=mouth.mode, fps=FPS, noise=noise, first_frame=mouth.first_frame, durations=mouth.durations,
        speakers=speakers, seed=seed,
    )  # fmt: skip


def _part(speech: Speech, mouth: TalkingMouth) -> xr.Dataset:
    seen = speech.observation
    if mouth.mode == "frames":
        seen = (255 * seen).round().to(torch.uint8)
    texts = speech.texts
    times = {"units": "frame", "long_name": "of 40 ms, from the first of the clip"}
    return xr.Dataset(
        {
            "observation": (("clip", "frame", *DIMS[mouth.mode]), seen.numpy()),
            "transcript": ("clip", np.array(texts, dtype=object)),
            "speaker": ("clip", speech.speaker.numpy()),
            "word": (("clip", "slot"), np.array([text.split() for text in texts], dtype=object)),
            "word_start": (("clip", "slot"), speech.word_start.numpy(), times),
            "word_end": (("clip", "slot"), speech.word_end.numpy(), times),
        }
    )


def write_clips(folder: Path, data: xr.Dataset) -> list[Path]:
    """Write the file, and a sheet where there is something to see; returns their paths.

    Raises:
        InputError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {folder}: {(error.strerror or str(error)).lower()}") from error
    packed = {"observation": {"compression": "gzip", "compression_opts": 1}}
    files.write(folder / CLIPS, lambda path: data.to_netcdf(path, engine="h5netcdf", encoding=packed))
    if data.attrs["mode"] != "frames":
        return [folder / CLIPS]
    drawing = contact_sheet(data)
    files.write(folder / SHEET, lambda path: drawing.savefig(path, format="png", dpi=100, facecolor="white"))
    return [folder / CLIPS, folder / SHEET]


def contact_sheet(data: xr.Dataset, rows: int = 8, columns: int = 12) -> Drawing:
    """Pictures of the first clips at equal distances in time, a clip a row with its transcript."""
    from matplotlib.figure import Figure

    rows = min(rows, data.sizes["clip"])
    at = np.unique(np.linspace(0, data.sizes["frame"] - 1, columns).round().astype(int))
    figure = Figure(figsize=(0.75 * len(at), 0.8 * rows), layout="constrained")
    axes = figure.subplots(rows, 1, squeeze=False)[:, 0]
    for row, axis in enumerate(axes):
        clip = data.isel(clip=row)
        axis.imshow(np.concatenate(list(clip["observation"].values[at]), 1), cmap="gray", vmin=0, vmax=255)
        axis.set_title(f"{clip['transcript'].item()} (speaker {clip['speaker'].item()})", fontsize=7, loc="left", pad=2)
        axis.set_axis_off()
    return figure


def open_clips(path: Path) -> xr.Dataset:
    """The clips in a file of ``write_clips``.

    Raises:
        InputError: no such file, or not one of these.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        data = xr.load_dataset(path, engine="h5netcdf")
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a NetCDF file ({error})") from error
    absent = [name for name in ("observation", "transcript", "speaker", "word_start", "word_end") if name not in data]
    if absent or data.attrs.get("mode") not in DIMS:
        raise InputError(f"{path}: not clips of szilard lipreading simulate (no {absent[0] if absent else 'mode'})")
    for clip, text in enumerate(data["transcript"].values.tolist()):
        alphabet.check(str(text), f"{path}: transcript of clip {clip}")
    refused = np.argwhere(~np.isfinite(data["observation"].values.astype(np.float32)))
    if refused.size:
        clip, frame = (int(i) for i in refused[0][:2])
        raise InputError(f"{path}: clip {clip}: frame {frame} holds a number that is not finite")
    return data


def examples(
    data: xr.Dataset, to_clips: Callable[[Tensor, Tensor], Clips], device: torch.device | str = "cpu", size: int = 256
) -> Iterator[Examples]:
    """The clips of a file, some at a time.

    Args:
        data: of ``open_clips``.
        to_clips: makes what the model sees of uint8 frames ``(n, T, H, W)`` and lengths ``(n,)``; features and
            landmarks go to the model as they are.
        device: of the clips.
        size: clips at a time.
    """
    for begin in range(0, data.sizes["clip"], size):
        part = data.isel(clip=slice(begin, begin + size))
        seen = torch.from_numpy(part["observation"].values)
        length = torch.full((len(seen),), seen.shape[1])
        clips = to_clips(seen, length) if data.attrs["mode"] == "frames" else Clips(seen.float(), length)
        tokens, spelled = alphabet.encode([str(text) for text in part["transcript"].values.tolist()])
        words = np.stack([part["word_start"].values, part["word_end"].values], -1)
        clips = Clips(clips.frames.to(device), clips.length.to(device))
        yield Examples(
            clips,
            references(tokens.to(device), spelled.to(device)),
            torch.from_numpy(part["speaker"].values).to(device),
            torch.from_numpy(words).to(device),
        )

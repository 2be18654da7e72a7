"""Clips of a speaker as grey frames: video files, or folders of numbered JPEGs, at 25 frames a second."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.errors import InputError, require
from simulators.lips.crop import LONGEST_GAP, Crop, Haar, cut, filled, shift_between
from simulators.lips.sheets import FPS, LEAST_SIDE, Frames

FPS_TOLERANCE = 0.01
"""Share by which the rate of a clip may differ: 24 and 23.976 do not pass."""
LEAST_FRAMES = 5
LEAST_CONTRAST = 1.0
"""Standard deviation within a frame in grey levels; a clip that never has more shows nothing."""
LEAST_MOTION = 0.3
"""Mean change of a pixel from frame to frame in grey levels; a picture that stands still shows less."""
MOST_FRAMES = 3000
"""Of a clip that is decoded; an utterance is short, and a film would fill the memory."""
Frame = NDArray[np.floating]
"""One grey picture ``(H, W)``."""
SUFFIXES = frozenset({".mpg", ".mpeg", ".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v"})


@dataclass(frozen=True, eq=False)
class Video:
    """Decoded grey frames.

    Attributes:
        frames: ``(T, H, W)`` uint8.
        times: ``(T,)`` s, when each is shown, increasing; None for a folder of pictures.
    """

    frames: Frames
    times: NDArray[np.float64] | None

    @property
    def fps(self) -> float:
        """Frames a second, by the median distance of the time stamps; 25 where there are none."""
        return FPS if self.times is None or len(self.times) < 2 else float(1 / np.median(np.diff(self.times)))

    @property
    def gaps(self) -> int:
        """Frames that the time stamps say are absent between others."""
        if self.times is None or len(self.times) < 2:
            return 0
        return int(np.maximum(np.rint(np.diff(self.times) * self.fps) - 1, 0).sum())


@dataclass(frozen=True, eq=False)
class Clip:
    """The mouth of a clip.

    Attributes:
        frames: ``(T, H, W)`` uint8.
        missing: frames in which no mouth was found and the nearest one was too far to fill in.
        notes: what one should know about it, a line each.
    """

    frames: Frames
    missing: int
    notes: tuple[str, ...]


def load_clip(
    path: Path | str,
    *,
    resample: bool = False,
    crop: Crop | None = None,
    height: int = 32,
    width: int = 48,
    reference: Frame | None = None,
) -> Tensor:
    """The mouth ``(T, height, width)`` uint8 of a clip at 25 frames a second; see ``read_clip``.

    Raises:
        InputError: as ``read_clip``.
    """
    clip = read_clip(Path(path), resample=resample, crop=crop, height=height, width=width, reference=reference)
    return torch.from_numpy(clip.frames)


def read_clip(
    path: Path,
    *,
    resample: bool = False,
    crop: Crop | None = None,
    height: int = 32,
    width: int = 48,
    reference: Frame | None = None,
    first: int | None = None,
    last: int | None = None,
) -> Clip:
    """Decode a clip, check it, and cut out the mouth.

    Args:
        path: of a video file or a folder of JPEGs ``<n>.jpg``.
        resample: bring another rate to 25 frames a second by the time stamps, and do not refuse it.
        crop: finds the mouth; without it, ``Haar()``.
        height: of the result, pixels.
        width: of the result, pixels.
        reference: ``(height, width)`` mean of other clips of the same kind, onto which this one's mean is shifted:
            detected boxes differ by a pixel or two from clip to clip.
        first: number of the first picture of a folder.
        last: number of the last one.

    Raises:
        InputError: nothing can be decoded, or the clip is refused by ``check_frames``, ``rows_at_rate`` or the
            crop.
    """
    where = str(path)
    video = decode(path, first, last)
    check_frames(video.frames, where)
    rows = rows_at_rate(video, where, resample=resample)
    notes = []
    if video.gaps and not resample:
        notes.append(f"{where}: {video.gaps} frames are absent between others; resampling puts the rest in time")
    if resample and len(rows) != len(video.frames):
        notes.append(f"{where}: {len(video.frames)} frames at {video.fps:.4g} per second became {len(rows)} at {FPS:g}")
    # Landmarks count the frames of the file: the mouth is found and cut in these, whatever becomes of the rate.
    found = (Haar() if crop is None else crop).boxes(video.frames, where, width / height)
    boxes, marked = filled(found, LONGEST_GAP)
    missing = int(marked[rows].sum())
    if missing:
        notes.append(f"{where}: no mouth in {missing} of {len(rows)} frames; they show where it was last or next seen")
    mouth = cut(video.frames, boxes, height, width, where)[rows]
    if reference is not None:
        x, y = shift_between(mouth.mean(axis=0), reference, where)
        size = (boxes[:, 2:] - boxes[:, :2]) / [width, height]
        mouth = cut(video.frames, boxes + np.tile(size * [x, y], 2), height, width, where)[rows]
    check_frames(mouth, f"{where}: mouth")
    if plain := int((mouth.std(axis=(1, 2)) < LEAST_CONTRAST).sum()):
        notes.append(f"{where}: {plain} of {len(mouth)} frames are of one grey level")
    if np.abs(np.diff(mouth.astype(np.float32), axis=0)).mean() < LEAST_MOTION:
        notes.append(f"{where}: the mouth stands still; nothing is spoken, or one frame is repeated")
    return Clip(mouth, missing, tuple(notes))


def decode(path: Path, first: int | None = None, last: int | None = None) -> Video:
    """All frames of a video file, or of a folder of pictures ``<n>.jpg`` from number ``first`` to ``last``.

    Frames of a file that says how they are to be turned, as telephones write, are turned.

    Raises:
        InputError: no such file, nothing can be decoded, too many frames, or pictures that are absent or of two sizes.
    """
    if path.is_dir():
        return Video(_pictures(path, first, last), None)
    if not path.exists():
        raise InputError(f"{path}: no such file or directory")
    return _decode_file(path)


def rows_at_rate(video: Video, where: str, *, resample: bool = False) -> NDArray[np.intp]:
    """Which frames are shown at 25 a second, ``(T,)`` indices into ``video.frames`` that do not fall.

    Resampling takes, for each 1/25 s from the first time stamp to the last, the frame that is nearest in time.

    Args:
        video: decoded.
        where: the name that begins the message.
        resample: allow another rate.

    Raises:
        InputError: the rate is another, or a tenth of the frames are absent, and ``resample`` is off; or resampling
            would give more than 3000 frames.
    """
    if video.times is None:
        return np.arange(len(video.frames))
    if not resample:
        if abs(video.fps / FPS - 1) > FPS_TOLERANCE:
            raise InputError(
                f"{where}: {video.fps:.4g} frames per second; must be {FPS:g}, or resample it (--resample)"
            )
        if video.gaps * 10 > len(video.frames):
            raise InputError(
                f"{where}: {video.gaps} frames are absent between {len(video.frames)}; must be an even "
                f"{FPS:g} per second, or resample it (--resample)"
            )
        return np.arange(len(video.frames))
    times = video.times - video.times[0]
    # The last frame is shown for as long as the others are.
    count = max(1, round((times[-1] + 1 / video.fps) * FPS))
    # One time stamp that is wrong may lie hours after the others.
    if count > MOST_FRAMES:
        raise InputError(
            f"{where}: {len(times)} frames over {times[-1]:.4g} s by the time stamps; must be at most "
            f"{MOST_FRAMES / FPS:g} s to resample"
        )
    middle = (times[1:] + times[:-1]) / 2
    return np.searchsorted(middle, np.arange(count) / FPS - 1e-9)


def check_frames(frames: Frames | NDArray[np.floating] | Tensor, where: str) -> None:
    """Refuse frames ``(T, H, W)`` in which nothing can be read.

    Raises:
        InputError: fewer than 5 frames, fewer than 24 pixels on a side, a pixel that is NaN or infinite, or every frame
            is of one grey level.
    """
    pixels = frames.numpy(force=True) if isinstance(frames, Tensor) else frames
    if pixels.ndim != 3:
        raise InputError(f"{where}: shape {tuple(pixels.shape)}; must be (frames, height, width)")
    count, height, width = pixels.shape
    if count < LEAST_FRAMES:
        raise InputError(f"{where}: {count} frames; must be at least {LEAST_FRAMES}")
    if min(height, width) < LEAST_SIDE:
        raise InputError(
            f"{where}: {width}x{height} pixels (width x height); must be at least {LEAST_SIDE} on each side"
        )
    if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
        frame = int(np.flatnonzero(~np.isfinite(pixels).all(axis=(1, 2)))[0])
        raise InputError(f"{where}: frame {frame} holds a pixel that is NaN or infinite; must be finite")
    scale = 255 if pixels.dtype.kind == "f" and pixels.max() <= 1 else 1
    contrast = max(float(frame.std()) for frame in pixels) * scale
    if contrast < LEAST_CONTRAST:
        raise InputError(
            f"{where}: every frame is of one grey level (about {pixels.mean() * scale:.0f}); must show a face"
        )


def padded(frames: Frames, count: int) -> Frames:
    """Frames ``(count, H, W)``: the last one is repeated at the end."""
    return np.concatenate([frames, np.repeat(frames[-1:], max(0, count - len(frames)), axis=0)])


def _decode_file(path: Path) -> Video:
    av = require("av", "lipreading")
    frames: list[Frames] = []
    times: list[float | None] = []
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise InputError(f"{path}: holds no video")
            stream = container.streams.video[0]
            rate = float(stream.average_rate or FPS)
            for frame in container.decode(stream):
                if len(frames) == MOST_FRAMES:
                    raise InputError(f"{path}: more than {MOST_FRAMES} frames; cut it into utterances")
                # A telephone that is held upright writes lying frames and says how they are to be turned.
                turns = round(getattr(frame, "rotation", 0) / 90)
                frames.append(np.rot90(frame.to_ndarray(format="gray"), turns))
                times.append(frame.time)
    except av.FFmpegError as error:
        # A file that breaks off in its midst still gives the frames before; one that gives none is refused below.
        if not frames:
            raise InputError(f"{path}: no frame can be decoded ({error.strerror or error})") from error
    if not frames:
        raise InputError(f"{path}: no frame can be decoded")
    if len({frame.shape for frame in frames}) > 1:
        raise InputError(f"{path}: the size of the frames changes within the clip; must be one")
    stamps = np.array([np.nan if time is None else time for time in times])
    if np.isnan(stamps).any() or (np.diff(stamps) <= 0).any():
        stamps = np.arange(len(frames)) / rate
    return Video(np.stack(frames), stamps)


def _pictures(folder: Path, first: int | None, last: int | None) -> Frames:
    image = require("PIL.Image", "lipreading")
    found = {int(path.stem): path for path in folder.iterdir() if path.suffix == ".jpg" and path.stem.isdecimal()}
    if not found:
        raise InputError(f"{folder}: no frame can be decoded; must hold pictures <number>.jpg")
    start, end = min(found) if first is None else first, max(found) if last is None else last
    if end - start >= MOST_FRAMES:
        raise InputError(f"{folder}: more than {MOST_FRAMES} frames, {start}.jpg to {end}.jpg; cut it into utterances")
    if absent := [n for n in range(start, end + 1) if n not in found]:
        raise InputError(f"{folder}: {absent[0]}.jpg is absent between {start}.jpg and {end}.jpg")
    frames: list[Frames] = []
    for number in range(start, end + 1):
        try:
            with image.open(found[number], formats=("JPEG",)) as picture:
                frames.append(np.asarray(picture.convert("L")))
        except (OSError, SyntaxError, image.DecompressionBombError) as error:
            raise InputError(f"{found[number]}: not a JPEG that can be decoded ({error})") from error
        if frames[-1].shape != frames[0].shape:
            raise InputError(f"{found[number]}: another size than {found[start].name}; must be one")
    return np.stack(frames)

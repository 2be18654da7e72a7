"""What can be measured of one clip: its rate, its face, the cut around the mouth, and how that moves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from core.errors import InputError, MissingExtra
from simulators.lips.align import Alignment
from simulators.lips.crop import Boxes, Crop, Haar, cut, filled
from simulators.lips.pack import Pack
from simulators.lips.readers import Recording
from simulators.lips.sheets import Frames
from simulators.lips.video import Video, check_frames, decode, rows_at_rate


@dataclass(eq=False)
class Examined:
    """What is known of one clip; None where it could not be measured.

    Attributes:
        name: with its speaker before it where known.
        sentence: that is spoken, empty where not known.
        faults: messages, by the name of the check.
        fps: frames a second by the time stamps.
        frames: how many.
        size: width and height of a recorded frame, pixels.
        faces: share of the looked-at frames with a face.
        face: width of the face, pixels.
        head: standard deviation of the face's middle by its width.
        mouth: width and height of the cut before it was resized, pixels.
        brightness: mean grey level of the mouth.
        spread: standard deviation of its grey levels.
        motion: mean change of a pixel from frame to frame, grey levels.
        centre: where the movement lies, shares of the width and height.
        speech_motion: movement while words are spoken by movement in silence.
        scene: a recorded frame ``(H, W)``.
        box: of the mouth in it: left, top, right, bottom.
        cut: the mouth ``(T, h, w)``.
        words: when they are spoken.
    """

    name: str
    sentence: str = ""
    faults: dict[str, str] = field(default_factory=dict)
    fps: float | None = None
    frames: int | None = None
    size: tuple[int, int] | None = None
    faces: float | None = None
    face: float | None = None
    head: float | None = None
    mouth: tuple[float, float] | None = None
    brightness: float | None = None
    spread: float | None = None
    motion: float | None = None
    centre: tuple[float, float] | None = None
    speech_motion: float | None = None
    scene: NDArray[np.uint8] | None = None
    box: tuple[float, float, float, float] | None = None
    cut: Frames | None = None
    words: Alignment | None = None


def examine_utterance(pack: Pack, index: int) -> Examined:
    """Look at a clip of a pack; what it suffers from is in ``faults``."""
    utterance = pack.utterances[index]
    clip = Examined(named(utterance.speaker, utterance.name), utterance.sentence, fps=pack.fps)
    try:
        frames = pack.frames([index])[0, : utterance.frames or pack.n_frames].numpy()
    except InputError as error:
        clip.faults["readable"] = str(error)
        return clip
    clip.frames, clip.size, clip.mouth = len(frames), (pack.width, pack.height), (pack.width, pack.height)
    if utterance.missing:
        clip.faults["face"] = f"{clip.name}: no mouth was found in {utterance.missing} frames"
    _look(clip, frames, lambda: pack.alignment(index))
    return clip


def examine_recording(recording: Recording, crop: Crop, shape: tuple[int, int], nominal: int) -> Examined:
    """Look at a recording; what it suffers from is in ``faults``.

    Args:
        recording: of a reader.
        crop: finds the mouth.
        shape: height and width of the cut, pixels.
        nominal: frames that a clip should have, as alignments of shorter ones are made for so many.
    """
    clip = Examined(named(recording.speaker, recording.name), recording.sentence)
    where = str(recording.path)
    try:
        video = decode(recording.path, recording.first, recording.last)
        clip.frames, clip.size = len(video.frames), (video.frames.shape[2], video.frames.shape[1])
        check_frames(video.frames, where)
    except InputError as error:
        clip.faults["readable"] = str(error)
        return clip
    clip.fps = video.fps
    try:
        rows = rows_at_rate(video, where)
    except InputError as error:
        clip.faults["rate"] = str(error)
        rows = _resampled(video, where)
    if video.gaps and "rate" not in clip.faults:
        clip.faults["rate"] = f"{where}: {video.gaps} frames are absent between others"
    middle = rows[len(rows) // 2]
    clip.scene = video.frames[middle]
    try:
        # Landmarks count the frames of the file, not those at 25 a second.
        boxes, missing = filled(_boxes(clip, video.frames, where, crop, shape[1] / shape[0]))
        clip.box = tuple(boxes[middle])
        clip.mouth = (float(np.median(boxes[:, 2] - boxes[:, 0])), float(np.median(boxes[:, 3] - boxes[:, 1])))
        if missing[rows].any():
            clip.faults["face"] = f"{where}: no mouth in {int(missing[rows].sum())} of {len(rows)} frames"
        mouth = cut(video.frames, boxes, *shape, where)[rows]
    except InputError as error:
        clip.faults["face"] = str(error)
        return clip
    if not isinstance(crop, Haar) and shows_face(video.frames, boxes):
        clip.faults["crop"] = f"{where}: the cut shows a whole face; must be the mouth alone (--crop)"
    align = recording.align
    spoken = len(rows)
    _look(clip, mouth, None if align is None else lambda: align(max(nominal, spoken), spoken))
    return clip


def measure(frames: Frames) -> tuple[float, float, float, tuple[float, float]]:
    """Of a mouth ``(T, H, W)``: mean grey level, spread within frames, change from frame to frame, and its centre.

    The centre is the mean place of the pixels that change more than the median pixel, weighted by how much more; as
    shares of the width and height.
    """
    grey = frames.astype(np.float32)
    change = np.abs(np.diff(grey, axis=0)).mean(axis=0)
    weight = np.maximum(change - np.median(change), 0)
    total = float(weight.sum())
    height, width = change.shape
    x, y = (np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height
    centre = (float((weight.sum(0) @ x) / total), float((weight.sum(1) @ y) / total)) if total > 0 else (0.5, 0.5)
    return float(grey.mean()), float(grey.std(axis=(1, 2)).mean()), float(change.mean()), centre


def shows_face(frames: Frames, boxes: Boxes) -> bool:
    """Whether most of the looked-at frames ``(T, H, W)`` have a whole face in the first box; no without OpenCV."""
    high, wide = frames.shape[1:]
    left, top, right, bottom = np.clip(boxes[0], 0, [wide, high, wide, high]).astype(int)
    try:
        faces = Haar().faces(np.ascontiguousarray(frames[:, top:bottom, left:right]))
    except (InputError, MissingExtra):
        return False
    return bool(np.isnan(faces[:, 0]).mean() < 0.5)


def speech_motion(frames: Frames, words: Alignment) -> float | None:
    """Change from frame to frame while words are spoken by that in silence; None where there is no silence."""
    change = np.abs(np.diff(frames.astype(np.float32), axis=0)).mean(axis=(1, 2))
    # Change i is between the middles of frames i and i + 1.
    time = np.arange(len(change)) + 1.0
    spoken = (time >= words.onset) & (time <= words.offset)
    if spoken.all() or not spoken.any():
        return None
    return float(change[spoken].mean() / max(float(change[~spoken].mean()), 1e-6))


def named(speaker: str, name: str) -> str:
    """How a clip is called on a page."""
    return f"{speaker}/{name}" if speaker else name


def _resampled(video: Video, where: str) -> NDArray[np.intp]:
    try:
        return rows_at_rate(video, where, resample=True)
    except InputError:
        # Its time stamps are wrong, which has been told; the rest can still be looked at.
        return np.arange(len(video.frames))


def _boxes(clip: Examined, frames: Frames, where: str, crop: Crop, shape: float) -> Boxes:
    if not isinstance(crop, Haar):
        return crop.boxes(frames, where, shape)
    faces = crop.faces(frames)
    seen = faces[~np.isnan(faces[:, 0])]
    clip.faces = len(seen) / len(faces)
    if len(seen):
        clip.face = float(np.median(seen[:, 2]))
        middle = seen[:, :2] + seen[:, 2:] / 2
        clip.head = float(np.linalg.norm(middle.std(axis=0)) / clip.face)
    return np.tile(crop.mouth(faces, where, shape), (len(frames), 1))


def _look(clip: Examined, mouth: Frames, align: Callable[[], Alignment | None] | None) -> None:
    clip.cut = mouth
    clip.brightness, clip.spread, clip.motion, clip.centre = measure(mouth)
    try:
        check_frames(mouth, f"{clip.name}: mouth")
    except InputError as error:
        clip.faults["black"] = str(error)
    if align is None:
        return
    try:
        clip.words = align()
    except InputError as error:
        clip.faults["alignment"] = str(error)
        return
    if clip.words is not None:
        clip.speech_motion = speech_motion(mouth, clip.words)

"""Where the mouth is: four ways to say it, and cutting it out.

A crop gives one box a frame, ``(T, 4)`` float64 with left, top, right and bottom in pixels, NaN where no mouth was
found. Short gaps are filled from their neighbours (``filled``), longer ones marked.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from core.errors import InputError, require
from simulators.lips.sheets import LEAST_SIDE, Frames
from simulators.lips.tables import read_rows

Boxes = NDArray[np.float64]
Marks = NDArray[np.bool_]

LONGEST_GAP = 5
"""Frames without a mouth that are filled from their neighbours."""
FACE_DROP, FACE_HALF_WIDTH = 0.80, 0.24
"""Of a frontal face box: the mouth's height below its top, and half the width of the cut, by the box's sides."""
MOUTH_HALF_WIDTH = 0.73
"""Half the width of the cut by the distance of the corners of the mouth: the same cut as of a face box."""
MOST_SHIFT = 6.0
"""Pixels of the cut by which two clips of a kind may differ."""
SMOOTHED = 11
"""Frames over which the middle of tracked landmarks is averaged, so that the cut does not shake."""


class Crop(Protocol):
    """Finds the mouth in a clip."""

    def boxes(self, frames: Frames, where: str, shape: float) -> Boxes:
        """Boxes ``(T, 4)`` in frames ``(T, H, W)``, NaN where there is no mouth.

        Args:
            frames: grey.
            where: path of the clip, which begins each message.
            shape: width of a box by its height.
        """


@dataclass(frozen=True)
class Whole:
    """The whole frame: the clip has been cropped already."""

    def boxes(self, frames: Frames, where: str, shape: float) -> Boxes:
        """One box, of all pixels; its shape is the clip's, and a resize may stretch it."""
        count, height, width = frames.shape
        return np.tile(np.array([0.0, 0.0, width, height]), (count, 1))


@dataclass(frozen=True)
class FixedBox:
    """Rows ``top:bottom`` and columns ``left:right`` of every frame, as with LRW (115:211, 79:175)."""

    top: int
    bottom: int
    left: int
    right: int

    def __post_init__(self) -> None:
        if not (0 <= self.top < self.bottom and 0 <= self.left < self.right):
            raise InputError(f"crop {self.top}:{self.bottom},{self.left}:{self.right}: must rise within both pairs")

    def boxes(self, frames: Frames, where: str, shape: float) -> Boxes:
        """One box.

        Raises:
            InputError: it is not within the frame.
        """
        count, height, width = frames.shape
        if self.bottom > height or self.right > width:
            raise InputError(
                f"{where}: crop {self.top}:{self.bottom},{self.left}:{self.right} is not within {height} rows and "
                f"{width} columns"
            )
        return np.tile(np.array([self.left, self.top, self.right, self.bottom], dtype=float), (count, 1))


@dataclass(frozen=True)
class Haar:
    """The mouth of a frontal face: the median of Haar detections, one box for the whole clip.

    Attributes:
        every: frames between two detections.
    """

    every: int = 12

    def __post_init__(self) -> None:
        if self.every < 1:
            raise InputError(f"crop: every = {self.every}: must be at least 1")

    def faces(self, frames: Frames) -> Boxes:
        """Largest face ``(n, 4)`` with left, top, width, height of every ``every``-th frame, NaN where none is."""
        cv2 = require("cv2", "crop")
        detector = _detector(cv2)
        # Faces of less than a sixth of the frame would leave a mouth of too few pixels.
        least = max(24, min(frames.shape[1:]) // 6)
        found = np.full((len(frames[:: self.every]), 4), np.nan)
        for row, frame in zip(found, frames[:: self.every], strict=True):
            faces = detector.detectMultiScale(frame, scaleFactor=1.1, minNeighbors=5, minSize=(least, least))
            if len(faces):
                row[:] = max(faces, key=lambda box: box[2] * box[3])
        return found

    def boxes(self, frames: Frames, where: str, shape: float) -> Boxes:
        """One box for all frames.

        Raises:
            InputError: no face is found.
        """
        return np.tile(self.mouth(self.faces(frames), where, shape), (len(frames), 1))

    def mouth(self, faces: Boxes, where: str, shape: float) -> Boxes:
        """The box ``(4,)`` of the mouth below the median of faces.

        Raises:
            InputError: there is no face.
        """
        seen = faces[~np.isnan(faces[:, 0])]
        if not len(seen):
            raise InputError(f"{where}: no face found in {len(faces)} frames; cut it yourself and use the crop 'whole'")
        left, top, width, height = np.median(seen, axis=0)
        half = FACE_HALF_WIDTH * width
        x, y = left + width / 2, top + FACE_DROP * height
        return np.array([x - half, y - half / shape, x + half, y + half / shape])


@dataclass(frozen=True)
class Landmarks:
    """The mouth by tracked points: for each clip ``<its folder>/<stem>.csv`` or ``<stem>.csv`` in a folder.

    Its columns are ``frame`` (from 0) and ``x0,y0,x1,y1,...`` in pixels: 20 points of the lips, the first and the
    seventh at the corners, or the 68 of a face of which these are 48 to 67. A row that is absent, or has an empty
    cell, is a frame without a face.
    """

    folder: Path

    def boxes(self, frames: Frames, where: str, shape: float) -> Boxes:
        """A box of one size around the points, which moves with their smoothed middle.

        Raises:
            InputError: no such file, a bad cell, or a frame that the clip has not.
        """
        points = self.points(len(frames), Path(where))
        size = MOUTH_HALF_WIDTH * float(np.nanmedian(np.linalg.norm(points[:, 6] - points[:, 0], axis=1)))
        middle = points.mean(axis=1)
        gap = np.isnan(middle[:, 0])
        filled_in, _ = filled(np.concatenate([middle, middle], axis=1), LONGEST_GAP)
        smooth = np.stack([_smoothed(filled_in[:, i]) for i in range(2)], axis=1)
        half = np.array([size, size / shape])
        found = np.concatenate([smooth - half, smooth + half], axis=1)
        found[gap] = np.nan
        return found

    def points(self, count: int, clip: Path) -> NDArray[np.float64]:
        """The lips ``(T, 20, 2)`` in pixels, NaN where there is no face.

        Raises:
            InputError: as ``boxes``.
        """
        path = self.folder / clip.parent.name / f"{clip.stem}.csv"
        path = path if path.exists() else self.folder / path.name
        rows = read_rows(path)
        wide = len(rows[0]) if rows else 0
        if wide not in (1 + 2 * 20, 1 + 2 * 68) or rows[0][0] != "frame":
            raise InputError(f"{path}: {wide} columns; must be frame and x,y of 20 or 68 points")
        found = np.full((count, (wide - 1) // 2, 2), np.nan)
        for number, row in enumerate(rows[1:], start=2):
            if len(row) != wide:
                raise InputError(f"{path}: row {number}: {len(row)} cells; must be {wide}, as the header")
            if not row[0].isdecimal() or int(row[0]) >= count:
                raise InputError(f"{path}: row {number}: frame {row[0]!r}; the clip has frames 0 to {count - 1}")
            if all(row[1:]):
                found[int(row[0])] = _numbers(row[1:], f"{path}: row {number}").reshape(-1, 2)
        if np.isnan(found[:, 0, 0]).all():
            raise InputError(f"{path}: no frame has a face")
        return found if found.shape[1] == 20 else found[:, 48:68]


def parse_crop(text: str, landmarks: Path | None = None) -> Crop:
    """The crop that a word of the command line means.

    Args:
        text: ``haar``, ``whole``, ``landmarks``, or ``TOP:BOTTOM,LEFT:RIGHT`` in pixels.
        landmarks: folder of their files.

    Raises:
        InputError: neither of these, landmarks without their folder, or a folder of landmarks for another crop.
    """
    if landmarks is not None and text != "landmarks":
        raise InputError("--landmarks: only with --crop landmarks")
    if match := re.fullmatch(r"(\d+):(\d+),(\d+):(\d+)", text):
        return FixedBox(*map(int, match.groups()))
    if text == "landmarks":
        if landmarks is None:
            raise InputError("crop landmarks: needs the folder of their files")
        return Landmarks(landmarks)
    simple: dict[str, Crop] = {"haar": Haar(), "whole": Whole()}
    if text not in simple:
        raise InputError(f"crop {text!r}: must be haar, whole, landmarks, or TOP:BOTTOM,LEFT:RIGHT in pixels")
    return simple[text]


def filled(boxes: Boxes, longest: int = LONGEST_GAP) -> tuple[Boxes, Marks]:
    """Boxes without NaN, and which of them only repeat a neighbour.

    Gaps of at most ``longest`` frames are interpolated in time (held at the ends of the clip); longer ones hold the
    nearest box and are marked.

    Args:
        boxes: ``(T, 4)``, not all NaN.
        longest: frames.

    Returns:
        Boxes ``(T, 4)`` and marks ``(T,)``.
    """
    gap = np.isnan(boxes).any(axis=1)
    time, seen = np.arange(len(boxes)), np.flatnonzero(~gap)
    whole = np.stack([np.interp(time, seen, boxes[seen, i]) for i in range(boxes.shape[1])], axis=1)
    marked = np.zeros(len(boxes), dtype=bool)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], gap.astype(int), [0]])))
    for start, end in edges.reshape(-1, 2):
        if end - start > longest:
            marked[start:end] = True
            near = seen[np.abs(time[start:end, None] - seen).argmin(axis=1)]
            whole[start:end] = boxes[near]
    return whole, marked


def cut(frames: Frames, boxes: Boxes, height: int, width: int, where: str) -> Frames:
    """What is in the boxes, resized with averaging to ``(T, height, width)``; a box that leaves the frame is moved in.

    Raises:
        InputError: a box is larger than the frame, or has fewer than 24 pixels on a side.
    """
    image = require("PIL.Image", "lipreading")
    high, wide = frames.shape[1:]
    sizes = boxes[:, 2:] - boxes[:, :2]
    small, large = sizes.min(axis=0), sizes.max(axis=0)
    if small.min() < LEAST_SIDE:
        raise InputError(
            f"{where}: the mouth has {small[0]:.0f}x{small[1]:.0f} pixels (width x height); must be at least "
            f"{LEAST_SIDE} on each side"
        )
    if large[0] > wide or large[1] > high:
        raise InputError(f"{where}: the box of the mouth, {large[0]:.0f}x{large[1]:.0f}, is larger than the frame")
    left = np.clip(boxes[:, 0], 0, wide - sizes[:, 0])
    top = np.clip(boxes[:, 1], 0, high - sizes[:, 1])
    out = np.empty((len(frames), height, width), dtype=np.uint8)
    for i, frame in enumerate(frames):
        box = (left[i], top[i], min(left[i] + sizes[i, 0], wide), min(top[i] + sizes[i, 1], high))
        out[i] = np.asarray(image.fromarray(frame).resize((width, height), image.Resampling.BILINEAR, box=box))
    return out


def shift_between(picture: NDArray[np.floating], reference: NDArray[np.floating], where: str) -> tuple[float, float]:
    """How far right and down the content of a picture lies from where it lies in a reference, in pixels.

    Phase correlation with a Hann window, and a parabola through the peak; (0, 0) where the peak is further than
    ``MOST_SHIFT`` away, as two pictures of different things have no shift. Kuglin and Hines, 1975.

    Args:
        picture: ``(H, W)``.
        reference: ``(H, W)``.
        where: the name that begins the message.

    Raises:
        InputError: the two differ in size.
    """
    if picture.shape != reference.shape:
        raise InputError(f"{where}: {picture.shape} pixels; the reference has {reference.shape}")
    window = np.outer(*(np.hanning(n + 2)[1:-1] for n in picture.shape))
    a, b = (np.fft.fft2((x - x.mean()) * window) for x in (picture, reference))
    cross = a * b.conj()
    surface = np.fft.ifft2(cross / np.maximum(np.abs(cross), 1e-12)).real
    peak = np.unravel_index(surface.argmax(), surface.shape)
    found = []
    for axis, (place, size) in enumerate(zip(peak, surface.shape, strict=True)):
        before, top, after = (surface.take((place + d) % size, axis)[peak[1 - axis]] for d in (-1, 0, 1))
        bend = before - 2 * top + after
        whole = (place + size // 2) % size - size // 2
        found.append(float(whole + (0.5 * (before - after) / bend if bend < 0 else 0.0)))
    y, x = found
    return (x, y) if max(abs(x), abs(y)) <= MOST_SHIFT else (0.0, 0.0)


def _detector(cv2: Any) -> Any:
    if not hasattr(cv2, "CascadeClassifier"):
        raise InputError(f"cv2 {cv2.__version__}: has no Haar cascades; must be opencv-python-headless below 5")
    return cv2.CascadeClassifier(str(Path(cv2.data.haarcascades) / "haarcascade_frontalface_default.xml"))


def _smoothed(values: NDArray[np.float64]) -> NDArray[np.float64]:
    half = min(SMOOTHED, len(values)) // 2
    padded = np.pad(values, half, mode="edge")
    return np.convolve(padded, np.full(2 * half + 1, 1 / (2 * half + 1)), mode="valid")


def _numbers(cells: list[str], where: str) -> NDArray[np.float64]:
    try:
        found = np.array([float(cell) for cell in cells])
    except ValueError as error:
        raise InputError(f"{where}: {error}; must be pixels") from None
    if not np.isfinite(found).all():
        raise InputError(f"{where}: holds a number that is not finite; leave the cells of a frame without a face empty")
    return found

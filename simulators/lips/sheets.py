"""A clip as one JPEG: its grey frames side by side, so that a corpus is a few files and not millions."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray

from core.errors import InputError, require

Frames = NDArray[np.uint8]
"""Grey frames ``(T, H, W)``."""

FPS = 25.0
"""Frames a second of every prepared clip."""
LEAST_SIDE = 24
"""Pixels; a smaller mouth shows nothing."""
COLUMNS = 15
"""Frames in a row of a sheet."""
QUALITY = 90
"""Of the JPEG, as Pillow counts."""


def encode_sheet(frames: Frames, columns: int = COLUMNS, quality: int = QUALITY) -> bytes:
    """Frames ``(T, H, W)`` as a grey JPEG, row-major in time: frame ``i`` at column ``i % columns``, row
    ``i // columns``. Places that are left over repeat the last frame.
    """
    image = require("PIL.Image", "lipreading")
    count, height, width = frames.shape
    rows = -(-count // columns)
    filled = np.concatenate([frames, np.repeat(frames[-1:], rows * columns - count, axis=0)])
    sheet = filled.reshape(rows, columns, height, width).transpose(0, 2, 1, 3).reshape(rows * height, columns * width)
    stream = io.BytesIO()
    image.fromarray(np.ascontiguousarray(sheet)).save(stream, format="JPEG", quality=quality)
    return stream.getvalue()


def decode_sheet(
    data: bytes, where: str, frames: int, columns: int = COLUMNS, size: tuple[int, int] | None = None
) -> Frames:
    """The frames ``(T, H, W)`` of a sheet; see ``encode_sheet``.

    Args:
        data: the JPEG.
        where: the name that begins each message.
        frames: T.
        columns: frames in a row.
        size: (H, W) that each frame must have.

    Raises:
        InputError: no picture, or not of the size that so many frames need.
    """
    image = require("PIL.Image", "lipreading")
    try:
        with image.open(io.BytesIO(data), formats=("JPEG",)) as picture:
            sheet = np.asarray(picture.convert("L"))
    except (OSError, ValueError, SyntaxError, image.DecompressionBombError) as error:
        raise InputError(f"{where}: not a JPEG that can be decoded ({error})") from error
    rows = -(-frames // columns)
    high, wide = sheet.shape
    if high % rows or wide % columns:
        raise InputError(f"{where}: {wide}x{high} pixels do not divide into {columns} columns x {rows} rows of frames")
    height, width = high // rows, wide // columns
    if size is not None and (height, width) != size:
        raise InputError(f"{where}: frames of {width}x{height} (width x height); must be {size[1]}x{size[0]}")
    split = sheet.reshape(rows, height, columns, width).transpose(0, 2, 1, 3).reshape(rows * columns, height, width)
    return np.ascontiguousarray(split[:frames])

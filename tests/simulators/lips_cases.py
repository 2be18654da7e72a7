"""Small clips, written where a test wants them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np

from core.errors import require
from simulators.lips.sheets import Frames

SENTENCES = {
    "bbaf2n": "bin blue at f two now",
    "lwbsza": "lay white by s zero again",
    "pgwx9p": "place green with x nine please",
    "sriozs": "set red in o zero soon",
}


def shared() -> Path:
    """The folder of the shared lip-reading data, which may be absent."""
    root = os.environ.get("SZILARD_DATA") or Path(__file__).parents[2].parent / "shared" / "data"
    return Path(root) / "lipreading"


def mouth(
    count: int = 75, height: int = 48, width: int = 64, seed: int = 0, middle: tuple[float, float] = (0.5, 0.5)
) -> Frames:
    """A dark ellipse on shaded skin that opens and shuts between the frames 14 and 50 and rests before and after."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    y, x = y / height - middle[1], x / width - middle[0]
    time = np.arange(count)
    moving = (time >= 14) & (time < 50)
    opening = 0.05 + np.where(moving, 0.12 * np.abs(np.sin(0.9 * (time - 14) + seed)), 0.0)
    inside = (x[None] / 0.25) ** 2 + (y[None] / opening[:, None, None]) ** 2 < 1
    grey = 150 + 40 * x[None] + 20 * y[None] - 90 * inside + generator.normal(0, 1, (count, height, width))
    return grey.clip(0, 255).astype(np.uint8)


def write_video(
    path: Path, frames: Frames, fps: int = 25, codec: str = "mpeg1video", stamps: Sequence[int] | None = None
) -> Path:
    """A video file; ``stamps`` are the time stamps in 1/1000 s."""
    av = require("av", "lipreading")
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.height, stream.width = frames.shape[1:]
        stream.pix_fmt, stream.bit_rate = "yuv420p", 4_000_000
        if stamps is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for i, grey in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.repeat(grey[..., None], 3, axis=2), format="rgb24")
            frame.pts = i if stamps is None else stamps[i]
            frame.time_base = Fraction(1, fps) if stamps is None else Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_pictures(folder: Path, frames: Frames, first: int = 1) -> Path:
    """A folder of JPEGs ``<n>.jpg``."""
    image = require("PIL.Image", "lipreading")
    folder.mkdir(parents=True, exist_ok=True)
    for number, frame in enumerate(frames, start=first):
        image.fromarray(frame).save(folder / f"{number}.jpg", quality=95)
    return folder


def align_text(sentence: str, start: int = 14, step: int = 6, blanks: str = "") -> str:
    """An alignment of a sentence, each word as long, silence before and after in a clip of 75 frames."""
    words = sentence.split()
    edges = [1000 * (start + i * step) for i in range(len(words) + 1)]
    rows = [(0, edges[0], "sil"), *zip(edges, edges[1:], words, strict=False), (edges[-1], 74500, "sil")]
    return "".join(f"{a} {b} {word}{blanks}\n" for a, b, word in rows)


def write_grid(
    root: Path, names: Sequence[str] = tuple(SENTENCES), speakers: Sequence[str] = ("s1", "s3"), frames: int = 75
) -> Path:
    """A corpus in the layout ``<root>/s1/*.mpg`` and ``<root>/alignments/s1/*.align``."""
    for number, speaker in enumerate(speakers):
        (root / "alignments" / speaker).mkdir(parents=True)
        for seed, name in enumerate(names):
            write_video(root / speaker / f"{name}.mpg", mouth(frames, seed=10 * number + seed))
            (root / "alignments" / speaker / f"{name}.align").write_text(align_text(SENTENCES[name]))
    return root
